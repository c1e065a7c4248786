"""FreeLong and FreePCA inside VideoCrafter2's network: small, with random weights."""

import pytest
import torch
from analytic import AnalyticBackbone

from miga_bench.backbones import vc2_denoiser as vc2
from miga_bench.backbones.base import LatentShape
from miga_bench.backbones.schedule import ddpm_schedule
from miga_bench.sampling import CounterNoise, PromptSchedule, Short, ShortSettings
from miga_bench.sampling.attention import full_attention, local_attention
from miga_bench.sampling.freelong import FreeLong, FreeLongSettings, LowPassAttention
from miga_bench.sampling.freepca import FreePca, FreePcaSettings

FRAMES = 11


class SmallBackbone(AnalyticBackbone):
    """VideoCrafter2's schedule and solver around a network of two levels with a window of 6."""

    def __init__(self):
        super().__init__("videocrafter2", window=6)
        torch.manual_seed(0)
        network = vc2.VideoCrafterUNet(
            in_channels=4,
            out_channels=4,
            block_out_channels=(16, 32, 32),
            layers_per_block=1,
            cross_attention_dim=8,
            attention_head_dim=8,
            temporal_heads=2,
            norm_num_groups=8,
        )
        with torch.no_grad():
            for weight in network.parameters():  # the convolutions over time end in zeros
                weight += 0.05 * torch.randn_like(weight)
        self.denoiser = vc2.VideoCrafterDenoiser(network.eval())
        self.latent_shape = LatentShape(4, 8, 8)

    def attending(self, attention):
        return self.denoiser.attending(attention)

    def reading(self, grid=None, rescale=None, fps=None):
        self.grid = grid or "even"
        return self

    def schedule(self, steps):
        return ddpm_schedule(steps, self.grid)


@pytest.fixture(scope="module")
def backbone():
    return SmallBackbone()


@pytest.fixture(scope="module")
def inputs():
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(2, 4, FRAMES, 8, 8, generator=generator)
    return latents, torch.full((2, FRAMES), 500.0), torch.randn(2, 5, 8, generator=generator)


PROMPTS = PromptSchedule(torch.ones(1, 5, 8), torch.zeros(1, 5, 8))


@torch.no_grad()
def test_full_attention_is_the_networks_own(backbone, inputs):
    sites = []

    def attention(query, key, value, site):
        sites.append(site)
        return full_attention(query, key, value, site.joint)

    expected = backbone.denoiser(*inputs)
    with backbone.attending(attention):
        made = backbone.denoiser(*inputs)
    torch.testing.assert_close(made, expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(backbone.denoiser(*inputs), expected)
    assert not any(site.joint for site in sites)
    assert {(site.scale, site.height, site.width) for site in sites} >= {(1, 8, 8), (2, 4, 4)}


@torch.no_grad()
def test_the_blend_reaches_the_coarse_levels_only(backbone, inputs):
    def local(query, key, value, site):
        return local_attention(query, key, value, 3, site.joint)

    outputs = []
    for attention in (local, LowPassAttention(3, 0.25, 0.25), LowPassAttention(20, 0.25, 0.25)):
        with backbone.attending(attention):
            outputs.append(backbone.denoiser(*inputs))
    assert (outputs[0] - outputs[1]).abs().max() > 1e-5
    # with a reach of the whole clip the two attentions are one, and so is their blend
    torch.testing.assert_close(outputs[2], backbone.denoiser(*inputs), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "sampler",
    [
        FreeLong(FreeLongSettings(4, 2.0, "lowpass", "shuffled", grid="stock")),
        FreePca(FreePcaSettings(4, 2.0, stride=2, grid="stock")),
    ],
    ids=["freelong", "freepca"],
)
def test_samplers_run_and_a_window_is_the_short_clip(sampler, backbone):
    noise = CounterNoise(0, backbone.latent_shape)
    made = sampler.sample(backbone, PROMPTS, noise, FRAMES)
    assert made.shape == (FRAMES, 4, 8, 8)
    assert torch.isfinite(made).all()
    assert torch.equal(made, sampler.sample(backbone, PROMPTS, noise, FRAMES))
    short = Short(ShortSettings(4, 2.0, grid="stock")).sample(backbone, PROMPTS, noise, 6)
    assert torch.equal(sampler.sample(backbone, PROMPTS, noise, 6), short)
