"""A LoRA's low-rank updates merged into the weights they belong to, before a network is exported."""

from __future__ import annotations

import json
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


class Lora:
    """The updates of one file, in diffusers' and peft's format (``lora_A``, ``lora_B``) or the older one.

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
        self.updates: dict[str, dict[str, Tensor]] = {}
        for key, tensor in _renamed(state).items():
            found = _PARTS.search(key)
            if found is None:
                raise UserError(
                    f"--lora {path}: {key} is no part of a LoRA; lora_A and lora_B, or lora_down and"
                    " lora_up, with or without alpha, are read"
                )
            part = {"A": "down", "B": "up"}.get(found[1], found[1]) or "alpha"
            module = _WRAPPERS.sub("", key[: found.start()])
            self.updates.setdefault(module, {})[part] = tensor
        if not self.updates:
            raise UserError(f"--lora {path} is empty: give a file that updates weights")
        self._alpha = _stated_alpha(about)

    def merge(self, network: nn.Module) -> None:
        """Add the updates to a network's weights.

        Raises:
            UserError: A module is not in the network, or its weight has another shape.
        """
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
            rank = len(down)
            alpha = float(parts["alpha"]) if "alpha" in parts else self._alpha or rank
            update = up.flatten(1) @ down.flatten(1) * (alpha / rank * self.scale)
            if update.numel() != weight.numel() or len(up) != len(weight):
                raise UserError(
                    f"--lora {self.path}: {name} updates {list(update.shape)}, the weight is"
                    f" {list(weight.shape)}: is it a LoRA of another model?"
                )
            with torch.no_grad():
                merged = weight.float() + update.reshape(weight.shape).to(weight.device)
                weight.copy_(merged.to(weight.dtype))


def _renamed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return keys as diffusers has them; LoRAs of Wan's own code have its names."""
    if any(".self_attn." in key and "blocks." in key for key in state):
        from diffusers.loaders.lora_conversion_utils import (
            _convert_non_diffusers_wan_lora_to_diffusers,
        )

        return dict(_convert_non_diffusers_wan_lora_to_diffusers(dict(state)))
    return dict(state)


def _stated_alpha(about: Mapping[str, str]) -> float | None:
    """Return the alpha that diffusers writes beside the tensors."""
    try:
        stated: dict[str, Any] = json.loads(about.get("lora_adapter_metadata", "{}"))
    except ValueError:
        return None
    return next((float(v) for k, v in stated.items() if k.endswith("lora_alpha")), None)
