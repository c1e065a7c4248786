"""A backbone with the denoiser that a user chose for it."""

from __future__ import annotations

from typing import Any

from miga_bench.backbones import load_backbone
from miga_bench.backbones.base import Backbone
from miga_bench.errors import UserError
from miga_bench.export.choice import DenoiserChoice


def open_model(
    name: str,
    choice: DenoiserChoice,
    *,
    device: str | None = None,
    dtype: str | None = None,
    offload: bool = False,
    height: int | None = None,
    width: int | None = None,
) -> Backbone:
    """Load a backbone, its denoiser run as chosen.

    Args:
        name: As ``load_backbone`` takes it; of an export, what was exported.
        choice: What runs the denoiser.
        device: As torch names it.
        dtype: Of the denoiser in PyTorch.
        offload: Keep only the part in use on the GPU.
        height: Video height, None for the backbone's own.
        width: Video width, None for the backbone's own.

    Raises:
        UserError: The backbone cannot be loaded, or an export is not of it or not for that.
    """
    if choice.exported:
        return _exported(name, choice, device, dtype, offload, (height, width))
    backbone = load_backbone(
        name, device=device, dtype=dtype, offload=offload, height=height, width=width
    )
    if choice.kind == "compile":
        compile_denoiser(backbone)
    return backbone


def compile_denoiser(backbone: Backbone) -> None:
    """Let torch compile the denoiser's network when it is first used.

    Raises:
        UserError: It is no network of PyTorch's.
    """
    from torch import nn

    network = getattr(backbone.denoiser, "network", None)
    if not isinstance(network, nn.Module):
        raise UserError(f"{backbone.name} cannot be compiled: use denoiser torch")
    network.compile()
    backbone.denoiser_identity = "compile"


def _exported(
    name: str,
    choice: DenoiserChoice,
    device: str | None,
    dtype: str | None,
    offload: bool,
    size: tuple[int | None, int | None],
) -> Backbone:
    from miga_bench.export.backbone import ExportedBackbone

    for option, given in (("dtype", dtype is not None), ("offload", offload)):
        if given:
            raise UserError(
                f"{option} is for denoisers in PyTorch: {choice.folder} computes as it was exported;"
                " leave it out"
            )
    backbone: Any = ExportedBackbone(choice, device)
    if name != backbone.name:
        raise UserError(
            f"{choice.folder} is an export of {backbone.name}, not of {name}: ask for backbone"
            f" {backbone.name}, or export {name}"
        )
    for option, wanted, own in zip(("height", "width"), size, backbone.frame_size, strict=True):
        if wanted not in (None, own):
            raise UserError(
                f"{option} is {wanted}, but {choice.folder} was exported for"
                f" {backbone.frame_size[0]}x{backbone.frame_size[1]} (height x width): export it again"
                f" with --{option} {wanted}"
            )
    return backbone
