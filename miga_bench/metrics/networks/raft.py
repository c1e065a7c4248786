"""RAFT, the optical flow of VBench's dynamic degree; from the installed ``vbench`` package.

Teed and Deng, ECCV 2020; BSD-3.
"""

from __future__ import annotations

import argparse
import warnings

import torch
from torch import Tensor

from miga_bench.metrics.functional.dynamics import MULTIPLE
from miga_bench.metrics.networks import original
from miga_bench.metrics.networks.base import FlowEstimator
from miga_bench.metrics.networks.weight_files import WeightFile, Weights, fill, read_weights

RAFT_FILE = WeightFile(
    network="RAFT",
    place="raft_model/models/raft-things.pth",
    url="https://dl.dropboxusercontent.com/s/4j4z58wuv8o0mfz/models.zip",
    member="models/raft-things.pth",
)
_ITERATIONS = 20


class Raft(FlowEstimator):
    """RAFT trained on FlyingThings, 20 iterations, one pair at a time.

    It takes frames of 121 pixels at least on both sides.

    Args:
        weights: A state dict or a file; None for the published file.

    Raises:
        UserError: ``vbench`` is not installed; or see ``read_weights``.
    """

    least_side = original.LEAST_CORRELATED - MULTIPLE + 1  # padded to the first

    def __init__(self, weights: Weights = None) -> None:
        super().__init__()
        made = original.module(
            "third_party.RAFT.core.raft", f"{original.INSTALL} && pip install scipy"
        )
        options = argparse.Namespace(small=False, mixed_precision=False, alternate_corr=False)
        self.model = made.RAFT(options)
        loaded = read_weights(weights, RAFT_FILE)
        # the published file was saved from a model on several GPUs
        content = {key.removeprefix("module."): tensor for key, tensor in loaded.content.items()}
        fill(self.model, content, RAFT_FILE.network)
        self.label = loaded.label("raft")
        self.provenance = loaded.provenance(RAFT_FILE.network, package="vbench")

    @torch.no_grad()
    def flow(self, first: Tensor, second: Tensor) -> Tensor:
        """Return displacements in pixels, float32 ``[N, 2, H, W]``, x before y.

        Args:
            first: uint8 ``[N, 3, H, W]``, sides multiples of 8.
            second: Of the same shape.
        """
        with warnings.catch_warnings():
            # of names that torch has since replaced
            warnings.simplefilter("ignore")
            flows = [
                self.model(one.float(), other.float(), iters=_ITERATIONS, test_mode=True)[1]
                for one, other in zip(first.split(1), second.split(1), strict=True)
            ]
        return torch.cat(flows)
