"""Any metric of torchmetrics as a score of runs and experiments: it sees a video's frames."""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from miga_bench.errors import UserError
from miga_bench.harness.items import Item
from miga_bench.harness.scorers import Found, ItemScorer, Told
from miga_bench.sampling.presets import source_hash

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from miga_bench.backbones.base import Backbone

Shown = Literal["frames", "texts", "neighbors"]


class FrameScores(ItemScorer):
    """A metric of torchmetrics, or one of yours that is such a one, over all frames of a video.

    It is updated with some frames at a time and computed at the video's end; what it computes is one number.

    Args:
        metric: Its class, for example ``torchmetrics.image.TotalVariation``.
        options: What the class takes.
        shown: What ``update`` gets: ``frames`` ``[N, 3, H, W]``; ``texts``, frames and the prompt of each, as
            CLIPScore wants them; ``neighbors``, frames and the one before each, as SSIM and LPIPS do.
        floats: Whether frames are floats in [0, 1], and not uint8 in [0, 255].
        label: Of the number; by default the class's name.

    Raises:
        UserError: There is no such class, or it does not take these options.
    """

    name = "frames"

    def __init__(
        self,
        metric: str,
        options: dict[str, Any] | None = None,
        shown: Shown = "frames",
        floats: bool = True,
        label: str | None = None,
    ) -> None:
        self._path, self._options = metric, dict(options or {})
        self._shown, self._floats = shown, floats
        kind = _class(metric)
        self._version = _version(kind, metric)
        self.label = f"metric/{label or kind.__name__}"
        if not re.fullmatch(r"metric/[\w.-]+", self.label):
            raise UserError(
                f"metrics: label {label!r}: letters, digits, '.', '_' and '-' make a label"
            )
        try:
            self._metric: Any = kind(**self._options)
        except Exception as error:  # of any kind: the class is anybody's
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"metrics: {metric} cannot be made ({reason}): see its options"
            ) from None

    def use(self, backbone: Backbone) -> None:
        """Score where the videos are made."""
        self._metric = self._metric.to(backbone.device)

    def identity(self) -> dict[str, Any]:
        """Return the metric with its options, what it is shown, and the version of what it comes from.

        Of a class in a file of the user's own that is the file's hash: who edits it wants videos scored again.
        """
        return {
            "scorer": self.name,
            "metric": self._path,
            "options": self._options,
            "shown": self._shown,
            "floats": self._floats,
            "label": self.label,
            "version": self._version,
        }

    def labels(self) -> frozenset[str]:
        """Return the label."""
        return frozenset([self.label])

    def told(self) -> Mapping[str, Told]:
        """Return which way is better, as the metric says; where it does not say, more is."""
        lower = getattr(self._metric, "higher_is_better", None) is False
        title = self.label.removeprefix("metric/")
        meaning = f"{self._path.rpartition('.')[2]} of {self._shown}"
        return {self.label: Told(title, meaning, digits=4, better="lower" if lower else "higher")}

    def score(self, video: Path, item: Item) -> Found:
        """Show the metric every frame once."""
        from miga_bench.harness.score_sources import TruncatedError, find_videos

        (source,) = find_videos([video])
        self._metric.reset()
        seen, last = 0, None
        try:
            for piece in source.pieces():
                frames = (piece.float() / 255 if self._floats else piece).to(self._metric.device)
                self._update(frames, last, seen, item)
                seen, last = seen + len(frames), frames[-1:]
        except TruncatedError as error:
            raise UserError(f"{video} {error}: make it again") from error
        if self._shown == "neighbors" and seen < 2:
            return Found({self.label: None}, {self.label: "a single frame has no neighbor"})
        value = _number(self._metric.compute(), self._path)
        self._metric.reset()  # what it keeps of the frames
        return Found({self.label: value})

    def _update(self, frames: Tensor, last: Tensor | None, seen: int, item: Item) -> None:
        import torch

        if self._shown == "frames":
            self._metric.update(frames)
        elif self._shown == "texts":
            self._metric.update(frames, [_text_at(item, seen + k) for k in range(len(frames))])
        else:
            before = frames[:-1] if last is None else torch.cat([last, frames[:-1]])
            if len(before):
                self._metric.update(frames[-len(before) :], before)


def _class(path: str) -> Any:
    """Return a class by its path.

    Raises:
        UserError: There is none.
    """
    from torchmetrics import Metric

    module, _, name = path.rpartition(".")
    try:
        kind = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(
            f"metrics: {path} cannot be had ({error}): give a class of torchmetrics by its whole path, and"
            " install what it needs"
        ) from None
    if not (isinstance(kind, type) and issubclass(kind, Metric)):
        raise UserError(f"metrics: {path} is no torchmetrics.Metric: give the path of one")
    return kind


def _version(kind: type, path: str) -> str:
    """Return the version of the package that a metric comes from, or the hash of its file."""
    try:
        return version(path.partition(".")[0])
    except ModuleNotFoundError:  # a file of the user's own
        return source_hash(kind) or ""


def _text_at(item: Item, frame: int) -> str:
    """Return the prompt of a frame."""
    return [prompt.text for prompt in item.prompts if prompt.frame <= frame][-1]


def _number(value: Any, path: str) -> float:
    """Return what a metric computed, if it is one number.

    Raises:
        UserError: It is not.
    """
    tensor: torch.Tensor | None = value if hasattr(value, "numel") else None
    if tensor is None or tensor.numel() != 1:
        raise UserError(
            f"metrics: {path} computes more than one number: choose its options so that it is one"
        )
    return float(tensor)
