"""Where the user leaves open what runs the denoiser: what is chosen, and that it is only made once."""

import shutil
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from onnx_fixtures import embedded_wan

from miga_bench.backbones import load_backbone
from miga_bench.cli import main
from miga_bench.errors import ExportError, Notice, UserError
from miga_bench.harness import automatic_export
from miga_bench.sampling import METHODS, resolve

LONG = 60  # latents
PAYS = 200  # evaluations, which LONG takes and a short clip does not


@pytest.fixture(scope="module")
def wan():
    return load_backbone("tiny-wan", device="cpu")


@pytest.fixture
def exports(tmp_path, monkeypatch):
    """Let exporting copy what was exported before, and list what was exported; with a cache of its own."""
    made = []

    def copy(request):
        made.append(request.output)
        shutil.copytree(embedded_wan(), request.output)

    monkeypatch.setenv("MIGA_BENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(automatic_export, "export_onnx", copy)
    monkeypatch.setattr(automatic_export, "PAYS_FROM", {"tiny-wan": PAYS})
    return made


def chosen(backbone, latents, method="fifo", **settings):
    sampler = METHODS[method](resolve(method, backbone, overrides={"steps": "21", **settings}))
    return automatic_export.faster(backbone, sampler, latents)


def test_a_long_video_is_exported_for_once(wan, exports):
    with pytest.warns(Notice, match="exported first, once"):
        assert chosen(wan, LONG).denoiser_identity.startswith("onnx:fp32:")
    assert chosen(wan, LONG).denoiser_identity.startswith("onnx:fp32:")
    assert chosen(wan, None) is wan  # an endless video's first frame does not wait for it
    assert len(exports) == 1


def test_the_length_decides_and_not_what_is_kept(wan, exports):
    with pytest.warns(Notice, match="exported first"):
        chosen(wan, LONG)
    assert chosen(wan, 8) is wan


@pytest.mark.parametrize(
    "change", [{"method": "freelong"}, {"method": "miga", "guidance_cut": "true"}, {"cache": "0.1"}]
)
def test_what_changes_the_networks_inside_stays_with_pytorch(wan, exports, change):
    assert chosen(wan, LONG, **change) is wan
    assert not exports


class Attends(METHODS["fifo"]):
    """A method of the user's own that is endless, and changes the attention."""

    def stream(self, backbone, *arguments):
        with backbone.attending(lambda query, key, value, site: value):
            yield from super().stream(backbone, *arguments)


def test_a_method_of_ones_own_that_changes_the_attention_stays_with_pytorch(wan, exports):
    """Breaks if minutes go into an export that then refuses the method."""
    sampler = Attends(resolve("fifo", wan, overrides={"steps": "21"}))
    assert automatic_export.faster(wan, sampler, LONG) is wan
    assert not exports


def cut(folder):
    graph = folder / "vae_decoder_step.onnx"
    graph.write_bytes(graph.read_bytes()[:1000])


def clean_half(folder):
    for record in folder.glob("*.json"):
        record.unlink()


@pytest.mark.filterwarnings("ignore:.*exported first")
def test_two_first_commands_at_once_export_once(wan, exports, monkeypatch):
    whole = automatic_export.export_onnx

    def slow(request):
        time.sleep(0.3)
        whole(request)

    monkeypatch.setattr(automatic_export, "export_onnx", slow)
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda _: chosen(wan, LONG).denoiser_identity[:5], range(2)))
    assert found == ["onnx:", "onnx:"]
    assert len(exports) == 1


@pytest.mark.parametrize("damage", [cut, clean_half])
def test_a_damaged_export_is_made_again(wan, exports, damage):
    with pytest.warns(Notice, match="exported first"):
        chosen(wan, LONG)
    damage(exports[0])
    with pytest.warns(Notice, match="exported first"):
        assert chosen(wan, LONG) is not wan
    assert len(exports) == 2


def test_without_a_place_for_it_pytorch_goes_on(wan, exports, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("MIGA_BENCH_CACHE", str(tmp_path / "file"))
    with pytest.warns(Notice) as notices:
        assert chosen(wan, LONG) is wan
    assert "cannot be written" in str(notices[-1].message)


@pytest.mark.filterwarnings("ignore:.*exported first")
@pytest.mark.parametrize(
    "error",
    [
        ExportError("denoiser.onnx is off by 0.3"),
        UserError("opset 23 is not known here"),
        ImportError("No module named 'onnxscript'"),
        RuntimeError("the graph has no such operator"),
    ],
)
def test_an_export_that_nobody_asked_for_takes_no_video_down(wan, exports, monkeypatch, error):
    def fails(request):
        raise error

    monkeypatch.setattr(automatic_export, "export_onnx", fails)
    with pytest.warns(Notice) as notices:
        assert chosen(wan, LONG) is wan
    said = str(notices[-1].message)
    assert str(error) in said
    assert "PyTorch runs the denoiser" in said


def test_without_a_home_pytorch_goes_on(wan, exports, monkeypatch):
    monkeypatch.delenv("MIGA_BENCH_CACHE")
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", lambda _: {}["nobody"])
    with pytest.warns(Notice, match="set MIGA_BENCH_CACHE to a folder of yours"):
        assert chosen(wan, LONG) is wan
    assert not exports


@pytest.mark.parametrize(
    ("options", "identity"),
    [
        ((), "onnx:fp32:"),
        (("--denoiser", "torch"), "torch"),
        (("--dtype", "bfloat16"), "torch"),
    ],
)
def test_generate_asks_only_where_it_is_open(
    exports, monkeypatch, tmp_path, capsys, options, identity
):
    monkeypatch.setattr(automatic_export, "PAYS_FROM", {"tiny-wan": 1})
    quick = ["--method", "fifo", "--frames", "5", "--set", "steps=21", "--quiet"]
    assert main(["generate", "a red circle", "-o", str(tmp_path / "a.mp4"), *quick, *options]) == 0
    assert f'"denoiser": "{identity}' in capsys.readouterr().out
    assert len(exports) == (identity != "torch")
