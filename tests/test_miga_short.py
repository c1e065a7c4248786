"""MIGA's videos shorter than a window: stage 2 still sees whole windows."""

import dataclasses

import pytest
import torch
from analytic import PROMPTS, AnalyticBackbone
from test_sampling import NOISE, SMALL

from miga_bench.sampling import Miga, estimate_windows


@pytest.mark.parametrize(("stage2", "renoise"), [(3, 2), (3, 0), (0, 2)])
@pytest.mark.parametrize("length", [1, 3, 8, 9])
def test_a_short_video_is_finished_in_whole_windows(length, stage2, renoise):
    """Breaks if a video shorter than a window is finished as a shorter clip than the model was trained on."""
    backbone = AnalyticBackbone("wan", window=8)
    inner, seen = backbone.denoiser, set()

    def looked_at(latents, timesteps, text):
        seen.add(latents.shape[2])
        return inner(latents, timesteps, text)

    backbone.denoiser = looked_at
    settings = dataclasses.replace(SMALL, guidance_frames=0, stage2_steps=stage2, renoise=renoise)
    made = torch.stack(list(Miga(settings).stream(backbone, PROMPTS, NOISE, length)))
    assert len(made) == length
    assert seen == {8}


def test_without_stage_2_a_short_video_takes_no_more_chunks_than_it_shows():
    bare = dataclasses.replace(SMALL, guidance_frames=0, stage2_steps=0, renoise=0)
    backbone = AnalyticBackbone("wan", window=8)
    windows = [estimate_windows(Miga(bare), backbone, length) for length in (1, 5, 9)]
    assert windows[0] < windows[1] < windows[2]
