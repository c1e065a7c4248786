"""Wan models load from both layouts, and what does not fit is named in one line."""

import json

import pytest
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from diffusers.loaders.single_file_utils import (
    convert_wan_transformer_to_diffusers,
    convert_wan_vae_to_diffusers,
)
from helpers import Code, refusal
from safetensors.torch import load_file, save_file
from transformers import UMT5Config, UMT5EncoderModel
from wan_fixtures import tiny_folder, tiny_text_encoder, tiny_transformer, tiny_vae
from wan_original import (
    original_folder,
    original_text,
    original_transformer,
    original_vae,
    published_names,
)

from miga_bench.backbones import checkpoint
from miga_bench.backbones.wan import load_wan
from miga_bench.backbones.wan_checkpoint import (
    KEEP_FLOAT32,
    ORIGINAL_TEXT,
    ORIGINAL_TRANSFORMER,
    ORIGINAL_VAE,
    convert_text,
    find_source,
    make_text_encoder,
    transformer_config,
)

CPU = torch.device("cpu")
WEIGHTS = "diffusion_pytorch_model.safetensors"
FULL_SIZE = {"num_attention_heads": 12, "in_channels": 16, "out_channels": 16, "text_dim": 4096}


@pytest.fixture
def folder(tmp_path):
    return tiny_folder(tmp_path / "model")


@pytest.fixture
def original(tmp_path, folder):
    return original_folder(tmp_path / "original", folder / "tokenizer")


def same_weights(one, other):
    left, right = one.state_dict(), other.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


def edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_diffusers_folder(folder):
    """Breaks if a part is not filled from its file, stays trainable, or aliases the file."""
    source = find_source(folder)
    transformer = source.transformer(torch.float32, CPU)
    assert same_weights(transformer, tiny_transformer())
    assert same_weights(source.vae(torch.float32, CPU), tiny_vae())
    assert same_weights(source.text_encoder(torch.float32, CPU), tiny_text_encoder())
    assert source.flow_shift() == 3.0
    assert not any(p.requires_grad or p.is_meta for p in transformer.parameters())
    assert not transformer.training


def test_weights_stored_in_bfloat16(folder):
    """Breaks if the type on disk, and not the one asked for, decides what is computed in."""
    for part, name in (
        ("transformer", WEIGHTS),
        ("vae", WEIGHTS),
        ("text_encoder", "model.safetensors"),
    ):
        path = folder / part / name
        save_file({k: v.bfloat16() for k, v in load_file(path).items()}, path)
    edit(folder / "text_encoder" / "config.json", dtype="bfloat16")
    backbone = load_wan(folder)
    parts = (backbone.denoiser, backbone.vae)
    assert {w.dtype for part in parts for w in part.parameters()} == {torch.float32}
    assert backbone.encode(["a red circle"]).dtype == torch.float32
    rounded = tiny_vae().quant_conv.weight.bfloat16().float()
    assert torch.equal(backbone.vae.quant_conv.weight, rounded)


def test_stock_forward_works_on_what_was_loaded(folder):
    """Breaks if buffers that are not in the file are left empty."""
    x, t, text = torch.randn(1, 4, 2, 4, 4), torch.tensor([500.0]), torch.randn(1, 3, 20)
    loaded = find_source(folder).transformer(torch.float32, CPU)
    with torch.no_grad():
        torch.testing.assert_close(loaded(x, t, text).sample, tiny_transformer()(x, t, text).sample)


def test_what_diffusers_keeps_in_float32_stays_so(folder):
    """Breaks if diffusers' list grows, or a half-precision model rounds what its authors do not."""
    assert {*WanTransformer3DModel._keep_in_fp32_modules, "proj_out"} == set(KEEP_FLOAT32)
    loaded = find_source(folder).transformer(torch.bfloat16, CPU)
    for name, weight in loaded.named_parameters():
        kept = any(part in KEEP_FLOAT32 for part in name.split("."))
        assert weight.dtype == (torch.float32 if kept else torch.bfloat16), name


def test_original_files(original):
    """Breaks if a key of the published layout lands in the wrong place."""
    root, (transformer, vae, encoder) = original
    source = find_source(root)
    assert same_weights(source.transformer(torch.float32, CPU), transformer)
    assert same_weights(source.vae(torch.float32, CPU), vae)
    assert same_weights(source.text_encoder(torch.float32, CPU), encoder)


def test_original_files_make_the_same_prediction_and_frames(original):
    """Breaks if sizes read off the files (heads, layers, widths) change the computation."""
    root, (transformer, _, encoder) = original
    backbone = load_wan(root, height=32, width=48)
    x, t = torch.randn(1, 16, 2, 4, 6), torch.tensor([500.0])
    text = backbone.encode(["a red circle"])
    with torch.no_grad():
        expected = transformer(x, t, text).sample
        actual = backbone.denoiser(x, t[:, None].expand(1, 2), text)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
    ids = torch.tensor([backbone.text.tokens("a red circle")])
    torch.testing.assert_close(text[0, :4], encoder(ids).last_hidden_state[0])
    assert backbone.decoder().push(x[0].transpose(0, 1)).shape == (5, 3, 32, 48)
    assert backbone.negative_prompt.startswith("\u8272")


def test_full_size_transformer_and_its_published_keys():
    """Breaks if the 1.3B model's keys or shapes, or their map from the published names, change."""
    with torch.device("meta"):
        model = WanTransformer3DModel(**FULL_SIZE, ffn_dim=8960, num_layers=30)
    state = model.state_dict()
    assert len(state) == 825
    assert sum(p.numel() for p in model.parameters()) == 1_418_996_800
    published = original_transformer(state)
    assert set(published) == published_names()
    config = transformer_config(published, {}, "it")
    assert {k: v for k, v in config.items() if model.config[k] != v} == {}
    back = convert_wan_transformer_to_diffusers(dict(published))
    assert {k: v.shape for k, v in back.items()} == {k: v.shape for k, v in state.items()}


def test_full_size_autoencoder_and_its_published_keys():
    """Breaks if the published autoencoder's keys are not all mapped, each to its own."""
    with torch.device("meta"):
        model = AutoencoderKLWan()
    state = model.state_dict()
    assert len(state) == 194
    assert sum(p.numel() for p in model.parameters()) == 126_892_531
    published = original_vae(state)
    assert len(published) == 194
    assert {k.split(".")[0] for k in published} == {"encoder", "decoder", "conv1", "conv2"}
    back = convert_wan_vae_to_diffusers(dict(published))
    assert {k: v.shape for k, v in back.items()} == {k: v.shape for k, v in state.items()}


def test_full_size_text_encoder_and_its_published_keys():
    """Breaks if the published UMT5-XXL encoder's keys are not all mapped, each to its own."""
    config = UMT5Config(
        vocab_size=256384, d_model=4096, d_kv=64, d_ff=10240, num_layers=24, num_heads=64,
        feed_forward_proj="gated-gelu",
    )  # fmt: skip
    with torch.device("meta"):
        model = UMT5EncoderModel(config)
    state = {k: v for k, v in model.state_dict().items() if "embed_tokens" not in k}
    assert sum(v.numel() for v in state.values()) == 5_680_910_336
    back = convert_text(original_text(state))
    assert {k: v.shape for k, v in back.items()} == {k: v.shape for k, v in state.items()}


@pytest.mark.parametrize(
    "names", [("shared",), ("encoder.embed_tokens",), ("shared", "encoder.embed_tokens")]
)
def test_the_text_encoders_embedding_is_one_table_under_either_name(names):
    """Breaks if transformers leaves the encoder's own table unset: videos become garbage."""
    encoder = tiny_text_encoder()
    state = {k: v for k, v in encoder.state_dict().items() if "shared" not in k}
    table = state.pop("encoder.embed_tokens.weight")
    state.update({f"{name}.weight": table for name in names})
    loaded = make_text_encoder(encoder.config, state, "it", torch.float32, CPU)
    assert loaded.encoder.embed_tokens.weight is loaded.shared.weight
    ids = torch.tensor([[3, 4, 5, 1]])
    with torch.no_grad():
        expected = encoder(ids).last_hidden_state
        assert torch.equal(loaded(ids).last_hidden_state, expected)


def test_sharded_weights(folder):
    """Breaks if the published folders, whose weights come in shards, are not read."""
    part = folder / "transformer"
    state = load_file(part / WEIGHTS)
    names = sorted(state)
    shards = {"one.safetensors": names[::2], "two.safetensors": names[1::2]}
    for shard, keys in shards.items():
        save_file({key: state[key] for key in keys}, part / shard)
    (part / WEIGHTS).unlink()
    index = {key: shard for shard, keys in shards.items() for key in keys}
    (part / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": index}))
    source = find_source(folder)
    assert same_weights(source.transformer(torch.float32, CPU), tiny_transformer())
    (part / "two.safetensors").unlink()
    assert "two.safetensors" in refusal(lambda: source.transformer(torch.float32, CPU))


@pytest.mark.parametrize("kept", [0, 5, 400, -9])
def test_truncated_weights_are_named(folder, kept):
    """Breaks if an interrupted download ends in a traceback, or is loaded."""
    path = folder / "vae" / WEIGHTS
    path.write_bytes(path.read_bytes()[:kept])
    message = refusal(lambda: load_wan(folder))
    assert str(path) in message
    assert "truncated" in message


@pytest.mark.parametrize("kept", [0, 30, 2000, -9])
def test_truncated_checkpoints_are_named(original, kept):
    """Breaks if a damaged .pth file ends in a traceback."""
    path = original[0] / ORIGINAL_VAE
    path.write_bytes(path.read_bytes()[:kept])
    message = refusal(lambda: load_wan(original[0]))
    assert str(path) in message
    assert "truncated" in message


@pytest.mark.parametrize("zipped", [True, False])
def test_checkpoints_that_carry_code_are_refused(original, zipped, tmp_path):
    """Breaks if loading a checkpoint can run what its author wrote into it."""
    path = original[0] / ORIGINAL_VAE
    proof = tmp_path / "code-was-run"
    torch.save({"conv1.weight": Code(proof)}, path, _use_new_zipfile_serialization=zipped)
    message = refusal(lambda: load_wan(original[0]))
    assert str(path) in message
    assert "carries code (posix.mkdir)" in message
    assert not proof.exists()


def test_checkpoints_in_the_old_format_load(original):
    """Breaks if plain tensors in torch's format before 1.6 are taken for damage."""
    root, (_, vae, _) = original
    state = torch.load(root / ORIGINAL_VAE)
    torch.save(state, root / ORIGINAL_VAE, _use_new_zipfile_serialization=False)
    assert same_weights(find_source(root).vae(torch.float32, CPU), vae)


def test_a_checkpoint_that_memory_or_file_system_refuses_is_not_damaged(original, monkeypatch):
    """Breaks if a user fetches 10 GB again because memory was short, or a file system maps no files."""
    path, load = original[0] / ORIGINAL_VAE, torch.load

    def no_map(*args, mmap, **options):
        if mmap:
            raise RuntimeError("unable to mmap 9 bytes from file: No such device (19)")
        return load(*args, **options)

    monkeypatch.setattr(torch, "load", no_map)
    assert checkpoint.read_pickle(path).keys() == load(path, weights_only=True).keys()
    for error in (MemoryError(), OSError(12, "Cannot allocate memory")):
        monkeypatch.setattr(torch, "load", lambda *args, error=error, **options: raised(error))
        with pytest.raises(type(error)):
            checkpoint.read_pickle(path)
    monkeypatch.setattr(torch, "load", lambda *args, **options: raised(ValueError("bad magic")))
    assert "damaged (ValueError: bad magic)" in refusal(lambda: checkpoint.read_pickle(path))


def raised(error):
    raise error


def test_checkpoints_of_something_else_are_refused(original):
    """Breaks if a table of other things than tensors is taken for weights."""
    torch.save({"step": 3}, original[0] / ORIGINAL_VAE)
    assert "table of named tensors" in refusal(lambda: load_wan(original[0]))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_layers": 3}, ["27 missing (blocks.2.", ", ...)"]),
        ({"num_layers": 1}, ["27 unexpected (blocks.1."]),
        ({"ffn_dim": 64}, ["of another shape", "is [48", "should be [64"]),
        ({"num_attention_heads": 3}, ["of another shape"]),
        ({"num_attention_heads": "many"}, ["unusable configuration"]),
        ({"_class_name": "UNet3DConditionModel"}, ["UNet3DConditionModel"]),
        ({"image_dim": 1280}, ["image-to-video"]),
    ],
)
def test_wrong_architectures_name_the_keys(folder, change, words):
    """Breaks if weights that do not fit are loaded in part, or the keys are not told."""
    edit(folder / "transformer" / "config.json", **change)
    message = refusal(lambda: load_wan(folder))
    assert str(folder / "transformer") in message
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ("transformer/config.json", "config.json is missing"),
        (f"transformer/{WEIGHTS}", f"{WEIGHTS} is missing"),
        (f"vae/{WEIGHTS}", f"{WEIGHTS} is missing"),
        ("text_encoder/model.safetensors", "model.safetensors is missing"),
    ],
)
def test_missing_files_are_named(folder, part, words):
    """Breaks if a file that is not there ends in a traceback, or in a download."""
    (folder / part).unlink()
    message = refusal(lambda: load_wan(folder).encode(["a"]))
    assert words in message
    assert part.split("/")[0] in message


def test_parts_of_different_models_are_refused(folder):
    """Breaks if a transformer and an autoencoder of other channels meet inside a sampler."""
    tiny_vae(z_dim=8, latents_mean=[0.0] * 8, latents_std=[1.0] * 8).save_pretrained(folder / "vae")
    assert "latents have 8" in refusal(lambda: load_wan(folder))


def test_statistics_must_fit_the_autoencoder(folder):
    """Breaks if latents are denormalized with another model's statistics."""
    edit(folder / "vae" / "config.json", latents_mean=[0.0])
    assert "latents_mean" in refusal(lambda: load_wan(folder))


def test_an_original_transformer_in_shards(original):
    """Breaks if the larger model, which is published in several files, cannot be loaded."""
    root, _ = original
    whole = find_source(root).transformer(torch.float32, CPU)
    state = load_file(root / ORIGINAL_TRANSFORMER)
    stem, table = ORIGINAL_TRANSFORMER.partition(".")[0], {}
    for number in (1, 2):
        name = f"{stem}-0000{number}-of-00002.safetensors"
        part = {key: state[key] for key in sorted(state)[number - 1 :: 2]}
        save_file(part, root / name)
        table |= dict.fromkeys(part, name)
    (root / f"{ORIGINAL_TRANSFORMER}.index.json").write_text(json.dumps({"weight_map": table}))
    (root / ORIGINAL_TRANSFORMER).unlink()
    source = find_source(root)
    assert same_weights(source.transformer(torch.float32, CPU), whole)
    assert len(source.model_files()) == 3


def test_original_transformer_of_another_kind(original):
    """Breaks if any safetensors file is taken for a Wan transformer."""
    root, _ = original
    edit(root / "config.json", model_type="i2v")
    assert "i2v" in refusal(lambda: load_wan(root))
    save_file({"a.weight": torch.zeros(2)}, root / ORIGINAL_TRANSFORMER)
    (root / "config.json").unlink()
    message = refusal(lambda: load_wan(root))
    assert "not an original Wan2.1 transformer" in message
    assert "among its 1 keys" in message
    (root / ORIGINAL_TEXT).unlink()
    (root / ORIGINAL_TRANSFORMER).unlink()
    assert f"{ORIGINAL_TRANSFORMER} is missing" in refusal(lambda: load_wan(root))


def test_folders_without_a_model(tmp_path):
    """Breaks if a wrong path is not told from a damaged model."""
    assert "no such folder" in refusal(lambda: load_wan(tmp_path / "nowhere"))
    assert "holds no Wan2.1 model" in refusal(lambda: load_wan(tmp_path))
    (tmp_path / "file").write_text("")
    assert "is a file" in refusal(lambda: load_wan(tmp_path / "file"))


@pytest.mark.parametrize(
    "index",
    [
        {"transformer_2": ["diffusers", "WanTransformer3DModel"]},
        {"transformer_2": 2},
        {"boundary_ratio": 0.875},
        {"expand_timesteps": True},
    ],
)
def test_a_model_of_two_denoisers_is_refused(folder, index):
    """Breaks if all levels of a Wan2.2 model are silently denoised by one of its two experts."""
    plain = {"transformer_2": [None, None], "boundary_ratio": None, "expand_timesteps": False}
    path = folder / "model_index.json"
    path.write_text(json.dumps(plain))
    find_source(folder)
    path.write_text(json.dumps(plain | index))
    assert "is of a Wan2.2 model" in refusal(lambda: find_source(folder))


def test_damaged_json(folder):
    """Breaks if a half-written configuration ends in a traceback."""
    path = folder / "transformer" / "config.json"
    for content in ("{", "[]"):
        path.write_text(content)
        assert str(path) in refusal(lambda: load_wan(folder))


def test_hashes_follow_content(folder, tmp_path):
    """Breaks if the provenance of two different models is the same, or depends on the place."""
    source = find_source(folder)
    copy = find_source(tiny_folder(tmp_path / "copy"))
    assert source.weights_hash() == copy.weights_hash()
    assert source.text_identity == copy.text_identity
    state = load_file(folder / "vae" / WEIGHTS)
    state["quant_conv.bias"] += 1
    save_file(state, folder / "vae" / WEIGHTS)
    assert source.weights_hash() != copy.weights_hash()


def test_fingerprints_sample_big_files(tmp_path, monkeypatch):
    """Breaks if a change at either end of a big file, or of its size, is not seen."""
    monkeypatch.setattr(checkpoint, "_SAMPLE", 4)
    seen = set()
    for content in (b"0123456789", b"x123456789", b"012345678x", b"0123456789a"):
        (tmp_path / "f").write_bytes(content)
        seen.add(checkpoint.fingerprint_of([tmp_path / "f"], tmp_path))
    assert len(seen) == 4
