"""VideoCrafter2 models load from both layouts, and what does not fit is named in one line."""

import hashlib
import json
import shutil
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from diffusers import AutoencoderKL
from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint
from helpers import Code, refusal
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel
from vc2_fixtures import tiny_folder, tiny_text_encoder, tiny_unet, tiny_vae
from vc2_original import original_checkpoint, original_text, original_unet, original_vae

from miga_bench.backbones import vc2_checkpoint
from miga_bench.backbones.vc2_checkpoint import converted, make_vae, open_source
from miga_bench.backbones.vc2_denoiser import VideoCrafterUNet
from miga_bench.backbones.vc2_keys import (
    convert_text,
    convert_unet,
    convert_vae,
    text_config,
    unet_config,
    vae_config,
)
from miga_bench.backbones.videocrafter2 import load_videocrafter2
from miga_bench.errors import UserError

CPU = torch.device("cpu")
WEIGHTS = "diffusion_pytorch_model.safetensors"
# Of "name shape" lines of the released denoiser, sorted.
PUBLISHED = "eddde6b98ba85a9c0ac690e2ec3b4a023165cd205e4cf0cc64e5e386c5c0cdc7"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MIGA_BENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "videocrafter2"


@pytest.fixture
def folder(tmp_path):
    return tiny_folder(tmp_path / "model")


@pytest.fixture(scope="module")
def table():
    return original_checkpoint(tiny_unet(), tiny_vae(), tiny_text_encoder())


@pytest.fixture
def original(tmp_path, folder):
    """A folder that a tiny model.ckpt and its tokenizer can be put into."""
    root = tmp_path / "original"
    root.mkdir()
    shutil.copytree(folder / "tokenizer", root / "tokenizer")
    return root


def same_weights(one, other):
    left, right = one.state_dict(), other.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


def test_diffusers_folder(folder):
    """Breaks if a part is not filled from its file, stays trainable, or is left without memory."""
    source = open_source(folder)
    unet, text = source.unet(torch.float32, CPU), source.text_encoder(torch.float32, CPU)
    assert same_weights(unet, tiny_unet())
    assert same_weights(source.vae(torch.float32, CPU), tiny_vae())
    assert same_weights(text, tiny_text_encoder())
    assert not any(w.requires_grad or w.is_meta for part in (unet, text) for w in part.parameters())
    assert not any(table.is_meta for table in text.buffers())
    assert not unet.training


def test_types(folder):
    """Breaks if the type on disk decides, or the embeddings of time and rate are rounded."""
    path = folder / "unet" / WEIGHTS
    save_file({k: v.half() for k, v in load_file(path).items()}, path)
    unet = open_source(folder).unet(torch.bfloat16, CPU)
    kept = {k.split(".")[0] for k, w in unet.named_parameters() if w.dtype == torch.float32}
    assert kept == {"time_embedding", "fps_embedding"}
    assert unet.conv_in.weight.dtype == torch.bfloat16


def test_older_names_in_folders(folder):
    """Breaks if folders written before transformers 5, or by early diffusers, are refused."""
    path = folder / "text_encoder" / "model.safetensors"
    save_file({f"text_model.{k}": v for k, v in load_file(path).items()}, path)
    path = folder / "vae" / WEIGHTS
    older = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    state = load_file(path)
    for new, old in older.items():
        state = {
            k.replace(f"attentions.0.{new}.", f"attentions.0.{old}."): v for k, v in state.items()
        }
    assert "encoder.mid_block.attentions.0.query.weight" in state
    save_file(state, path)
    source = open_source(folder)
    assert same_weights(source.text_encoder(torch.float32, CPU), tiny_text_encoder())
    assert same_weights(source.vae(torch.float32, CPU), tiny_vae())


@pytest.mark.parametrize("form", ["state_dict", "module", "bare"])
def test_the_published_checkpoint(original, table, form, cache):
    """Breaks if a key lands in the wrong place, or a form in which it is handed around is refused."""
    forms = {
        "state_dict": {"state_dict": table, "epoch": 3, "global_step": 7},
        "module": {"module": {f"_forward_module.{k}": v for k, v in table.items()}, "step": 3},
        "bare": table,
    }
    torch.save(forms[form], original / "model.ckpt")
    source = open_source(original)
    assert same_weights(source.unet(torch.float32, CPU), tiny_unet())
    assert same_weights(source.vae(torch.float32, CPU), tiny_vae())
    assert same_weights(source.text_encoder(torch.float32, CPU), tiny_text_encoder())
    assert [path.parent for path in source.root.glob("*/*.json")] != []
    assert len(list(cache.iterdir())) == 1  # nothing half written is left


def test_the_checkpoint_computes_what_the_folder_does(original, folder, table):
    """Breaks if sizes read off the checkpoint (heads, levels, scaling) change the computation."""
    torch.save({"state_dict": table}, original / "model.ckpt")
    shutil.copy(folder / "backbone.json", original)
    one, other = load_videocrafter2(folder), load_videocrafter2(original / "model.ckpt")
    text = one.encode(["a red circle"])
    assert torch.equal(other.encode(["a red circle"]), text)
    latents, timesteps = torch.randn(1, *[4, 3, 8, 12]), torch.full((1, 3), 500.0)
    prediction = one.denoiser(latents, timesteps, text)
    assert torch.equal(other.denoiser(latents, timesteps, text), prediction)
    frames = one.decoder().push(prediction[0].transpose(0, 1))
    assert torch.equal(other.decoder().push(prediction[0].transpose(0, 1)), frames)
    assert len(other.weights_hash) == 64


def test_a_checkpoint_is_converted_once(original, table, monkeypatch):
    """Breaks if gigabytes are converted for each run, or another file gets the first one's weights."""
    path = original / "model.ckpt"
    torch.save({"state_dict": table}, path)
    first = converted(path)
    with monkeypatch.context() as patch:
        patch.setattr(vc2_checkpoint, "read_pickle", lambda path: pytest.fail("read again"))
        assert converted(path) == first
    changed = {k: v + 1 if k.endswith("out.2.bias") else v for k, v in table.items()}
    torch.save({"state_dict": changed}, path)
    assert converted(path) != first


def test_a_cache_without_room(original, table, monkeypatch, tmp_path):
    """Breaks if a full or read-only cache ends in a traceback, or leaves a part behind."""
    torch.save(table, original / "model.ckpt")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MIGA_BENCH_CACHE", str(tmp_path / "file"))
    assert "MIGA_BENCH_CACHE" in refusal(lambda: open_source(original))


def full_size(kind, **config):
    with torch.device("meta"):
        return kind(**config)


def shapes(state):
    return {key: tuple(tensor.shape) for key, tensor in state.items()}


def test_full_size_denoiser_and_its_published_keys():
    """Breaks if the 1.4B model's keys or shapes, or their map from the published names, change."""
    model = full_size(VideoCrafterUNet)
    state = model.state_dict()
    assert len(state) == 1484
    assert sum(w.numel() for w in model.parameters()) == 1_413_284_420
    published = original_unet(state)
    lines = sorted(f"{key} {list(tensor.shape)}" for key, tensor in published.items())
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest() == PUBLISHED
    config = unet_config(published, "it")
    assert {k: v for k, v in config.items() if model.config[k] != v} == {}
    assert shapes(convert_unet(published)) == shapes(state)


def test_full_size_autoencoder_and_its_published_keys():
    """Breaks if the published autoencoder's keys are not all mapped, each to its own."""
    config = {
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "block_out_channels": (128, 256, 512, 512),
        "layers_per_block": 2,
    }
    model = full_size(AutoencoderKL, **config)
    state = model.state_dict()
    published = original_vae(state)
    assert len(published) == len(state) == 248
    assert sum(w.numel() for w in model.parameters()) == 83_653_863
    assert shapes(convert_vae(published)) == shapes(state)
    found = vae_config(published, "it")
    assert {k: v for k, v in found.items() if model.config[k] != v} == {}
    theirs = convert_ldm_vae_checkpoint(dict(published), config)
    assert shapes(theirs) == shapes(state)
    ours = convert_vae(published)
    assert all(ours[key] is theirs[key] for key in state if "attentions" not in key)


def test_full_size_text_tower_and_its_published_keys():
    """Breaks if OpenCLIP's keys are not all mapped, or its last layer is used."""
    config = {
        "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23,
        "num_attention_heads": 16, "hidden_act": "gelu", "vocab_size": 49408,
    }  # fmt: skip
    model = full_size(CLIPTextModel, config=CLIPTextConfig(**config))
    state = model.state_dict()
    assert sum(w.numel() for w in model.parameters()) == 340_387_840
    published = original_text(state)
    assert len(published) == 4 + 24 * 12 + 2
    assert shapes(convert_text(published)) == shapes(state)
    found = text_config(published, "it")
    assert {k: v for k, v in config.items() if getattr(found, k) != v} == {}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("drop cond_stage_model.", ["no text tower (cond_stage_model.model.*)"]),
        ("drop first_stage_model.", ["no autoencoder"]),
        ("drop model.diffusion_model.", ["no denoiser"]),
        ("add control_model.x", ["1 unknown keys (control_model.x)"]),
        ("add model.diffusion_model.label_emb.0.0.weight", ["1 unexpected (label_emb.0.0.weight)"]),
        ("add first_stage_model.loss.logvar", ["1 unexpected (loss.logvar)"]),
        ("add cond_stage_model.model.visual.proj", ["1 unexpected (visual.proj)"]),
        ("drop model.diffusion_model.fps_embedding", ["no fps_embedding.0.weight"]),
        ("drop model.diffusion_model.init_attn.0.norm", ["2 missing (transformer_in.norm"]),
        ("drop cond_stage_model.model.ln_final", ["2 missing (final_layer_norm"]),
    ],
)
def test_other_models_checkpoints_name_the_keys(original, table, change, words, cache):
    """Breaks if another model's checkpoint is loaded in part, or converted, or the keys not told."""
    verb, name = change.split()
    state = dict(table)
    if verb == "add":
        state[name] = torch.zeros(3)
    else:
        state = {key: value for key, value in table.items() if not key.startswith(name)}
    torch.save({"state_dict": state}, original / "model.ckpt")
    message = refusal(lambda: open_source(original))
    assert str(original / "model.ckpt") in message
    assert all(word in message for word in words), message
    assert not cache.exists()


@pytest.mark.parametrize("kept", [0, 30, 4000, -9])
def test_truncated_checkpoints_are_named(original, table, kept):
    """Breaks if an interrupted download ends in a traceback, or is loaded."""
    path = original / "model.ckpt"
    torch.save({"state_dict": table}, path)
    path.write_bytes(path.read_bytes()[:kept])
    message = refusal(lambda: open_source(original))
    assert str(path) in message
    assert "truncated" in message


def test_checkpoints_that_carry_code_are_refused(original, tmp_path):
    """Breaks if loading a checkpoint can run what its author wrote into it."""
    proof = tmp_path / "code-was-run"
    torch.save({"state_dict": {"a": Code(proof)}}, original / "model.ckpt")
    assert "carries code (posix.mkdir)" in refusal(lambda: open_source(original))
    assert not proof.exists()


def test_checkpoints_of_something_else_are_refused(original):
    """Breaks if a table of other things than tensors is taken for weights."""
    torch.save({"state_dict": {"step": 3}}, original / "model.ckpt")
    assert "table of named tensors" in refusal(lambda: open_source(original))


def test_folders_that_do_not_fit(folder, tmp_path):
    """Breaks if a part of another model is taken, or a missing one ends in a traceback."""
    config = folder / "unet" / "config.json"
    content = json.loads(config.read_text())
    config.write_text(json.dumps({**content, "_class_name": "UNet2DConditionModel"}))
    assert "UNet2DConditionModel" in refusal(lambda: load_videocrafter2(folder))
    config.write_text(json.dumps({**content, "layers_per_block": 2}))
    assert "missing (" in refusal(lambda: load_videocrafter2(folder))
    config.write_text(json.dumps({**content, "attention_head_dim": 7}))
    assert str(folder / "unet") in refusal(lambda: load_videocrafter2(folder))
    config.write_text(json.dumps(content))
    shutil.rmtree(folder / "text_encoder")
    assert "text_encoder" in refusal(lambda: load_videocrafter2(folder))
    assert "no such folder" in refusal(lambda: open_source(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    assert "neither a diffusers folder" in refusal(lambda: open_source(tmp_path / "empty"))


def test_autoencoders_that_do_not_fit(folder):
    """Breaks if an autoencoder of another kind is taken."""
    state = tiny_vae().state_dict()
    config = {**tiny_vae().config, "latent_channels": 8}
    message = refusal(lambda: make_vae(config, state, "it", torch.float32, CPU))
    assert "of another shape" in message


def test_a_checkpoint_without_a_tokenizer(original, table, monkeypatch):
    """Breaks if the tokenizer, which the checkpoint lacks, cannot be had and nobody says how."""
    torch.save(table, original / "model.ckpt")
    shutil.rmtree(original / "tokenizer")

    def offline(*arguments):
        raise UserError("no network")

    monkeypatch.setattr(vc2_checkpoint, "download", offline)
    message = refusal(lambda: load_videocrafter2(original))
    assert f"--local-dir {original / 'tokenizer'}" in message
    # beside names of files the Hub's command ignores its patterns
    assert (
        "download openai/clip-vit-large-patch14 tokenizer.json tokenizer_config.json v" in message
    )
    assert "--include" not in message


def test_what_lies_beside_a_tokenizer_is_no_part_of_it(folder):
    """Breaks if a video's model is another one when a program fetches more of CLIP's repository."""
    before = open_source(folder).text_identity
    (folder / "tokenizer" / "pytorch_model.bin").write_bytes(b"weights")
    assert open_source(folder).text_identity == before
    path = folder / "tokenizer" / "tokenizer.json"
    path.write_text(path.read_text() + "\n")
    assert open_source(folder).text_identity != before


def test_of_many_processes_one_converts(original, table, monkeypatch):
    """Breaks if every rank of a run writes a copy of its own of several gigabytes."""
    path = original / "model.ckpt"
    torch.save({"state_dict": {k: v + 2 for k, v in table.items() if v.is_floating_point()}}, path)
    read, reads = vc2_checkpoint.read_pickle, []

    def slow(path):
        reads.append(path)
        time.sleep(0.2)
        return read(path)

    monkeypatch.setattr(vc2_checkpoint, "read_pickle", slow)
    with ThreadPoolExecutor(3) as pool:
        folders = set(pool.map(converted, [path] * 3))
    assert len(reads) == len(folders) == 1
