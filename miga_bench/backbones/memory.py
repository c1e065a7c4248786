"""How many windows one denoiser call may hold."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from miga_bench.backbones.wan import WanBackbone

CPU_WINDOWS = 8
MOST_WINDOWS = 64
HEADROOM = 0.8


def window_bytes(tokens: int, width: int, feed_forward: int, element: int) -> int:
    """Estimate the peak memory of one window's row in a transformer block, without its weights.

    The feed-forward layer holds the most at once: its input and result in the network's type, the
    wide hidden layer before and after the activation, and three float32 copies of the tokens
    (residual, normalized, modulated). Attention is computed in tiles and needs less.

    Args:
        tokens: Tokens of a window.
        width: Model width.
        feed_forward: Width of the hidden layer.
        element: Bytes of one number in the network's type.
    """
    return tokens * (width * (3 * 4 + 3 * element) + 2 * feed_forward * element)


def default_batch(backbone: WanBackbone) -> int:
    """Return how many windows fit one denoiser call, with guidance (two rows each).

    On a GPU: 80 % of the memory that is free now, counting what torch holds but does not use,
    divided by the estimate above. On a CPU a fixed 8, beyond which tiny models gain nothing.
    """
    device = torch.device(backbone.device)
    if device.type != "cuda":
        return CPU_WINDOWS
    free, _ = torch.cuda.mem_get_info(device)
    free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    transformer = backbone.denoiser.transformer
    config = transformer.config
    shape = backbone.latent_shape
    tokens = backbone.window * shape.height * shape.width // (config.patch_size[1] ** 2)
    width = config.num_attention_heads * config.attention_head_dim
    element = transformer.patch_embedding.weight.element_size()
    row = window_bytes(tokens, width, config.ffn_dim, element)
    return max(1, min(MOST_WINDOWS, int(HEADROOM * free / (2 * row))))
