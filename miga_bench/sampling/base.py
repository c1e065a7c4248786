"""What every method is: settings, a stream of finished latents, one report per pass."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Generic, TypeVar

import torch
from torch import Tensor

from miga_bench.backbones.base import Backbone
from miga_bench.backbones.schedule import Grid
from miga_bench.sampling.noise import NoiseSource

SettingsT = TypeVar("SettingsT", bound="CommonSettings")


@dataclass(frozen=True)
class CommonSettings:
    """Settings that every method has.

    Attributes:
        steps: T, levels above clean.
        guidance_scale: Classifier-free guidance; 1 is without.
        batch: Windows in one denoiser call; 0 chooses from free memory. Processes that share a call hold this
            many each.
        grid: Training steps at which the levels stand, ``even`` or ``stock``; see ``ddpm_schedule``. Like the
            next two, for VideoCrafter2 only; None leaves it to the backbone.
        rescale: Whether the schedule shrinks clean latents as the network was trained.
        fps: Frame rate that the network is told.
        guidance_from: Lowest level with guidance; below it, the prediction for the prompt is used alone. 0
            sets no lower limit.
        guidance_to: Highest level with guidance; None sets no upper limit.
        cache: How much a frame may change, in what the denoiser's first block adds to it, before the other
            blocks are run again; see ``cache.py``. 0 always runs them. For short, fifo and miga.
    """

    steps: int
    guidance_scale: float
    batch: int = field(default=0, kw_only=True)
    grid: Grid | None = field(default=None, kw_only=True)
    rescale: bool | None = field(default=None, kw_only=True)
    fps: float | None = field(default=None, kw_only=True)
    guidance_from: int = field(default=0, kw_only=True)
    guidance_to: int | None = field(default=None, kw_only=True)
    cache: float = field(default=0.0, kw_only=True)

    @property
    def guided_levels(self) -> range:
        """The levels at which guidance is applied."""
        return range(
            self.guidance_from, 1 + (self.steps if self.guidance_to is None else self.guidance_to)
        )

    def reading(self, backbone: Backbone) -> Backbone:
        """Return the backbone with the grid, rescale and frame rate of these settings."""
        return backbone.reading(self.grid, self.rescale, self.fps)

    def opening_reading(self, backbone: Backbone) -> Backbone:
        """Return the backbone as the released queues use it for their opening clip.

        The released queues of VideoCrafter2 leave the dynamic rescale out (``rescale`` is false in the
        preset ``release``), but the plain clip that they are seeded with is sampled with it.
        """
        return backbone.reading(self.grid, self.rescale or None, self.fps)


@dataclass(frozen=True)
class PromptSchedule:
    """Which prompt applies to which latent frames: it may change along the video.

    Attributes:
        text: ``[K, S, D]`` embeddings of the K prompts, in order.
        negative: ``[1, S, D]`` embedding for the unconditional half of guidance.
        starts: Latent frame at which each prompt begins; the first is 0, strictly increasing.
    """

    text: Tensor
    negative: Tensor
    starts: tuple[int, ...] = (0,)

    def __post_init__(self) -> None:
        if self.starts[:1] != (0,) or any(
            b <= a for a, b in zip(self.starts, self.starts[1:], strict=False)
        ):
            raise ValueError(f"prompt starts must rise strictly from 0, not {self.starts}")
        if len(self.starts) != self.text.shape[0]:
            raise ValueError(f"{self.text.shape[0]} prompts need as many starts: {self.starts}")

    @property
    def changes(self) -> bool:
        """Whether the prompt changes along the video."""
        return len(self.starts) > 1

    def segment(self, frame: int) -> int:
        """Return which prompt applies at a latent frame (negative frames are the warm-up's)."""
        return max(k for k, start in enumerate(self.starts) if start <= max(frame, 0))

    def texts(self, segments: Sequence[int]) -> Tensor:
        """Return the embeddings of prompts by number, ``[B, S, D]``: a live schedule has more than ``text``."""
        return self.text[torch.tensor(segments)]


@dataclass
class PassReport:
    """What happened in one denoising pass, for progress bars and logs.

    Attributes:
        stage: ``base``, ``growth``, ``stage1``, ``stage2`` or ``queue``.
        index: Number of the pass within its stage, from 0.
        levels: Lowest and highest level in the queue after the pass.
        windows: Windows denoised so far in the whole video.
        finished: Latents handed out so far.
        similarity: Self-reflection's score of this pass, or the best candidate's reward in
            ScalingNoise, if there was one.
        triggered: Whether the score's drop started a search.
        accepted: Whether the search's best candidate was adopted.
        search_windows: Windows spent on searches so far (part of ``windows``); the others are as many as
            without searches.
        nfe: Denoiser evaluations so far: one per window, two with guidance.
        nfe_latents: Latents in all of these.
        skipped: Evaluations (part of ``nfe``) in which the cache skipped all blocks but the first.
    """

    stage: str
    index: int
    levels: tuple[int, int]
    windows: int
    finished: int = 0
    similarity: float | None = None
    triggered: bool = False
    accepted: bool = False
    search_windows: int = 0
    nfe: int = 0
    nfe_latents: int = 0
    skipped: int = 0


@dataclass(frozen=True)
class Reflected:
    """What self-reflection saw and did in one pass; see ``PassReport``."""

    similarity: float | None = None
    triggered: bool = False
    accepted: bool = False


PassCallback = Callable[[PassReport], None]


class Sampler(ABC, Generic[SettingsT]):
    """A way to make a long video; settings in, finished latents out.

    Attributes:
        name: The method's name on the command line.
        endless: Whether the method can go on for ever at constant memory.
        one_clip: Whether it makes a clip of the backbone's window at most, and nothing longer.
        at_once: Whether it denoises all latents together: its prompt cannot change, its memory grows.
        settings: A frozen dataclass, complete and validated for one backbone.
    """

    name: ClassVar[str]
    endless: ClassVar[bool] = True
    one_clip: ClassVar[bool] = False
    at_once: ClassVar[bool] = False

    def __init__(self, settings: SettingsT) -> None:
        self.settings = settings

    @abstractmethod
    def stream(
        self,
        backbone: Backbone,
        prompts: PromptSchedule,
        noise: NoiseSource,
        length: int | None = None,
        callback: PassCallback | None = None,
    ) -> Iterator[Tensor]:
        """Yield finished latents ``[C, H, W]`` in order.

        Args:
            backbone: The model family that denoises.
            prompts: The text over the video.
            noise: Pure function of (frame, purpose, draw); see ``noise.py``.
            length: Latents to make; None goes on for ever.
            callback: Called once per pass, outside of ``Backbone.attending``: videos that share the backbone go
                on meanwhile.

        Raises:
            UserError: A setting breaks a rule of this method on this backbone.
            NumericalError: The denoiser returned a value that is not finite.
        """

    def prepare(self) -> None:
        """Load what the method needs besides the backbone; ``stream`` does this before its first window.

        Raises:
            UserError: It cannot be loaded.
        """

    def copies(self, window: int) -> float:
        """Return how many float32 tensors of its output's shape an attention of its own holds at its peak."""
        return 0.0

    def without_search(self) -> Sampler[SettingsT]:
        """Return a sampler that takes as many windows as this one without its searches."""
        return self

    def sample(
        self,
        backbone: Backbone,
        prompts: PromptSchedule,
        noise: NoiseSource,
        length: int,
        callback: PassCallback | None = None,
    ) -> Tensor:
        """Return all ``length`` latents at once, ``[length, C, H, W]``."""
        return torch.stack(list(self.stream(backbone, prompts, noise, length, callback)))


@dataclass
class Cost:
    """Running totals of one video, shared by the parts of a sampler.

    Attributes:
        callback: Told of every pass.
        windows: Windows denoised so far.
        search_windows: Those of them spent on searches.
        nfe: Denoiser evaluations so far; see ``PassReport``.
        nfe_latents: Latents in all of these.
        skipped: Evaluations that were cut short.
        finished: Latents handed out.
        passes: Passes so far by stage.
    """

    callback: PassCallback | None = None
    windows: int = 0
    search_windows: int = 0
    nfe: int = 0
    nfe_latents: int = 0
    skipped: int = 0
    finished: int = 0
    passes: dict[str, int] = field(default_factory=dict)

    def report(
        self, stage: str, levels: Sequence[int], reflection: Reflected | None = None
    ) -> None:
        """Count a pass of ``stage`` and tell the callback."""
        index = self.passes.get(stage, 0)
        self.passes[stage] = index + 1
        if self.callback is None:
            return
        reflection = reflection or Reflected()
        self.callback(
            PassReport(
                stage=stage,
                index=index,
                levels=(min(levels), max(levels)) if levels else (0, 0),
                windows=self.windows,
                finished=self.finished,
                similarity=reflection.similarity,
                triggered=reflection.triggered,
                accepted=reflection.accepted,
                search_windows=self.search_windows,
                nfe=self.nfe,
                nfe_latents=self.nfe_latents,
                skipped=self.skipped,
            )
        )
