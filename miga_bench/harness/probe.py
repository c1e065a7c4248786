"""How long denoiser calls take here: a few real ones, and the rest by proportion.

A call's time grows with its rows, so of each kind (latents, attention) one number of rows is timed, the one
that most of the work is done in. What a sampler does between its calls is a few percent and left out. The
estimate holds as long as the machine is as busy as it was while it was measured.
"""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor

from miga_bench.backbones.base import Backbone, FrameAttention
from miga_bench.errors import UserError, is_out_of_memory
from miga_bench.sampling.estimate import Call, Estimate

REPEATS = 3
PATIENCE = 60.0  # seconds; kinds that are not timed by then are taken to be like the nearest
TIMESTEP = 500.0
DECODED = 5

Kind = tuple[int, FrameAttention | None]


class Probe:
    """Times calls of a backbone's denoiser.

    Args:
        backbone: Loaded, on its device.
    """

    def __init__(self, backbone: Backbone) -> None:
        self._backbone = backbone
        self._row: dict[Kind, float] = {}  # seconds of one row
        self._latent = 0.0  # seconds to decode one

    def measure(self, calls: Counter[Call]) -> None:
        """Time each kind of call, the one with most work first, and the decoder.

        Args:
            calls: All that are to be made.

        Raises:
            UserError: A call does not fit into memory.
        """
        began = time.perf_counter()
        work: Counter[Kind] = Counter()
        rows: dict[Kind, Counter[int]] = {}
        for call, count in calls.items():
            kind = call.frames, call.attention
            work[kind] += call.frames * call.rows * count
            rows.setdefault(kind, Counter())[call.rows] += call.rows * count
        text = self._text()
        for kind, _ in work.most_common():
            if self._row and time.perf_counter() - began > PATIENCE:
                break
            ((number, _),) = rows[kind].most_common(1)
            self._row[kind] = self._call(number, *kind, text) / number
        self._latent = self._decoding()

    def seconds(self, estimate: Estimate, frames: int) -> float:
        """Return what a video takes: denoising and decoding.

        Of a team, whose first process decodes, it is the time of all.

        Args:
            estimate: Its calls.
            frames: Its length.
        """
        denoising = sum(
            count * call.rows * self._of_row(call) for call, count in estimate.shares.items()
        )
        return denoising + self._backbone.latents_for(frames) * self._latent

    def _of_row(self, call: Call) -> float:
        kind = call.frames, call.attention
        if kind in self._row:
            return self._row[kind]
        near = min(self._row, key=lambda known: abs(known[0] - call.frames))
        return self._row[near] * call.frames / near[0]

    @torch.inference_mode()
    def _call(
        self, rows: int, frames: int, attention: FrameAttention | None, text: Tensor
    ) -> float:
        backbone = self._backbone
        channels, height, width = backbone.latent_shape
        latents = torch.randn(rows, channels, frames, height, width, device=backbone.device)
        timesteps = torch.full((rows, frames), TIMESTEP, device=backbone.device)
        texts = text.expand(rows, *text.shape[1:])
        attending = nullcontext() if attention is None else backbone.attending(attention)
        try:
            with backbone.arithmetic(), attending:
                return self._median(lambda: backbone.denoiser(latents, timesteps, texts))
        except Exception as error:
            if not is_out_of_memory(error, maybe=rows > 1):
                raise
            raise UserError(
                f"a denoiser call of {rows} rows of {frames} latents does not fit into the memory of"
                f" {backbone.device}: give a smaller settings.batch, or fewer frames"
            ) from None

    @torch.inference_mode()
    def _decoding(self) -> float:
        decoder = self._backbone.decoder()
        latent = torch.randn(1, *self._backbone.latent_shape, device=self._backbone.device)
        decoder.push(latent)  # the first may make other frames than the rest
        return self._median(lambda: decoder.push(latent), DECODED)

    def _median(self, work: Callable[[], object], repeats: int = REPEATS) -> float:
        """Return the median time of a piece of work, after one run to warm up."""
        seconds = []
        for _ in range(1 + repeats):
            self._wait()
            start = time.perf_counter()
            work()
            self._wait()
            seconds.append(time.perf_counter() - start)
        return statistics.median(seconds[1:])

    def _wait(self) -> None:
        if self._backbone.device.startswith("cuda"):
            torch.cuda.synchronize(self._backbone.device)

    def _text(self) -> Tensor:
        """Return an embedding of the right shape; a big encoder is not loaded for it."""
        text, width = self._backbone.text, getattr(self._backbone, "text_width", None)
        if text is None or width is None:  # among others an export, whose encoder is at hand
            return self._backbone.encode([""])
        kind = next(iter(self._backbone.denoiser.parameters())).dtype  # type: ignore[attr-defined]
        return torch.zeros(1, text.length, width, dtype=kind, device=self._backbone.device)
