"""A video and its lossy copy score alike, within amounts that the scores' page states."""

import random

import pytest
import torch

from miga_bench.backbones.tiny import world
from miga_bench.backbones.tiny.grammar import held_out_prompts, parse_caption
from miga_bench.media import VideoWriter, read_video, to_uint8
from miga_bench.metrics import MotionSmoothness, SubjectConsistency, TemporalFlickering

# largest differences seen over 12 clips, rounded up; see miga_bench/metrics/README.md
BOUNDS = {
    "subject_consistency": 0.002,
    "motion_smoothness": 0.007,
    "temporal_flickering": 0.005,
}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("copies")
    found = []
    for k, prompt in enumerate(held_out_prompts(4)):
        look = world.draw_look(parse_caption(prompt), random.Random(k))
        frames = to_uint8(world.render(look, 33))
        path = folder / f"{k}.mp4"
        with VideoWriter(path, 16) as writer:
            writer.push(frames)
        found.append((frames, torch.stack(list(read_video(path)))))
    return found


@pytest.mark.parametrize("score", [SubjectConsistency, MotionSmoothness, TemporalFlickering])
def test_a_copy_scores_as_its_original(score, pairs):
    for frames, copy in pairs:
        assert not torch.equal(frames, copy)  # the copy is lossy
        values = []
        for video in (frames, copy):
            one = score()
            one.update(video)
            values.append(one.compute().item())
        assert abs(values[0] - values[1]) <= BOUNDS[score.name], (score.name, values)
