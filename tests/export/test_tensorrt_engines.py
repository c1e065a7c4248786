"""Which engines may be loaded: stale, foreign, damaged and unknown ones are not. No TensorRT, 2 s."""

import errno
import json
import os
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
from onnx import helper
from tensorrt_fixtures import small_export

from miga_bench.errors import UserError
from miga_bench.export.tensorrt import refit
from miga_bench.export.tensorrt.build import finished
from miga_bench.export.tensorrt.manifest import FOLDER, Manifest, find
from miga_bench.export.tensorrt.profiles import Profile

HERE = {"tensorrt": "11.4.0"}
GPU = "9.0"


@pytest.fixture
def export(tmp_path):
    return small_export(tmp_path / "export")


def record(sidecar, content=b"code for a GPU", **changes):
    manifest = Manifest(
        graph="denoiser",
        onnx=sidecar.identity,
        backbone=sidecar.backbone,
        precision="fp32",
        library="tensorrt",
        version="11.4.0",
        compute_capability=GPU,
        profiles=[Profile.of(sidecar.inputs).plain()],
        builder_level=3,
        weight_streaming=False,
        refittable=False,
    )
    return finished(replace(manifest, **changes), content, 1.5)


def written(sidecar, content=b"code for a GPU", **changes) -> Path:
    return record(sidecar, content, **changes).write(sidecar.folder / FOLDER, content)


def test_the_name_tells_what_it_is_for(export):
    path = written(export)
    assert path.name.startswith("denoiser.tensorrt-11.4.0.sm90.fp32.profile-")
    assert export.identity[:8] in path.name
    names = {
        record(export, **changes).name
        for changes in (
            {},
            {"version": "11.3.0"},
            {"compute_capability": "8.9"},
            {"precision": "bf16"},
            {"onnx": "f" * 64},
            {"builder_level": 5},
            {"weight_streaming": True},
            {"refittable": True},
            {"profiles": [Profile.parse("batch=1", export.inputs).plain()]},
        )
    }
    assert len(names) == 9


def test_record_and_engine_come_back(export):
    path = written(export)
    assert find(export.folder, HERE, GPU) == (path, Manifest.read(path))
    assert find(path, HERE, GPU)[0] == path
    assert Manifest.read(path).bytes == path.stat().st_size
    assert Manifest.read(path).build_seconds == 1.5


def test_of_several_engines_the_last_that_fits_is_taken(export):
    first = written(export, builder_level=1)
    last = written(export, builder_level=2)
    written(export, compute_capability="8.9")
    assert find(export.folder, HERE, GPU)[0] == last
    last.unlink()
    assert find(export.folder, HERE, GPU)[0] == first


def test_an_engine_of_this_model_of_gpu_goes_before_others(export):
    names = ("NVIDIA H100 PCIe", "NVIDIA H200")
    first, last = (written(export, device=name, device_bytes=80 << 30) for name in names)
    assert first.name != last.name  # neither build takes the place of the other
    for device, path in zip(names, (first, last), strict=True):
        assert find(export.folder, HERE, GPU, device=device)[0] == path
    assert find(export.folder, HERE, GPU, device="NVIDIA GH200")[0] == last
    manifest = Manifest.read(first)
    assert manifest.elsewhere("NVIDIA H100 PCIe", 80 << 30) is None
    assert "this is NVIDIA H200 (141 GiB)" in manifest.elsewhere("NVIDIA H200", 141 << 30)
    assert "(80 GiB), this is" in manifest.elsewhere("NVIDIA H100 PCIe", 40 << 30)  # a share of it
    anywhere = record(export)  # by a library that builds for any
    assert anywhere.elsewhere("NVIDIA H200", 141 << 30) is None


def test_a_stale_engine_is_not_loaded(export):
    path = written(export)
    small_export(export.folder, scale=0.7)  # exported anew
    for where in (export.folder, path):
        with pytest.raises(UserError, match=r"is stale: it was built of another ONNX file .*build"):
            find(where, HERE, GPU)


@pytest.mark.parametrize(
    ("installed", "gpu", "words"),
    [
        ({"tensorrt": "10.16.1"}, GPU, "by tensorrt 11.4.0: here is tensorrt 10.16.1"),
        ({"tensorrt_rtx": "1.7.1"}, GPU, "by tensorrt 11.4.0: here is tensorrt_rtx 1.7.1"),
        (HERE, "8.9", "for compute capability 9.0: this GPU has 8.9"),
    ],
)
def test_a_foreign_engine_is_not_loaded(export, installed, gpu, words):
    path = written(export)
    for where, trusted in ((export.folder, False), (path, False), (path, True)):
        with pytest.raises(UserError) as error:
            find(where, installed, gpu, trusted)
        assert words in str(error.value)


def test_how_many_others_do_not_fit_is_said(export):
    written(export, compute_capability="8.6")
    written(export, compute_capability="8.9")
    with pytest.raises(
        UserError, match=r"capability 8.9: this GPU has 9.0, nor does one of 1 other"
    ):
        find(export.folder, HERE, GPU)


def test_no_engine_names_the_command(export):
    with pytest.raises(UserError, match="has no engine; build one: miga-bench export tensorrt"):
        find(export.folder, HERE, GPU)
    with pytest.raises(UserError, match="is missing: give an export folder"):
        find(export.folder / "nothing", HERE, GPU)


def test_a_changed_engine_is_not_loaded(export):
    path = written(export)
    path.write_bytes(b"code for a CPU")  # as long as the other
    for where in (export.folder, path):
        with pytest.raises(
            UserError, match=r"not the file that its record describes.*run any code"
        ):
            find(where, HERE, GPU)
    path.write_bytes(b"code")  # truncated
    with pytest.raises(UserError, match="not the file that its record describes"):
        find(path, HERE, GPU)
    assert find(path, HERE, GPU, trusted=True)[0] == path


def test_an_engine_from_elsewhere_has_to_be_vouched_for(export, tmp_path):
    path = written(export)
    elsewhere = tmp_path / path.name
    for old in (path, path.with_suffix(".json")):
        (tmp_path / old.name).write_bytes(old.read_bytes())
    with pytest.raises(UserError, match="does not lie in the folder engines of an export"):
        find(elsewhere, HERE, GPU)
    assert find(elsewhere, HERE, GPU, trusted=True) == (elsewhere, Manifest.read(path))
    elsewhere.with_suffix(".json").unlink()
    assert find(elsewhere, HERE, GPU, trusted=True) == (elsewhere, None)


def test_without_its_record_an_engine_is_not_loaded(export):
    path = written(export)
    path.with_suffix(".json").unlink()
    for where in (export.folder, path):
        with pytest.raises(UserError, match=r"has no record: .*\.json is missing"):
            find(where, HERE, GPU)


def test_one_damaged_record_does_not_keep_the_others_back(export):
    good = written(export, builder_level=1)
    for damaged in (written(export), written(export, builder_level=2)):
        damaged.with_suffix(".json").write_text("{")
    damaged.with_suffix(".json").unlink()  # as when the power fails between two files
    (good.parent / f".{good.name}.part").write_bytes(b"half an engine")
    assert find(export.folder, HERE, GPU)[0] == good


@pytest.mark.parametrize("content", ["", "{}", '{"format": 1}', '{"format": 9}', "[]", "null"])
def test_a_damaged_record_is_one_line(export, content):
    path = written(export)
    path.with_suffix(".json").write_text(content)
    with pytest.raises(UserError, match="is not the record of an engine"):
        find(export.folder, HERE, GPU)


@pytest.mark.parametrize("failing", [1, 2])
def test_a_full_disk_leaves_nothing_half_written(export, monkeypatch, failing):
    old = written(export, b"the engine before")
    before = {path.name: path.read_bytes() for path in old.parent.iterdir()}
    synced = []

    def fsync(handle):
        synced.append(handle)
        if len(synced) == failing:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match="No space left"):
        written(export)
    assert {path.name: path.read_bytes() for path in old.parent.iterdir()} == before


def test_only_weights_of_the_same_graph_can_be_refitted(export, tmp_path):
    fixed = written(export)
    engine = written(export, refittable=True)
    other = small_export(tmp_path / "lora", scale=0.7)
    assert refit.check(engine, other) == Manifest.read(engine)
    with pytest.raises(UserError, match="is not refittable: build it with --refittable"):
        refit.check(fixed, other)
    with pytest.raises(UserError, match=r"--refit .* is missing"):
        refit.check(tmp_path / "none.engine", other)
    model = onnx.load(other.path, load_external_data=False)
    model.graph.initializer.append(helper.make_tensor("bias", 1, [2], [0.0, 0.0]))
    onnx.save(model, other.path)  # in the engine's export it was equal to another, and so left out
    with pytest.raises(UserError, match=r"has other weights than .* \('bias' and 0 more differ"):
        refit.check(engine, other)
    other.path.write_bytes(b"no graph")
    with pytest.raises(UserError, match=r"--refit needs the graph .*denoiser.onnx, which cannot"):
        refit.check(engine, other)
    content = json.loads(other.file.read_text())
    other.file.write_text(json.dumps({**content, "operators": {"Mul": 3}}))
    with pytest.raises(UserError, match=r"of another graph .* \(operators differ\)"):
        refit.check(engine, type(other).read(other.folder, "denoiser"))
