"""Optical flow without a download: OpenCV's dense inverse search (DIS), and midpoints made with it.

DIS: Kroeger et al., Fast Optical Flow using Dense Inverse Search, ECCV 2016.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from miga_bench.metrics.networks.base import FlowEstimator, Interpolator, Provenance

Array = NDArray[Any]

# OpenCV refuses frames in which no patch of 8 pixels can move; smaller ones are made larger.
_LEAST_SIDE = 16
# Two flows or colors agree below this: pixels of displacement, and of 255.
_FLOW_SLACK = 0.5
_COLOR_SLACK = 4.0
_WINDOW = 5  # pixels on a side that candidates are compared over


class DisFlow(FlowEstimator):
    """OpenCV's DIS flow: preset ``medium`` down to single pixels.

    DIS wants gray frames. Luminance would lose a blue subject on a dark field, so each pair is
    projected on the direction in which its colors differ most.

    On the CPU, one pair at a time, so memory does not grow with the number of pairs; the same
    whatever the number of OpenCV's threads. What leaves the picture has no counterpart: flow there
    is what its surroundings suggest.
    """

    label = "dis"

    def __init__(self) -> None:
        super().__init__()
        self.provenance = _provenance("DIS optical flow")

    def flow(self, first: Tensor, second: Tensor) -> Tensor:
        """Return displacements in pixels, float32 ``[N, 2, H, W]``, x before y.

        Args:
            first: uint8 ``[N, 3, H, W]``.
            second: Of the same shape.
        """
        flows = torch.empty(len(first), 2, *first.shape[-2:])
        for one, other, into in zip(_pictures(first), _pictures(second), flows, strict=True):
            into.copy_(torch.from_numpy(_dis(*_gray(one, other))).permute(2, 0, 1))
        return flows.to(first.device)


class FlowInterpolator(Interpolator):
    """The frame halfway between two, by DIS flow both ways.

    Each flow is carried half its way, as is no motion at all; of these three, every pixel takes the
    one whose two ends look most alike and that the flow at both ends agrees with. Where only one
    end agrees, the place is hidden in the other frame, and only that end gives its color.

    What enters or leaves at an edge is in one frame only; a torus's wrap is not known here. One
    pair at a time on the CPU, so memory does not grow with the number of pairs. Equal frames give
    that frame back, bit for bit.
    """

    label = "dis"

    def __init__(self) -> None:
        super().__init__()
        self.provenance = _provenance("DIS optical flow, both ways, blended by consistency")

    def midpoint(self, before: Tensor, after: Tensor) -> Tensor:
        """Return the uint8 frames ``[N, 3, H, W]`` halfway between two batches of such frames."""
        middle = torch.empty(before.shape, dtype=torch.uint8)
        for one, other, into in zip(_pictures(before), _pictures(after), middle, strict=True):
            into.copy_(torch.from_numpy(_midpoint(one, other)).permute(2, 0, 1))
        return middle.to(before.device)


def _midpoint(before: Array, after: Array) -> Array:
    """Return the picture [H, W, 3] halfway between two, all uint8."""
    import cv2

    if np.array_equal(before, after):
        return before
    gray = _gray(before, after)
    there, back = _dis(*gray), _dis(*gray[::-1])
    still = np.zeros_like(there)
    height, width = there.shape[:2]
    grid = np.stack(np.meshgrid(np.arange(width), np.arange(height)), -1).astype(np.float32)
    ends = before.astype(np.float32), after.astype(np.float32)

    total = np.zeros_like(ends[0])
    weights = np.zeros((height, width, 1), np.float32)
    for motion in (_carried(there, grid), -_carried(back, grid), still):
        places = grid - motion / 2, grid + motion / 2
        colors = [
            _sample(end, place, cv2.INTER_CUBIC) for end, place in zip(ends, places, strict=True)
        ]
        # how far the flow at each end is from going along with this motion
        off = [
            _sample(flow, place) - sign * motion
            for flow, place, sign in zip((there, back), places, (1, -1), strict=True)
        ]
        agree = [np.exp(-((np.linalg.norm(o, axis=-1) / _FLOW_SLACK) ** 2)) for o in off]
        alike = np.abs(colors[0] - colors[1]).mean(-1)
        alike = np.exp(-cv2.blur(alike, (_WINDOW, _WINDOW)) / _COLOR_SLACK)
        # seen at both ends, or at one end only, where the other shows something else
        both = agree[0] * agree[1] * alike
        only = [agree[0] * (1 - agree[1]), agree[1] * (1 - agree[0])]
        # a trace of plain blending, for pixels that no motion explains
        shares = [(both + 0.1 * o + 1e-4 * alike + 1e-6)[..., None] for o in only]
        for share, color in zip(shares, colors, strict=True):
            total += share * color
            weights += share
    return np.rint(total / weights).clip(0, 255).astype(np.uint8)  # a cubic overshoots


def _carried(flow: Array, grid: Array) -> Array:
    """Carry a flow [H, W, 2] half its way: what moves through each pixel at half time."""
    # the flow at a point's own start, found by going back along it
    carried = flow
    for _ in range(3):
        carried = _sample(flow, grid - carried / 2)
    return carried


def _sample(picture: Array, places: Array, method: int | None = None) -> Array:
    """Read a picture [H, W, C] at places [H, W, 2], x before y, edges repeated; linear by default."""
    import cv2

    x, y = places[..., 0], places[..., 1]
    method = cv2.INTER_LINEAR if method is None else method
    return cv2.remap(picture, x, y, method, borderMode=cv2.BORDER_REPLICATE)


def _dis(first: Array, second: Array) -> Array:
    """Return the flow [H, W, 2] between two gray pictures [H, W]."""
    import cv2

    height, width = first.shape
    below, right = max(0, _LEAST_SIDE - height), max(0, _LEAST_SIDE - width)
    if below or right:
        first, second = (
            cv2.copyMakeBorder(gray, 0, below, 0, right, cv2.BORDER_REPLICATE)
            for gray in (first, second)
        )
    search: Any = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    search.setFinestScale(0)
    return search.calc(first, second, None)[:height, :width]


def _gray(first: Array, second: Array) -> tuple[Array, Array]:
    """Project two pictures [H, W, 3] on their colors' first principal axis, uint8 [H, W]."""
    colors = np.concatenate([p.reshape(-1, 3) for p in (first, second)]).astype(np.float64)
    mean = colors.mean(0)
    # sums of whole numbers, so exact: no number of threads changes the axis
    spread = colors.T @ colors / len(colors) - np.outer(mean, mean)
    axis = np.linalg.eigh(spread)[1][:, -1]
    along = [((p - mean) * axis).sum(-1) for p in (first, second)]
    # never stretched, which would stretch noise too
    scale = min(1.0, 127 / max(1.0, *(np.abs(a).max() for a in along)))
    one, other = (np.rint(127.5 + a * scale).astype(np.uint8) for a in along)
    return one, other


def _pictures(frames: Tensor) -> Any:
    """Yield frames [N, 3, H, W] as pictures [H, W, 3] in main memory, one at a time."""
    return (np.ascontiguousarray(frame.permute(1, 2, 0).cpu().numpy()) for frame in frames)


def _provenance(network: str) -> Provenance:
    return Provenance(network, f"none; OpenCV {version('opencv-python-headless')}", None)
