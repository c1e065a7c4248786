"""Which of ONNX Runtime's providers runs, what it is told, and what a user reads if it does not.

There is no GPU: the library's sessions are stand-ins that report what a GPU build reports. A second.
"""

import dataclasses
import sys
from types import SimpleNamespace

import onnxruntime
import pytest
import torch
from filelock import FileLock, Timeout
from tensorrt_fixtures import small_export

from miga_bench.errors import Notice, UserError, is_out_of_memory
from miga_bench.export import backbone, onnx_denoiser, provider_cache, providers
from miga_bench.export.choice import DenoiserChoice
from miga_bench.export.graphs import Extent
from miga_bench.export.onnx_denoiser import OnnxDenoiser
from miga_bench.export.request import OnnxRequest
from miga_bench.export.session import Session
from miga_bench.export.sidecar import Port
from miga_bench.export.triton import config

CUDA, TRT, CPU = "CUDAExecutionProvider", "TensorrtExecutionProvider", "CPUExecutionProvider"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MIGA_BENCH_CACHE", str(tmp_path / "cache"))
    providers.trouble.cache_clear()
    yield tmp_path / "cache"
    providers.trouble.cache_clear()


@pytest.fixture
def export(tmp_path):
    return small_export(tmp_path / "export")


@pytest.fixture
def library(monkeypatch):
    """A build with all providers; ``starts`` tells which do, ``refusal`` is raised where it is set."""
    told = SimpleNamespace(starts=[TRT, CUDA, CPU], refusal=None, calls=[], during=None)
    monkeypatch.setitem(sys.modules, "tensorrt", SimpleNamespace(__version__="10.16.1"))

    def opened(path, options=None, providers=(), **more):
        if told.during:
            told.during()
        if told.refusal:
            raise RuntimeError(told.refusal)
        names = [p if isinstance(p, str) else p[0] for p in providers]
        told.calls.append(({p[0]: p[1] for p in providers if not isinstance(p, str)}, more))
        running = [name for name in names if name in told.starts]
        running += [] if CPU in running else [CPU]  # the library adds it
        return SimpleNamespace(get_providers=lambda: running)

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [TRT, CUDA, CPU])
    monkeypatch.setattr(onnxruntime, "InferenceSession", opened)
    return told


def test_a_provider_that_does_not_start_is_not_replaced_in_silence(library, export):
    Session(export, provider="cuda")
    library.starts = [CPU]
    with pytest.raises(UserError) as error:
        Session(export, provider="cuda")
    line = str(error.value)
    assert f"could not start {CUDA}, only {CPU}: onnxruntime-gpu {onnxruntime.__version__}" in line
    assert "or use another provider (cpu, tensorrt, tensorrt-rtx)" in line
    library.starts = [CUDA, CPU]
    with pytest.raises(UserError, match=f"could not start {TRT}, only {CUDA}"):
        Session(export, provider="tensorrt")
    assert all(more["enable_fallback"] == 0 for _, more in library.calls)


def test_the_device_is_where_a_session_opened_and_not_what_the_build_lists(library, monkeypatch):
    assert providers.runs("cuda")
    providers.trouble.cache_clear()
    library.starts = [CPU]
    assert not providers.runs("cuda")
    providers.trouble.cache_clear()
    library.refusal = "no GPU"
    assert not providers.runs("cuda")
    # text encoder and autoencoder go to the CPU then
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    here = SimpleNamespace(_device="cuda")
    assert backbone.ExportedBackbone._plain_device.fget(here) == "cpu"
    monkeypatch.setattr(backbone, "runs", lambda provider, index: index == 0)
    assert backbone.ExportedBackbone._plain_device.fget(here) == "cuda"
    here._device = "cuda:3"  # a process opens nothing on another's GPU
    assert backbone.ExportedBackbone._plain_device.fget(here) == "cpu"


def test_the_probe_opens_for_real_on_a_cpu():
    assert providers.runs("cpu")


def test_float32_is_float32_on_a_gpu_too(library, export):
    Session(export, provider="cuda")
    given = {"device_id": "0", "arena_extend_strategy": "kSameAsRequested"}
    assert library.calls[-1][0][CUDA] == {**given, "use_tf32": "0"}
    Session(dataclasses.replace(export, precision="fp16"), provider="cuda")
    assert library.calls[-1][0][CUDA] == given


def test_stored_weights_are_not_cast_ahead(library, export):
    Session(export)
    assert library.calls[-1][1]["disabled_optimizers"] is None
    Session(dataclasses.replace(export, stored="bf16"))
    assert library.calls[-1][1]["disabled_optimizers"] == ["ConstantFolding"]


@pytest.mark.parametrize(
    ("provider", "refusal", "words"),
    [
        ("cpu", "9 : NOT_IMPLEMENTED : Conv(22)", "bf16 is for tensorrt:FOLDER; export in fp16"),
        ("cuda", "9 : NOT_IMPLEMENTED : Conv(22)", f"of which {CUDA} lacks an operator"),
        ("cuda", "a bad driver", f"cannot be opened on {CUDA} (a bad driver): look at GPU"),
        ("cpu", "bad graph", "cannot be loaded by ONNX Runtime (bad graph): export it again"),
    ],
)
def test_what_the_library_refuses_is_one_line(library, export, provider, refusal, words):
    library.refusal = refusal
    with pytest.raises(UserError) as error:
        Session(export, provider=provider)
    assert words in str(error.value)


def test_tensorrts_engines_are_kept_for_the_same_graph_only(library, export, cache, tmp_path):
    def settings(sidecar):
        Session(sidecar, provider="tensorrt")
        return library.calls[-1][0][TRT]

    first, again = settings(export), settings(export)
    other = settings(small_export(tmp_path / "other", scale=0.7))
    assert first == again
    assert first["trt_engine_cache_enable"] == first["trt_timing_cache_enable"] == "1"
    assert first["trt_load_user_initializer"] == "1"  # the weights lie beside the graph
    folder = first["trt_engine_cache_path"]
    assert folder == first["trt_timing_cache_path"] != other["trt_engine_cache_path"]
    assert folder.startswith(str(cache))  # an export from elsewhere brings no code along
    assert first["trt_profile_max_shapes"].startswith("latents:4x4x8x8x8,")


def test_one_process_at_a_time_fills_a_cache(library, export):
    Session(export, provider="tensorrt")
    lock = f"{library.calls[-1][0][TRT]['trt_engine_cache_path']}.lock"

    def other():
        with pytest.raises(Timeout), FileLock(lock, timeout=0, is_singleton=False):
            pass

    library.during = other
    Session(export, provider="tensorrt")
    with FileLock(lock, timeout=0):  # the others come then
        pass


def test_the_tensorrt_that_is_there_is_named(library, export, monkeypatch):
    library.starts = [CUDA, CPU]
    for module, found in (
        (SimpleNamespace(__version__="11.4.0"), "11.4.0"),
        (None, "none that Python imports"),
    ):
        monkeypatch.setitem(sys.modules, "tensorrt", module)
        with pytest.raises(UserError) as error:
            Session(export, provider="tensorrt")
        line = str(error.value)
        assert f"only {CUDA} (it needs TensorRT 10, here is {found}): " in line
        assert 'pip install onnxruntime-gpu "tensorrt-cu13>=10.15,<11"' in line
    library.refusal = "libnvinfer.so.10: cannot open shared object file"
    with pytest.raises(UserError, match="here is none that Python imports"):
        Session(export, provider="tensorrt")


def attending(export, precision="fp16"):
    """Return an export's record as if its graph had the operator Attention."""
    return dataclasses.replace(
        export, operators={"Attention": 60, "MatMul": 9}, precision=precision
    )


def long(sidecar):
    """Return a record as if its rows were Wan's of 480x832."""
    cos = Port("float32", [1, "1560*frames", 1, 64], *([1, 1560 * n, 1, 64] for n in (2, 21, 21)))
    return dataclasses.replace(sidecar, inputs={**sidecar.inputs, "cos": cos})


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_attention_is_not_left_to_the_cpu_in_silence(library, export, monkeypatch, provider):
    graph = attending(export)
    monkeypatch.setattr(onnxruntime, "__version__", "1.24.4")
    newer = "install onnxruntime-gpu 1.25 or newer"
    for sidecar, remedy in (
        (graph, f"{newer}, or export with --opset 20"),
        (long(graph), newer),  # without the operator its scores take 25.8 GB a row
        (
            dataclasses.replace(graph, precision="bf16"),
            newer,
        ),  # of which opset 20 has no convolutions
    ):
        with pytest.raises(UserError) as error:
            Session(sidecar, provider=provider)
        line = str(error.value)
        assert "has Attention, which onnxruntime 1.24.4 computes on the CPU" in line
        assert line.endswith(remedy)
    Session(export, provider=provider)
    Session(graph, provider="cpu")
    monkeypatch.setattr(onnxruntime, "__version__", "1.25.0")
    Session(graph, provider=provider)


def test_a_servers_note_advises_what_is_of_use(export):
    for sidecar, remedy in (
        (attending(export), "export with --opset 20 for that"),
        (long(attending(export)), "take a newer one"),
    ):
        assert f"# whatever the instance group says; {remedy}\n" in config(sidecar, "x")


@pytest.mark.parametrize("provider", ["tensorrt", "tensorrt-rtx"])
def test_float32_attention_is_not_given_to_tensorrt(library, export, provider):
    """Breaks if a user is sent to look at the driver: no TensorRT has such a kernel."""
    graph, name = attending(export, "fp32"), providers.PROVIDERS[provider][0]
    rest = "which ONNX Runtime does not let it do in parts; export with --precision fp16"
    for sidecar, ways in ((graph, " or --opset 20, or use"), (long(graph), ", or use")):
        with pytest.raises(UserError) as error:
            Session(sidecar, provider=provider)
        line = str(error.value)
        assert f"{name}: TensorRT has no kernel for its Attention in fp32, {rest}{ways}" in line
        assert "tensorrt:FOLDER" in line
    assert library.calls == []


@pytest.mark.parametrize(
    ("refusal", "words"),
    [
        ("operation was not supported by a dedicated kernel", "TensorRT has no kernel"),
        ("CHECK(composite_op->is_decomposable()) failed", "TensorRT has no kernel"),
        (
            "TensorRT EP failed to create engine from network for fused node: x",
            "TensorRT may be short of memory, or have no kernel",
        ),
    ],
)
def test_attention_that_tensorrt_has_no_kernel_for_is_told(library, export, refusal, words):
    """ONNX Runtime writes the reason to its log and gives none."""
    library.refusal = refusal
    with pytest.raises(UserError) as error:
        Session(attending(export), provider="tensorrt")
    line = str(error.value)
    assert f"({refusal}): {words} for its Attention in fp16, which" in line
    assert "look at GPU" not in line
    assert "; export with --opset 20, or use tensorrt:FOLDER" in line
    with pytest.raises(UserError, match="in parts; use tensorrt:FOLDER"):
        Session(long(attending(export)), provider="tensorrt")


def test_memory_that_runs_out_is_known_by_the_error(library, export):
    """Breaks if the reason is cut off before what says so, as ONNX Runtime puts it last."""
    place = "/onnxruntime_src/onnxruntime/core/framework/bfc_arena.cc:376 " * 4
    library.refusal = f"{place} Failed to allocate memory for requested buffer of size 9"
    with pytest.raises(UserError, match=r"out of memory on cpu .*requested buffer of size 9") as e:
        Session(export, provider="cuda")
    assert is_out_of_memory(e.value)


@pytest.fixture
def gpus(monkeypatch):
    """Two GPUs for torch, of which the second is the current one."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")


def test_a_gpu_without_a_number_is_torchs_current_one(library, export, gpus):
    for device, index in (("cuda", 1), ("cuda:0", 0), ("cpu", 0)):
        session = Session(export, device, provider="cuda")
        assert library.calls[-1][0][CUDA]["device_id"] == str(index)
        assert session.device == torch.device(device if index == 0 else "cuda:1")
    here = SimpleNamespace(_device="cuda")
    assert backbone.ExportedBackbone._plain_device.fget(here) == "cuda"
    assert library.calls[-1][0][CUDA]["device_id"] == "1"


def test_who_has_onnxruntime_gpu_is_not_told_to_install_it(library, gpus, monkeypatch, tmp_path):
    """ONNX Runtime only logs why a provider's library does not load."""
    version = onnxruntime.__version__
    library.starts = [CPU]
    (tmp_path / "capi").mkdir()
    (tmp_path / "capi" / "libonnxruntime_providers_cuda.so").write_bytes(b"no library")
    monkeypatch.setattr(onnxruntime, "__file__", str(tmp_path / "__init__.py"))
    monkeypatch.setattr(onnxruntime, "cuda_version", "13.0", raising=False)
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    wanted = f"onnxruntime-gpu {version}, made for CUDA 13.0, is installed, but its CUDA provider"
    wanted += " does not start"
    with pytest.warns(Notice) as told:
        assert backbone._device(DenoiserChoice("onnx", tmp_path), None) == "cpu"
    line = str(told[0].message)
    assert f"all runs on the CPU: {wanted} (" in line
    assert "libonnxruntime_providers_cuda.so" in line  # what the loader says of it
    assert "torch here is for CUDA 12.8: take both for one CUDA" in line
    providers.trouble.cache_clear()
    library.refusal = "CUDA failure 35: driver too old"
    assert f"{wanted} (CUDA failure 35: driver too old)" in providers.trouble("cuda")
    providers.trouble.cache_clear()
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CPU])
    assert providers.trouble("cuda") == (
        f"onnxruntime {version} has no {CUDA}: pip uninstall onnxruntime, then pip install"
        " onnxruntime-gpu"
    )


def test_tensorrt_rtx_is_told_sizes_and_where_its_kernels_lie(library, export, cache, monkeypatch):
    name, given = "NvTensorRTRTXExecutionProvider", []

    class Options:
        def add_provider_for_devices(self, devices, settings):
            given.append((devices, settings))

    plugin = SimpleNamespace(__version__="0.5.0", get_library_path=lambda: "plugin.so")
    monkeypatch.setitem(sys.modules, "onnxruntime_ep_nv_tensorrt_rtx", plugin)
    gpu = SimpleNamespace(ep_name=name)
    monkeypatch.setattr(onnxruntime, "get_ep_devices", lambda: [gpu])
    monkeypatch.setattr(onnxruntime, "SessionOptions", Options)
    monkeypatch.setattr(
        onnxruntime,
        "InferenceSession",
        lambda *a, **more: SimpleNamespace(get_providers=lambda: [name, CPU]),
    )
    Session(export, provider="tensorrt-rtx")
    ((devices, settings),) = given
    assert devices == [gpu]
    assert settings["nv_profile_min_shapes"].startswith("latents:1x4x2x8x8,")
    assert settings["nv_profile_opt_shapes"].startswith("latents:2x4x5x8x8,")
    assert settings["nv_profile_max_shapes"].startswith("latents:4x4x8x8x8,")
    assert settings["nv_runtime_cache_path"].startswith(str(cache))
    assert len(settings) == 4  # it refuses options that it does not know


def test_weights_beyond_protobuf_need_a_newer_runtime(library, export, monkeypatch):
    monkeypatch.setattr(onnxruntime, "__version__", "1.22.1")
    Session(export, provider="tensorrt")
    assert "trt_load_user_initializer" not in library.calls[-1][0][TRT]
    monkeypatch.setattr(provider_cache, "PROTOBUF", 10)
    with pytest.raises(UserError, match=r"install onnxruntime-gpu 1.23 or newer"):
        Session(export, provider="tensorrt")


def test_without_a_place_for_engines_they_are_built_each_time(library, export, cache):
    cache.touch()
    with pytest.warns(Notice, match="TensorRT builds its engines at every start"):
        Session(export, provider="tensorrt")
    assert "trt_engine_cache_path" not in library.calls[-1][0][TRT]


def about(family="videocrafter2", row_bytes=None):
    return SimpleNamespace(operations=None, rotary=None, family=family, row_bytes=row_bytes)


def rows(sidecar, facts, provider="cuda"):
    session = SimpleNamespace(sidecar=sidecar, provider=provider, device=torch.device("cpu"))
    return OnnxDenoiser(session, facts, fps=8)


def test_a_call_has_the_rows_that_memory_is_free_for(export, monkeypatch):
    free = []
    monkeypatch.setattr(onnx_denoiser, "free_bytes", lambda device: free[0])
    wan, half = about("wan", 100), attending(export)
    for bytes_, count in ((None, 8), (0, 1), (500, 4), (10**9, 128)):
        free[:] = [bytes_]
        assert rows(half, wan).rows_that_fit() == count
    free[:] = [500]
    denoiser = rows(half, wan)
    other = denoiser.telling(12)
    assert denoiser.rows_that_fit() == 4
    free[:] = [0]  # ONNX Runtime keeps what it took, and uses it again
    assert denoiser.rows_that_fit() == other.rows_that_fit() == 4
    # no estimate: an older export, scores in memory, a type whose attention may hold them
    for sidecar, facts in (
        (half, about("wan")),
        (export, wan),
        (attending(export, "fp32"), wan),
    ):
        assert rows(sidecar, facts).rows_that_fit() == 8
    assert rows(half, wan, "tensorrt").rows_that_fit() == 4  # its engine's


def test_no_more_rows_than_a_grid_has_blocks_for(export, monkeypatch):
    """Breaks on VideoCrafter2 at 320x512 with 13 windows a call: 26 rows of 2560 places each."""
    monkeypatch.setattr(onnx_denoiser, "free_bytes", lambda device: 10**9)
    latents = Port("float32", ["batch", 4, "frames", 40, 64], *([2, 4, 16, 40, 64],) * 3)
    large = dataclasses.replace(attending(export), inputs={**export.inputs, "latents": latents})
    vc2 = about(row_bytes=100)
    assert rows(large, vc2).rows_that_fit() == 25
    assert rows(large, about()).rows_that_fit() == 8
    assert rows(large, about("wan", 100)).rows_that_fit() == 128
    denoiser, calls = rows(large, vc2), []

    def run(inputs):
        calls.append(len(inputs["latents"]))
        return {"prediction": inputs["latents"]}

    monkeypatch.setattr(denoiser, "session", run)
    denoiser(torch.zeros(26, 4, 2, 4, 4), torch.zeros(26, 2), torch.zeros(26, 7, 16))
    assert calls == [13, 13]


def test_results_go_only_where_the_graph_can_write_them(export):
    session = Session(export)
    inputs = {
        "latents": torch.randn(2, 4, 5, 8, 8),
        "timesteps": torch.rand(2, 5),
        "text": torch.zeros(2, 7, 16),
        "fps": torch.full((2,), 8.0),
    }
    wanted = session(inputs)["prediction"]
    given = torch.full_like(wanted, 9)
    assert session(inputs, {"prediction": given})["prediction"] is given
    assert torch.equal(given, wanted)
    for wrong, words in (
        (torch.zeros(2, 4, 5, 8, 7), "given is 2x4x5x8x7 torch.float32 on cpu"),
        (given.half(), "given is 2x4x5x8x8 torch.float16 on cpu"),
        (given.to("meta"), "given is 2x4x5x8x8 torch.float32 on meta"),
        (given.mT, "torch.float32 on cpu, not contiguous"),
    ):
        with pytest.raises(ValueError, match=r"prediction as 2x4x5x8x8 torch\.float32") as e:
            session(inputs, {"prediction": wrong})
        assert str(e.value).endswith(words)


def test_a_providers_engine_gets_no_more_rows_than_it_takes(export):
    calls = []

    class Fake:
        sidecar, provider = export, "tensorrt"

        def __call__(self, inputs):
            calls.append(len(inputs["latents"]))
            return {"prediction": inputs["latents"]}

    denoiser = OnnxDenoiser(Fake(), about(), fps=8)
    latents = torch.randn(9, 4, 5, 8, 8)
    assert torch.equal(denoiser(latents, torch.zeros(9, 5), torch.zeros(9, 7, 16)), latents)
    assert calls == [3, 3, 3]
    assert denoiser.rows_that_fit() == 4


def test_bfloat16_in_old_operators_is_refused(tmp_path):
    with pytest.raises(UserError, match="ONNX has bfloat16 convolutions from opset 22 on"):
        OnnxRequest("tiny-wan", tmp_path / "out", precision="bf16", opset=20).check()
    OnnxRequest("tiny-wan", tmp_path / "out", precision="bf16").check()


def extent(tokens, dynamic=("batch", "frames")):
    least, usual, most = ({"batch": b, "frames": f} for b, f in ((1, 2), (2, 21), (4, 21)))
    return Extent(least, usual, most, dynamic, tokens)


def test_long_rows_are_held_against_pytorch_at_few_frames():
    small = [(t["batch"], t["frames"]) for t in extent(16).trials()]
    assert small == [(1, 21), (2, 21), (3, 2), (2, 13)]
    trials = extent(1560).trials()  # 480x832
    assert [(t["batch"], t["frames"]) for t in trials] == [(1, 5), (2, 3), (3, 2)]
    assert [t["batch"] for t in extent(1560, ("frames",)).trials()] == [2, 2, 2]
    assert extent(1560, ("batch",)).trials() == []  # the window is all it takes
