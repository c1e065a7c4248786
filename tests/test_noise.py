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
