"""The yardstick makes the same video: other solver code, other forward, other order of windows."""

import pytest
import torch
from diffusers import WanTransformer3DModel

from miga_bench.backbones.base import Backbone, LatentShape
from miga_bench.backbones.schedule import flow_schedule
from miga_bench.backbones.solvers import UniPC
from miga_bench.backbones.wan_denoiser import WanDenoiser
from miga_bench.harness.bench.plain_loop import PlainLoop
from miga_bench.sampling import CounterNoise, Miga, PromptSchedule, resolve


class SmallWan(Backbone):
    """A random Wan transformer of two small layers with a window of 6."""

    name, family, window, frame_rate, device = "small-wan", "wan", 6, 8.0, "cpu"
    latent_shape = LatentShape(4, 4, 4)

    def __init__(self):
        torch.manual_seed(0)
        transformer = WanTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=12,
            in_channels=4,
            out_channels=4,
            text_dim=8,
            freq_dim=16,
            ffn_dim=32,
            num_layers=2,
            rope_max_seq_len=32,
        )
        self.denoiser = WanDenoiser(transformer.eval())

    def encode(self, prompts):
        return torch.stack([torch.full((3, 8), len(prompt) / 10) for prompt in prompts])

    def decoder(self):
        raise NotImplementedError

    def schedule(self, steps):
        return flow_schedule(steps, 5.0)

    def solver(self, schedule):
        return UniPC(schedule)


@pytest.mark.parametrize(("reach", "zigzag"), [("chunks", 2), ("head", 2), ("chunks", 4)])
def test_plain_loop_and_sampler_make_the_same_latents(reach, zigzag):
    backbone = SmallWan()
    overrides = {
        "steps": 14,
        "zigzag": zigzag,
        "guidance_frames": 2,
        "guidance_reach": reach,
        "stride": 3,
        "stage2_steps": 3,
        "renoise": 2,
        "reflection": "off",
    }
    settings = resolve("miga", backbone, "paper", overrides)
    prompts = PromptSchedule(backbone.encode(["a red circle"]), backbone.encode([""]))
    noise = CounterNoise(0, backbone.latent_shape)
    plain = PlainLoop(settings, backbone, backbone.denoiser.transformer, prompts, noise)
    ours = Miga(settings).sample(backbone, prompts, noise, 23)
    torch.testing.assert_close(plain.sample(23), ours, rtol=1e-4, atol=1e-4)
