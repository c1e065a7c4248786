"""How strong a LoRA is: what files and the settings beside them state. Seconds, no export."""

import json
import math

import pytest
import torch
from safetensors.torch import save_file
from wan_fixtures import tiny_transformer

from miga_bench.errors import UserError
from miga_bench.export.lora import Lora

DOWN, UP = torch.randn(4, 32), torch.randn(32, 4)
KEY = "blocks.1.attn1.to_q"


def merged(path, at=KEY):
    """Return what merging a file adds, as a multiple of ``UP @ DOWN``."""
    model = tiny_transformer()
    before = model.get_submodule(at).weight.detach().clone()
    Lora(path).merge(model)
    change = model.get_submodule(at).weight.detach() - before
    strength = float((change * (UP @ DOWN)).sum() / (UP @ DOWN).square().sum())
    torch.testing.assert_close(change, strength * UP @ DOWN, rtol=1e-3, atol=1e-3)
    return strength


def written(folder, key, config=None, metadata=None):
    path = folder / "adapter_model.safetensors"
    save_file({f"{key}.lora_A.weight": DOWN, f"{key}.lora_B.weight": UP}, path, metadata)
    if config is not None:
        (folder / "adapter_config.json").write_text(json.dumps(config))
    return path


@pytest.mark.parametrize(
    ("config", "strength"),
    [
        ({"lora_alpha": 8}, 2.0),
        ({"lora_alpha": 8, "use_rslora": True}, 8 / math.sqrt(4)),
        ({"lora_alpha": 8, "alpha_pattern": {"attn1.to_q": 2}}, 0.5),
        ({"lora_alpha": 8, "alpha_pattern": {"attn1.to_k": 2, "attn2": 1}}, 2.0),
        ({"lora_alpha": 8, "alpha_pattern": None, "use_dora": False}, 2.0),
    ],
)
def test_pefts_settings_lie_beside_the_file(config, strength, tmp_path):
    path = written(tmp_path, f"base_model.model.{KEY}", config)
    assert merged(path) == pytest.approx(strength, rel=1e-3)


def test_diffusers_writes_them_into_the_file(tmp_path):
    stated = {"transformer.lora_alpha": 8, "transformer.use_rslora": True, "transformer.r": 4}
    metadata = {"lora_adapter_metadata": json.dumps(stated)}
    assert merged(written(tmp_path, f"transformer.{KEY}", None, metadata)) == pytest.approx(4.0)
    assert merged(written(tmp_path, f"transformer.{KEY}", {"lora_alpha": 99})) == pytest.approx(1.0)


@pytest.mark.parametrize("prefix", ["", "diffusion_model.", "base_model.model."])
def test_wans_own_names_with_any_prefix(prefix, tmp_path):
    config = {"lora_alpha": 8} if prefix.startswith("base") else None
    path = written(tmp_path, f"{prefix}blocks.1.self_attn.q", config)
    assert merged(path) == pytest.approx(2.0 if config else 1.0, rel=1e-3)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (None, "states strengths in adapter_config.json: put that file beside it"),
        ({"use_dora": True}, "is a DoRA"),
        ({"lora_alpha": "much"}, "cannot be used (could not convert"),
        ([1], "adapter_config.json cannot be read"),
    ],
)
def test_what_cannot_be_honored_is_one_line(config, words, tmp_path):
    path = written(tmp_path, f"base_model.model.{KEY}", config)
    with pytest.raises(UserError) as error:
        Lora(path)
    assert words in str(error.value)


def test_names_that_are_only_partly_wans_are_one_line(tmp_path):
    path = tmp_path / "lora.safetensors"
    names = ("blocks.0.self_attn.q", "blocks.0.mystery")
    state = {f"{n}.lora_{p}.weight": t.clone() for n in names for p, t in (("A", DOWN), ("B", UP))}
    save_file(state, path)
    with pytest.raises(UserError, match="names that are not all Wan's"):
        Lora(path)


WHOLE = {
    # name in a file of Wan's own names: parameter as diffusers has it
    "blocks.1.self_attn.q.diff_b": "blocks.1.attn1.to_q.bias",
    "blocks.1.cross_attn.o.diff_b": "blocks.1.attn2.to_out.0.bias",
    "blocks.0.self_attn.norm_k.diff": "blocks.0.attn1.norm_k.weight",
    "blocks.0.norm3.diff": "blocks.0.norm2.weight",
    "blocks.0.norm3.diff_b": "blocks.0.norm2.bias",
    "blocks.0.ffn.2.diff_b": "blocks.0.ffn.net.2.bias",
    "blocks.0.modulation.diff": "blocks.0.scale_shift_table",
    "head.modulation.diff": "scale_shift_table",
    "head.head.diff": "proj_out.weight",
    "patch_embedding.diff": "patch_embedding.weight",
    "time_projection.1.diff_b": "condition_embedder.time_proj.bias",
    "text_embedding.0.diff": "condition_embedder.text_embedder.linear_1.weight",
}


def pair(name, down="lora_down", up="lora_up"):
    return {f"{name}.{down}.weight": DOWN.clone(), f"{name}.{up}.weight": UP.clone()}


@pytest.mark.parametrize("prefix", ["", "diffusion_model."])
def test_whole_differences_are_merged_beside_pairs(prefix, tmp_path):
    """Breaks if changes of norms and biases vanish, or a file that has them is refused."""
    model = tiny_transformer()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    changes = {name: torch.randn_like(before[to]) for name, to in WHOLE.items()}
    path = tmp_path / "lora.safetensors"
    state = {**pair("blocks.1.self_attn.q"), **changes}
    save_file({f"{prefix}{name}": tensor for name, tensor in state.items()}, path)
    Lora(path, 0.5).merge(model)
    expected = {to: 0.5 * changes[name] for name, to in WHOLE.items()}
    expected[f"{KEY}.weight"] = 0.5 * UP @ DOWN
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(
            parameter.detach(), before[name] + expected.get(name, 0), rtol=1e-5, atol=1e-5
        )


def test_whole_differences_by_diffusers_names(tmp_path):
    model = tiny_transformer()
    before = model.blocks[0].norm2.bias.detach().clone()
    path = tmp_path / "lora.safetensors"
    save_file({"transformer.blocks.0.norm2.diff_b": torch.ones(32)}, path)
    Lora(path).merge(model)
    torch.testing.assert_close(model.blocks[0].norm2.bias.detach(), before + 1)


@pytest.mark.parametrize(
    ("name", "size", "words"),
    [
        ("blocks.0.attn1.to_q.diff_b", 8, "to_q.bias is changed by [8] and is [32]"),
        ("blocks.9.attn1.to_q.diff_b", 32, "blocks.9.attn1.to_q.bias is not in this denoiser"),
        ("blocks.0.mystery.diff", 32, "blocks.0.mystery.weight is not in this denoiser"),
    ],
)
def test_whole_differences_that_fit_nothing_are_named(name, size, words, tmp_path):
    path = tmp_path / "lora.safetensors"
    save_file({name: torch.ones(size)}, path)
    with pytest.raises(UserError) as error:
        Lora(path).merge(tiny_transformer())
    assert words in str(error.value)


def test_kohyas_names_of_wans_modules(tmp_path):
    """Breaks if what musubi-tuner writes is not read, or not as strong as its alpha says."""
    path = tmp_path / "lora.safetensors"
    name = "lora_unet_blocks_1_self_attn_q"
    save_file({**pair(name), f"{name}.alpha": torch.tensor(2.0)}, path)
    assert merged(path) == pytest.approx(0.5, rel=1e-3)
    save_file({**pair("lora_unet_blocks_0_cross_attn_o")}, path)
    assert merged(path, "blocks.0.attn2.to_out.0") == pytest.approx(1.0, rel=1e-3)
    save_file({"lora_unet_blocks_0_ffn_2.diff_b": torch.ones(32)}, path)
    assert set(Lora(path).differences) == {"blocks.0.ffn.net.2.bias"}
    more = {"blocks_0_self_attn_norm_q.diff": (32,), "blocks_1_norm3.diff_b": (32,)}
    more |= {"blocks_1_ffn_0.diff_b": (48,), "time_embedding_2.diff_b": (32,)}
    save_file({f"lora_unet_{n}": torch.ones(shape) for n, shape in more.items()} | pair(name), path)
    assert set(Lora(path).differences) == {
        "blocks.0.attn1.norm_q.weight",
        "blocks.1.norm2.bias",
        "blocks.1.ffn.net.0.proj.bias",
        "condition_embedder.time_embedder.linear_2.bias",
    }


def test_kohyas_updates_outside_of_blocks(tmp_path):
    """Breaks if a file with alphas everywhere, as trainers write them, is refused for one of its modules."""
    path, inside = tmp_path / "lora.safetensors", "lora_unet_blocks_0_ffn_0"
    outside = {
        "text_embedding_0": "condition_embedder.text_embedder.linear_1",
        "time_embedding_2": "condition_embedder.time_embedder.linear_2",
        "time_projection_1": "condition_embedder.time_proj",
        "head_head": "proj_out",
        "patch_embedding": "patch_embedding",
    }
    state = pair(inside)
    for name in outside:
        state |= {**pair(f"lora_unet_{name}"), f"lora_unet_{name}.alpha": torch.tensor(2.0)}
    save_file({key: tensor.contiguous() for key, tensor in state.items()}, path)
    updates = Lora(path).updates
    assert set(updates) == {"blocks.0.ffn.net.0.proj", *outside.values()}
    plain = updates["blocks.0.ffn.net.0.proj"]["up"]
    for name in outside.values():
        assert torch.equal(updates[name]["up"], plain * 0.5)  # alpha 2 of rank 4


def test_kohyas_names_of_other_models_are_one_line(tmp_path):
    path = tmp_path / "lora.safetensors"
    save_file(pair("lora_unet_down_blocks_0_attentions_0_proj_in"), path)
    with pytest.raises(
        UserError, match=r"is in kohya's format \(lora_unet_\.\.\.\), of which Wan's"
    ):
        Lora(path)
