"""Text encoders as graphs, large and small; folders of the denoiser alone; sizes it takes. About 25 s."""

import json
import shutil
from dataclasses import replace

import onnx
import pytest
import torch
from onnx_fixtures import embedded_wan, export, fixed_half_wan, random_vc2
from safetensors.torch import load_file
from vc2_fixtures import tiny_folder as vc2_folder
from wan_fixtures import tiny_folder

from miga_bench.backbones import checkpoint, load_backbone, vc2_checkpoint, wan_checkpoint
from miga_bench.errors import Notice, UserError
from miga_bench.export import onnx_graph, onnx_text, probe
from miga_bench.export.backbone import ExportedBackbone
from miga_bench.export.choice import DenoiserChoice
from miga_bench.export.facts import ExportFacts
from miga_bench.export.onnx_denoiser import OnnxDenoiser
from miga_bench.export.onnx_text import OnnxText
from miga_bench.export.session import Session
from miga_bench.export.sidecar import Sidecar
from miga_bench.sampling import resolve
from miga_bench.sampling.miga import check_miga

PROMPTS = ["a red circle moves right", "", "the  green &amp; square"]


def opened(folder):
    return ExportedBackbone(DenoiserChoice("onnx", folder), "cpu")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MIGA_BENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "text"


@pytest.fixture
def big(monkeypatch):
    """Let every text encoder count as a large one."""
    for module in (checkpoint, wan_checkpoint, vc2_checkpoint, onnx_text):
        monkeypatch.setattr(module, "BIG_ENCODER", 1)


def kinds(sidecar):
    tensors = onnx.load(sidecar.path).graph.initializer
    return {onnx.TensorProto.DataType.Name(tensor.data_type) for tensor in tensors}


def test_a_large_umt5_keeps_its_type_on_disk_and_runs_on_a_cpu(big, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_graph, "EXTERNAL_FROM", 0)
    model = tiny_folder(tmp_path / "model")
    export(model, tmp_path / "out", parts=("text",))
    sidecar = Sidecar.read(tmp_path / "out", "text_encoder")
    assert (sidecar.precision, sidecar.stored) == ("fp32", "bf16")
    assert "BFLOAT16" in kinds(sidecar)
    assert sidecar.external_data
    assert sidecar.parity[0]["relative"] <= sidecar.tolerance == 1e-3
    facts = ExportFacts.read(tmp_path / "out")
    folder = tmp_path / "out" / "tokenizer"
    text = OnnxText(sidecar, lambda device: Session(sidecar, device), folder, facts)
    monkeypatch.setattr(wan_checkpoint, "BIG_ENCODER", 1 << 30)  # in PyTorch in float32
    wanted = load_backbone(model, device="cpu").encode(PROMPTS)
    assert (text.encode(PROMPTS) - wanted).abs().max() <= 2e-2 * wanted.abs().max()


def test_a_large_clip_stays_in_float32_as_in_pytorch(big, tmp_path):
    export(vc2_folder(tmp_path / "model"), tmp_path / "out", height=16, width=16, parts=("text",))
    sidecar = Sidecar.read(tmp_path / "out", "text_encoder")
    assert (sidecar.precision, sidecar.stored) == ("fp32", None)
    assert "BFLOAT16" not in kinds(sidecar)


def test_a_large_encoder_leaves_and_its_embeddings_stay(monkeypatch, cache):
    plain = opened(embedded_wan()).encode(PROMPTS)
    monkeypatch.setattr(onnx_text, "BIG_ENCODER", 1)
    backbone = opened(embedded_wan())
    loads = []
    monkeypatch.setattr(
        backbone.text, "_open", lambda at, load=backbone.text._open: loads.append(at) or load(at)
    )
    assert not backbone.text.loaded
    backbone.encode_ahead([*PROMPTS, "red " * 60])  # too long: told where it is wanted
    assert (len(loads), len(list(cache.iterdir())), backbone.text.loaded) == (1, 3, False)
    assert torch.equal(backbone.encode(PROMPTS), plain)
    assert len(loads) == 1
    backbone.encode(["a blue square"])
    assert (len(loads), backbone.text.loaded) == (2, False)
    backbone.text.keep = True
    for text in ("a red star", "a green star"):
        backbone.encode([text])
    assert (len(loads), backbone.text.loaded) == (3, True)
    again = opened(embedded_wan())  # another process
    monkeypatch.setattr(again.text, "_open", lambda at: pytest.fail("the encoder was loaded"))
    assert torch.equal(again.encode(PROMPTS), plain)
    with pytest.raises(UserError, match="tokens but the model reads"):
        again.encode(["red " * 60])


def test_a_small_encoder_stays_and_writes_nothing(cache):
    backbone = opened(embedded_wan())
    backbone.encode_ahead(PROMPTS)
    backbone.encode(PROMPTS)
    assert backbone.text.loaded
    assert not cache.exists()


def test_what_a_small_encoder_keeps_has_an_end(monkeypatch):
    """Breaks if a process that is asked for ever has every prompt in memory."""
    monkeypatch.setattr(onnx_text, "KNOWN", 2)
    text = opened(embedded_wan()).text
    first = text.encode(PROMPTS)
    assert list(text._known) == ["", "the green & square"]
    assert torch.equal(text.encode([PROMPTS[1]])[0], first[1])
    text.encode(["a blue square"])
    assert list(text._known) == ["", "a blue square"]


RAN_OUT = "CUDA failure 2: out of memory ; GPU=0"


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("where", ["opened", "run"])
def test_an_encoder_that_memory_runs_out_for_goes_on_on_the_cpu(where, big, monkeypatch):
    """Breaks if the text of a video ends it, though the CPU would do."""
    plain = opened(embedded_wan()).encode(PROMPTS)
    if big:
        monkeypatch.setattr(onnx_text, "BIG_ENCODER", 1)
    sidecar, places = Sidecar.read(embedded_wan(), "text_encoder"), []

    def runs_out(*given):
        raise RuntimeError(RAN_OUT)

    def load(device):
        places.append(device)
        if device == "cpu":
            return Session(sidecar, check=False)
        return runs_out() if where == "opened" else runs_out

    facts = ExportFacts.read(embedded_wan())

    def encode(load):
        text = OnnxText(sidecar, load, embedded_wan() / "tokenizer", facts, "cuda:0")
        return text, text.encode(PROMPTS)

    with pytest.warns(Notice, match=r"out of memory on cuda:0 for the text encoder: it runs on"):
        text, found = encode(load)
    assert torch.equal(found, plain)
    assert places == ["cuda:0", "cpu"]
    text.encode(["a blue square"])
    assert places == ["cuda:0", "cpu", *(["cpu"] if big else [])]

    def broken(device):
        raise RuntimeError("a bad driver")

    if not big:  # of which all is on the disk by now
        with pytest.raises(RuntimeError, match="a bad driver"):
            encode(broken)


def test_a_denoiser_alone_takes_the_rest_from_its_weights():
    folder = fixed_half_wan()
    backbone = opened(folder)
    source = load_backbone(folder.parent / "wan-source", device="cpu", height=16, width=32)
    assert backbone.frame_size == (16, 32)
    assert torch.equal(backbone.encode(PROMPTS), source.encode(PROMPTS))
    assert backbone.unknown_words(PROMPTS) == source.unknown_words(PROMPTS)
    latents = torch.randn(3, *source.latent_shape)
    assert torch.equal(backbone.decoder().push(latents), source.decoder().push(latents))
    backbone.encode_ahead(PROMPTS)


def test_on_videocrafter2_too(tmp_path):
    model = vc2_folder(tmp_path / "model")
    sizes = {"height": 16, "width": 16}
    export(model, tmp_path / "out", **sizes, frames=4, parts=("text", "vae"))
    source = load_backbone(model, device="cpu", **sizes)
    folder = tmp_path / "out"
    facts = ExportFacts.read(folder)
    from miga_bench.export.torch_parts import TorchParts

    parts = TorchParts(facts, "text encoder", "cpu")
    assert torch.equal(parts.text.encode(PROMPTS), source.encode(PROMPTS))
    latents = torch.randn(3, *source.latent_shape)
    assert torch.equal(parts.decoder().push(latents), source.decoder().push(latents))
    assert parts.pixels * source.latent_shape.height == 16


def test_what_is_missing_and_not_to_be_had_is_one_line(tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(fixed_half_wan(), folder)
    facts = folder / "backbone.json"
    record, source = facts.read_text(), str(fixed_half_wan().parent / "wan-source")
    facts.write_text(record.replace(source, str(tmp_path / "gone")))
    with pytest.raises(UserError) as error:
        opened(folder)
    line = str(error.value)
    assert "holds no text encoder and no autoencoder, and" in line
    assert "no such folder" in line
    assert f"export it by miga-bench export onnx {tmp_path / 'gone'} -o FOLDER, all parts" in line
    other = tiny_folder(tmp_path / "other")
    (weights,) = (other / "vae").glob("*.safetensors")
    weights.write_bytes(weights.read_bytes() + b" ")
    facts.write_text(record.replace(source, str(other)))
    with pytest.raises(UserError, match="has other weights now than were exported"):
        opened(folder)


def small_graph(precision, extent, reference=None):
    from miga_bench.export.graphs import Graph

    return Graph(
        "denoiser",
        torch.nn.Conv3d(4, 4, 1),
        lambda: reference or pytest.fail("the float32 network was loaded"),
        {"latents": ["batch", 4, "frames", 2, 2]},
        ["prediction"],
        lambda sizes, generator: (torch.zeros(sizes["batch"], 4, sizes["frames"], 2, 2),),
        extent,
        precision,
    )


@pytest.mark.parametrize(("precision", "tokens", "why"), [("bf16", 1, "bf"), ("fp32", 9999, "tok")])
def test_nothing_is_computed_that_is_not_compared(precision, tokens, why, monkeypatch):
    from miga_bench.export.graphs import Extent

    sizes = {"batch": 2, "frames": 3}
    graph = small_graph(precision, Extent(sizes, sizes, sizes, ("batch",), tokens))
    assert why in graph.unmeasured
    monkeypatch.setattr(probe, "free_bytes", lambda device: 99)  # 80 are wanted, a fifth is left
    wanted = onnx_graph.expected(graph)
    ((told, inputs, outputs),) = wanted.trials
    assert (told, inputs[0].shape, outputs) == (sizes, (2, 4, 3, 2, 2), ())
    assert wanted.kept is None
    assert ("no memory was free" if precision == "bf16" else "too much") in wanted.unprobed


def test_in_bfloat16_pytorchs_answer_is_kept_for_engines(tmp_path):
    from miga_bench.export.graphs import Extent

    sizes = [{"batch": b, "frames": f} for b, f in ((1, 2), (2, 3), (4, 5))]
    for tokens, frames in ((1, 3), (9999, 2)):
        extent = Extent(*sizes, ("batch", "frames"), tokens)
        wanted = onnx_graph.expected(small_graph("bf16", extent, lambda latents: latents + 1 / 3))
        assert wanted.kept["latents"].shape == (1, 4, frames, 2, 2)
        assert torch.equal(wanted.kept["prediction"], torch.full((1, 4, frames, 2, 2), 1 / 3))
    probe.save(wanted.kept, tmp_path)
    kept = load_file(tmp_path / probe.NAME)
    assert (kept["latents"].dtype, kept["prediction"].dtype) == (torch.float16, torch.float32)


def test_an_export_holds_what_engines_are_held_against():
    """Breaks if the answer is not that of the input as it is kept, or changes what videos are known by."""
    for folder in (embedded_wan(), random_vc2(), fixed_half_wan()):
        sidecar = Sidecar.read(folder, "denoiser")
        sidecar.check()
        assert sidecar.probe in sidecar.sha256
        assert (folder / sidecar.probe).stat().st_size < 1 << 20
        modes = {(folder / name).stat().st_mode for name in sidecar.sha256}
        assert len(modes) == 1, "who may read the graph may read all of it"
        given = probe.load(sidecar)
        fps = float(given["fps"][0]) if "fps" in given else None
        denoiser = OnnxDenoiser(Session(sidecar, check=False), ExportFacts.read(folder), fps)
        got = denoiser(given["latents"], given["timesteps"], given["text"])
        assert probe.relative(got, given["prediction"]) <= sidecar.tolerance
        alone = replace(sidecar, probe=None, sha256=dict(list(sidecar.sha256.items())[:-1]))
        assert alone.identity == sidecar.identity


def test_what_decides_a_video_beside_the_graph_is_in_its_identity(tmp_path):
    """Breaks if a folder whose schedule, text side or decoder was changed is taken for the one before."""
    plain = opened(embedded_wan())
    folder = tmp_path / "changed"
    shutil.copytree(embedded_wan(), folder)
    assert opened(folder).configuration_hash == plain.configuration_hash
    seen = {plain.configuration_hash}
    facts = json.loads((folder / "backbone.json").read_text())
    decide = {"negative_prompt": False, "row_bytes": False, "flow_shift": True, "frame_rate": True}
    for change, counts in decide.items():
        value = "blurred" if change == "negative_prompt" else facts[change] + 1
        (folder / "backbone.json").write_text(json.dumps(facts | {change: value}))
        found = opened(folder).configuration_hash
        assert (found not in seen) == counts, change
        seen.add(found)
    (folder / "backbone.json").write_text(json.dumps(facts))
    tokenizer = folder / "tokenizer" / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text() + "\n")
    assert opened(folder).configuration_hash not in seen


def test_a_videocrafter2_folder_of_the_denoiser_alone_opens_with_the_rest_in_pytorch(tmp_path):
    whole, folder = opened(random_vc2()), tmp_path / "alone"
    left_out = shutil.ignore_patterns("text_encoder*", "vae_decoder*", "tokenizer")
    shutil.copytree(random_vc2(), folder, ignore=left_out)
    alone = opened(folder)
    assert alone.frame_size == whole.frame_size
    torch.testing.assert_close(alone.encode(PROMPTS), whole.encode(PROMPTS), rtol=1e-4, atol=1e-5)
    latent = torch.randn(1, *whole.latent_shape)
    frames = [backbone.decoder().push(latent) for backbone in (alone, whole)]
    torch.testing.assert_close(*frames, rtol=1e-3, atol=1e-4)
    assert alone.configuration_hash != whole.configuration_hash


def test_parts_that_would_run_on_the_cpu_beside_a_gpu_are_told(monkeypatch):
    """Breaks if a large decoder runs on the CPU beside an engine and nobody says so."""
    backbone = opened(embedded_wan())
    backbone._device = "cuda:1"
    monkeypatch.setattr("miga_bench.export.backbone.runs", lambda provider, device: device == 0)
    with pytest.warns(
        Notice, match=r"cannot use cuda:1: exported parts \(text, vae\) run on the CPU"
    ):
        assert backbone._torch_parts() is None


def test_an_exports_prompts_are_checked_before_work():
    backbone = opened(embedded_wan())
    backbone.check_prompts(PROMPTS)
    with pytest.raises(UserError, match="shorten"):
        backbone.check_prompts([*PROMPTS, "red " * 60])


def test_a_search_that_fixed_frames_cannot_do_is_refused_before_work(monkeypatch):
    """Breaks if a video is half made when its first search asks the engine for a size it does not take."""
    fixed, free = opened(fixed_half_wan()), opened(embedded_wan())
    assert (fixed.latents_taken(), free.latents_taken()) == (range(3, 4), None)

    def check(**changes):
        settings = {"steps": 50, "zigzag": 7, "stage2_steps": 0, "reflection_level": 45}
        settings |= {"reference_chunks": 1, **changes}
        check_miga(resolve("miga", free, "paper", settings), free, 99)

    check()
    monkeypatch.setattr(free, "latents_taken", lambda: range(21, 22))
    with pytest.raises(UserError, match=r"in rows of 14 to 21 latents, .* takes 21 alone: export"):
        check()
    check(reflection="off")
    check(reference_chunks=2)  # whole windows
