"""FreePCA: the released attention, its windows, its noise, and what is switched off."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as nnf
from hypothesis import given, settings
from hypothesis import strategies as st
from test_freelong import NOISE, refusal, site, tokens

from miga_bench.backbones import load_backbone
from miga_bench.sampling import estimate_windows
from miga_bench.sampling.attention import full_attention
from miga_bench.sampling.freepca import (
    FreePca,
    FreePcaSettings,
    PcaAttention,
    borrow_consistency,
    matched_noise,
    overlap_mean,
    window_starts,
)

GOLDEN = Path(__file__).parent / "golden" / "freepca_attention.npz"
RELEASED = FreePcaSettings(50, 12.0, stride=4)


@pytest.mark.parametrize("timestep", [900, 260, 100])
def test_the_released_attention(timestep):
    data = {k: torch.from_numpy(v) for k, v in np.load(GOLDEN).items()}
    heads = (int(data["heads"]), -1)
    q, k, v = (
        nnf.linear(data["x"], data[f"w.to_{part}.weight"]).transpose(0, 1)[None].unflatten(3, heads)
        for part in "qkv"
    )
    attention = FreePca(RELEASED).attention(16, 64, timestep)
    out = attention(q, k, v, site(joint=False, height=1, width=5, frames=64)).flatten(3)[0]
    made = nnf.linear(out.transpose(0, 1), data["w.to_out.0.weight"], data["w.to_out.0.bias"])
    expected = data[f"y_t{timestep}"]
    assert (made - expected).abs().max() / expected.abs().max() < 1e-4


def test_the_switch_stands_at_its_timestep():
    sampler = FreePca(RELEASED)
    assert [sampler.attention(16, 64, t).components for t in (250.0, 250.5, 1000.0)] == [0, 3, 3]


@given(window=st.integers(1, 21), more=st.integers(0, 80), stride=st.integers(1, 21))
@settings(max_examples=60, deadline=None)
def test_windows_cover_every_length(window, more, stride):
    frames, stride = window + more, min(stride, window)
    starts = window_starts(frames, window, stride)
    covered = {frame for start in starts for frame in range(start, start + window)}
    assert covered == set(range(frames))
    assert starts == sorted(set(starts))
    ones = [torch.full((1, window, 2), 3.0) for _ in starts]
    torch.testing.assert_close(overlap_mean(ones, starts, frames), torch.full((1, frames, 2), 3.0))


def test_released_windows():
    assert window_starts(64, 16, 4) == list(range(0, 52, 4))
    assert window_starts(18, 16, 4) == [0, 2]


@pytest.mark.parametrize("joint", [True, False])
def test_one_window_is_plain_attention_bit_for_bit(joint):
    q, k, v = tokens(frames=12)
    made = PcaAttention(12, 3, 3)(q, k, v, site(joint))
    assert torch.equal(made, full_attention(q, k, v, joint))


def test_without_components_windows_stay_local():
    local = [tokens(seed=seed)[0][:, :8] for seed in range(3)]
    wide = tokens(frames=16, seed=9)[0]
    kept = borrow_consistency(local, wide, [0, 4, 8], 0)
    assert torch.equal(kept[0], local[0])
    # all that is borrowed then is the mean over the window
    for own, made, start in zip(local[1:], kept[1:], (4, 8), strict=True):
        expected = (
            own - own.mean(1, keepdim=True) + wide[:, start : start + 8].mean(1, keepdim=True)
        )
        torch.testing.assert_close(made, expected, rtol=1e-4, atol=1e-5)


def test_with_all_components_windows_are_the_wide_ones():
    local = [tokens(seed=seed)[0][:, :4] for seed in range(6)]
    wide = tokens(frames=9, seed=9)[0]
    made = borrow_consistency(local, wide, list(range(6)), 4)
    assert torch.equal(made[0], local[0])
    torch.testing.assert_close(made[4], wide[:, 4:8], rtol=1e-4, atol=1e-5)
    assert (made[1] - wide[:, 1:5]).abs().max() > 0.1  # window 1 borrows one component only


@pytest.mark.parametrize("joint", [True, False])
def test_attention_over_more_keys_than_in_training_is_sharper(joint):
    q, k, v = tokens(frames=20)
    made = PcaAttention(4, 4, 4)(q, k, v, site(joint))
    places = 6 if joint else 1
    sharpness = math.sqrt(math.log(20 * places) / math.log(4 * places))
    wide = full_attention(q, k, v, joint, sharpness)
    # the last window, number 4, takes all of its components from there
    torch.testing.assert_close(made[:, 16:], wide[:, 16:], rtol=1e-4, atol=1e-5)


def test_what_is_opposite_is_not_alike():
    """Breaks if a component is taken that moves the other way in the window."""
    first, second = torch.tensor([[3.0, -3.0, 0.0, 0.0], [0.0, 0.0, 1.0, -1.0]])
    place = torch.eye(4)

    def clip(a, b):
        return (first[:, None] * a + second[:, None] * b)[None, :, :, None, None]

    wide, own = clip(place[0], place[1]), clip(-place[0], place[1] + place[2])
    _, made = borrow_consistency([own, own], wide, [0, 0], 1)
    torch.testing.assert_close(made, clip(-place[0], place[1]), rtol=1e-4, atol=1e-4)


def test_rows_of_a_batch_do_not_see_each_other():
    q, k, v = tokens(frames=20, batch=3)
    attention = PcaAttention(8, 3, 3)
    together = attention(q, k, v, site(joint=True))
    for row in range(3):
        part = slice(row, row + 1)
        alone = attention(q[part], k[part], v[part], site(joint=True))
        torch.testing.assert_close(together[part], alone, rtol=1e-3, atol=1e-4)


@given(window=st.integers(2, 16), frames=st.integers(1, 60))
@settings(max_examples=30, deadline=None)
def test_every_windows_noise_has_the_firsts_mean(window, frames):
    made = matched_noise(NOISE, window, frames)
    first = NOISE(range(window), "base")
    assert len(made) == frames
    assert torch.equal(made[:window], first[:frames])
    for start in range(window, frames - window + 1, window):
        mean = made[start : start + window].mean(0)
        torch.testing.assert_close(mean, first.mean(0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "change", [{"stride": 0}, {"stride": 22}, {"components": 22}, {"above": -1.0}]
)
def test_settings_out_of_range_are_refused(change):
    tiny = load_backbone("tiny-wan", device="cpu")
    sampler = FreePca(dataclasses.replace(RELEASED, **change))
    (name,) = change
    assert f"{name} is" in refusal(lambda: estimate_windows(sampler, tiny, 30))


def test_components_are_found_in_float32_under_autocast():
    local = [tokens(seed=seed)[0][:, :8].bfloat16() for seed in range(3)]
    wide = tokens(frames=16, seed=9)[0].bfloat16()
    expected = borrow_consistency(local, wide, [0, 4, 8], 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        made = borrow_consistency(local, wide, [0, 4, 8], 2)
    for a, b in zip(made, expected, strict=True):
        assert torch.equal(a, b)
