"""Exported graphs say what PyTorch says, alone make the same video, and are whole or not there.

Takes about 70 s on one busy core, nearly all of it three exports.
"""

import json
import re
import resource
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
import torch
from helpers import refusal
from onnx_fixtures import embedded_wan, export, fixed_half_wan, random_vc2
from safetensors.torch import save_file
from tensorrt_fixtures import small_export
from wan_fixtures import tiny_folder, tiny_transformer

from miga_bench.backbones import load_backbone
from miga_bench.backbones.wan_denoiser import WanNetwork
from miga_bench.cli import main
from miga_bench.errors import ExportError, UserError
from miga_bench.export import graphs, onnx_graph
from miga_bench.export.backbone import ExportedBackbone
from miga_bench.export.card import card
from miga_bench.export.choice import DenoiserChoice
from miga_bench.export.facts import ExportFacts
from miga_bench.export.lora import Lora
from miga_bench.export.onnx_denoiser import OnnxDenoiser
from miga_bench.export.opening import open_model
from miga_bench.export.session import Session
from miga_bench.export.sidecar import Port, Sidecar
from miga_bench.export.triton import export_triton
from miga_bench.harness.flops import FlopMeter
from miga_bench.harness.items import Item
from miga_bench.media import read_video
from miga_bench.sampling import METHODS, CounterNoise, PromptSchedule, resolve

PROMPT = "a red circle moves right on a blue field"


def opened(folder: Path) -> ExportedBackbone:
    return ExportedBackbone(DenoiserChoice("onnx", folder), "cpu")


@pytest.fixture(scope="module")
def wan():
    return load_backbone("tiny-wan", device="cpu"), opened(embedded_wan())


@pytest.fixture(scope="module")
def vc2():
    folder = random_vc2()
    source = load_backbone(
        folder.parent / "vc2-source", device="cpu", height=16, width=16, window=4
    )
    return source, opened(folder)


def call(backbone, rows, frames, seed=0):
    generator = torch.Generator().manual_seed(seed)
    channels, height, width = backbone.latent_shape
    latents = torch.randn(rows, channels, frames, height, width, generator=generator)
    timesteps = torch.rand(rows, frames, generator=generator) * 1000
    text = torch.randn(rows, backbone.text.length, backbone.text_width, generator=generator)
    return latents, timesteps, text


def close(got, wanted, tolerance=1e-4):
    return (got - wanted).abs().max() <= tolerance * wanted.abs().max()


@pytest.mark.parametrize("shape", [(1, 21), (3, 4), (16, 2), (2, 24)])
def test_wans_denoiser_at_sizes_it_was_not_traced_at(wan, shape):
    source, exported = wan
    inputs = call(source, *shape)
    with torch.inference_mode():
        assert close(exported.denoiser(*inputs), source.denoiser(*inputs))


@pytest.mark.parametrize("shape", [(1, 4), (3, 7), (5, 2)])
@pytest.mark.parametrize("fps", [8.0, 20.0])
def test_videocrafter2s_denoiser_with_the_rate_it_is_told(vc2, shape, fps):
    source, exported = (backbone.reading(fps=fps) for backbone in vc2)
    inputs = call(source, *shape)
    with torch.inference_mode():
        wanted = source.denoiser(*inputs)
        assert close(exported.denoiser(*inputs), wanted)
        assert not close(exported.denoiser.telling(fps + 4)(*inputs), wanted)


@pytest.mark.parametrize("family", ["wan", "vc2"])
def test_decoder_and_text_encoder(family, request):
    source, exported = request.getfixturevalue(family)
    latents = torch.randn(5, *source.latent_shape, generator=torch.Generator().manual_seed(1))
    one, other = source.decoder(), exported.decoder()
    for portion in latents.split([1, 3, 1]):
        assert close(other.push(portion), one.push(portion), 1e-5)
    fresh = exported.decoder()
    assert torch.equal(fresh.push(latents[:1]), exported.decoder().push(latents[:1]))
    assert exported.decoder().push(latents[:0]).shape == one.push(latents[:0]).shape
    prompts = ["a red circle moves right", "", "the  green &amp; square"]
    assert close(exported.encode(prompts), source.encode(prompts), 1e-5)
    assert exported.unknown_words(prompts) == source.unknown_words(prompts) != []
    with pytest.raises(UserError, match="tokens but the model reads"):
        exported.encode(["red " * 60])


@pytest.mark.parametrize("family", ["wan", "vc2"])
def test_what_sampling_asks_is_answered_alike(family, request):
    source, exported = request.getfixturevalue(family)
    names = ("family", "preset", "window", "latent_shape", "frame_rate", "negative_prompt")
    names += ("weights_hash",)
    for name in names:
        if (family, name) != ("vc2", "window"):  # set by the fixture
            assert getattr(source, name) == getattr(exported, name), name
    for steps in (8, 50):
        a, b = source.schedule(steps), exported.schedule(steps)
        assert all(torch.equal(getattr(a, n), getattr(b, n)) for n in ("timesteps", "alpha"))
        assert type(source.solver(a)) is type(exported.solver(b))
    for count in (0, 1, 2, 9):
        assert source.frames_of(count) == exported.frames_of(count)
        assert source.latents_for(count + 1) == exported.latents_for(count + 1)
    meters = FlopMeter(), FlopMeter()
    inputs = call(source, 3, 7)
    for meter, backbone in zip(meters, (source, exported), strict=True):
        meter.metered(backbone.denoiser, lambda *a, **k: a[0])(*inputs)
    assert meters[0].cost() == meters[1].cost() != {"flops": 0}


MIGA = {"zigzag": 2, "guidance_frames": 2, "stride": 2, "stage2_steps": 2, "renoise": 2}
# every pass searches, in windows of other lengths
MIGA |= {"reflection_level": 8, "reference_chunks": 1, "candidates": 2, "reflection_threshold": -2}


@pytest.mark.parametrize(
    ("method", "settings"), [("fifo", {}), ("miga", MIGA | {"reflection": "continuous"})]
)
@pytest.mark.parametrize("family", ["wan", "vc2"])
def test_a_video_of_many_windows_is_pytorchs(family, method, settings, request, monkeypatch):
    made = []
    for backbone in request.getfixturevalue(family):
        monkeypatch.setattr(backbone, "window", 5)
        chosen = resolve(method, backbone, "paper", {"steps": 9, "batch": 3, **settings})
        prompts = PromptSchedule(backbone.encode([PROMPT]), backbone.encode([""]))
        noise = CounterNoise(2, backbone.latent_shape)
        made.append(METHODS[method](chosen).sample(backbone, prompts, noise, 7))
    torch.testing.assert_close(*made, rtol=1e-3, atol=1e-3)


def test_graphs_are_what_engines_are_built_from(wan):
    for folder in (embedded_wan(), random_vc2()):
        sidecar = Sidecar.read(folder, "denoiser")
        sidecar.check()
        model = onnx.load(sidecar.path)
        assert not {"ScatterND", "ScatterElements"} & {n.op_type for n in model.graph.node}
        kinds = {tensor.data_type for tensor in model.graph.initializer}
        assert onnx.TensorProto.DOUBLE not in kinds
        named = {
            value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
            for value in [*model.graph.input, *model.graph.output]
        }
        ports = sidecar.inputs | sidecar.outputs
        assert named == {name: port.shape for name, port in ports.items()}
        assert sidecar.inputs["timesteps"].shape == ["batch", "frames"]
        assert len(sidecar.parity) >= 3
        assert all(entry["relative"] <= sidecar.tolerance == 1e-4 for entry in sidecar.parity)
    cos = Sidecar.read(embedded_wan(), "denoiser").inputs["cos"]
    assert (cos.shape, cos.max) == ([1, "16*frames", 1, 18], [1, 16 * 21, 1, 18])


def test_half_precision_and_one_size(tmp_path):
    folder = fixed_half_wan()
    sidecar = Sidecar.read(folder, "denoiser")
    assert (sidecar.precision, sidecar.opset) == ("fp16", 20)
    assert sidecar.inputs["latents"].shape == [2, 4, 3, 2, 4]
    assert 1e-5 < max(entry["relative"] for entry in sidecar.parity) <= 5e-3
    source = load_backbone(folder.parent / "wan-source", device="cpu", height=16, width=32)
    denoiser = OnnxDenoiser(Session(sidecar), ExportFacts.read(folder))
    inputs = call(source, 5, 3)  # two calls and a half
    with torch.inference_mode():
        assert close(denoiser(*inputs), source.denoiser(*inputs), 5e-3)
    with pytest.raises(UserError, match="takes latents of 2x4x3x2x4, not 2x4x5x2x4"):
        denoiser(*call(source, 2, 5))
    again = opened(folder)
    inputs = call(source, 2, 3)
    with torch.inference_mode():
        assert close(again.denoiser(*inputs), source.denoiser(*inputs), 5e-3)


@pytest.mark.parametrize("made", [embedded_wan, random_vc2, fixed_half_wan])
def test_the_cards_example_says_what_we_say(made, monkeypatch):
    """Breaks if who serves a graph without this package is told other inputs than it takes."""
    folder = made()
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    monkeypatch.chdir(folder)
    seen = {}
    exec(code, seen)
    latents, levels, text = (
        torch.from_numpy(seen["inputs"][name]) for name in ("latents", "timesteps", "text")
    )
    facts = ExportFacts.read(folder)
    rate = facts.defaults and facts.defaults["fps"]
    expected = OnnxDenoiser(Session(Sidecar.read(folder, "denoiser")), facts, rate)(
        latents, levels, text
    )
    torch.testing.assert_close(torch.from_numpy(seen["prediction"]), expected)


def test_a_card_without_an_example():
    """Breaks if an export fails, or tells a program that cannot run, where there is no denoiser for it."""
    folder = embedded_wan()
    facts = json.loads((folder / "backbone.json").read_text())
    denoiser, text = (Sidecar.read(folder, name) for name in ("denoiser", "text_encoder"))
    assert "```python" in card(facts, [text, denoiser])
    assert "```python" not in card(facts, [text])
    assert "```python" not in card(facts, [replace(denoiser, precision="bf16")])


ALONE = """
import sys
from miga_bench.cli import main
code = main(sys.argv[1:])
heavy = [m for m in ("diffusers", "transformers", "lightning") if m in sys.modules]
sys.exit(f"loaded {heavy}" if heavy else code)
"""


def generate(folder, name, *options):
    output = folder / name
    arguments = ["generate", PROMPT, "--method", "short", "--frames", "9", "--lossless", "--quiet"]
    command = [*arguments, "--set", "steps=6", "-o", str(output), *options]
    return output, command


def test_a_video_from_graphs_alone_equals_pytorchs(tmp_path, capsys):
    ours, command = generate(tmp_path, "onnx.mp4", "--denoiser", f"onnx:{embedded_wan()}")
    done = subprocess.run(
        [sys.executable, "-c", ALONE, *command], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout.splitlines()[-1])
    theirs, command = generate(tmp_path, "torch.mp4", "--backbone", "tiny-wan")
    assert main(command) == 0
    reference = json.loads(capsys.readouterr().out.splitlines()[-1])
    frames = [torch.stack([f.float() for f in _frames(path)]) for path in (ours, theirs)]
    assert frames[0].shape == frames[1].shape == (9, 3, 64, 64)
    error = (frames[0] - frames[1]).square().mean()
    assert 10 * torch.log10(255**2 / error.clamp_min(1e-9)) >= 45
    assert record["backbone"].pop("denoiser").startswith("onnx:fp32:")
    assert reference["backbone"].pop("denoiser") == "torch"
    assert record["backbone"] == reference["backbone"]
    assert record["cost"]["flops"] == reference["cost"]["flops"] > 0


def _frames(path):
    return [
        frame
        for chunk in read_video(path)
        for frame in torch.as_tensor(chunk).reshape(-1, 3, 64, 64)
    ]


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("onxx:here", "did you mean onnx?"),
        ("onnx", "names no folder"),
        ("compile:x", "compile stands alone"),
        ("onnx+gpu:x", "providers are cpu, cuda"),
        ("onnx:/nowhere", "there is no folder /nowhere"),
        ("tensorrt:/nowhere", "there is no folder /nowhere"),
    ],
)
def test_a_denoiser_that_is_none(text, rule, tmp_path, capsys):
    assert rule in refusal(lambda: DenoiserChoice.parse(text))
    _, command = generate(tmp_path, "a.mp4", "--denoiser", text)
    assert main(command) == 2
    assert rule in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        (["--backbone", "tiny-videocrafter2"], "is an export of tiny-wan, not of tiny-video"),
        (["--dtype", "bf16"], "computes as it was exported"),
        (["--height", "128", "--width", "64"], "was exported for 64x64"),
        (["--method", "freelong", "--frames", "200"], "attention of an exported denoiser"),
        (["--method", "miga", "--set", "guidance_cut=true"], "guidance_cut works only with"),
    ],
)
def test_what_an_export_cannot_do_is_said_before_work_starts(options, rule, tmp_path, capsys):
    _, command = generate(tmp_path, "a.mp4", "--denoiser", f"onnx:{embedded_wan()}", *options)
    assert main(command) == 2
    out, err = capsys.readouterr()
    assert rule in err
    assert (out, err.count("\n"), list(tmp_path.iterdir())) == ("", 1, [])


def test_an_engines_videos_are_not_torchs():
    plain = Item("tiny-wan", None, "32-true", "miga", {}, (), "", 0, 9, 64, 64)
    engine = replace(plain, denoiser="onnx:fp32:1")
    assert plain.spec()["denoiser"] is None
    assert Item.of(plain.spec()) == plain
    assert engine.spec()["denoiser"] == "onnx:fp32:1"
    assert engine.key != plain.key


@pytest.fixture
def copy(tmp_path):
    return Path(shutil.copytree(embedded_wan(), tmp_path / "copy"))


def test_a_truncated_graph(copy):
    graph = copy / "denoiser.onnx"
    graph.write_bytes(graph.read_bytes()[:100_000])
    assert "is not the file that denoiser.json describes" in refusal(lambda: opened(copy))


def test_a_graph_that_runtime_cannot_read(copy):
    sidecar = Sidecar.read(copy, "denoiser")
    sidecar.path.write_bytes(b"no graph")
    assert "cannot be loaded by ONNX Runtime" in refusal(lambda: Session(sidecar, check=False))


def test_a_foreign_or_damaged_record(copy):
    for family, name in ((random_vc2(), "denoiser.json"), (random_vc2(), "denoiser.onnx")):
        shutil.copy(family / name, copy / name)
    assert "other weights" in refusal(lambda: opened(copy))
    (copy / "denoiser.json").write_text('{"format": 7}')
    assert "not an export's record of format 1" in refusal(lambda: opened(copy))
    (copy / "denoiser.json").unlink()
    assert "holds no exported denoiser" in refusal(lambda: opened(copy))
    (copy / "backbone.json").unlink()
    assert "backbone.json is missing" in refusal(lambda: opened(copy))


def test_external_data_that_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_graph, "EXTERNAL_FROM", 0)
    export(tiny_folder(tmp_path / "model"), tmp_path / "out", parts=("text",))
    sidecar = Sidecar.read(tmp_path / "out", "text_encoder")
    (data,) = sidecar.external_data
    Session(sidecar)
    (tmp_path / "out" / data).unlink()
    assert f"{data} is missing: it holds the weights" in refusal(lambda: Session(sidecar))


def test_a_provider_that_is_not_installed():
    # as if without Attention, which TensorRT would have no kernel for
    sidecar = replace(Sidecar.read(embedded_wan(), "text_encoder"), operators={})
    assert "pip install onnxruntime-gpu" in refusal(lambda: Session(sidecar, provider="tensorrt"))
    line = refusal(lambda: Session(sidecar, provider="tensorrt-rtx"))
    assert "onnxruntime-ep-nv-tensorrt-rtx-cu13" in line or "sees no GPU" in line


def test_failed_parity_removes_the_export(tmp_path, monkeypatch):
    monkeypatch.setitem(graphs.TOLERANCE, "fp32", 1e-12)
    model = tiny_folder(tmp_path / "model")
    with pytest.raises(ExportError, match=r"away from PyTorch at .* more than 1e-12"):
        export(model, tmp_path / "out", parts=("text",))
    assert list(tmp_path.iterdir()) == [model]


def test_a_full_disk_leaves_nothing(tmp_path):
    model = tiny_folder(tmp_path / "model")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8000, limits[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            export(model, tmp_path / "out", parts=("text",))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == [model]


@pytest.mark.parametrize(
    ("arguments", "rule"),
    [
        (["tiny-wam", "-o", "out"], "did you mean tiny-wan?"),
        (["/nowhere", "-o", "out"], "no such folder"),
        (["tiny-wan", "-o", "out", "--opset", "17"], "not supported: there are 23 for TensorRT"),
        (["tiny-wan", "-o", "out", "--lora-scale", "0.5"], "--lora-scale 0.5 is for --lora: give"),
        (["tiny-wan", "-o", "out", "--lora-scale", "nan"], "it must be a finite number"),
        (["tiny-wan", "-o", "out", "--precision", "int8"], "exported in fp32, fp16, bf16"),
        (["tiny-wan", "-o", "out", "--dynamic", "height"], "--dynamic height"),
        (["tiny-wan", "-o", "out", "--parts", "unet"], "--parts unet"),
        (["tiny-wan", "-o", "out", "--frames", "1"], "--frames 1: it must be at least 2"),
        (["tiny-wan", "-o", "out", "--height", "60"], "nearest size is"),
        (["tiny-wan", "-o", "out", "--lora", "none.safetensors"], "there is no such file"),
        (["tiny-wan", "-o", "taken"], "add --force"),
    ],
)
def test_wrong_exports_are_one_line(arguments, rule, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine").touch()
    assert main(["export", "onnx", *arguments]) == 2
    out, err = capsys.readouterr()
    assert rule in err
    assert (out, err.count("\n")) == ("", 1)
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


@pytest.mark.parametrize("names", [("lora_A", "lora_B"), ("lora_down", "lora_up")])
def test_a_lora_is_merged_as_it_would_act(names, tmp_path):
    torch.manual_seed(0)
    down, up = torch.randn(3, 32), torch.randn(32, 3)
    key = "transformer.blocks.1.attn1.to_q"
    state = {f"{key}.{names[0]}.weight": down, f"{key}.{names[1]}.weight": up}
    if names[0] == "lora_down":
        state[f"{key}.alpha"] = torch.tensor(6.0)
    save_file(state, tmp_path / "lora.safetensors")
    model = tiny_transformer()
    before = model.blocks[1].attn1.to_q.weight.clone()
    Lora(tmp_path / "lora.safetensors", 0.5).merge(WanNetwork(model).transformer)
    scale = 0.5 * (2.0 if names[0] == "lora_down" else 1.0)
    torch.testing.assert_close(model.blocks[1].attn1.to_q.weight, before + scale * up @ down)


def test_a_lora_of_another_model(tmp_path):
    path = tmp_path / "lora.safetensors"
    for key, down, rule in (
        ("blocks.9.attn1.to_q", 32, "is not in this denoiser"),
        ("blocks.0.attn1.to_q", 30, "is it a LoRA of another model"),
    ):
        state = {
            f"{key}.lora_A.weight": torch.ones(2, down),
            f"{key}.lora_B.weight": torch.ones(32, 2),
        }
        save_file(state, path)
        lora = Lora(path)
        assert rule in refusal(lambda lora=lora: lora.merge(tiny_transformer()))
    save_file({"blocks.0.weight": torch.ones(1)}, path)
    assert "is no part of a LoRA" in refusal(lambda: Lora(path))


def test_a_triton_repository(tmp_path, capsys):
    folder = random_vc2()
    assert main(["export", "triton", str(folder), "-o", str(tmp_path), "--name", "vc2"]) == 0
    made = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert made["files"] == ["1/model.onnx", "config.pbtxt", "denoiser.json"]
    text = (tmp_path / "vc2" / "config.pbtxt").read_text()
    channels, height, width = opened(folder).latent_shape
    assert (
        f'name: "latents", data_type: TYPE_FP32, dims: [ -1, {channels}, -1, {height}, {width} ]'
        in text
    )
    assert 'name: "fps", data_type: TYPE_FP32, dims: [ -1 ]' in text
    assert "# Attention runs on a GPU from ONNX Runtime 1.25 on" in text
    assert text.count("{") == text.count("}")
    assert main(["export", "triton", str(folder), "-o", str(tmp_path), "--name", "vc2"]) == 2
    assert "add --force" in capsys.readouterr().err


def test_a_triton_model_has_weights_of_its_own_beside_its_graph(tmp_path):
    sidecar = small_export(tmp_path / "export")
    assert sidecar.external_data == ["denoiser.onnx.data"]
    made = export_triton(sidecar.folder, tmp_path / "models", "small")
    weights = tmp_path / "models" / "small" / "1" / "denoiser.onnx.data"
    assert f"1/{weights.name}" in made["files"]
    assert weights.read_bytes() == (sidecar.folder / weights.name).read_bytes()
    assert weights.stat().st_nlink == 1


def test_compile_is_named_and_refuses_what_has_no_network(wan):
    backbone = open_model("tiny-wan", DenoiserChoice("compile"), device="cpu")
    assert backbone.denoiser_identity == "compile"
    with pytest.raises(UserError, match="compiled or exported"):
        backbone.attending(lambda *a: a[0])


def test_sizes_of_a_port():
    port = Port.input(
        "float32",
        ["batch", "16*frames", 3],
        {"batch": 1, "frames": 2},
        {"batch": 2, "frames": 5},
        {"batch": 4, "frames": 9},
    )
    assert (port.min, port.opt, port.max) == ([1, 32, 3], [2, 80, 3], [4, 144, 3])
