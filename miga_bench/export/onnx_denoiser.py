"""Exported graphs behind the interfaces that samplers know: ``Denoiser`` and ``StreamingDecoder``."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from miga_bench.backbones.base import HEADROOM
from miga_bench.backbones.memory import MOST_WINDOWS, PIXELS_AT_ONCE, free_bytes
from miga_bench.backbones.rotary import Rotary
from miga_bench.export.facts import ExportFacts
from miga_bench.export.session import Session

GPU_WINDOWS = 4  # where a row's memory is not known
GRID = 65535  # blocks of a CUDA grid along its second and third axis


class OnnxDenoiser:
    """An exported denoiser in ONNX Runtime.

    Args:
        session: Its graph.
        facts: Of the backbone.
        fps: Frame rate that a VideoCrafter2 network is told.
    """

    def __init__(self, session: Session, facts: ExportFacts, fps: float | None = None) -> None:
        self.session, self.fps = session, fps
        self.row_flops = facts.operations
        self._rotary: Rotary | None = None
        if facts.rotary is not None:
            self._rotary = Rotary(facts.rotary["head_dim"], *facts.rotary["patch"])
        rows = session.sidecar.inputs["latents"].shape[0]
        self._rows = rows if isinstance(rows, int) else None
        self._most = _most_rows(session, facts)
        # the estimate is of attention that holds no scores, which there is for half precision
        half = session.provider == "cuda" and session.sidecar.precision == "fp16"
        known = half and session.sidecar.operators.get("Attention")
        self._row_bytes = facts.row_bytes if known else None
        self._fitting: list[int] = []  # shared with copies of another rate

    def telling(self, fps: float) -> OnnxDenoiser:
        """Return this denoiser, the session shared, with another frame rate to tell the network."""
        other = copy.copy(self)
        other.fps = fps
        return other

    def latents_taken(self) -> range | None:
        """Return how many latents a row may have, None for any number."""
        frames = self.session.sidecar.inputs["latents"].shape[2]
        return range(frames, frames + 1) if isinstance(frames, int) else None

    def rows_that_fit(self) -> int:
        """Return the rows that a call on a GPU is to have.

        Memory is looked at once: ONNX Runtime keeps what the first calls took for later ones.
        """
        if not self._fitting:
            self._fitting.append(self._rows_that_fit())
        return self._fitting[0]

    def _rows_that_fit(self) -> int:
        if self._most and self.session.provider.startswith("tensorrt"):
            return self._most
        rows = 2 * GPU_WINDOWS
        free = free_bytes(self.session.device) if self._row_bytes else None
        if free is not None and self._row_bytes:
            rows = min(2 * MOST_WINDOWS, int(HEADROOM * free) // self._row_bytes)
        return max(1, min(rows, self._most or rows))

    def __call__(self, latents: Tensor, timesteps: Tensor, text: Tensor) -> Tensor:
        """Predict, see ``Denoiser``.

        Raises:
            UserError: The graph was not exported for such a shape.
        """
        rows = self._rows
        if rows is None and self._most is not None and len(latents) > self._most:
            calls = -(-len(latents) // self._most)
            pieces = [part.tensor_split(calls) for part in (latents, timesteps, text)]
            return torch.cat([self._run(*piece) for piece in zip(*pieces, strict=True)])
        if rows is None or rows == len(latents):
            return self._run(latents, timesteps, text)
        # a graph of a fixed batch is called as often as it takes; the last call repeats its last row
        parts = []
        for first in range(0, len(latents), rows):
            given = [part[first : first + rows] for part in (latents, timesteps, text)]
            missing = rows - len(given[0])
            if missing:
                given = [torch.cat([p, p[-1:].expand(missing, *p.shape[1:])]) for p in given]
            parts.append(self._run(*given)[: rows - missing])
        return torch.cat(parts)

    def _run(self, latents: Tensor, timesteps: Tensor, text: Tensor) -> Tensor:
        inputs = {"latents": latents, "timesteps": timesteps, "text": text}
        if self._rotary is not None:
            inputs["cos"], inputs["sin"] = self._rotary(latents)
        if self.fps is not None:
            inputs["fps"] = torch.full((len(latents),), self.fps)
        return self.session(inputs)["prediction"].to(latents.dtype)


def _most_rows(session: Session, facts: ExportFacts) -> int | None:
    """Return the most rows that a call of a provider takes; None for any number."""
    latents = session.sidecar.inputs["latents"]
    if session.provider.startswith("tensorrt"):
        return latents.max[0]  # an engine is built for so many
    if session.provider != "cuda" or facts.family != "videocrafter2":
        return None
    # attention over frames is done at every place alone, and a grid has an axis of rows times places
    *_, height, width = latents.max
    return max(1, GRID // (height * width))


class OnnxWanDecoder:
    """One video's decoder on Wan: a graph for its first latent, another for all later ones."""

    def __init__(self, first: Session, step: Session) -> None:
        self._first, self._step = first, step
        self._past: dict[str, Tensor] = {}

    def push(self, latents: Tensor) -> Tensor:
        """Decode the next latents; see ``StreamingDecoder``."""
        _, _, _, height, width = self._step.sidecar.outputs["frames"].shape
        frames = [torch.zeros(0, 3, int(height), int(width))]
        for latent in latents:
            given = {"latent": latent[None, :, None].float(), **self._past}
            out = (self._step if self._past else self._first)(given)
            self._past = {f"past_{k.removeprefix('next_')}": v for k, v in out.items() if "_" in k}
            frames.append(out["frames"][0].transpose(0, 1))
        return torch.cat(frames[1:] or frames)


class OnnxImageDecoder:
    """A decoder that makes each frame on its own: VideoCrafter2's."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def push(self, latents: Tensor) -> Tensor:
        """Decode the next latents; see ``StreamingDecoder``."""
        _, colors, height, width = (
            self._session.sidecar.outputs["frames"].shape[i] for i in range(4)
        )
        if not latents.shape[0]:
            return torch.zeros(0, int(colors), int(height), int(width))
        count = max(1, PIXELS_AT_ONCE // (int(height) * int(width)))
        return torch.cat([self._session({"latents": p})["frames"] for p in latents.split(count)])
