"""FreeLong and FreeLong++: the released block, the bands, the noise, and videos of the embedded model."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as nnf
from analytic import PROMPTS, AnalyticBackbone
from helpers import refusal
from hypothesis import given, settings
from hypothesis import strategies as st

from miga_bench.backbones import load_backbone
from miga_bench.backbones.base import AttentionSite, LatentShape
from miga_bench.errors import NumericalError
from miga_bench.sampling import (
    CounterNoise,
    PromptSchedule,
    Short,
    ShortSettings,
    estimate_windows,
)
from miga_bench.sampling.attention import full_attention, local_attention
from miga_bench.sampling.estimate import estimate
from miga_bench.sampling.freelong import (
    BandAttention,
    FreeLong,
    FreeLongSettings,
    LowPassAttention,
    band_blend,
    bands,
    low_pass,
    low_pass_blend,
    mixed_noise,
    shuffled_noise,
)
from miga_bench.sampling.freepca import FreePca, FreePcaSettings
from miga_bench.sampling.whole import rows_that_fit

GOLDEN = Path(__file__).parent / "golden"
NOISE = CounterNoise(0, LatentShape(3, 4, 4))
BANDS = FreeLongSettings(3, 3.0, "bands", "specmix")
LOW_PASS = FreeLongSettings(3, 3.0, "lowpass", "shuffled")
BOTH = [FreeLong(BANDS), FreePca(FreePcaSettings(3, 3.0, stride=5))]
names = pytest.mark.parametrize("sampler", BOTH, ids=["freelong", "freepca"])


@pytest.fixture(scope="module")
def tiny():
    return load_backbone("tiny-wan", device="cpu")


@pytest.fixture(scope="module")
def prompts(tiny):
    return PromptSchedule(tiny.encode(["a red circle moves right"]), tiny.encode([""]))


def site(joint, height=2, width=3, scale=2, frames=12):
    return AttentionSite(height, width, joint, scale, torch.full((1, frames), 500.0))


def tokens(frames=12, places=6, batch=2, heads=2, width=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(3, batch, frames, places, heads, width, generator=generator)


def plain_attention(query, key, value, reach, joint):
    """The definition, with every score made and masked."""
    frames, places = query.shape[1:3]
    q, k, v = (x.flatten(1, 2).transpose(1, 2).double() for x in (query, key, value))
    frame = torch.arange(frames).repeat_interleave(places)
    place = torch.arange(places).repeat(frames)
    seen = (frame[:, None] - frame).abs() <= reach
    if not joint:
        seen &= place[:, None] == place
    scores = (q @ k.mT / math.sqrt(q.shape[-1])).masked_fill(~seen, -torch.inf)
    return (scores.softmax(-1) @ v).transpose(1, 2).reshape(query.shape).float()


@pytest.mark.parametrize("joint", [True, False])
@pytest.mark.parametrize("reach", [0, 1, 3, 10, 11, 40])
@pytest.mark.parametrize("places", [6, 150])
def test_attention_within_reach_is_the_masked_definition(joint, reach, places):
    q, k, v = tokens(places=places, batch=1)
    expected = plain_attention(q, k, v, reach, joint)
    torch.testing.assert_close(local_attention(q, k, v, reach, joint), expected)
    if reach >= 11:
        assert torch.equal(local_attention(q, k, v, reach, joint), full_attention(q, k, v, joint))


def test_the_released_block():
    """Two attentions and a feed-forward, blended as released: FreeLong's own numbers."""
    data = {k: torch.from_numpy(v) for k, v in np.load(GOLDEN / "freelong_block.npz").items()}
    w = {name[2:]: value for name, value in data.items() if name.startswith("w.")}
    heads = (int(data["heads"]), -1)
    attention = LowPassAttention(8, 0.25, 0.25)

    def norm(x, name):
        return nnf.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"])

    def attend(x, name):
        # [P, F, C] -> [1, F, P, heads, a]
        q, k, v = (
            nnf.linear(x, w[f"{name}.to_{part}.weight"]).transpose(0, 1)[None].unflatten(3, heads)
            for part in "qkv"
        )
        out = attention(q, k, v, site(joint=False, height=5, width=8, scale=8, frames=128))
        out = out.flatten(3)[0].transpose(0, 1)
        return nnf.linear(out, w[f"{name}.to_out.0.weight"], w[f"{name}.to_out.0.bias"])

    x = data["x"]
    x = x + attend(norm(x, "norm1"), "attn1")
    x = x + attend(norm(x, "norm2"), "attn2")
    hidden, gate = nnf.linear(
        norm(x, "norm3"), w["ff.net.0.proj.weight"], w["ff.net.0.proj.bias"]
    ).chunk(2, -1)
    x = x + nnf.linear(hidden * nnf.gelu(gate), w["ff.net.2.weight"], w["ff.net.2.bias"])
    assert (x - data["y"]).abs().max() / data["y"].abs().max() < 1e-4


def test_the_finest_level_is_local_only():
    q, k, v = tokens()
    made = LowPassAttention(3, 0.25, 0.25)(q, k, v, site(joint=False, scale=1))
    assert torch.equal(made, local_attention(q, k, v, 3, joint=False))


@pytest.mark.parametrize("shape", [(12, 2, 3), (7, 5, 4), (1, 1, 1), (9, 3, 8)])
def test_low_pass_blend_is_the_shifted_filters_real_part(shape):
    frames, height, width = shape
    local, wide, _ = tokens(frames, height * width, seed=1)
    response = low_pass(*shape, 0.25, 0.3)
    made = low_pass_blend(local, wide, response, height)
    grids = torch.meshgrid(*(2 * torch.arange(n) / n - 1 for n in shape), indexing="ij")
    square = (grids[0] / 0.25) ** 2 + (grids[1] / 0.3) ** 2 + (grids[2] / 0.3) ** 2
    kernel = torch.exp(-0.5 * square)[..., None, None]
    spectra = [
        torch.fft.fftshift(
            torch.fft.fftn(x.unflatten(2, (height, width)), dim=(1, 2, 3)), (1, 2, 3)
        )
        for x in (local, wide)
    ]
    both = torch.fft.ifftshift(kernel * spectra[1] + (1 - kernel) * spectra[0], (1, 2, 3))
    expected = torch.fft.ifftn(both, dim=(1, 2, 3)).real.flatten(2, 3)
    torch.testing.assert_close(made, expected, rtol=1e-5, atol=1e-5)


@given(frames=st.integers(1, 90), branches=st.integers(1, 5), cut=st.sampled_from([0.1, 0.25, 1.0]))
@settings(max_examples=40, deadline=None)
def test_bands_are_a_partition(frames, branches, cut):
    keep = bands(frames, branches, cut)
    assert keep.shape == (branches, frames // 2 + 1)
    assert torch.equal(keep.sum(0), torch.ones(frames // 2 + 1))
    assert keep[-1, 0] == 1
    owner = keep.argmax(0)
    assert (owner.diff() <= 0).all()


def test_the_papers_bands():
    """4 times: [0, pi/8], [pi/8, pi/4], [pi/4, pi]."""
    keep = bands(64, 3, 0.25)
    assert [row.nonzero()[[0, -1], 0].tolist() for row in keep] == [[9, 32], [5, 8], [0, 4]]
    assert len(FreeLong(BANDS).attention(21, 84, 500.0).reaches) == 3
    assert FreeLong(BANDS).attention(21, 168, 500.0).reaches == (10, 20, 41, 83)
    assert FreeLong(BANDS).attention(21, 22, 500.0).reaches == (10, 20)
    assert LOW_PASS.cut == LOW_PASS.spatial_cut == 0.25
    assert FreeLong(LOW_PASS).attention(16, 128, 500.0) == LowPassAttention(8, 0.25, 0.25)


def test_time_and_space_have_cuts_of_their_own():
    sampler = FreeLong(dataclasses.replace(LOW_PASS, cut=0.5))
    q, k, v = tokens()
    made = sampler.attention(6, 12, 500.0)(q, k, v, site(joint=False))
    near, wide = local_attention(q, k, v, 3, joint=False), full_attention(q, k, v, joint=False)
    assert torch.equal(made, low_pass_blend(near, wide, low_pass(12, 2, 3, 0.5, 0.25), 2))


def test_equal_branches_blend_to_themselves():
    local = tokens()[0]
    assert torch.equal(low_pass_blend(local, local, low_pass(12, 2, 3, 0.25, 0.25), 2), local)
    assert torch.equal(band_blend(local, [local] * 3, bands(12, 4, 0.25)), local)
    assert torch.equal(band_blend(local, [], bands(12, 1, 0.25)), local)
    # a still video has no frequency but zero, which is the widest branch's alone
    still = tokens(seed=1)[0][:, :1].expand_as(local)
    steady = band_blend(local, [still, still], bands(12, 3, 1.0))
    torch.testing.assert_close(steady.mean(1), still.mean(1))


def test_branches_that_see_everything_are_full_attention():
    q, k, v = tokens()
    for joint in (True, False):
        made = BandAttention((11, 22), 0.25)(q, k, v, site(joint))
        assert torch.equal(made, full_attention(q, k, v, joint))


@given(
    window=st.integers(4, 21),
    frames=st.integers(1, 70),
    shuffle=st.integers(1, 4),
)
@settings(max_examples=40, deadline=None)
def test_shuffled_noise_repeats_the_first_window(window, frames, shuffle):
    made = shuffled_noise(NOISE, window, frames, shuffle)
    first = NOISE(range(window), "base")
    assert made.shape[0] == frames
    assert torch.equal(made[:window], first[:frames])
    for start in range(window, frames - shuffle + 1, shuffle):
        run, source = made[start : start + shuffle], made[start - window :][:shuffle]
        assert torch.equal(run.flatten(1).sort(0)[0], source.flatten(1).sort(0)[0])
    assert torch.equal(made, shuffled_noise(NOISE, window, frames, shuffle))


def test_the_order_is_really_mixed_and_the_seeds_own():
    made = shuffled_noise(NOISE, 8, 64, 4)
    assert not torch.equal(made[8:16], made[:8])
    other = shuffled_noise(CounterNoise(1, LatentShape(3, 4, 4)), 8, 64, 4)
    orders = [[int((x == n).flatten(1).all(1).nonzero()[0]) for n in x] for x in (made, other)]
    assert orders[0] != orders[1]


@pytest.mark.parametrize("frames", [1, 2, 60, 61])
def test_mixed_noise_keeps_variance_and_the_still_part(frames):
    noise = CounterNoise(5, LatentShape(4, 16, 16))
    shared = shuffled_noise(noise, 15, frames, 4)
    own = noise(range(frames), "specmix")
    made = mixed_noise(shared, own)
    torch.testing.assert_close(made.mean(0), shared.mean(0), rtol=1e-4, atol=1e-5)
    assert made.var().item() == pytest.approx(1, abs=0.1)
    if frames > 2:
        ratio = (torch.fft.rfft(made, dim=0) - torch.fft.rfft(own, dim=0)).abs().amax((1, 2, 3))
        assert ratio[-1] < 1e-3
        assert ratio[-1] < ratio[0]


@names
@pytest.mark.parametrize("length", [5, 21])
def test_a_video_of_one_window_is_the_short_clip_bit_for_bit(sampler, length, tiny, prompts):
    noise = CounterNoise(2, tiny.latent_shape)
    short = Short(ShortSettings(3, 3.0)).sample(tiny, prompts, noise, length)
    assert torch.equal(sampler.sample(tiny, prompts, noise, length), short)


@names
def test_the_embedded_model_makes_a_long_video(sampler, tiny, prompts):
    reports = []
    noise = CounterNoise(2, tiny.latent_shape)
    made = sampler.sample(tiny, prompts, noise, 30, reports.append)
    assert made.shape == (30, *tiny.latent_shape)
    assert torch.isfinite(made).all()
    assert [report.index for report in reports] == [0, 1, 2]
    assert estimate_windows(sampler, tiny, 30) == reports[-1].windows == 3
    assert torch.equal(made, sampler.sample(tiny, prompts, noise, 30))
    other = sampler.sample(tiny, prompts, CounterNoise(3, tiny.latent_shape), 30)
    assert (made - other).abs().mean() > 0.1
    plain = tiny.denoiser(made[None].transpose(1, 2), torch.full((1, 30), 500.0), prompts.text)
    with tiny.attending(sampler.attention(21, 30, 500.0)):
        assert tiny.denoiser._attention is not None
    after = tiny.denoiser(made[None].transpose(1, 2), torch.full((1, 30), 500.0), prompts.text)
    assert torch.equal(plain, after)


def test_lowpass_runs_on_wan_too(tiny, prompts):
    noise = CounterNoise(2, tiny.latent_shape)
    made = FreeLong(dataclasses.replace(LOW_PASS, steps=2)).sample(tiny, prompts, noise, 25)
    assert torch.isfinite(made).all()


@names
def test_the_network_is_as_it_was_whenever_the_caller_may_look(sampler, tiny, prompts):
    seen = []
    stream = sampler.stream(
        tiny,
        prompts,
        CounterNoise(2, tiny.latent_shape),
        24,
        lambda report: seen.append(tiny.denoiser._attention),
    )
    next(stream)
    assert tiny.denoiser._attention is None
    assert seen == [None] * 3


@names
def test_what_is_refused(sampler, tiny, prompts):
    def run(length, prompts=prompts, backbone=tiny, **changes):
        made = type(sampler)(dataclasses.replace(sampler.settings, **changes))
        noise = CounterNoise(2, tiny.latent_shape)
        return refusal(lambda: next(made.stream(backbone, prompts, noise, length)))

    assert "cannot go on for ever" in run(None)
    two = PromptSchedule(prompts.text.expand(2, -1, -1), prompts.negative, (0, 25))
    assert "one prompt" in run(30, two)
    assert "at least 1" in run(0)
    assert "setting of VideoCrafter2" in run(30, grid="stock")
    analytic = AnalyticBackbone("wan")
    assert "does not let a method change its attention" in run(30, PROMPTS, analytic)


@pytest.mark.parametrize(
    "change",
    [{"cut": 0.0}, {"spatial_cut": 1.5}, {"branches": -1}, {"shuffle": 0}, {"shuffle": 22}],
)
def test_settings_out_of_range_are_refused_before_anything_is_computed(change, tiny, prompts):
    sampler = FreeLong(dataclasses.replace(BANDS, **change))
    (name,) = change
    assert f"{name} is" in refusal(lambda: estimate_windows(sampler, tiny, 30))


def test_a_clip_that_does_not_fit_is_refused_with_the_length_that_does(tiny):
    row = tiny.clip_bytes(40, 6.0)
    available = math.ceil(row / 0.8)
    assert rows_that_fit("freelong", tiny, 40, 6.0, available) == 1
    assert rows_that_fit("freelong", tiny, 40, 6.0, 2 * available) == 2
    message = refusal(lambda: rows_that_fit("freelong", tiny, 41, 6.0, available))
    assert "at most 40 fit (157 frames)" in message
    assert "41 latents" in message
    assert rows_that_fit("freelong", tiny, 10**6, 6.0, None) is None
    assert "at most 0 fit" in refusal(lambda: rows_that_fit("freelong", tiny, 41, 6.0, 0))


@names
def test_a_clip_of_which_one_row_fits_is_made_row_by_row(sampler, tiny, prompts, monkeypatch):
    """Breaks if a clip is refused that fits without its unconditional half, or is tried with both first."""
    rows, sampler = [], type(sampler)(dataclasses.replace(sampler.settings, steps=2))
    watch = tiny.denoiser.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    noise = CounterNoise(2, tiny.latent_shape)
    together = sampler.sample(tiny, prompts, noise, 25)
    free = int(1.5 * tiny.clip_bytes(25, sampler.copies(tiny.window)) / 0.8)
    monkeypatch.setattr(type(tiny), "free_bytes", lambda self: free)
    apart = sampler.sample(tiny, prompts, noise, 25)
    assert rows == [2, 2, 1, 1, 1, 1]
    torch.testing.assert_close(apart, together, rtol=1e-4, atol=1e-4)
    one, team = estimate(sampler, tiny, 25), estimate(sampler, tiny, 25, team=2)
    assert [call.rows for call in one.calls.elements()] == [1] * 4
    assert [call.rows for call in team.shares.elements()] == [1] * 2  # a row for each process
    monkeypatch.undo()
    sampler.sample(tiny, prompts, noise, 25)
    watch.remove()
    assert rows[6:] == [2, 2], "what was short in one video is not asked anew in the next"


def test_longer_clips_and_more_copies_need_more(tiny):
    assert tiny.clip_bytes(30) < tiny.clip_bytes(60) < tiny.clip_bytes(60, 40.0)
    assert tiny.free_bytes() is None or tiny.free_bytes() > 2**20


@names
def test_a_value_that_is_not_finite_is_told_in_one_line(sampler, tiny, prompts):
    noise = CounterNoise(2, tiny.latent_shape)

    def poisoned(frames, purpose, draws=0):
        return noise(frames, purpose, draws) * float("nan" if purpose == "base" else 1)

    with pytest.raises(NumericalError, match="NaN or infinity at latent frame 0"):
        sampler.sample(tiny, prompts, poisoned, 24)
