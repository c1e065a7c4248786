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
