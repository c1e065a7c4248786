"""Engines on a GPU: they predict what the module predicts, graphs and all."""

import copy
from pathlib import Path

import pytest
import torch
from tensorrt_fixtures import CHANNELS, SIDE, TEXT, WIDTH, export_wan, exported_wan

from miga_bench.errors import UserError
from miga_bench.export.tensorrt.build import Options, build
from miga_bench.export.tensorrt.library import gpu, load
from miga_bench.export.tensorrt.refit import refit
from miga_bench.export.tensorrt.runtime import TensorRTDenoiser

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def library():
    if gpu() is None:
        pytest.skip("no GPU")
    try:
        library = load()
    except UserError as error:
        pytest.skip(str(error))
    if library.targets and gpu() not in library.targets:
        pytest.skip(f"{library.name} does not build for compute capability {gpu()}")
    return library


@pytest.fixture(scope="module")
def wan(library):
    denoiser, sidecar = exported_wan()
    build(
        sidecar.folder, library, Options(profiles=("batch=1:2:4,frames=2:5:8",)), lambda line: None
    )
    return copy.deepcopy(denoiser).to("cuda"), sidecar.folder


def arguments(batch, frames, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(batch, CHANNELS, frames, SIDE, SIDE, generator=generator).cuda(),
        torch.rand(batch, frames, generator=generator).cuda() * 1000,
        torch.randn(batch, TEXT, WIDTH, generator=generator).cuda(),
    )


def assert_alike(engine, denoiser, given):
    with torch.inference_mode():
        expected = denoiser(*given)
    torch.testing.assert_close(engine(*given), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("graphs", [False, True])
def test_predictions_are_the_modules_at_every_call(wan, graphs):
    denoiser, folder = wan
    engine = TensorRTDenoiser.load(folder, graphs=graphs)
    for batch, frames in ((2, 5), (1, 8), (2, 5), (9, 5)):
        for seed in range(4):  # plain, recorded, replayed, replayed
            assert_alike(engine, denoiser, arguments(batch, frames, seed))
    recorded = [plan.graph is not None for plan in engine._plans.values()]
    assert recorded == [graphs] * 3


def test_work_is_queued_on_the_current_stream(wan):
    denoiser, folder = wan
    engine = TensorRTDenoiser.load(folder)
    stream = torch.cuda.Stream()
    for seed in range(4):
        with torch.cuda.stream(stream):
            given = arguments(2, 5, seed)
            torch.cuda._sleep(10_000_000)  # whoever does not wait for the stream reads too early
            given[0].mul_(2)
            assert_alike(engine, denoiser, given)


def test_an_engine_says_how_close_to_pytorch_it_is(wan, library):
    _, folder = wan
    (record,) = build(folder, library, Options(level=2), lambda line: None)
    assert 0 < record["parity"] < 1e-3


def test_compiled_kernels_are_kept(wan, library, tmp_path, monkeypatch):
    if not library.targets:
        pytest.skip(f"{library.name} has its kernels in the engine")
    monkeypatch.setenv("MIGA_BENCH_CACHE", str(tmp_path))
    engine = TensorRTDenoiser.load(wan[1])
    engine(*arguments(2, 5))
    kept = engine.loaded.kernels.path.read_bytes()
    assert kept
    again = TensorRTDenoiser.load(wan[1])
    again(*arguments(2, 5))
    assert again.loaded.kernels._written  # what was there was taken


def test_weights_stream_from_main_memory(wan, library):
    denoiser, folder = wan
    (record,) = build(folder, library, Options(weight_streaming=True), lambda line: None)
    native = TensorRTDenoiser.load(record["engine"]).loaded.engine
    assert native.weight_streaming_budget_v2 == native.streamable_weights_size  # all of them fit
    engine = TensorRTDenoiser.load(record["engine"], weight_budget=0)
    assert not engine.graphs
    assert_alike(engine, denoiser, arguments(2, 5))


def test_an_engine_takes_other_weights(wan, library, tmp_path):
    _, folder = wan
    (record,) = build(folder, library, Options(refittable=True), lambda line: None)
    other, sidecar = export_wan(tmp_path, seed=5)
    refitted = refit(sidecar.folder, Path(record["engine"]), lambda line: None)
    assert refitted["parity"] < 1e-3
    assert_alike(TensorRTDenoiser.load(tmp_path), other.to("cuda"), arguments(2, 5))
