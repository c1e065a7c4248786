"""Wan2.1's rotary tables, computed outside of the network, be it a module or an exported graph.

Shapes: B batch, F latent frames, C channels, H, W latent size, L = H/2 * W/2 tokens of a frame,
a attention head width.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor

_CACHED_TABLES = 16


def rotary_angles(positions: Tensor, dim: int, theta: float = 10000.0) -> Tensor:
    """Return the rotation angles of one axis.

    Args:
        positions: ``[...]`` places along the axis, any real numbers.
        dim: Channels of a head that this axis turns; pairs of them share an angle.
        theta: Base of the geometric series of frequencies.

    Returns:
        ``[..., dim / 2]`` float64.
    """
    steps = torch.arange(0, dim, 2, dtype=torch.float64, device=positions.device)
    return positions.to(torch.float64)[..., None] / theta ** (steps / dim)


class Rotary:
    """Cosines and sines for windows of any shape, computed outside the network's graph.

    Latents stand at positions 0 to F - 1 in time; tables are kept per shape and device.
    """

    def __init__(self, head_dim: int, patch_height: int, patch_width: int) -> None:
        self.height_dim = self.width_dim = 2 * (head_dim // 6)
        self.frame_dim = head_dim - self.height_dim - self.width_dim
        self.patch = (patch_height, patch_width)
        self._tables: OrderedDict[tuple[object, ...], tuple[Tensor, Tensor]] = OrderedDict()

    def __call__(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``cos, sin``, each ``[1, F * L, 1, a / 2]`` float32 on the latents' device.

        Args:
            latents: ``[B, C, F, H, W]``; only the shape and the device count.
        """
        frames, height, width = latents.shape[2:]
        if torch.compiler.is_compiling() or torch.compiler.is_exporting():
            return self._build(torch.arange(frames, device=latents.device), height, width)
        key = (frames, height, width, latents.device)
        if key in self._tables:
            self._tables.move_to_end(key)
        else:
            with torch.inference_mode(mode=False):  # a later call may train
                cos, sin = self._build(torch.arange(frames), height, width)
                self._tables[key] = cos.to(latents.device), sin.to(latents.device)
            if len(self._tables) > _CACHED_TABLES:
                self._tables.popitem(last=False)
        return self._tables[key]

    def _build(self, positions: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
        rows, columns = height // self.patch[0], width // self.patch[1]
        frames, device = positions.shape[-1], positions.device
        lines = torch.arange(rows, device=device)
        places = torch.arange(columns, device=device)
        turn_f = rotary_angles(positions.reshape(-1, frames), self.frame_dim)
        turn_h = rotary_angles(lines, self.height_dim)
        turn_w = rotary_angles(places, self.width_dim)
        grid = (turn_f.shape[0], frames, rows, columns, -1)
        angles = torch.cat(
            [
                turn_f[:, :, None, None].expand(*grid),
                turn_h[None, None, :, None].expand(*grid),
                turn_w[None, None, None].expand(*grid),
            ],
            dim=-1,
        ).flatten(1, 3)[:, :, None]
        return angles.cos().float(), angles.sin().float()
