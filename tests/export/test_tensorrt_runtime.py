"""An engine as a denoiser: addresses, shapes, splitting, plans; a stand-in for the engine."""

import gc
import weakref
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import pytest
import torch
from tensorrt_fixtures import CHANNELS, SIDE, TEXT, WIDTH, exported_wan, small_export, stand_in

from miga_bench.errors import DoesNotFitError, Notice, UserError
from miga_bench.export.tensorrt import runtime
from miga_bench.export.tensorrt.kernels import Kernels
from miga_bench.export.tensorrt.profiles import Profile
from miga_bench.export.tensorrt.runtime import TensorRTDenoiser, load_engine


@pytest.fixture
def wan():
    return exported_wan()


def arguments(batch, frames, device="cpu"):
    generator = torch.Generator().manual_seed(batch * 100 + frames)
    return tuple(
        x.to(device)
        for x in (
            torch.randn(batch, CHANNELS, frames, SIDE, SIDE, generator=generator),
            torch.rand(batch, frames, generator=generator) * 1000,
            torch.randn(batch, TEXT, WIDTH, generator=generator),
        )
    )


def loaded(sidecar, *profiles):
    texts = profiles or ("batch=1:2:4,frames=2:5:8",)
    return stand_in(sidecar.folder, [Profile.parse(text, sidecar.inputs) for text in texts])


@pytest.mark.parametrize(("batch", "frames"), [(2, 5), (1, 8), (4, 2)])
def test_wan_as_an_engine_predicts_what_the_module_predicts(wan, batch, frames):
    denoiser, sidecar = wan
    engine = TensorRTDenoiser(loaded(sidecar), "cpu", graphs=False)
    given = arguments(batch, frames)
    with torch.inference_mode():
        expected = denoiser(*given)
    assert torch.allclose(engine(*given), expected, rtol=1e-4, atol=1e-5)


def test_a_batch_that_does_not_fit_is_done_in_calls(wan):
    denoiser, sidecar = wan
    there = loaded(sidecar, "batch=1:2:4")
    engine = TensorRTDenoiser(there, "cpu", graphs=False)
    given = arguments(9, 5)
    with torch.inference_mode():
        expected = denoiser(*given)
    assert torch.allclose(engine(*given), expected, rtol=1e-4, atol=1e-5)
    (context,) = there.engine.contexts  # three rows each, so one plan
    assert context.runs == 3
    assert context.shapes["latents"] == (3, CHANNELS, 5, SIDE, SIDE)
    assert engine.max_batch == 4


def test_videocrafter2_is_told_its_rate(tmp_path):
    sidecar = small_export(tmp_path)
    with pytest.raises(UserError, match="told a frame rate: give fps"):
        TensorRTDenoiser(loaded(sidecar), "cpu", graphs=False)
    there = loaded(sidecar)
    latents, timesteps, text = arguments(2, 5)
    engine = TensorRTDenoiser(there, "cpu", graphs=False, fps=8)
    output = engine(latents, timesteps, text)
    assert torch.allclose(output, 0.5 * latents * timesteps[:, None, :, None, None] + 8)
    other = engine.telling(12)(latents, timesteps, text)
    assert torch.allclose(other, output + 4)
    assert len(there.engine.contexts) == 1
    assert there.engine.contexts[0].shapes["fps"] == (2,)


@pytest.fixture
def engine(tmp_path):
    """Latents times timesteps times a half, plus the frame rate."""
    return TensorRTDenoiser(loaded(small_export(tmp_path)), "cpu", graphs=False, fps=8)


def test_a_prediction_is_not_overwritten_by_the_next(engine):
    first = engine(*arguments(2, 5))
    kept = first.clone()
    engine(*(2 * x for x in arguments(2, 5)))
    assert torch.equal(first, kept)


def test_tensors_are_read_and_written_where_they_lie(engine, monkeypatch):
    latents, timesteps, text = arguments(2, 5)
    monkeypatch.setattr(runtime, "ALIGNMENT", 1)
    output = engine(latents, timesteps, text)
    (context,) = engine.loaded.engine.contexts
    assert context.addresses["latents"] == latents.data_ptr()
    assert context.addresses["text"] == text.data_ptr()
    assert context.addresses["prediction"] == output.data_ptr()
    assert context.memory == engine.scratch.data_ptr()


def test_slices_and_other_types_are_made_readable(engine):
    latents, timesteps, text = arguments(2, 5)
    wide = torch.cat([torch.zeros_like(latents), latents], dim=-1)[..., SIDE:]  # not contiguous
    shifted = torch.cat([torch.zeros(1), timesteps.flatten()])[1:].view(2, 5)  # at an odd address
    expected = engine(latents, timesteps, text)
    assert torch.equal(engine(wide, shifted, text), expected)
    addresses = engine.loaded.engine.contexts[0].addresses
    assert addresses["timesteps"] != shifted.data_ptr()
    half = engine(latents.half(), timesteps, text)
    assert half.dtype == torch.float16
    assert torch.allclose(half.float(), expected, rtol=1e-2, atol=1e-1)


def test_plans_are_kept_by_shape_and_not_without_end(engine):
    contexts = engine.loaded.engine.contexts
    engine.reserve(1000)  # enough for all
    for _ in range(2):
        engine(*arguments(2, 5))
        engine(*arguments(1, 5))
    assert [context.runs for context in contexts] == [2, 2]
    for batch in (3, 4):
        for frames in range(2, 6):
            engine(*arguments(batch, frames))
    engine(*arguments(1, 5))  # was dropped for the eight since
    assert len(contexts) == 11
    assert len(engine._plans) == 8


def test_scratch_memory_is_that_of_the_shapes_and_grows(engine):
    assert engine.scratch.nbytes == 0
    wanted = engine(*arguments(1, 5))
    assert engine.scratch.nbytes == 250
    other = engine.telling(8)  # shares it
    engine(*arguments(3, 5))
    assert other.scratch.nbytes == engine.scratch.nbytes == 750
    assert [key[0][0] for key in engine._plans] == [3]  # the other worked in memory that is gone
    assert torch.equal(engine(*arguments(1, 5)), wanted)
    assert engine.scratch.nbytes == 750
    assert len(engine._plans) == 2


def test_an_engine_that_nobody_has_is_gone_at_once(tmp_path):
    """Breaks if plans hold on to their denoiser: gigabytes then stay until Python looks for cycles."""
    engine = TensorRTDenoiser(loaded(small_export(tmp_path)), "cpu", graphs=False, fps=8)
    other = engine.telling(12)
    engine(*arguments(2, 5))
    native, scratch = weakref.ref(engine.loaded.engine), weakref.ref(engine.scratch)
    context = weakref.ref(engine.loaded.engine.contexts.pop())
    gc.disable()
    try:
        del engine
        other(*arguments(2, 5))  # by the plan that the first made
        del other
        assert (native(), scratch(), context()) == (None, None, None)
    finally:
        gc.enable()


def test_a_library_that_does_not_tell_takes_all(engine, monkeypatch):
    plan = type(engine.loaded.engine.create_execution_context("user"))
    monkeypatch.setattr(
        plan, "set_device_memory", lambda self, place, n: setattr(self, "memory", n)
    )
    monkeypatch.delattr(plan, "update_device_memory_size_for_shapes")
    engine(*arguments(1, 5))
    assert engine.scratch.nbytes == engine.loaded.engine.device_memory_size_v2


@pytest.mark.parametrize("where", ["context", "scratch"])
def test_too_little_memory_is_less_rows_and_then_one_line(engine, monkeypatch, where):
    if where == "context":
        monkeypatch.setattr(type(engine.loaded.engine), "create_execution_context", lambda *a: None)
        reason = "the stand-in refused"
    else:
        monkeypatch.setattr(engine, "reserve", lambda size: runs_out())
        reason = "CUDA out of memory. Tried"
    with pytest.raises(torch.OutOfMemoryError):  # which makes samplers call with less
        engine(*arguments(2, 5))
    with pytest.raises(DoesNotFitError) as error:
        engine(*arguments(1, 5))
    line = str(error.value)
    assert f"in a call of a single row of 5 latent frames of 8x8 ({reason}" in line
    assert "miga-bench export tensorrt DIR --profile batch=1,frames=5" in line


def runs_out():
    raise torch.OutOfMemoryError("CUDA out of memory. Tried\n to allocate")


@pytest.mark.parametrize(("free", "rows"), [(None, 4), (10**6, 4), (700, 2), (0, 1)])
def test_no_more_rows_than_memory_is_free_for(engine, monkeypatch, free, rows):
    monkeypatch.setattr(runtime.memory, "free_bytes", lambda device: free)
    assert engine.rows_that_fit() == rows  # 250 bytes a row, 4 at most


def test_the_profile_made_for_a_shape_runs_it(tmp_path):
    there = loaded(small_export(tmp_path), "batch=1:2:4", "batch=2,frames=6")
    engine = TensorRTDenoiser(there, "cpu", graphs=False, fps=8)
    engine(*arguments(2, 6))
    engine(*arguments(2, 5))
    used = [engine.profiles.index(context.profile) for context in there.engine.contexts]
    assert used == [1, 0]
    assert engine.latents_taken() == range(2, 9)


def test_a_shape_outside_is_one_line(engine):
    with pytest.raises(
        UserError, match="latents is 2x4x9x8x8: the engine's profile takes 1x4x2x8x8 to"
    ):
        engine(*arguments(2, 9))
    latents, timesteps, text = arguments(2, 5)
    with pytest.raises(UserError, match="text is 2x6x16: the engine's profile takes 1x7x16"):
        engine(latents, timesteps, text[:, :6])


def test_an_engine_of_something_else_is_one_line(tmp_path):
    there = loaded(small_export(tmp_path))
    there.engine.ports = {name: p for name, p in there.engine.ports.items() if name != "latents"}
    there.engine.num_io_tensors -= 1
    with pytest.raises(
        UserError, match="no engine of a denoiser: it takes and gives timesteps, text"
    ):
        TensorRTDenoiser(there, "cpu", fps=8)


def test_what_the_engine_refuses_is_an_error(engine, monkeypatch):
    engine(*arguments(2, 5))
    context = engine.loaded.engine.contexts[0]
    monkeypatch.setattr(context, "execute_async_v3", lambda stream: False)
    with pytest.raises(RuntimeError, match="the engine did not run: the stand-in refused"):
        engine(*arguments(2, 5))


def test_latents_that_are_elsewhere_are_not_copied_over(engine):
    latents, timesteps, text = arguments(2, 5)
    with pytest.raises(ValueError, match="latents are on meta, the engine is on cpu"):
        engine(latents.to("meta"), timesteps, text)


@pytest.mark.parametrize(
    ("budget", "free", "set_to", "graphs"),
    [
        (None, 2000, 600, False),  # a fifth is left free, 1000 bytes are scratch memory
        (None, 10**10, 1000, True),
        (None, 100, 0, False),
        (None, None, 1000, True),
        (300, 10**10, 300, False),
        (5000, 0, 1000, True),
    ],
)
def test_weights_stream_within_the_budget(tmp_path, monkeypatch, budget, free, set_to, graphs):
    monkeypatch.setattr(runtime.memory, "free_bytes", lambda device: free)
    there = loaded(small_export(tmp_path))
    there.engine.streamable_weights_size = 1000
    engine = TensorRTDenoiser(there, "cpu", fps=8, weight_budget=budget)
    assert there.engine.weight_streaming_budget_v2 == set_to
    assert engine.graphs is graphs  # weights that come during a call cannot be part of a graph


@pytest.mark.parametrize("refused", ["by the library", "in the end"])
def test_what_cannot_be_recorded_runs_on_the_stream_before(engine, monkeypatch, refused):
    """Breaks if torch stays on the stream that it recorded on, where nobody waits for the work."""
    streams, cuda = [SimpleNamespace(cuda_stream=7)], runtime.torch.cuda

    @contextmanager
    def graph(recorded, stream, capture_error_mode):
        assert capture_error_mode == "thread_local"  # what other threads allocate breaks nothing
        streams.append(stream)
        yield
        raise RuntimeError("operation failed due to a previous error during capture")

    monkeypatch.setattr(cuda, "current_stream", lambda device: streams[-1])
    monkeypatch.setattr(cuda, "Stream", lambda device: SimpleNamespace(cuda_stream=8))
    monkeypatch.setattr(cuda, "set_stream", streams.append)
    monkeypatch.setattr(cuda, "CUDAGraph", SimpleNamespace)
    monkeypatch.setattr(cuda, "graph", graph)
    first, asked = engine(*arguments(2, 5)), []
    context, engine.graphs = engine.loaded.engine.contexts[0], True
    if refused == "by the library":
        context.is_stream_capturable = asked.append  # which returns None
    with pytest.warns(Notice, match="the engine runs without CUDA graphs: "):
        assert torch.equal(engine(*arguments(2, 5)), first)
    assert streams[-1].cuda_stream == 7
    assert asked == ([8] if refused == "by the library" else [])
    assert not engine.graphs


@pytest.fixture
def rtx(tmp_path, monkeypatch):
    """Return an engine of tensorrt_rtx's, started anew at each call."""
    monkeypatch.setenv("MIGA_BENCH_CACHE", str(tmp_path / "cache"))
    sidecar = small_export(tmp_path / "export")
    profiles = [Profile.parse("batch=1:2:4,frames=2:5:8", sidecar.inputs)]

    def start(gpu="NVIDIA GeForce RTX 4090"):
        there = stand_in(sidecar.folder, profiles, Kernels("ab" * 32, gpu, "1.7.1"))
        return TensorRTDenoiser(there, "cpu", graphs=False, fps=8)

    return start


def words(engine):
    return engine.loaded.engine.contexts[0].kernels.words


def test_compiled_kernels_are_kept_from_start_to_start(rtx):
    first = rtx()
    first(*arguments(1, 5))
    first(*arguments(2, 5))
    contexts = first.loaded.engine.contexts
    assert contexts[0].kernels is contexts[1].kernels
    path = first.loaded.kernels.path
    assert path.read_bytes() == b"kernels 1x4x5x8x8 2x4x5x8x8"
    second = rtx()
    second(*arguments(1, 5))
    assert words(second) == words(first)
    other = rtx("NVIDIA GeForce RTX 5090")
    other(*arguments(1, 5))
    assert other.loaded.kernels.path != path
    path.write_bytes(b"broken")
    third = rtx()
    third(*arguments(1, 5))
    assert path.read_bytes() == b"kernels 1x4x5x8x8"
    assert [file.name for file in path.parent.iterdir() if ".part" in file.name] == []


def test_kernels_that_cannot_be_kept_are_a_notice(rtx, tmp_path):
    (tmp_path / "cache").write_text("")
    with pytest.warns(Notice, match="the next start compiles the engine's kernels again"):
        rtx()(*arguments(1, 5))


def test_a_wrong_budget_is_one_line(tmp_path):
    there = loaded(small_export(tmp_path))
    with pytest.raises(UserError, match="build it with --weight-streaming"):
        TensorRTDenoiser(there, "cpu", fps=8, weight_budget=100)
    there.engine.streamable_weights_size = 1000
    with pytest.raises(UserError, match="-1 bytes: it must be 0 or more"):
        TensorRTDenoiser(there, "cpu", fps=8, weight_budget=-1)


@pytest.mark.parametrize(
    ("said", "free", "fits"),
    [
        ("Error Code 1: Cuda Runtime (out of memory)", None, False),
        ("Requested amount of GPU memory could not be allocated", 10**9, False),
        ("it gave no reason", 999, False),
        ("Serialization assertion failed", 1000, True),
    ],
)
def test_an_engine_that_does_not_fit_is_not_to_be_built_again(
    tmp_path, monkeypatch, said, free, fits
):
    path = tmp_path / "x.engine"
    path.write_bytes(b"." * 1000)
    library = SimpleNamespace(
        name="tensorrt", version="11.4.0", made=lambda kind: None, failure=lambda: said
    )
    for name, found in {
        "installed": lambda: {"tensorrt": library},
        "gpu": lambda device: "9.0",
        "gpu_model": lambda device: ("a GPU", 10**10),
        "find": lambda *given: (path, None),
        "deserialize": lambda *given: None,
    }.items():
        monkeypatch.setattr(runtime, name, found)
    monkeypatch.setattr(runtime, "_current", lambda device: nullcontext())
    monkeypatch.setattr(runtime.memory, "free_bytes", lambda device: free)
    with pytest.raises(UserError if fits else DoesNotFitError) as error:
        load_engine(path, "cuda:0", trusted=True)
    line = str(error.value)
    assert f"({said})" in line or f": {said};" in line
    assert ("build it again on this machine" in line) is fits
    assert ("memory that is free on cuda:0" in line) is not fits


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_exported_graph_is_named(tmp_path):
    pytest.importorskip("tensorrt_rtx", reason="no wheel of tensorrt-rtx for this platform")
    with pytest.raises(UserError, match=f"engines run on a GPU.*--denoiser onnx:{tmp_path}"):
        load_engine(tmp_path)


def test_the_library_has_what_the_runtime_calls():
    """The stand-in shows that the calls are right; this, that they are calls of TensorRT."""
    trt = pytest.importorskip("tensorrt_rtx", reason="no wheel of tensorrt-rtx for this platform")
    for owner, names in {
        trt.ICudaEngine: [
            *("num_io_tensors", "get_tensor_name", "get_tensor_mode", "get_tensor_dtype"),
            *("num_optimization_profiles", "get_tensor_profile_shape", "device_memory_size_v2"),
            *("streamable_weights_size", "weight_streaming_budget_v2", "create_runtime_config"),
            *("create_execution_context", "serialize"),
        ],
        trt.IExecutionContext: [
            *("set_device_memory", "set_optimization_profile_async", "set_input_shape"),
            *("get_tensor_shape", "set_tensor_address", "execute_async_v3"),
            *("update_device_memory_size_for_shapes", "is_stream_capturable"),
        ],
        trt.IRuntimeConfig: [
            "set_execution_context_allocation_strategy",
            "dynamic_shapes_kernel_specialization_strategy",
            *("create_runtime_cache", "set_runtime_cache"),
        ],
        trt.IRuntimeCache: ["serialize", "deserialize"],
        trt.ExecutionContextAllocationStrategy: ["USER_MANAGED"],
        trt.DynamicShapesKernelSpecializationStrategy: ["EAGER"],
        trt.Runtime: ["deserialize_cuda_engine"],
        trt.Refitter: ["refit_cuda_engine"],
        trt.OnnxParserRefitter: ["refit_from_file", "num_errors", "get_error"],
        trt.ILogger: ["ERROR", "INTERNAL_ERROR", "WARNING"],
        trt.TensorIOMode: ["INPUT"],
    }.items():
        assert [name for name in names if not hasattr(owner, name)] == []
    assert {kind.name for kind in (trt.float32, trt.float16, trt.bfloat16, trt.int64)} <= set(
        runtime._DTYPES
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_what_is_no_engine_is_refused_without_a_crash(tmp_path):
    trt = pytest.importorskip("tensorrt_rtx", reason="no wheel of tensorrt-rtx for this platform")
    path = tmp_path / "x.engine"
    path.write_bytes(b"not an engine" * 100)
    assert runtime.deserialize(trt.Runtime(trt.Logger(trt.Logger.INTERNAL_ERROR)), path) is None
