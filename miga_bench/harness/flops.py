"""How many floating point operations the denoiser takes for a video.

The operations of one row are counted (``row_flops``; an exported denoiser was counted when it was
exported), and those of a row that a cache cut short. Rows do not depend on each other, so a call takes as
many times that as it has rows: the number is the same whatever the batch, the device, the processes that
share the video, compilation or offloading. The network itself is never touched, and a video's bits are those
it has without the counting.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from miga_bench.backbones.base import Backbone, Denoiser, Meter, Rows
from miga_bench.backbones.row_flops import row_flops

# Operations of a row by network, and by all that decides them; walked once per process.
_known: WeakKeyDictionary[nn.Module, dict[tuple[Any, ...], int]] = WeakKeyDictionary()


def _skip(before: Tensor, after: Tensor, rest: Callable[[Rows], Tensor]) -> Tensor:
    """Leave out all but the first block; see ``Shortcut``."""
    return after


class FlopMeter:
    """Adds up the operations of the denoiser calls of one video; see ``Meter``.

    Attributes:
        flops: Operations so far, of all processes that share the video.
        reason: Why they are not known, None while they are.
    """

    def __init__(self) -> None:
        self.flops = 0
        self.reason: str | None = None
        self._before: Meter | None = None

    @contextmanager
    def on(self, backbone: Backbone) -> Iterator[None]:
        """Measure samplers that begin on ``backbone`` while the context is entered."""
        self._before, backbone.meter = backbone.meter, self
        try:
            yield
        finally:
            backbone.meter = self._before

    @contextmanager
    def off(self, backbone: Backbone) -> Iterator[None]:
        """Leave ``backbone``, within ``on``, to others while the context is entered."""
        backbone.meter = self._before
        try:
            yield
        finally:
            self._before, backbone.meter = backbone.meter, self

    def metered(self, network: Denoiser, denoiser: Denoiser) -> Denoiser:
        """Return a denoiser that does as ``denoiser`` does and counts it as calls of ``network``."""

        def measured(latents: Tensor, timesteps: Tensor, text: Tensor, **more: Any) -> Tensor:
            call: Any = denoiser
            out: Tensor = call(latents, timesteps, text, **more)
            shortcut = more.pop("shortcut", None)
            skipped = 0 if shortcut is None else shortcut.skipped
            inputs = (latents, timesteps, text)
            if skipped < len(latents):
                self._count(network, inputs, more, len(latents) - skipped)
            if skipped:
                self._count(network, inputs, {**more, "shortcut": _skip}, skipped)
            return out

        return measured

    def cost(self) -> dict[str, Any]:
        """Return what goes into a record: ``flops``, or None and ``flops_reason``."""
        if self.reason is None:
            return {"flops": self.flops}
        return {"flops": None, "flops_reason": self.reason}

    def _count(
        self, network: Any, inputs: tuple[Tensor, ...], more: dict[str, Any], rows: int
    ) -> None:
        """Add what some rows of a call took, unless something before could not be counted."""
        if self.reason is not None:
            return
        counted = getattr(network, "row_flops", None)
        if counted is not None:
            self.flops += rows * counted(inputs[0].shape[2])
            return
        if not isinstance(network, nn.Module):
            self.reason = f"the denoiser is no torch module but of type {type(network).__name__}"
            return
        try:
            # Denoisers that differ in what they tell their network share it, and its count.
            known = _known.setdefault(getattr(network, "network", network), {})
            shapes = tuple(part.shape[1:] for part in inputs)
            # A method's attention is a part of the network for as long as it stands in.
            key = (shapes, tuple(sorted(more.items())), getattr(network, "attention", None))
            if key not in known:
                known[key] = row_flops(network, inputs, more)
            self.flops += rows * known[key]
        except Exception as error:
            # A network of one's own may not be copied, or may look at values: its video is made anyway.
            kind = type(error).__name__
            self.reason = f"the denoiser cannot be walked without values ({kind})"
