"""The count is the hand's, the same however the calls are made, and costs a video nothing but time."""

import json
from contextlib import contextmanager, nullcontext

import pytest
import torch
import torch.nn.functional as nnf
from analytic import AnalyticBackbone
from simple_backbone import SimpleBackbone
from test_methods import FEW
from torch import nn
from vc2_fixtures import TEXT_WIDTH as VC2_TEXT
from vc2_fixtures import tiny_folder, tiny_unet
from wan_fixtures import TEXT_WIDTH as WAN_TEXT
from wan_fixtures import tiny_transformer

from miga_bench.backbones import load_backbone
from miga_bench.backbones.vc2_denoiser import VideoCrafterDenoiser
from miga_bench.backbones.wan_denoiser import WanDenoiser
from miga_bench.harness import flops
from miga_bench.harness.flops import FlopMeter, row_flops
from miga_bench.harness.generate import generate
from miga_bench.harness.request import GenerateRequest, PromptAt
from miga_bench.sampling import METHODS, CounterNoise, PromptSchedule, resolve


@pytest.fixture(scope="module")
def videocrafter2(tmp_path_factory):
    folder = tiny_folder(tmp_path_factory.mktemp("vc2") / "model")
    return load_backbone(folder, device="cpu", window=4)


@pytest.fixture(scope="module")
def wan():
    return load_backbone("tiny-wan", device="cpu", window=4, height=32, width=32)


@contextmanager
def by_hand(network, monkeypatch):
    """Add up what real calls take: 2 per weight and output place, 4 per query, key and channel."""
    total = [0]

    def layer(module, _, out):
        taps = module.weight[0].numel()
        total[0] += 2 * out.numel() * taps

    known = nnf.scaled_dot_product_attention

    def attention(query, key, value, *args, **more):
        total[0] += (
            2 * query.numel() * key.shape[-2] + 2 * query[..., 0].numel() * value[0, 0].numel()
        )
        return known(query, key, value, *args, **more)

    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    hooks = [m.register_forward_hook(layer) for m in network.modules() if isinstance(m, kinds)]
    with monkeypatch.context() as patch:
        patch.setattr(nnf, "scaled_dot_product_attention", attention)
        yield total
    for hook in hooks:
        hook.remove()


def call(rows, frames, size, text_width, tokens=5):
    generator = torch.Generator().manual_seed(rows)
    return (
        torch.randn(rows, 4, frames, size, size, generator=generator),
        torch.rand(rows, frames, generator=generator) * 1000,
        torch.randn(rows, tokens, text_width, generator=generator),
    )


def test_a_transformer_is_counted_as_by_formula():
    frames, size, tokens, layers, width, hidden = 3, 8, 5, 2, 32, 48
    places = frames * (size // 2) ** 2
    block = (
        8 * places * width**2  # self-attention's four projections
        + 4 * places**2 * width
        + 4 * places * width**2 + 4 * tokens * width**2  # to the text
        + 4 * places * tokens * width
        + 4 * places * width * hidden
    )  # fmt: skip
    time = frames * (32 * width + width**2 + width * 6 * width)
    text = tokens * (WAN_TEXT * width + width**2)
    patches = 2 * places * width * 4 * 4  # in and out
    expected = layers * block + 2 * (time + text + patches)
    inputs = call(3, frames, size, WAN_TEXT, tokens)
    assert row_flops(WanDenoiser(tiny_transformer()).eval(), inputs, {}) == expected


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("family", ["wan", "videocrafter2"])
@torch.inference_mode()
def test_real_calls_take_what_is_counted(family, rows, monkeypatch):
    network, inputs, more = WanDenoiser(tiny_transformer()), call(rows, 3, 8, WAN_TEXT), {}
    if family == "videocrafter2":
        network, inputs = VideoCrafterDenoiser(tiny_unet()), call(rows, 5, 8, VC2_TEXT)
        more = {"cut": 2}
    with by_hand(network.eval(), monkeypatch) as total:
        network(*inputs, **more)
    assert rows * row_flops(network, inputs, more) == total[0] > 0


def encoded(backbone):
    return PromptSchedule(backbone.encode(["a red circle"]), backbone.encode([""]))


def sampled(backbone, prompts, method="miga", meter=None, **changes):
    """Return a short video ``[F, C, H, W]``, measured by ``meter``."""
    few = {"steps": 8, "guidance_scale": 2.0, **FEW[method], **changes}
    settings = resolve(method, backbone, "paper", few)
    noise, length = CounterNoise(5, backbone.latent_shape), 4 if method == "short" else 9
    with meter.on(backbone) if meter else nullcontext():
        return METHODS[method](settings).sample(backbone, prompts, noise, length)


@pytest.mark.parametrize(
    ("family", "method"),
    [
        *(("wan", method) for method in METHODS),
        *(("videocrafter2", method) for method in ("miga", "freelong", "freepca")),
    ],
)
@torch.inference_mode()
def test_every_method_is_measured_and_left_alone(method, family, request, monkeypatch):
    backbone, meter = request.getfixturevalue(family), FlopMeter()
    prompts = encoded(backbone)
    with by_hand(backbone.denoiser, monkeypatch) as total:
        plain = sampled(backbone, prompts, method)
    watched = sampled(backbone, prompts, method, meter)
    assert torch.equal(plain, watched)
    assert backbone.meter is None
    if method == "freepca":  # its own matrix products are not in the hand's formula
        assert total[0] < meter.cost()["flops"] < 1.2 * total[0]
    else:
        assert meter.cost() == {"flops": total[0]}


@torch.inference_mode()
def test_however_the_calls_are_made(wan):
    backbone, prompts = wan, encoded(wan)
    changes = {"reflection": "continuous", "reflection_threshold": -2.0, "reflection_level": 6}
    changes |= {"reference_chunks": 1, "candidates": 2}

    def counted(**more):
        meter = FlopMeter()
        sampled(backbone, prompts, meter=meter, **{**changes, **more})
        return meter.cost()["flops"]

    expected = counted(batch=1)
    assert expected > counted(reflection="off")
    assert counted(guidance_scale=1.0) * 2 == pytest.approx(expected, rel=0.2), "half the rows"
    assert [counted(batch=3), counted(batch=64)] == [expected, expected]

    class Halves:
        """Two processes, as one sees them that does the second half of every call's rows."""

        size = 2

        def split(self, denoiser):
            def share(latents, *inputs):
                half = len(latents) // 2
                own = denoiser(latents[half:], *(part[half:] for part in inputs))
                return torch.cat([latents[:half], own])

            return share

        def capacity(self, windows):
            return 2 * windows

    alone = counted(reflection="off")
    backbone.team = Halves()
    together = counted(reflection="off")
    backbone.team = None
    assert together == alone, "the whole video's, not this process's share"


def test_a_shape_is_walked_once_for_all_videos(monkeypatch):
    walked = []

    def walk(*arguments):
        walked.append(arguments)
        return row_flops(*arguments)

    monkeypatch.setattr(flops, "row_flops", walk)
    unet = tiny_unet()
    # VideoCrafter2's readings are denoisers of their own on the same network.
    for fps, inputs, more in (
        (8.0, call(3, 5, 8, VC2_TEXT), {}),
        (8.0, call(1, 5, 8, VC2_TEXT), {}),
        (24.0, call(2, 5, 8, VC2_TEXT), {}),
        (8.0, call(1, 5, 8, VC2_TEXT), {"cut": 2}),
        (8.0, call(1, 4, 8, VC2_TEXT), {}),
    ):
        denoiser = VideoCrafterDenoiser(unet, fps).eval()
        FlopMeter().metered(denoiser, denoiser)(*inputs, **more)
    assert len(walked) == 3, "frames and cut count, rows and what the network is told do not"


@torch.inference_mode()
def test_compiled_and_moved_networks_are_counted_as_they_are(wan):
    inputs = call(2, 3, 8, wan.text_width)
    inputs = (torch.randn(2, *wan.latent_shape)[:, :, None].expand(-1, -1, 3, -1, -1), *inputs[1:])
    rotary = wan.denoiser.rotary
    rotary(inputs[0])
    tables = dict(rotary._tables)
    before = row_flops(wan.denoiser, inputs, {})
    state = {name: value.clone() for name, value in wan.denoiser.state_dict().items()}
    hook = wan.denoiser.register_forward_pre_hook(lambda *_: pytest.fail("weights were moved"))
    wan.denoiser.network.compile(backend=lambda *_: pytest.fail("it was compiled"))
    try:
        assert row_flops(wan.denoiser, inputs, {}) == before > 0
        assert len(wan.denoiser._forward_pre_hooks) == 1
        assert wan.denoiser.network._compiled_call_impl is not None
    finally:
        hook.remove()
        wan.denoiser.network._compiled_call_impl = None
    assert dict(rotary._tables) == tables, "no table without values among the network's own"
    assert all(torch.equal(state[name], value) for name, value in wan.denoiser.state_dict().items())


def test_what_cannot_be_measured_says_why():
    backbone, meter = AnalyticBackbone("wan", window=8), FlopMeter()
    meter.metered(backbone.denoiser, backbone.denoiser)(*call(1, 3, 4, 1, 1))
    assert meter.cost()["flops"] is None
    assert meter.cost()["flops_reason"].endswith("but of type AnalyticDenoiser")

    class Looks(nn.Module):
        def forward(self, latents, timesteps, text):
            return latents * float(timesteps.max())

    meter = FlopMeter()
    meter.metered(Looks(), Looks())(*call(1, 3, 4, 1))
    assert "cannot be walked without values" in meter.cost()["flops_reason"]


def test_the_record_has_the_count(tmp_path, wan):
    few = {"steps": "11", "guidance_scale": "2", **{k: str(v) for k, v in FEW["miga"].items()}}
    records = []
    for name in ("one", "two"):
        request = GenerateRequest(
            prompts=[PromptAt("a red circle")],
            output=tmp_path / f"{name}.mp4",
            frames=13,
            overrides=few,
            overwrite=True,
        )
        records.append(generate(request, backbone=wan).record)
    costs = [record["cost"] for record in records]
    assert costs[0]["flops"] == costs[1]["flops"] > 0
    assert "flops_reason" not in costs[0]
    assert json.loads((tmp_path / "one.json").read_text())["cost"]["flops"] == costs[0]["flops"]
    simple = generate(request, backbone=SimpleBackbone()).record["cost"]
    assert simple["flops"] is None
