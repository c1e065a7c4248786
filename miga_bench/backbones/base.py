"""What a sampler may know of a model family: Backbone, Denoiser and what they hand out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from torch import Tensor

from miga_bench.errors import UserError

if TYPE_CHECKING:
    from miga_bench.backbones.prompt_text import PromptText
    from miga_bench.backbones.schedule import Grid, Schedule
    from miga_bench.backbones.solvers import Solver

HEADROOM = 0.8  # share of the free memory that a denoiser call may take


class Denoiser(Protocol):
    """Anything that predicts: a PyTorch module, a compiled one, an ONNX session, an engine."""

    def __call__(self, latents: Tensor, timesteps: Tensor, text: Tensor) -> Tensor:
        """Predict eps or velocity.

        Args:
            latents: ``[B, C, F, H, W]`` at mixed noise levels.
            timesteps: ``[B, F]`` float32 in ``[0, 1000]``, one per frame.
            text: ``[B, S, D]`` prompt embeddings, one per window.

        Returns:
            ``[B, C, F, H, W]``, the family's prediction (velocity for flow matching, eps for DDPM).
        """
        ...


class Team(Protocol):
    """Processes that make one video together, each of them a part of every denoiser call."""

    @property
    def size(self) -> int:
        """How many there are."""
        ...

    def split(self, denoiser: Denoiser) -> Denoiser:
        """Return a denoiser that does this process's rows, and returns the rows of all."""
        ...

    def capacity(self, windows: int) -> int:
        """Return how many windows a call of all may hold, where one process's share holds ``windows``."""
        ...


class Meter(Protocol):
    """Measures what denoiser calls take."""

    def metered(self, network: Denoiser, denoiser: Denoiser) -> Denoiser:
        """Return a denoiser that does as ``denoiser`` does and is measured as calls of ``network``.

        The two differ where processes share calls: ``network`` then does only a part of the rows.
        """
        ...


@dataclass(frozen=True)
class AttentionSite:
    """Which attention over frames is being computed.

    Attributes:
        height: Rows of the token grid of a frame.
        width: Columns of it.
        joint: Whether every token attends to all tokens of all frames (Wan), or only to those at
            its own place (VideoCrafter2's temporal attention).
        scale: Latent pixels along one side of a token: 1 at a U-Net's finest level.
        timesteps: ``[B, F]`` float32, what the denoiser was told.
    """

    height: int
    width: int
    joint: bool
    scale: int
    timesteps: Tensor


class FrameAttention(Protocol):
    """Stands in for the attention over frames, between the projections in and out."""

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, site: AttentionSite) -> Tensor:
        """Attend.

        Args:
            query: ``[B, F, P, heads, a]``: F frames of P = height * width tokens, normalized and
                rotated as the family does it.
            key: As ``query``.
            value: As ``query``.
            site: Where in the network this is.

        Returns:
            ``[B, F, P, heads, a]``.
        """
        ...


Rows: TypeAlias = slice | Tensor  # of a denoiser call: all of them, or their numbers ``[n]``


class Shortcut(Protocol):
    """Stands between a denoiser's first block and all others, which it may leave out for some rows."""

    def __call__(self, before: Tensor, after: Tensor, rest: Callable[[Rows], Tensor]) -> Tensor:
        """Return what the output layers get.

        Args:
            before: ``[B, F, ...]``: what the first block was given, frame by frame.
            after: As ``before``, what it made of it.
            rest: Runs the further blocks for n of the rows, and returns ``[n, F, ...]``.

        Returns:
            ``[B, F, ...]``.
        """
        ...


class StreamingDecoder(Protocol):
    """Turns latents into frames as they come; one decoder per video, it owns its state."""

    def push(self, latents: Tensor) -> Tensor:
        """Decode the next latents, ``[F, C, H, W]`` in order.

        Returns:
            ``[N, 3, height, width]`` float32 frames in ``[0, 1]``; N is what the family makes of F.
        """
        ...


@dataclass(frozen=True)
class LatentShape:
    """Channels, height and width of one latent frame."""

    channels: int
    height: int
    width: int

    def __iter__(self) -> Iterator[int]:
        """Yield channels, height, width."""
        return iter((self.channels, self.height, self.width))


class Backbone(ABC):
    """Text encoder, denoiser, VAE and schedule of one model family.

    Attributes:
        name: What the user calls it, for example ``tiny-wan``.
        family: ``wan`` or ``videocrafter2``.
        window: Latents of one short clip, the number the denoiser was trained on.
        latent_shape: Channels, height and width of one latent.
        frame_rate: Frames per second of the decoded video.
        frames_per_latent: Frames that every latent but the first decodes to; the first makes one.
        denoiser: The network behind the ``Denoiser`` interface.
        text: The text side, which knows how long a prompt may be; None knows of no limit.
        team: The processes that denoise together; None is this one alone.
        meter: Measures the denoiser calls of samplers that begin now; None measures nothing.
        arithmetic: Returns the context of each denoiser call, as automatic mixed precision has one. What
            samplers compute themselves is outside of it; a sampler that calls ``denoiser`` itself enters it.
        denoiser_identity: What runs the denoiser; ``torch`` is the family's own module as it is.
        preset: The preset that methods use where none is named.
        negative_prompt: What guidance steers away from where no text is given.
        dtype: Type of the denoiser's weights, as torch names it; None is not known.
        weights_hash: SHA-256 of the weights; None if the model gives none.
        configuration_hash: SHA-256 of what else decides a video; None if the name says it all. Of a class of
            the user's own in a run, None stands for the hash of its import path, arguments and file.
    """

    name: str
    family: str
    window: int
    latent_shape: LatentShape
    frame_rate: float
    frames_per_latent: int = 1
    denoiser: Denoiser
    text: PromptText | None = None
    team: Team | None = None
    meter: Meter | None = None
    arithmetic: Callable[[], AbstractContextManager[Any]] = nullcontext
    denoiser_identity: str = "torch"
    preset: str = "paper"
    negative_prompt: str = ""
    dtype: str | None = None
    weights_hash: str | None = None
    configuration_hash: str | None = None

    @abstractmethod
    def encode(self, prompts: Sequence[str]) -> Tensor:
        """Return the prompts' embeddings ``[len(prompts), S, D]``, padded as the family wants."""

    def encode_ahead(self, prompts: Sequence[str]) -> None:
        """Have prompts ready for ``encode``, if its encoder would be loaded for each anew."""
        if self.text is not None:
            self.text.encode_ahead(prompts)

    def unknown_words(self, prompts: Sequence[str]) -> list[str]:
        """Return the prompts' words that the text encoder has no token for."""
        return [] if self.text is None else self.text.unknown_words(prompts)

    def check_prompts(self, prompts: Sequence[str]) -> None:
        """Refuse prompts that cannot be encoded; the encoder does not run.

        Raises:
            UserError: One is too long, or the encoder has to run for it and its files are missing.
        """
        return

    def beginning(self, prompt: str) -> str:
        """Return the prompt, or if it is too long as many of its first words as the text encoder reads."""
        return prompt if self.text is None else self.text.beginning(prompt)

    @abstractmethod
    def decoder(self) -> StreamingDecoder:
        """Return a fresh streaming decoder for one video."""

    def picture_decoder(self) -> StreamingDecoder:
        """Return a decoder for a single latent, the first of a video: what further ones need is not kept."""
        return self.decoder()

    @abstractmethod
    def schedule(self, steps: int) -> Schedule:
        """Return the noise schedule with ``steps`` levels above clean."""

    @abstractmethod
    def solver(self, schedule: Schedule) -> Solver:
        """Return the family's per-frame solver on that schedule."""

    def latents_for(self, frames: int) -> int:
        """Return how many latents decode to at least ``frames`` frames."""
        return 1 + -(-(frames - 1) // self.frames_per_latent)

    def frames_of(self, latents: int) -> int:
        """Return how many frames ``latents`` latents decode to."""
        return 1 + (latents - 1) * self.frames_per_latent if latents else 0

    def reading(
        self,
        grid: Grid | None = None,
        rescale: bool | None = None,
        fps: float | None = None,
    ) -> Backbone:
        """Return this backbone, networks shared, with other answers to what its weights leave open.

        Args:
            grid: Training steps that the levels stand at, see ``ddpm_schedule``.
            rescale: Whether the schedule has the dynamic rescale the network was trained with.
            fps: Frame rate that the network is told.

        None keeps the backbone's own answer.

        Raises:
            UserError: The family has no such choice.
        """
        for name, value in (("grid", grid), ("rescale", rescale), ("fps", fps)):
            if value is not None:
                raise UserError(
                    f"{name} is {value}: it is a setting of VideoCrafter2, {self.name} has no such "
                    "choice; leave it out"
                )
        return self

    def attending(self, attention: FrameAttention) -> AbstractContextManager[None]:
        """Return a context in which ``attention`` does this backbone's attention over frames.

        Only this backbone's own denoiser is touched, and left as it was found.

        Raises:
            UserError: The denoiser's attention cannot be reached, for example in a compiled engine.
        """
        raise UserError(
            f"{self.name} does not let a method change its attention over frames: use fifo, scaling-noise"
            " or miga"
        )

    @property
    def can_cut(self) -> bool:
        """Whether the denoiser takes ``cut=N``, how many leading frames are no neighbors of the rest.

        Such frames are attended to, but convolutions and norms over time treat them as a clip of
        their own.
        """
        return False

    @property
    def can_cache(self) -> bool:
        """Whether the denoiser takes ``shortcut=S``, see ``Shortcut``."""
        return False

    def latents_taken(self) -> range | None:
        """Return how many latents a row of a denoiser call may have, None for any number."""
        return None

    def default_batch(self) -> int:
        """Return how many windows one denoiser call may hold in the memory that is free now."""
        return 4

    def clip_bytes(self, frames: int, copies: float = 0.0) -> int | None:
        """Return about how much memory one row of a denoiser call on a long clip takes.

        Args:
            frames: Latents of the clip, any number.
            copies: Tensors of an attention's output, in float32, that a method holds besides.

        Returns:
            Bytes, the weights left out; None where there is no estimate.
        """
        return None

    def free_bytes(self) -> int | None:
        """Return the memory that is free where the denoiser runs, None if that is not known."""
        return None

    @property
    @abstractmethod
    def device(self) -> str:
        """Where the denoiser lives, as torch names it."""
