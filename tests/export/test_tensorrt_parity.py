"""An engine is held against PyTorch's answer that the export keeps, when it is built and refitted.

The engine and what refits it are stand-ins. A second.
"""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from tensorrt_fixtures import probed, small_answer, small_export, stand_in

from miga_bench.backbones import memory
from miga_bench.errors import DoesNotFitError, ExportError, UserError
from miga_bench.export import probe
from miga_bench.export.sidecar import Sidecar
from miga_bench.export.tensorrt import parity, refit
from miga_bench.export.tensorrt.manifest import FOLDER, Manifest
from miga_bench.export.tensorrt.profiles import Profile


@pytest.fixture
def export(tmp_path):
    return probed(small_export(tmp_path / "export"), small_answer)


def manifest(sidecar, **changes):
    return Manifest(
        **{
            "graph": "denoiser",
            "onnx": sidecar.identity,
            "backbone": sidecar.backbone,
            "precision": "fp32",
            "library": "tensorrt",
            "version": "11.4.0",
            "compute_capability": "9.0",
            "profiles": [Profile.of(sidecar.inputs).plain()],
            "builder_level": 3,
            "weight_streaming": False,
            "refittable": True,
        }
        | changes
    )


def engine(sidecar, *profiles):
    texts = profiles or ("batch=1:2:4,frames=2:5:8",)
    return stand_in(sidecar.folder, [Profile.parse(text, sidecar.inputs) for text in texts])


def held(sidecar, *profiles, **changes):
    return parity.held(manifest(sidecar, **changes), engine(sidecar, *profiles), sidecar, "cpu")


def test_an_engine_that_computes_what_pytorch_does_says_how_closely(export):
    for profiles in ((), ("batch=2",), ("batch=4,frames=8", "batch=3:4:4,frames=3")):
        record = held(export, *profiles)
        assert record.parity < 1e-6
        assert record.parity_reason is None


@pytest.mark.parametrize("scale", [0.51, float("nan")])
def test_an_engine_that_computes_something_else_is_refused(export, scale):
    probed(export, lambda given: small_answer(given, scale))
    wrong = Sidecar.read(export.folder, "denoiser")
    with pytest.raises(ExportError, match=r"away from PyTorch, more than 0.01 in fp32: it was not"):
        held(wrong)


def test_the_tolerance_is_the_types(export):
    probed(export, lambda given: small_answer(given, 0.52))
    near = Sidecar.read(export.folder, "denoiser")
    assert held(near, precision="bf16").parity == pytest.approx(0.04, rel=0.1)
    with pytest.raises(ExportError, match=r"more than 0.02 in fp16"):
        held(near, precision="fp16")


def test_what_is_not_measured_says_why(export, monkeypatch):
    record = held(export, "batch=2,frames=5")
    assert record.parity is None
    assert "no profile takes the 3 latent frames" in record.parity_reason
    for error in (torch.OutOfMemoryError("no"), DoesNotFitError("a row: less")):

        def runs_out(*args, error=error):
            raise error

        monkeypatch.setattr(parity.TensorRTDenoiser, "__call__", runs_out)
        assert held(export).parity_reason == "memory of the GPU did not suffice"
    old = replace(export, probe=None)
    assert parity.held(manifest(old), None, old).parity_reason.endswith("export it again")
    large = replace(old, unprobed="too large")
    assert parity.held(manifest(large), None, large).parity_reason == "too large"


def test_an_engine_is_measured_where_its_gpu_is(export, monkeypatch):
    there = engine(export)
    opened, free = [], []

    class Runtime:
        def deserialize_cuda_engine(self, content):
            opened.append(content)
            return there.engine if content == b"engine" else None

    library = there.library
    library.version, library.made = "11.4.0", lambda kind: Runtime()
    run = parity.held
    monkeypatch.setattr(parity, "held", lambda *given: run(*given, "cpu"))

    def built(content=b"engine"):
        record = manifest(export, bytes=len(content))
        return parity.built(record, content, export, library, there.path)

    for gpu, place in ((None, "no GPU"), ("8.9", "one of 8.9")):
        monkeypatch.setattr(parity, "gpu", lambda gpu=gpu: gpu)
        assert built().parity_reason == f"built for 9.0, here is {place}"
    monkeypatch.setattr(parity, "gpu", lambda: "9.0")
    assert opened == []
    assert built().parity < 1e-6
    monkeypatch.setattr(memory, "free_bytes", lambda device: free[0])
    free = [8]  # of manifest()'s 9 bytes: the build is not thrown away
    record = built(b"too large")
    assert (record.parity, record.parity_reason) == (None, "memory of the GPU did not suffice")
    free = [9]
    with pytest.raises(ExportError, match=r"cannot load the engine that it built .*refused"):
        built(b"damaged")


def test_a_probe_that_is_none_is_one_line(export):
    path = export.folder / probe.NAME
    path.write_bytes(b"no tensors")
    with pytest.raises(UserError, match=f"{probe.NAME} is not the file"):
        export.check()
    with pytest.raises(UserError, match=r"is no input and answer of denoiser.onnx"):
        probe.load(export)
    path.unlink()
    with pytest.raises(UserError, match=r"is missing: it holds the test of denoiser.onnx"):
        export.check()


@pytest.fixture
def refitting(export, tmp_path, monkeypatch):
    """Return a refit onto another export's weights, and the stand-ins that it goes through."""
    other = probed(
        small_export(tmp_path / "lora", scale=0.7), lambda given: small_answer(given, 0.7)
    )
    old = manifest(export, bytes=3, sha256="0" * 64)
    path = old.write(export.folder / FOLDER, b"old")
    there = engine(other)  # as if the weights had come
    there.engine.serialize = lambda: b"new"
    errors = [SimpleNamespace(desc=lambda: "weight\n is missing")]
    parser = SimpleNamespace(refit_from_file=lambda path: True, num_errors=0, get_error=errors.pop)
    there.library.made = lambda kind, engine: SimpleNamespace(refit_cuda_engine=lambda: True)
    there.library.module.OnnxParserRefitter = lambda refitter, logger: parser
    there.library.logger = None
    monkeypatch.setattr(refit, "load_engine", lambda path: there)
    monkeypatch.setattr(refit, "held", lambda *given, run=parity.held: run(*given, device="cpu"))
    return SimpleNamespace(
        run=lambda: refit.refit(other.folder, path, lambda line: None),
        parser=parser,
        engine=there.engine,
        other=other,
    )


def test_a_refitted_engine_is_held_against_its_own_export(refitting):
    record = refitting.run()
    assert record["parity"] < 1e-6
    assert record["onnx"] == refitting.other.identity
    probed(refitting.other, small_answer)  # PyTorch says what the old weights would give
    with pytest.raises(ExportError, match="away from PyTorch"):
        refitting.run()


def test_why_a_refit_failed_is_what_the_parser_says(refitting):
    refitting.parser.refit_from_file = lambda path: False
    refitting.parser.num_errors = 1
    with pytest.raises(ExportError, match=r"could not refit .*: weight is missing$"):
        refitting.run()


def test_an_engine_that_cannot_be_written_out_is_no_engine(refitting):
    refitting.engine.serialize = lambda: None
    with pytest.raises(ExportError, match=r"could not refit .*: the stand-in refused$"):
        refitting.run()
    assert not (refitting.other.folder / FOLDER).exists()
