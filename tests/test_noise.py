"""Noise is a function of its key, and within a video no two uses share a key."""

import dataclasses
from collections import Counter

import pytest
import torch
from analytic import PROMPTS, AnalyticBackbone
from hypothesis import given
from hypothesis import strategies as st
from test_freelong import BANDS
from test_sampling import SMALL
from test_scaling_noise import SMALL as SEARCHED

from miga_bench.backbones.base import LatentShape
from miga_bench.sampling import CounterNoise, Fifo, FifoSettings, Miga, PromptSchedule, ScalingNoise
from miga_bench.sampling.freelong import FreeLong


@given(st.integers(0, 5), st.lists(st.integers(-50, 500), min_size=1, max_size=6, unique=True))
def test_noise_is_a_function_of_its_key(seed, frames):
    shape = LatentShape(2, 3, 3)
    together = CounterNoise(seed, shape)(frames, "queue", 3)
    for row, frame in zip(together, frames, strict=True):
        alone = CounterNoise(seed, shape)([frame], "queue", [3])[0]
        assert torch.equal(row, alone)
        assert not torch.equal(row, CounterNoise(seed, shape)([frame], "seed", 3)[0])
        assert not torch.equal(row, CounterNoise(seed, shape)([frame], "queue", 4)[0])
        assert not torch.equal(row, CounterNoise(seed + 1, shape)([frame], "queue", 3)[0])


def test_a_keys_noise_is_what_it_was():
    """Breaks if a seed stands for another video than in the versions before, or keys run into each other."""
    draw = CounterNoise(7, LatentShape(1, 1, 3))
    wanted = {
        (5, "queue", 2): [0.341071248, -2.014769077, 0.15164423],
        (5, "seed", 0): [-0.342172712, -0.805617452, -1.257985234],
        (-3, "queue", 0): [1.604473829, -0.674325109, 1.180255771],
    }
    for (frame, purpose, number), values in wanted.items():
        assert draw([frame], purpose, number).flatten().tolist() == pytest.approx(values, abs=1e-6)
    alike = [(1, 23), (12, 3)]  # seed and frame whose digits are the same in a row
    one, other = (CounterNoise(s, LatentShape(1, 1, 3))([f], "queue") for s, f in alike)
    assert not torch.equal(one, other)


@pytest.mark.parametrize("kind", [torch.float64, torch.bfloat16])
def test_noise_does_not_depend_on_the_processs_default_type(kind):
    """Breaks if a seed's video is another one in a program that has set another default."""
    draw, before = CounterNoise(7, LatentShape(1, 2, 3)), torch.get_default_dtype()
    wanted = draw([0, 1], "queue")
    torch.set_default_dtype(kind)
    try:
        found = draw([0, 1], "queue")
    finally:
        torch.set_default_dtype(before)
    assert found.dtype == torch.float32
    assert torch.equal(found, wanted)


def test_noise_is_standard_normal():
    draws = CounterNoise(0, LatentShape(4, 8, 8))(range(200), "queue")
    assert abs(float(draws.mean())) < 0.01
    assert abs(float(draws.std()) - 1) < 0.01


class Counted(CounterNoise):
    """Counts how often each key was asked for."""

    def __init__(self):
        super().__init__(0, LatentShape(3, 4, 4))
        self.keys = Counter()

    def __call__(self, frames, purpose, draws=0):
        numbers = [draws] * len(frames) if isinstance(draws, int) else draws
        self.keys.update(
            (frame, purpose, draw) for frame, draw in zip(frames, numbers, strict=True)
        )
        return super().__call__(frames, purpose, draws)


WATCHED = dataclasses.replace(
    SMALL, reflection="continuous", reflection_threshold=-2.0, guidance_reach="anchor"
)


@pytest.mark.parametrize(
    "sampler",
    [Miga(WATCHED), Fifo(FifoSettings(12, 3.0)), ScalingNoise(SEARCHED)],
    ids=lambda sampler: sampler.name,
)
def test_no_two_uses_share_a_draw(sampler):
    """Breaks if parts of a video that should be independent are made of the same noise."""
    noise = Counted()
    prompts = PromptSchedule(torch.tensor([[[0.2]], [[0.4]]]), PROMPTS.negative, (0, 13))
    # its solver draws, too
    sampler.sample(AnalyticBackbone("videocrafter2", window=8), prompts, noise, 30)
    if sampler.name == "scaling-noise":  # whose beams have the solver's noise in common
        noise.keys = {key: n for key, n in noise.keys.items() if key[1] != "fifo step"}
    assert [key for key, times in noise.keys.items() if times > 1] == []


def test_mixed_noise_is_of_draws_that_nothing_else_has():
    noise = Counted()
    FreeLong(BANDS).start(noise, 8, 30)
    assert set(noise.keys.values()) == {1}
