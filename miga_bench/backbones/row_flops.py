"""How many floating point operations one row of a denoiser call takes.

It is walked on the meta device, where tensors have shapes and no values, by a copy of the network without
weights, and torch's counter adds up its matrix products, convolutions and attention (a multiplication and
an addition are two operations; what is done element by element is not counted).
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode


def row_flops(network: nn.Module, inputs: tuple[Tensor, ...], more: dict[str, Any]) -> int:
    """Return the operations of one row of a call, by walking it without values.

    Args:
        network: A denoiser; left as it is.
        inputs: Latents, timesteps and text of a call with any number of rows.
        more: Its further arguments, numbers.

    Raises:
        Exception: The network is not what can be copied and walked so.
    """
    counter = FlopCounterMode(display=False)
    with torch.inference_mode(mode=False), torch.no_grad():
        # On the meta device attention falls into matrix products, which the counter knows; it has no
        # formula for the fused attention of a CPU and would count it as nothing.
        row = [torch.empty_like(part[:1], device="meta") for part in inputs]
        hollow = _hollow(network)
        with counter:
            hollow(*row, **more)
    return int(counter.get_total_flops())


def _hollow(network: nn.Module) -> nn.Module:
    """Return a copy on the meta device: no weights, no hooks (one may move weights), not compiled."""
    memo: dict[int, Any] = {}
    for part in network.modules():
        for weight in part._parameters.values():
            if weight is not None:
                empty = torch.empty_like(weight, device="meta")
                memo[id(weight)] = nn.Parameter(empty, requires_grad=False)
        for buffer in part._buffers.values():
            if buffer is not None:
                memo[id(buffer)] = torch.empty_like(buffer, device="meta")
        for hooks in (part._forward_pre_hooks, part._forward_hooks):
            memo[id(hooks)] = type(hooks)()
    return copy.deepcopy(network, memo)
