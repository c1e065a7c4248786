"""Streaming sessions equal the whole video at once, and leave the shared module alone."""

import copy

import pytest
import torch
from wan_fixtures import CHANNELS, tiny_vae

from miga_bench.backbones.wan_vae import (
    WanStreamingDecoder,
    WanStreamingEncoder,
    latent_statistics,
    spatial_factor,
    temporal_factor,
)


@pytest.fixture(scope="module")
def vae():
    return tiny_vae().requires_grad_(requires_grad=False)


def random_latents(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, CHANNELS, 3, 4, generator=generator)


def decoded_at_once(vae, latents):
    mean, std = latent_statistics(vae)
    video = vae.decode((latents.transpose(0, 1) * std + mean)[None]).sample[0]
    return video.transpose(0, 1) * 0.5 + 0.5


def pushed(session, items, portions):
    return torch.cat([session.push(portion) for portion in items.split(portions)])


@pytest.mark.parametrize("portions", [[7], [1] * 7, [1, 6], [2, 3, 2], [6, 1]])
def test_decoding_in_portions_is_bit_for_bit_decoding_at_once(vae, portions):
    """Breaks on any seam between pushes, or a first push that is not one latent first."""
    latents = random_latents(7)
    frames = pushed(WanStreamingDecoder(vae), latents, portions)
    assert frames.shape == (25, 3, 24, 32)
    assert frames.dtype == torch.float32
    assert frames.min() >= 0
    assert frames.max() <= 1
    assert torch.equal(frames, decoded_at_once(vae, latents))


@pytest.mark.parametrize("portions", [[17], [1, 4, 4, 4, 4], [3, 6, 1, 7], [1] * 17])
def test_encoding_in_portions_is_bit_for_bit_encoding_at_once(vae, portions):
    """Breaks if frames are grouped otherwise than 1, 4, 4, ... or lost between pushes."""
    frames = torch.rand(17, 3, 24, 32, generator=torch.Generator().manual_seed(1))
    mean, std = latent_statistics(vae)
    posterior = vae.encode((frames * 2 - 1).transpose(0, 1)[None]).latent_dist
    expected = ((posterior.mode()[0] - mean) / std).transpose(0, 1)
    assert torch.equal(pushed(WanStreamingEncoder(vae), frames, portions), expected)


def test_encoder_and_decoder_are_each_others_inverse_in_scale():
    """Breaks if latents are normalized on one side only: the network sees unit latents."""
    vae = tiny_vae(latents_mean=[5.0] * CHANNELS, latents_std=[3.0] * CHANNELS)
    plain = tiny_vae(latents_mean=[0.0] * CHANNELS, latents_std=[1.0] * CHANNELS)
    frames = torch.rand(5, 3, 16, 16)
    latents, raw = (WanStreamingEncoder(v).push(frames) for v in (vae, plain))
    torch.testing.assert_close(latents * 3 + 5, raw, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        WanStreamingDecoder(vae).push(latents), WanStreamingDecoder(plain).push(raw)
    )


def test_incomplete_groups_wait(vae):
    """Breaks if fewer than four frames are encoded, or forgotten."""
    session = WanStreamingEncoder(vae)
    frames = torch.rand(6, 3, 24, 32)
    assert session.push(frames[:3]).shape == (1, CHANNELS, 3, 4)
    assert session.push(frames[3:4]).shape == (0, CHANNELS, 3, 4)
    assert session.push(frames[4:]).shape == (1, CHANNELS, 3, 4)


def test_two_videos_at_once_do_not_mix(vae):
    """Breaks if sessions share a past, through the module or otherwise."""
    first, second = random_latents(4, seed=1), random_latents(4, seed=2)
    left, right = WanStreamingDecoder(vae), WanStreamingDecoder(vae)
    pairs = [(left.push(a[None]), right.push(b[None])) for a, b in zip(first, second, strict=True)]
    assert torch.equal(torch.cat([pair[0] for pair in pairs]), decoded_at_once(vae, first))
    assert torch.equal(torch.cat([pair[1] for pair in pairs]), decoded_at_once(vae, second))


def test_the_module_is_not_touched(vae):
    """Breaks if a session writes to the shared module, or needs it untouched by others."""
    vae.clear_cache()
    before = {key: copy.copy(value) for key, value in vars(vae).items() if key[0] == "_"}
    weights = {key: value.clone() for key, value in vae.state_dict().items()}
    session, latents = WanStreamingDecoder(vae), random_latents(4)
    start = session.push(latents[:2])
    WanStreamingEncoder(vae).push(torch.rand(5, 3, 24, 32))
    after = {key: value for key, value in vars(vae).items() if key[0] == "_"}
    assert after.keys() == before.keys()
    assert all(after[key] == before[key] for key in ("_feat_map", "_conv_idx", "_enc_feat_map"))
    assert all(torch.equal(value, weights[key]) for key, value in vae.state_dict().items())
    expected = decoded_at_once(vae, latents)  # another user, in the middle of the session
    assert torch.equal(torch.cat([start, session.push(latents[2:])]), expected)


def test_memory_of_a_session_does_not_grow(vae):
    """Breaks if a session keeps frames: an endless video would fill the memory."""

    def kept():
        return sum(value.nbytes for value in session.past if isinstance(value, torch.Tensor))

    session = WanStreamingDecoder(vae)
    session.push(random_latents(3))  # the past is as large as it gets after two
    size = kept()
    session.push(random_latents(5))
    assert kept() == size > 0


def test_a_session_may_wait_elsewhere(vae):
    """Breaks if the past is not brought back to the module's device before a push."""
    calls = []

    def place():
        calls.append(1)
        return torch.device("cpu")

    session = WanStreamingDecoder(vae, place, torch.device("cpu"))
    latents = random_latents(3)
    assert torch.equal(pushed(session, latents, [1, 2]), decoded_at_once(vae, latents))
    assert len(calls) == 2


def test_nothing_in_nothing_out(vae):
    """Breaks if an empty push fails or disturbs the video."""
    session, latents = WanStreamingDecoder(vae), random_latents(2)
    first = session.push(latents[:1])
    assert session.push(latents[:0]).shape == (0, 3, 24, 32)
    assert torch.equal(torch.cat([first, session.push(latents[1:])]), decoded_at_once(vae, latents))


@pytest.mark.parametrize(
    ("changes", "space", "time"),
    [({}, 8, 4), ({"dim_mult": [1, 2, 4], "temperal_downsample": [False, True]}, 4, 2)],
)
def test_factors_come_from_the_architecture(changes, space, time):
    """Breaks if factors are assumed, or read from a configuration field nobody keeps in step."""
    vae = tiny_vae(**changes)
    assert (spatial_factor(vae), temporal_factor(vae)) == (space, time)
    frames = WanStreamingDecoder(vae).push(random_latents(2))
    assert frames.shape == (1 + time, 3, 3 * space, 4 * space)
