"""A LoRA's low-rank updates merged into the weights they belong to, before a network is exported."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from miga_bench.errors import UserError

# the wrappers that trainers put before a module's own name
_WRAPPERS = re.compile(r"^(base_model\.model\.|transformer\.|unet\.|diffusion_model\.)+")
_PARTS = re.compile(r"\.(?:lora_(A|B|down|up)(?:\.default)?\.weight|(alpha))$")
_WHOLE = re.compile(r"\.(diff|diff_b)$")  # of a weight, of a bias
# kohya's and musubi-tuner's names of modules of Wan's own code: dots became underscores
_FLAT = "lora_unet_"
_FLAT_BLOCK = re.compile(
    r"blocks_(\d+)_(?:(self_attn|cross_attn|ffn)_([a-z]+(?:_[a-z]+)?|\d)|(norm\d|modulation))"
)
_FLAT_NAMES = {
    name.replace(".", "_"): name
    for name in (
        *(f"{part}_embedding.{number}" for part in ("text", "time") for number in (0, 2)),
        *("time_projection.1", "patch_embedding", "head.head", "head.modulation"),
    )
}


class Lora:
    """The updates of one file, in diffusers' and peft's format (``lora_A``, ``lora_B``) or an older one.

    Beside low-rank updates a file may hold whole differences of weights (``diff``) and biases (``diff_b``).

    Args:
        path: A safetensors file.
        scale: How strongly it is merged; 1 is as trained.

    Raises:
        UserError: The file is missing, damaged, or holds no LoRA.
    """

    def __init__(self, path: Path, scale: float = 1.0) -> None:
        self.path, self.scale = path, scale
        try:
            with safe_open(path, framework="pt") as opened:
                state = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
                about = opened.metadata() or {}
        except FileNotFoundError:
            raise UserError(f"--lora {path}: there is no such file") from None
        except (SafetensorError, OSError) as error:
            raise UserError(
                f"--lora {path} is no safetensors file that can be read ({error}): fetch it again"
            ) from None
        state = self._strengthened(self._unflattened(state), about)
        self.differences = self._differences(state)
        state = {key: tensor for key, tensor in state.items() if not _WHOLE.search(key)}
        self.updates: dict[str, dict[str, Tensor]] = {}
        for key, tensor in self._renamed(state).items():
            found = _PARTS.search(key)
            if found is None:
                raise UserError(
                    f"--lora {path}: {key} is no part of a LoRA; lora_A and lora_B, or lora_down and"
                    " lora_up, with or without alpha, and diff and diff_b are read"
                )
            part = {"A": "down", "B": "up"}.get(found[1], found[1])
            module = _WRAPPERS.sub("", key[: found.start()])
            self.updates.setdefault(module, {})[part] = tensor
        if not self.updates and not self.differences:
            raise UserError(f"--lora {path} is empty: give a file that updates weights")

    def _unflattened(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return kohya's names as Wan's own code has them, others as they are.

        Raises:
            UserError: They are kohya's of another model.
        """
        named = {}
        for key, tensor in state.items():
            flat, dot, rest = key.removeprefix(_FLAT).partition(".")
            if key.startswith(_FLAT):
                block = _FLAT_BLOCK.fullmatch(flat)
                if block is None and flat not in _FLAT_NAMES:
                    raise UserError(
                        f"--lora {self.path} is in kohya's format ({_FLAT}...), of which Wan's own names are"
                        f" read, and {key} is none: convert it to diffusers' format"
                    )
                parts = [] if block is None else [p for p in block.groups() if p is not None]
                key = (".".join(["blocks", *parts]) if parts else _FLAT_NAMES[flat]) + dot + rest
            named[key] = tensor
        return named

    def _differences(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return whole differences by names of parameters, as diffusers has them."""
        named = {
            _WHOLE.sub(lambda found: ".bias" if found[1] == "diff_b" else ".weight", key): tensor
            for key, tensor in state.items()
            if _WHOLE.search(key)
        }
        if named and any(map(_is_wans, state)):
            from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers

            named = convert_wan_transformer_to_diffusers(named)
        return named

    def _strengthened(
        self, state: dict[str, Tensor], about: Mapping[str, str]
    ) -> dict[str, Tensor]:
        """Return the state by names without trainers' wrappers, its updates as strong as is stated beside it.

        Raises:
            UserError: The file is of PEFT's and what it states of strengths is missing, or is not known here.
        """
        alphas = {
            _PARTS.sub("", key): tensor
            for key, tensor in state.items()
            if (found := _PARTS.search(key)) and found[2]
        }
        if alphas:
            return self._folded(state, alphas)
        stated = _stated(about)
        beside = self.path.with_name("adapter_config.json")
        if not stated and any(key.startswith("base_model.model.") for key in state):
            try:
                stated = dict(json.loads(beside.read_text(encoding="utf-8")))
            except FileNotFoundError:
                raise UserError(
                    f"--lora {self.path} is of PEFT's, which states strengths in {beside.name}: put that file"
                    " beside it"
                ) from None
            except (OSError, ValueError, TypeError, RecursionError) as error:
                raise UserError(
                    f"--lora {self.path}: {beside} cannot be read ({error}): fetch it again"
                ) from None
        if stated.get("use_dora"):
            raise UserError(
                f"--lora {self.path} is a DoRA, which scales by magnitudes: give a plain LoRA"
            )
        strengthened = {}
        for key, tensor in state.items():
            name, found = _WRAPPERS.sub("", key), _PARTS.search(key)
            if stated and found is not None and found[1] in ("B", "up"):
                try:
                    strength = _strength(stated, _PARTS.sub("", name), tensor.shape[1])
                except (TypeError, ValueError, AttributeError, re.error) as error:
                    raise UserError(
                        f"--lora {self.path}: what is stated of strengths cannot be used ({error}): fetch it"
                        " again"
                    ) from None
                tensor = tensor.float() * strength
            strengthened[name] = tensor
        return strengthened

    def _folded(
        self, state: Mapping[str, Tensor], alphas: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Return the state by names without wrappers, each alpha in its update."""
        folded = {}
        for key, tensor in state.items():
            found = _PARTS.search(key)
            alpha = alphas.get(_PARTS.sub("", key)) if found and found[1] in ("B", "up") else None
            if alpha is not None:
                if alpha.numel() != 1:
                    raise UserError(
                        f"--lora {self.path}: the alpha of {key} is {list(alpha.shape)}: it must be one number"
                    )
                tensor = tensor.float() * (float(alpha) / tensor.shape[1])
            if not (found and found[2]):
                folded[_WRAPPERS.sub("", key)] = tensor
        return folded

    def _renamed(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return keys as diffusers has them; LoRAs of Wan's own code have its names.

        Raises:
            UserError: They have Wan's names and others.
        """
        if not any(map(_is_wans, state)):
            return state
        from diffusers.loaders.lora_conversion_utils import (
            _convert_non_diffusers_wan_lora_to_diffusers,
        )

        # both call this one the same, and the converter does not know it
        same = {key: t for key, t in state.items() if key.startswith("patch_embedding.")}
        named = {
            f"diffusion_model.{key}".replace(".default.", "."): t
            for key, t in state.items()
            if key not in same
        }
        try:
            converted = dict(_convert_non_diffusers_wan_lora_to_diffusers(named))
        except (ValueError, KeyError, IndexError) as error:
            reason = " ".join(str(error).split())[:160]
            raise UserError(
                f"--lora {self.path} has names that are not all Wan's ({reason}): is it of another model?"
            ) from None
        return {_WRAPPERS.sub("", key): tensor for key, tensor in converted.items()} | same

    def merge(self, network: nn.Module) -> None:
        """Add the updates to a network's weights.

        Raises:
            UserError: A module or parameter is not in the network, or has another shape.
        """
        self._add_differences(network)
        modules = dict(network.named_modules())
        for name, parts in self.updates.items():
            weight = getattr(modules.get(name), "weight", None)
            if weight is None or not {"down", "up"} <= parts.keys():
                what = (
                    "is not in this denoiser"
                    if weight is None
                    else "has only one of its two halves"
                )
                raise UserError(
                    f"--lora {self.path}: {name} {what}: is it a LoRA of another model?"
                )
            down, up = parts["down"].float(), parts["up"].float()
            update = up.flatten(1) @ down.flatten(1) * self.scale
            if update.numel() != weight.numel() or len(up) != len(weight):
                raise UserError(
                    f"--lora {self.path}: {name} updates {list(update.shape)}, the weight is"
                    f" {list(weight.shape)}: is it a LoRA of another model?"
                )
            _add(weight, update.reshape(weight.shape))

    def _add_differences(self, network: nn.Module) -> None:
        parameters = dict(network.named_parameters())
        for name, difference in self.differences.items():
            # tables of modulation are parameters, not modules with a weight
            parameter = parameters.get(name, parameters.get(name.removesuffix(".weight")))
            if parameter is None or parameter.shape != difference.shape:
                what = (
                    "is not in this denoiser"
                    if parameter is None
                    else f"is changed by {list(difference.shape)} and is {list(parameter.shape)}"
                )
                raise UserError(
                    f"--lora {self.path}: {name} {what}: is it a LoRA of another model?"
                )
            _add(parameter, difference.float() * self.scale)


@torch.no_grad()
def _add(parameter: Tensor, update: Tensor) -> None:
    """Add in float32, whatever the parameter's type."""
    parameter.copy_((parameter.float() + update.to(parameter.device)).to(parameter.dtype))


def _is_wans(key: str) -> bool:
    """Tell a name of Wan's own code, without wrappers, from one of diffusers'."""
    return re.match(r"blocks\.\d+\.(self_attn|cross_attn|ffn\.\d)\.", key) is not None


def _stated(about: Mapping[str, str]) -> dict[str, Any]:
    """Return what diffusers writes beside the tensors of PEFT's settings, empty where it wrote nothing."""
    try:
        stated: dict[str, Any] = json.loads(about.get("lora_adapter_metadata", "{}"))
        return {key.rpartition(".")[2]: value for key, value in stated.items()}
    except (ValueError, AttributeError, RecursionError):
        return {}


def _strength(stated: Mapping[str, Any], module: str, rank: int) -> float:
    """Return what PEFT multiplies a module's update by, see ``peft.LoraConfig``."""
    alpha = stated.get("lora_alpha") or rank
    for pattern, value in (stated.get("alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({_WRAPPERS.sub('', pattern)})$", module):
            alpha = value
            break
    return float(alpha) / (math.sqrt(rank) if stated.get("use_rslora") else rank)
