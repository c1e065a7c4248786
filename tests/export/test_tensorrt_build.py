"""Engines built by the real tensorrt_rtx, which needs no GPU for it: 15 s, most of it one export."""

import json
import resource
import shutil
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from helpers import refusal
from tensorrt_fixtures import describe, exported_wan, small_export, vc2_ports, wan_ports

from miga_bench.cli import main
from miga_bench.errors import ExportError, Notice, UserError
from miga_bench.export.tensorrt import build as building
from miga_bench.export.tensorrt import library as libraries
from miga_bench.export.tensorrt.build import Options, build
from miga_bench.export.tensorrt.library import load
from miga_bench.export.tensorrt.manifest import FOLDER, Manifest, find

no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


@pytest.fixture(scope="module")
def rtx():
    pytest.importorskip("tensorrt_rtx", reason="no wheel of tensorrt-rtx for this platform")
    return load("tensorrt_rtx")


@pytest.fixture
def export(tmp_path):
    return small_export(tmp_path / "export")


def said():
    lines = []
    return lines, lines.append


def options(*capabilities, **changes):
    return Options(capabilities=capabilities or ("8.9",), **changes)


def test_wan_is_built_for_absent_gpus(rtx, tmp_path):
    _, sidecar = exported_wan()
    assert sidecar.external_data  # the weights lie beside the graph
    shutil.copytree(sidecar.folder, tmp_path / "wan")
    lines, say = said()
    engines = build(tmp_path / "wan", rtx, options("8.9", "12.0"), say)
    assert [engine["compute_capability"] for engine in engines] == ["8.9", "12.0"]
    for engine in engines:
        assert engine["bytes"] > sum(p.numel() * 4 for p in exported_wan()[0].parameters())
        assert not engine["reused"]
        assert engine["build_seconds"] > 0
        path, manifest = find(
            tmp_path / "wan", {rtx.name: rtx.version}, engine["compute_capability"]
        )
        assert str(path) == engine["engine"]
        assert manifest.profiles[0]["latents"] == {
            "min": [1, 4, 2, 8, 8],
            "opt": [2, 4, 5, 8, 8],
            "max": [4, 4, 8, 8, 8],
        }
    assert engines[0]["sha256"] != engines[1]["sha256"]
    assert "building for 8.9" in lines
    assert any("building for 12.0: building engine, " in line for line in lines)


def test_an_engine_is_built_once(rtx, export):
    _, say = said()
    (first,) = build(export.folder, rtx, options(), say)
    (again,) = build(export.folder, rtx, options(), say)
    assert again == {**first, "reused": True}
    (forced,) = build(export.folder, rtx, options(force=True), say)
    assert not forced["reused"]
    assert forced["engine"] == first["engine"]
    small_export(export.folder, scale=0.7)
    (other,) = build(export.folder, rtx, options(), say)
    assert other["engine"] != first["engine"]


@pytest.mark.parametrize("ending", [".engine", ".json"])
def test_a_damaged_engine_is_built_again(rtx, export, ending):
    _, say = said()
    (first,) = build(export.folder, rtx, options(), say)
    path = Path(first["engine"])
    damaged = path.with_suffix(ending)
    damaged.write_bytes(damaged.read_bytes()[:-3])
    (again,) = build(export.folder, rtx, options(), say)
    assert not again["reused"]
    assert Manifest.read(path).is_of(path)


def test_options_reach_the_engine(rtx, export):
    _, say = said()
    wanted = options(weight_streaming=True, level=1, profiles=("batch=2,frames=4", "batch=1:2:8"))
    (engine,) = build(export.folder, rtx, wanted, say)
    assert engine["weight_streaming"]
    assert engine["builder_level"] == 1
    assert [profile["latents"]["max"] for profile in engine["profiles"]] == [
        [2, 4, 4, 8, 8],
        [8, 4, 8, 8, 8],
    ]
    (plain,) = build(export.folder, rtx, options(), say)
    assert engine["bytes"] != plain["bytes"]


def test_a_graph_of_fixed_sizes_is_built(rtx, tmp_path, monkeypatch):
    import tensorrt_fixtures

    fixed = {"batch": 2, "frames": 3}
    monkeypatch.setattr(
        tensorrt_fixtures, "SIZES", dict.fromkeys(("least", "usual", "most"), fixed)
    )

    def port(*shape):
        sizes = [fixed.get(size, size) for size in shape]
        return tensorrt_fixtures.Port("float32", sizes, sizes, sizes, sizes)

    monkeypatch.setattr(tensorrt_fixtures, "port", port)
    monkeypatch.setattr(tensorrt_fixtures, "TOKENS", 16)
    sidecar = small_export(tmp_path)
    assert sidecar.inputs["latents"].shape == [2, 4, 3, 8, 8]
    (engine,) = build(tmp_path, rtx, options(), said()[1])
    assert engine["profiles"][0]["latents"]["min"] == [2, 4, 3, 8, 8]


def test_an_engine_takes_the_memory_of_its_shapes_and_none_of_its_own(rtx):
    trt = rtx.module
    for streaming in (False, True):
        config = rtx.made("Builder").create_builder_config()
        building._let_shapes_decide_memory(trt, config, streaming)
        assert config.get_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION) is not streaming
        assert config.get_preview_feature(trt.PreviewFeature.RUNTIME_ACTIVATION_RESIZE_10_10)
    older = SimpleNamespace(BuilderFlag=SimpleNamespace())
    building._let_shapes_decide_memory(older, SimpleNamespace(), False)


@pytest.mark.parametrize(
    ("operator", "domain", "words"),
    [
        ("Frobnicate", "org.example", "operator Frobnicate"),
        ("StringConcat", "", "operator StringConcat"),
    ],
)
def test_an_operator_it_cannot_read_is_named(rtx, tmp_path, operator, domain, words):
    small_export(tmp_path, operator=operator, domain=domain)
    with pytest.raises(UserError) as error:
        build(tmp_path, rtx, options(), said()[1])
    assert f"cannot read {tmp_path / 'denoiser.onnx'}: node 'by_time', {words}" in str(error.value)
    assert not (tmp_path / FOLDER).exists()


@pytest.mark.parametrize("name", ["denoiser.onnx", "denoiser.onnx.data"])
def test_a_truncated_or_missing_file_is_one_line(rtx, export, name):
    path = export.folder / name
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(UserError, match=f"{name} is not the file .* truncated"):
        build(export.folder, rtx, options(), said()[1])
    path.unlink()
    with pytest.raises(UserError, match=f"{name} is missing"):
        build(export.folder, rtx, options(), said()[1])
    assert not (export.folder / FOLDER).exists()


def test_what_fails_in_the_build_leaves_nothing(rtx, export, monkeypatch):
    # a profile that contradicts the graph, which only the library finds out
    wrong = {"latents": ((1, 5, 2, 8, 8),) * 3}
    good = building.Profile.from_plain
    monkeypatch.setattr(
        building.Profile,
        "from_plain",
        lambda content: building.Profile({**good(content).inputs, **wrong}),
    )
    with pytest.raises(ExportError) as error:
        build(export.folder, rtx, options(), said()[1])
    assert "could not build" in str(error.value)
    assert "Dimension mismatch for tensor latents" in str(error.value)
    assert not (export.folder / FOLDER).exists()


def test_a_build_can_be_interrupted(rtx, export):
    def say(line):
        if "building engine, " in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(export.folder, rtx, options(), say)
    assert not (export.folder / FOLDER).exists()


@no_gpu
@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        (Options(), "there is no GPU here: say what to build for by --compute-capability, one or"),
        (
            options("9.0"),
            "does not build for compute capability 9.0: it does for 7.5, 8.0, 8.6, 8.9",
        ),
        (options("sm89"), "--compute-capability 'sm89' is not of the form 8.9"),
        (options(refittable=True), "--refittable needs a GPU to build"),
        (options(level=6), "--builder-level is 6: it must be from 0 (quick) to 5 (thorough)"),
        (options(profiles=("height=2",)), "no free size 'height': it has batch, frames"),
    ],
)
def test_what_cannot_be_built_here_is_one_line(rtx, export, wanted, words):
    with pytest.raises(UserError) as error:
        build(export.folder, rtx, wanted, said()[1])
    assert words in str(error.value)
    assert not (export.folder / FOLDER).exists()


def test_tensorrt_builds_for_its_own_gpu_only(export, monkeypatch):
    tensorrt = SimpleNamespace(name="tensorrt", version="11.4.0", targets=())
    monkeypatch.setattr(building, "gpu", lambda: None)
    with pytest.raises(
        UserError, match=r"tensorrt builds for the GPU it runs on, and there is none"
    ):
        build(export.folder, tensorrt, options(), said()[1])
    monkeypatch.setattr(building, "gpu", lambda: "9.0")
    with pytest.raises(UserError, match=r"8.9: tensorrt builds for the GPU .* which has 9.0"):
        build(export.folder, tensorrt, options("8.9"), said()[1])


def test_another_library_that_would_build_is_named(export, monkeypatch):
    """Breaks if who has both is not told of the one that a command's capabilities are for."""
    tensorrt = SimpleNamespace(name="tensorrt", version="11.4.0", targets=())
    other = SimpleNamespace(targets=("8.9", "12.0"))
    both = {"tensorrt": tensorrt, "tensorrt_rtx": other}
    monkeypatch.setattr(building, "installed", lambda: both)
    for here in ("9.0", None):
        monkeypatch.setattr(building, "gpu", lambda here=here: here)
        line = refusal(lambda: build(export.folder, tensorrt, options("8.9"), said()[1]))
        assert line.endswith(", or add --library tensorrt_rtx, which builds here for 8.9, 12.0")
        line = refusal(lambda: build(export.folder, tensorrt, options("8.7"), said()[1]))
        assert "add --library" not in line


@pytest.mark.parametrize("family", ["wan", "videocrafter2"])
def test_float32_attention_over_long_rows_is_refused(tmp_path, monkeypatch, family):
    """Breaks if a build is tried that no GPU has the memory for."""
    ports = wan_ports() if family == "wan" else vc2_ports()
    library = SimpleNamespace(name="tensorrt_rtx", version="1.7.1", targets=("8.9",))
    (tmp_path / "denoiser.onnx").touch()
    attends = {"operators": {"Attention": 60}}
    sidecar = describe(tmp_path, ports, **attends)
    monkeypatch.setattr(building, "gpu", lambda: None)
    monkeypatch.setattr(building, "_engine", lambda sidecar, *more: sidecar.precision)

    def tried(**changes):
        describe(tmp_path, ports, **{**attends, **changes})
        wanted = options(profiles=("frames=2:21:2048",))  # of 16 tokens
        return build(tmp_path, library, wanted, said()[1])

    if family == "videocrafter2":  # whose frames attend on their own
        assert tried() == ["fp32"]
        return
    line = refusal(tried)
    assert f"{sidecar.path} is in fp32, and 32768 tokens of a row attend to one another" in line
    assert (
        "4.3 GB a head and row, and takes at most 16384 here; export with --precision bf16" in line
    )
    assert tried(precision="bf16") == ["bf16"]
    assert tried(operators={"MatMul": 60}) == ["fp32"]
    assert build(tmp_path, library, options(), said()[1]) == ["fp32"]


@pytest.fixture
def modules(monkeypatch):
    """Python's modules, where TensorRT can be put in; none is there."""
    libraries._imported.cache_clear()
    for name in libraries.NAMES:
        monkeypatch.setitem(sys.modules, name, None)
    yield monkeypatch
    libraries._imported.cache_clear()


def fake(version):
    module = ModuleType("fake")
    module.__version__ = version
    module.ILogger = type("ILogger", (), {"ERROR": 1, "INTERNAL_ERROR": 0, "WARNING": 2})
    return module


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ([(1, "CUDA error 35"), (2, "driver too\nold")], "CUDA error 35; driver too old"),
        ([(2, "driver too old")], "driver too old"),
        ([], "it gave no reason"),
    ],
)
def test_a_driver_that_does_not_fit_is_one_line(modules, said, reason):
    module = fake("11.4.0")

    def make(logger):
        for severity, message in said:
            logger.log(severity, message)
        raise TypeError("pybind11::init(): factory function returned nullptr")

    module.Runtime = make
    modules.setitem(sys.modules, "tensorrt", module)
    library = load()
    library.logger.log(1, "of before")
    with pytest.raises(UserError) as error:
        library.made("Runtime")
    line = str(error.value)
    assert line.startswith("tensorrt 11.4.0 makes no Runtime with the driver")
    assert f"({reason}): update the driver" in line
    assert line.endswith("pip install tensorrt-cu12")


def test_the_install_command_is_named(modules):
    with pytest.raises(UserError) as error:
        load()
    assert 'pip install "miga-bench[tensorrt]"' in str(error.value)
    assert '"miga-bench[tensorrt-rtx]"' in str(error.value)
    with pytest.raises(
        UserError, match=r'is not installed: pip install "miga-bench\[tensorrt-rtx\]"'
    ):
        load("tensorrt_rtx")
    with pytest.raises(UserError, match="no library 'openvino': use tensorrt or tensorrt_rtx"):
        load("openvino")


@pytest.mark.parametrize(
    ("name", "version", "supported"),
    [
        ("tensorrt", "10.14.1.48", False),
        ("tensorrt", "10.15.0.1", True),
        ("tensorrt", "11.4.0.106", True),
        ("tensorrt", "12.0.0", False),
        ("tensorrt_rtx", "1.3.0", False),
        ("tensorrt_rtx", "1.7.1.116", True),
    ],
)
def test_versions_are_checked(modules, name, version, supported):
    modules.setitem(sys.modules, name, fake(version))
    if supported:
        assert load().version == version
        assert list(libraries.installed()) == [name]
    else:
        with pytest.raises(
            UserError, match=f"{name} {version} is not supported, .* are: pip install"
        ):
            load()


def test_tensorrt_goes_before_the_other(modules):
    for name in libraries.NAMES:
        modules.setitem(sys.modules, name, fake("11.0" if name == "tensorrt" else "1.7"))
    assert load().name == "tensorrt"
    assert load("tensorrt_rtx").name == "tensorrt_rtx"
    assert set(libraries.installed()) == set(libraries.NAMES)


def test_a_broken_installation_is_told_from_none(modules, tmp_path):
    (tmp_path / "tensorrt.py").write_text("raise ImportError('libnvinfer.so.11: cannot open')")
    modules.delitem(sys.modules, "tensorrt")
    modules.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=r"is installed but does not load: libnvinfer.so.11"):
        load()


def test_the_command_builds_and_reports(rtx, export, capsys):
    command = ["export", "tensorrt", str(export.folder), "--library", "tensorrt_rtx"]
    assert main([*command, "--compute-capability", "8.9,12.0", "--profile", "batch=2"]) == 0
    out, err = capsys.readouterr()
    engines = json.loads(out.splitlines()[-1])["engines"]
    assert [engine["compute_capability"] for engine in engines] == ["8.9", "12.0"]
    assert err.count("MiB, in ") == 2
    assert err.count("; not held against PyTorch: ") == 2
    assert main([*command, "--compute-capability", "8.9", "--profile", "batch=2"]) == 0
    assert "is there already" in capsys.readouterr().err


def test_a_disk_that_takes_no_more_is_one_line(rtx, export, capsys):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(
        resource.RLIMIT_FSIZE, (5000, limits[1])
    )  # files end here, as on a full disk
    try:
        command = ["export", "tensorrt", str(export.folder), "--compute-capability", "8.9"]
        assert main([*command, "--library", "tensorrt_rtx"]) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    err = capsys.readouterr().err
    assert "MiB) could not be written to" in err
    assert "file too large; nothing of it was left there" in err
    assert list((export.folder / FOLDER).iterdir()) == []


def test_measured_times_are_kept_for_the_next_build(tmp_path):
    """For the library that measures; the configuration is a stand-in, it would need a GPU."""

    class Config:
        def create_timing_cache(self, known):
            self.known = known
            return None if known == b"damaged" else self

        attached = None

        def set_timing_cache(self, cache, ignore_mismatch):
            assert cache is self
            assert not ignore_mismatch
            self.attached = None if self.known == b"of another GPU" else self.known
            return self.attached is not None

        def get_timing_cache(self):
            if self.attached is None:
                return None
            return SimpleNamespace(serialize=lambda: self.attached + b"+")

    library = SimpleNamespace(name="tensorrt", version="11.4.0", targets=())
    manifest = SimpleNamespace(compute_capability="9.0", device="NVIDIA H100 80GB HBM3")
    for wanted in (b"+", b"++"):
        building.TimingCache(tmp_path / "engines", library, manifest, Config()).keep()
        (path,) = (tmp_path / "engines").iterdir()
        assert path.name == "timing.tensorrt-11.4.0.sm90.NVIDIA-H100-80GB-HBM3.cache"
        assert path.read_bytes() == wanted
    for unusable in (b"damaged", b"of another GPU"):
        path.write_bytes(unusable)
        building.TimingCache(tmp_path / "engines", library, manifest, Config()).keep()
        assert path.read_bytes() == b"+"
    cache = building.TimingCache(tmp_path / "engines", library, manifest, Config())
    cache.config.attached = None  # the library has none
    cache.keep()
    assert path.read_bytes() == b"+"
    (tmp_path / "file").touch()
    with pytest.warns(Notice, match="cannot be written .*: the engine is whole"):
        building.TimingCache(tmp_path / "file" / "x", library, manifest, Config()).keep()


def test_the_command_says_what_is_wrong(rtx, export, capsys):
    command = ["export", "tensorrt", str(export.folder)]
    for option in ("--refittable", "--builder-level=0", "--library=tensorrt", "--force"):
        assert main([*command, "--refit", "x.engine", option]) == 2
        assert f"leave {option.partition('=')[0]} out" in capsys.readouterr().err
    assert main([*command, "--refit", "x.engine"]) == 2
    assert "--refit x.engine is missing" in capsys.readouterr().err
    assert main(["export", "tensorrt", "nowhere", "--compute-capability", "8.9"]) == 2
    assert "nowhere" in capsys.readouterr().err


def test_help_has_examples(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["export", "tensorrt", "--help"])
    assert stopped.value.code == 0
    out = capsys.readouterr().out
    assert "export tensorrt wan-onnx --library tensorrt_rtx --compute-capability 8.9,12.0" in out
