"""Texts that change: what openings, short clips and FIFO's windows as released are told."""

import dataclasses
from pathlib import Path

import pytest
import torch
from analytic import PROMPTS, AnalyticBackbone
from test_sampling import NOISE, SMALL
from test_scaling_noise import SMALL as SEARCHED

from miga_bench.errors import UserError
from miga_bench.harness.request import DEFAULT_FRAMES, GenerateRequest, PromptAt
from miga_bench.harness.video import length as length_of
from miga_bench.sampling import Fifo, FifoSettings, FreeLong, Miga, PromptSchedule, ScalingNoise
from miga_bench.sampling.base import Sampler
from miga_bench.sampling.cards import _length_and_memory
from miga_bench.sampling.miga import _Video
from miga_bench.sampling.short import Short, ShortSettings

WINDOW = 8
SAMPLERS = {
    "fifo": Fifo(FifoSettings(12, 1.0, batch=1)),
    "fifo, released": Fifo(FifoSettings(12, 1.0, released=True, batch=1)),
    "scaling-noise": ScalingNoise(dataclasses.replace(SEARCHED, guidance_scale=1.0, batch=1)),
    "miga": Miga(dataclasses.replace(SMALL, guidance_scale=1.0, batch=1)),
    "miga, anchored": Miga(
        dataclasses.replace(SMALL, guidance_scale=1.0, batch=1, guidance_reach="anchor")
    ),
}


def numbered(*starts):
    """Return prompts whose text is their number."""
    text = torch.arange(len(starts)).float()[:, None, None]
    return PromptSchedule(text, PROMPTS.negative, starts)


class Listening(AnalyticBackbone):
    """Keeps the text and the timesteps of every row."""

    def __init__(self):
        super().__init__("wan", window=WINDOW)
        self.told, known = [], self.denoiser

        def listen(latents, timesteps, text):
            rows = zip(text.flatten(1)[:, 0].tolist(), timesteps.tolist(), strict=True)
            self.told += rows
            return known(latents, timesteps, text)

        self.denoiser = listen


@pytest.mark.parametrize("starts", [(), (1,), (0, 4, 4), (0, 5, 4)])
def test_prompts_begin_with_the_video_and_one_after_the_other(starts):
    with pytest.raises(ValueError, match="must rise strictly from 0"):
        numbered(*starts)
    with pytest.raises(ValueError, match="1 prompts need as many starts"):
        PromptSchedule(PROMPTS.text, PROMPTS.negative, (0, 4))


@pytest.mark.parametrize("starts", [(0, 1), (0, 4), (0, 1, 2, 3)])
@pytest.mark.parametrize("name", SAMPLERS)
def test_the_opening_clip_shows_the_first_prompt(name, starts):
    """A text that begins before the middle of the first window made the whole opening its own."""
    backbone = Listening()
    SAMPLERS[name].sample(backbone, numbered(*starts), NOISE, 12)
    opening, rest = backbone.told[:12], backbone.told[12:]
    assert {text for text, _ in opening} == {0.0}
    assert all(len(set(levels)) == 1 for _, levels in opening), "one clip, on shared levels"
    assert float(len(starts) - 1) in {text for text, _ in rest}


@pytest.mark.parametrize("start", [1, 4])
def test_the_first_anchors_are_of_the_first_prompt(start, monkeypatch):
    kept, opened = [], _Video._open

    def watch(video):
        opened(video)
        kept.append(video.denoiser.anchors.sets[0])

    monkeypatch.setattr(_Video, "_open", watch)
    for starts in ((0,), (0, start)):
        backbone = AnalyticBackbone("wan", window=WINDOW)
        SAMPLERS["miga, anchored"].sample(backbone, numbered(*starts), NOISE, 4)
    assert torch.equal(*kept)


def test_the_released_fifo_tells_all_windows_the_prompt_of_the_frame_that_leaves():
    backbone, prompts = Listening(), numbered(0, 3, 5)
    SAMPLERS["fifo, released"].sample(backbone, prompts, NOISE, 7)
    passes = 12 - WINDOW + 7  # the warm-up first
    told = [text for text, _ in backbone.told[12:]]
    windows = len(told) // passes
    by_pass = [set(told[k : k + windows]) for k in range(0, len(told), windows)]
    assert by_pass == [{0.0}] * (12 - WINDOW + 3) + [{1.0}] * 2 + [{2.0}] * 2
    # ours, long before: the frames that a new text is for are denoised under it from the top on
    backbone.told.clear()
    SAMPLERS["fifo"].sample(backbone, prompts, NOISE, 7)
    assert 2.0 in {text for text, _ in backbone.told[12 : 12 + windows]}


def test_a_method_of_ones_own_says_what_it_is():
    """Breaks if only our own classes may make a clip, or the whole video at once."""

    class Mine(Sampler):
        name, endless = "mine", False

        def stream(self, *arguments):
            raise AssertionError("not asked for")

    class Clip(Mine):
        one_clip = True

    class Whole(Mine):
        at_once = True

    request = GenerateRequest([PromptAt("a")], Path("a.mp4"))
    backbone = AnalyticBackbone("wan", window=WINDOW)
    settings = ShortSettings(12, 1.0)
    asked = [length_of(request, kind(settings), backbone) for kind in (Mine, Clip, Whole)]
    assert asked == [DEFAULT_FRAMES, backbone.frames_of(WINDOW), DEFAULT_FRAMES]
    assert _length_and_memory(Whole) == _length_and_memory(FreeLong)
    assert _length_and_memory(Clip) == _length_and_memory(Short)


@pytest.mark.parametrize(("length", "start"), [(8, 1), (8, 7), (5, 4)])
def test_short_refuses_a_text_that_begins_within_it(length, start):
    """It made the whole clip under either text, and said nothing."""
    sampler, backbone = Short(ShortSettings(12, 1.0)), AnalyticBackbone("wan", window=WINDOW)
    with pytest.raises(UserError, match="short makes the whole video under one prompt") as refused:
        sampler.sample(backbone, numbered(0, start), NOISE, length)
    assert "\n" not in str(refused.value)
    plain = sampler.sample(backbone, numbered(0), NOISE, length)
    assert torch.equal(sampler.sample(backbone, numbered(0, length), NOISE, length), plain)
