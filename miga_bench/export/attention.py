"""Where attention is too long to be done without a kernel of its own.

With opset 23 a graph has the operator Attention, for which runtimes have kernels that hold no scores. Without
such a kernel, or with opset 20, which has no such operator, the scores of all heads are in memory at once: 25.8
GB in fp16 for a row of Wan2.1-1.3B at 480x832 with 21 latents.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from miga_bench.export.graphs import MOST_TOKENS
from miga_bench.export.sidecar import Sidecar


def tokens(shapes: Mapping[str, Sequence[int]]) -> int:
    """Return how many tokens attend to one another in a denoiser's call.

    Args:
        shapes: Of its inputs. On Wan all tokens of a row do, as many as its rotary tables have; on
            VideoCrafter2 those of a frame.
    """
    if "cos" in shapes:
        return shapes["cos"][1]
    *_, height, width = shapes["latents"]
    return height * width


def opset_20_would_do(sidecar: Sidecar) -> bool:
    """Tell whether a graph that has Attention would do without: a denoiser's with short rows, not in bf16."""
    if sidecar.graph != "denoiser" or sidecar.precision == "bf16":
        return False
    return tokens({name: port.max for name, port in sidecar.inputs.items()}) <= MOST_TOKENS
