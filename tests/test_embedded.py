"""The methods on the embedded model: the same video however it is batched, from words to frames."""

import dataclasses

import pytest
import torch

from miga_bench.backbones import load_backbone
from miga_bench.sampling import METHODS, CounterNoise, PromptSchedule, resolve


@pytest.fixture(scope="module")
def tiny():
    return load_backbone("tiny-wan", device="cpu")


@pytest.fixture(scope="module")
def prompts(tiny):
    return PromptSchedule(
        tiny.encode(["a red circle moves right on a blue field"]), tiny.encode([""])
    )


@pytest.mark.parametrize("method", ["fifo", "miga"])
def test_batch_size_does_not_change_the_video(method, tiny, prompts):
    settings = resolve(method, tiny)
    noise = CounterNoise(3, tiny.latent_shape)
    one, many = (
        METHODS[method](dataclasses.replace(settings, batch=batch)).sample(tiny, prompts, noise, 8)
        for batch in (1, 16)
    )
    # Each pass amplifies float noise; the same video to well below what an eye or a codec sees.
    torch.testing.assert_close(one, many, rtol=1e-3, atol=1e-3)


def test_one_call_is_the_same_alone_and_in_a_batch(tiny, prompts):
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(4, *tiny.latent_shape, 5, generator=generator).movedim(-1, 2)
    timesteps = torch.rand(4, 5, generator=generator) * 1000
    text = prompts.text.expand(4, -1, -1)
    with torch.no_grad():
        together = tiny.denoiser(latents, timesteps, text)
        alone = [
            tiny.denoiser(latents[k : k + 1], timesteps[k : k + 1], text[:1]) for k in range(4)
        ]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-5, atol=1e-5)


def test_unknown_words_are_found(tiny):
    known = "a large striped red circle moves right, then turns blue."
    assert tiny.unknown_words([known]) == []
    assert tiny.unknown_words(["a red dragon", "the dragon moves home"]) == ["dragon", "home"]
