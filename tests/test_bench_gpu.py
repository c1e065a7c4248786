"""The measurement of real-size denoisers: its arithmetic, its one line without a GPU, all of it in small.

The small models have the real ones' code and settings and few, narrow layers. Seconds.
"""

import dataclasses
import json

import pytest
import torch
from vc2_fixtures import tiny_unet
from wan_fixtures import tiny_transformer

from miga_bench.backbones.base import LatentShape
from miga_bench.errors import plainly
from miga_bench.harness.bench import gpu
from miga_bench.harness.bench.gpu import METHODS, full_queue, seconds_per_frame, share_outside
from miga_bench.harness.bench.real_size import (
    MODELS,
    VIDEOCRAFTER2,
    WAN,
    RandomBackbone,
    random_network,
)
from miga_bench.sampling import resolve


def small(model):
    """Return a model with another network and latent size, and all else as it is."""
    network = tiny_transformer() if model is WAN else tiny_unet()
    channels = network.config.in_channels
    width = network.config.text_dim if model is WAN else network.config.cross_attention_dim
    build = {WAN.name: tiny_transformer, VIDEOCRAFTER2.name: tiny_unet}[model.name]
    return dataclasses.replace(
        model, build=build, latent_shape=LatentShape(channels, 4, 4), text=(5, width)
    )


def test_seconds_of_a_frame():
    """Two seconds a window, six windows for a latent of four frames."""
    assert seconds_per_frame(2.0, 6, 4) == 3.0
    assert share_outside(0.5, 1.5) == 0.25


@pytest.mark.parametrize("name", MODELS)
def test_real_sizes_are_the_published_ones(name):
    """Breaks if a configuration is not the released model's; nothing is allocated."""
    model = MODELS[name]
    with torch.device("meta"):
        network = model.build()
    count = sum(parameter.numel() for parameter in network.parameters())
    assert count == {"wan2.1-1.3b": 1_418_996_800, "videocrafter2": 1_413_284_420}[name]


@pytest.mark.parametrize("model", [WAN, VIDEOCRAFTER2], ids=lambda model: model.name)
def test_random_weights_are_drawn_in_the_types_that_a_checkpoint_has(model):
    given = small(model)
    network = random_network(
        given.build, torch.device("cpu"), torch.bfloat16, given.keep_float32, seed=3
    )
    kinds = {name: parameter.dtype for name, parameter in network.named_parameters()}
    kept = [n for n in kinds if any(part in given.keep_float32 for part in n.split("."))]
    assert kept
    assert {kinds[name] for name in kept} == {torch.float32}
    assert {kind for name, kind in kinds.items() if name not in kept} == {torch.bfloat16}
    assert not any(parameter.is_meta for parameter in network.parameters())
    again = random_network(
        given.build, torch.device("cpu"), torch.bfloat16, given.keep_float32, seed=3
    )
    pairs = zip(network.parameters(), again.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("model", [WAN, VIDEOCRAFTER2], ids=lambda model: model.name)
@pytest.mark.parametrize("method", METHODS)
def test_a_full_queue_is_covered_once(model, method):
    """The pass that overhead is measured in is a pass of the method: every slot is written once."""
    backbone = RandomBackbone(small(model), torch.device("cpu"))
    levels, plan = full_queue(resolve(method, backbone, "paper"), backbone)
    written = [slot for window in plan for slot in window.writes]
    assert written == [slot for slot, level in enumerate(levels) if level > 0]
    assert max(levels) == resolve(method, backbone, "paper").steps


def check(document, capsys):
    """Hold a document of both small models against its own parts and the table."""
    assert set(document["models"]) == {WAN.name, VIDEOCRAFTER2.name}
    for model in document["models"].values():
        for engine in model["engines"].values():
            found = engine["2"]
            window = found["seconds_per_window"]["median"]
            assert window > 0
            for method in METHODS:
                wanted = window * model["windows_per_latent"][method] / model["frames_per_latent"]
                assert found["seconds_per_frame"][method] == pytest.approx(wanted, rel=1e-3)
                assert 0 <= found["share_outside"][method] < 1
            assert found["clip_seconds"] == pytest.approx(50 * window, rel=1e-3)
    out = capsys.readouterr().out
    assert "published, RTX 4090" in out
    assert "published, H200" in out
    json.dumps(document)


def test_the_measurement_in_small_on_a_cpu(capsys):
    """Breaks if any step of the measurement does; every number of the table follows from its parts."""
    said = []
    models = [small(WAN), small(VIDEOCRAFTER2)]
    document = gpu.bench_gpu(models, ["eager"], 2, torch.device("cpu"), said.append, windows=(2,))
    assert any("eager, 2 windows a call" in line for line in said)
    check(document, capsys)
    assert document["models"][WAN.name]["windows_per_latent"]["fifo"] == 6
    assert document["models"][VIDEOCRAFTER2.name]["windows_per_latent"]["fifo"] == 8


@pytest.mark.gpu
def test_the_measurement_in_small_on_a_gpu(capsys):
    """The same with torch.compile and CUDA graphs."""
    models = [small(WAN), small(VIDEOCRAFTER2)]
    document = gpu.bench_gpu(
        models, gpu.ENGINES, 2, torch.device("cuda"), lambda _: None, windows=(2,)
    )
    check(document, capsys)
    assert "gpu" in document["hardware"]


def test_without_a_gpu_one_line_says_so(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("sys.argv", ["bench_gpu"])
    assert plainly(gpu.main) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert "no GPU is seen" in said.err
    assert "--prove" in said.err


def test_prove_runs_a_window_of_each(monkeypatch):
    document = gpu.prove([small(WAN), small(VIDEOCRAFTER2)], lambda _: None)
    for model in (WAN, VIDEOCRAFTER2):
        proved = document["proved"][model.name]
        assert proved["finite"]
        assert proved["latents"][2] == model.window
        assert proved["peak_memory_mib"] > 0
