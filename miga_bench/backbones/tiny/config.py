"""The values that made the shipped weights, and the small ones of a smoke run."""

from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar


@dataclass(frozen=True)
class AutoencoderConfig:
    """What both families' autoencoders are trained with.

    Attributes:
        rate: Peak learning rate.
        edge: Weight of the L1 between the pictures' horizontal and vertical differences.
        square: Weight of the mean squared error beside the L1.
        kl: Weight of the mean KL divergence per latent value.
        ema: Decay of the averaged weights, which are the ones kept.
    """

    rate: float = 4e-3
    edge: float = 0.5
    square: float = 1.0
    kl: float = 1e-4
    ema: float = 0.998


@dataclass(frozen=True)
class VaeConfig(AutoencoderConfig):
    """The video autoencoder and its training.

    Attributes:
        base_dim: Channels at full resolution.
        z_dim: Latent channels.
        steps: Optimizer steps.
        frames_per_step: Frames per step and process; 34 is two clips of 17 or one of 33.
    """

    base_dim: int = 8
    z_dim: int = 12
    steps: int = 3000
    frames_per_step: int = 34


@dataclass(frozen=True)
class PictureVaeConfig(AutoencoderConfig):
    """The autoencoder of single pictures and its training.

    Attributes:
        channels: Width of each level, finest first; every level after the first halves the side.
        layers: Residual blocks per level.
        groups: Groups of the group norms.
        z_dim: Latent channels.
        steps: Optimizer steps.
        batch: Pictures per step and process.
    """

    channels: tuple[int, ...] = (16, 32, 64, 64)
    layers: int = 1
    groups: int = 8
    z_dim: int = 8
    steps: int = 2500
    batch: int = 20


@dataclass(frozen=True)
class TextConfig:
    """What both families' denoisers and text encoders are trained with.

    Attributes:
        text_dim: Width of the text encoder.
        text_layers: Blocks of the text encoder.
        rate: Peak learning rate.
        dropout: Share of captions replaced by the empty one, for guidance.
        ema: Decay of the averaged weights, which are the ones kept.
    """

    text_dim: int = 64
    text_layers: int = 2
    rate: float = 2e-3
    dropout: float = 0.1
    ema: float = 0.999


@dataclass(frozen=True)
class DenoiserConfig(TextConfig):
    """The flow-matching transformer, its text encoder and their training.

    Attributes:
        layers: Transformer blocks.
        heads: Attention heads; the width is heads x head_dim.
        head_dim: Width of a head.
        ffn: Width of the feed-forward layers.
        clips: Training clips whose latents are computed once.
        steps: Optimizer steps.
        batch: Clips per step and process.
        shift: Flow shift of the time sampling, and of the scheduler at inference.
    """

    layers: int = 5
    heads: int = 4
    head_dim: int = 36
    ffn: int = 512
    clips: int = 4000
    steps: int = 9000
    batch: int = 8
    shift: float = 3.0


@dataclass(frozen=True)
class UNetConfig(TextConfig):
    """The noise-predicting U-Net, its text encoder and their training.

    Attributes:
        channels: Width of each level, finest first.
        layers: Residual blocks per level.
        head_dim: Width of an attention head.
        temporal_heads: Heads of the first temporal transformer.
        groups: Groups of the group norms.
        clips: Training clips whose latents are computed once.
        clip_frames: Frames kept of each, at 4 frames a second.
        steps: Optimizer steps.
        batch: Clips of 16 frames per step and process.
        text_steps: Optimizer steps of the text encoder, before it is frozen.
    """

    channels: tuple[int, ...] = (48, 96, 96)
    layers: int = 1
    head_dim: int = 16
    temporal_heads: int = 4
    groups: int = 8
    clips: int = 5000
    clip_frames: int = 40
    steps: int = 4000
    batch: int = 6
    text_steps: int = 1500


_FEW_CLIPS: dict[str, Any] = {"clips": 4, "steps": 3, "batch": 2}
_ONE_PROCESS: dict[str, Any] = {"processes": 1, "snapshots": 3}

VaeT = TypeVar("VaeT")
DenoiserT = TypeVar("DenoiserT")


@dataclass(frozen=True)
class StagesConfig(Generic[VaeT, DenoiserT]):
    """Both stages, and what they share.

    Attributes:
        vae: First stage.
        denoiser: Second stage.
        seed: Of the weights, the clips and the noise.
        processes: Training processes, one thread each; two were faster than two threads.
        warmup: Share of the steps over which the learning rate rises.
        snapshots: How often a stage's state is written while it runs.
    """

    vae: VaeT
    denoiser: DenoiserT
    seed: int = 0
    processes: int = 2
    warmup: float = 0.05
    snapshots: int = 20


@dataclass(frozen=True)
class TrainConfig(StagesConfig[VaeConfig, DenoiserConfig]):
    """Both stages of the tiny Wan."""

    vae: VaeConfig = field(default_factory=VaeConfig)
    denoiser: DenoiserConfig = field(default_factory=DenoiserConfig)


@dataclass(frozen=True)
class VideoCrafterConfig(StagesConfig[PictureVaeConfig, UNetConfig]):
    """Both stages of the tiny VideoCrafter2."""

    vae: PictureVaeConfig = field(default_factory=PictureVaeConfig)
    denoiser: UNetConfig = field(default_factory=UNetConfig)


def quick(config: TrainConfig) -> TrainConfig:
    """A smoke run of a minute: every stage, a handful of steps, one process."""
    return replace(
        config,
        vae=replace(config.vae, frames_per_step=9, steps=3),
        denoiser=replace(config.denoiser, layers=2, **_FEW_CLIPS),
        **_ONE_PROCESS,
    )


def quick_videocrafter(config: VideoCrafterConfig) -> VideoCrafterConfig:
    """A smoke run of a minute: every stage, a handful of steps, one process."""
    return replace(
        config,
        vae=replace(config.vae, batch=2, steps=3),
        denoiser=replace(
            config.denoiser, channels=(16, 16), clip_frames=32, text_steps=3, **_FEW_CLIPS
        ),
        **_ONE_PROCESS,
    )
