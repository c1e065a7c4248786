"""AMT-S, the frame interpolation that VBench measures smoothness against.

Li et al., CVPR 2023. Weights and code are CC BY-NC 4.0, non-commercial use only: the network comes
from the installed ``vbench`` package, the weights from their publisher.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from miga_bench.metrics.networks import original
from miga_bench.metrics.networks.base import Interpolator, check_finite
from miga_bench.metrics.networks.weight_files import WeightFile, Weights, fill, read_weights

AMT_FILE = WeightFile(
    network="AMT-S",
    place="amt_model/amt-s.pth",
    url="https://huggingface.co/lalala125/AMT/resolve/main/amt-s.pth",
)
_MULTIPLE = 16


class Amt(Interpolator):
    """AMT-S at full size, as the original has it with its own command line.

    It takes frames of 113 pixels at least on both sides.

    Args:
        weights: A state dict or a file; None for the published file.
        batch: Pairs of frames that go through the network at once.

    Raises:
        UserError: ``vbench`` is not installed; or see ``read_weights``.
    """

    least_side = original.LEAST_CORRELATED - _MULTIPLE + 1  # padded to the first

    def __init__(self, weights: Weights = None, batch: int = 1) -> None:
        super().__init__()
        network = original.module("third_party.amt.networks.AMT-S").Model()
        loaded = read_weights(weights, AMT_FILE)
        fill(network, loaded.content.get("state_dict", loaded.content), AMT_FILE.network)
        self.model = network
        self.batch = batch
        self.label = loaded.label("amt")
        self.provenance = loaded.provenance(AMT_FILE.network, package="vbench")

    @torch.no_grad()
    def midpoint(self, before: Tensor, after: Tensor) -> Tensor:
        """Return the uint8 frames ``[N, 3, H, W]`` halfway between two batches of uint8 frames."""
        pairs = zip(before.split(self.batch), after.split(self.batch), strict=True)
        return torch.cat([padded_midpoint(self.model, first, second) for first, second in pairs])


def padded_midpoint(
    model: Callable[..., dict[str, Tensor]], before: Tensor, after: Tensor
) -> Tensor:
    """Run a network with AMT's interface as VBench does: padded, and fractions cut off.

    Args:
        model: Takes two batches of pictures in 0..1 whose sides are multiples of 16, and 0.5.
        before: uint8 ``[N, 3, H, W]``.
        after: uint8 ``[N, 3, H, W]``.

    Returns:
        uint8 ``[N, 3, H, W]``.

    Raises:
        NumericalError: The network returned NaN or infinity.
    """
    height, width = before.shape[-2:]
    down, right = -height % _MULTIPLE, -width % _MULTIPLE
    top, left = down // 2, right // 2
    pads = (left, right - left, top, down - top)
    half = torch.full((len(before), 1, 1, 1), 0.5, device=before.device)
    first, second = (nn.functional.pad(p / 255.0, pads, mode="replicate") for p in (before, after))
    between = model(first, second, half, eval=True)["imgt_pred"]
    between = check_finite(between[..., top : top + height, left : left + width])
    return (between * 255.0).clamp_(0, 255).to(torch.uint8)
