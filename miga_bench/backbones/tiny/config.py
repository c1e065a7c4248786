"""The values that made the shipped weights, and the small ones of a smoke run."""

from dataclasses import dataclass, field, replace


@dataclass(frozen=True)
class VaeConfig:
    """The video autoencoder and its training.

    Attributes:
        base_dim: Channels at full resolution.
        z_dim: Latent channels.
        steps: Optimizer steps.
        frames_per_step: Frames per step and process; 34 is two clips of 17 or one of 33.
        rate: Peak learning rate.
        edge: Weight of the L1 between the pictures' horizontal and vertical differences.
        square: Weight of the mean squared error beside the L1.
        kl: Weight of the mean KL divergence per latent value.
        ema: Decay of the averaged weights, which are the ones kept.
    """

    base_dim: int = 8
    z_dim: int = 12
    steps: int = 3000
    frames_per_step: int = 34
    rate: float = 4e-3
    edge: float = 0.5
    square: float = 1.0
    kl: float = 1e-4
    ema: float = 0.998


@dataclass(frozen=True)
class DenoiserConfig:
    """The flow-matching transformer, its text encoder and their training.

    Attributes:
        layers: Transformer blocks.
        heads: Attention heads; the width is heads x head_dim.
        head_dim: Width of a head.
        ffn: Width of the feed-forward layers.
        text_dim: Width of the text encoder.
        text_layers: Blocks of the text encoder.
        clips: Training clips whose latents are computed once.
        steps: Optimizer steps.
        batch: Clips per step and process.
        rate: Peak learning rate.
        shift: Flow shift of the time sampling, and of the scheduler at inference.
        dropout: Share of captions replaced by the empty one, for guidance.
        ema: Decay of the averaged weights, which are the ones kept.
    """

    layers: int = 5
    heads: int = 4
    head_dim: int = 36
    ffn: int = 512
    text_dim: int = 64
    text_layers: int = 2
    clips: int = 4000
    steps: int = 9000
    batch: int = 8
    rate: float = 2e-3
    shift: float = 3.0
    dropout: float = 0.1
    ema: float = 0.999


@dataclass(frozen=True)
class TrainConfig:
    """Both stages, and what they share.

    Attributes:
        vae: First stage.
        denoiser: Second stage.
        seed: Of the weights, the clips and the noise.
        processes: Training processes, one thread each; two were faster than two threads.
        warmup: Share of the steps over which the learning rate rises.
        snapshots: How often a stage's state is written while it runs.
    """

    vae: VaeConfig = field(default_factory=VaeConfig)
    denoiser: DenoiserConfig = field(default_factory=DenoiserConfig)
    seed: int = 0
    processes: int = 2
    warmup: float = 0.05
    snapshots: int = 20


@dataclass(frozen=True)
class PictureVaeConfig:
    """The autoencoder of single pictures and its training.

    Attributes:
        channels: Width of each level, finest first; every level after the first halves the side.
        layers: Residual blocks per level.
        groups: Groups of the group norms.
        z_dim: Latent channels.
        steps: Optimizer steps.
        batch: Pictures per step and process.
        rate: Peak learning rate.
        edge: Weight of the L1 between the pictures' horizontal and vertical differences.
        square: Weight of the mean squared error beside the L1.
        kl: Weight of the mean KL divergence per latent value.
        ema: Decay of the averaged weights, which are the ones kept.
    """

    channels: tuple[int, ...] = (16, 32, 64, 64)
    layers: int = 1
    groups: int = 8
    z_dim: int = 8
    steps: int = 2500
    batch: int = 20
    rate: float = 4e-3
    edge: float = 0.5
    square: float = 1.0
    kl: float = 1e-4
    ema: float = 0.998


@dataclass(frozen=True)
class UNetConfig:
    """The noise-predicting U-Net, its text encoder and their training.

    Attributes:
        channels: Width of each level, finest first.
        layers: Residual blocks per level.
        head_dim: Width of an attention head.
        temporal_heads: Heads of the first temporal transformer.
        groups: Groups of the group norms.
        text_dim: Width of the text encoder.
        text_layers: Blocks of the text encoder.
        clips: Training clips whose latents are computed once.
        clip_frames: Frames kept of each, at 8 frames a second.
        steps: Optimizer steps.
        batch: Clips of 16 frames per step and process.
        rate: Peak learning rate.
        dropout: Share of captions replaced by the empty one, for guidance.
        ema: Decay of the averaged weights, which are the ones kept.
    """

    channels: tuple[int, ...] = (48, 96, 96)
    layers: int = 1
    head_dim: int = 16
    temporal_heads: int = 4
    groups: int = 8
    text_dim: int = 64
    text_layers: int = 2
    clips: int = 5000
    clip_frames: int = 40
    steps: int = 5000
    batch: int = 6
    rate: float = 2e-3
    dropout: float = 0.1
    ema: float = 0.999


@dataclass(frozen=True)
class VideoCrafterConfig:
    """Both stages of the tiny VideoCrafter2, and what they share; see ``TrainConfig``."""

    vae: PictureVaeConfig = field(default_factory=PictureVaeConfig)
    denoiser: UNetConfig = field(default_factory=UNetConfig)
    seed: int = 0
    processes: int = 2
    warmup: float = 0.05
    snapshots: int = 20


def quick_videocrafter(config: VideoCrafterConfig) -> VideoCrafterConfig:
    """A smoke run of a minute: every stage, a handful of steps, one process."""
    return replace(
        config,
        vae=replace(config.vae, steps=3, batch=2),
        denoiser=replace(
            config.denoiser, clips=4, clip_frames=32, steps=3, batch=2, channels=(16, 16)
        ),
        processes=1,
        snapshots=3,
    )


def quick(config: TrainConfig) -> TrainConfig:
    """A smoke run of a minute: every stage, a handful of steps, one process."""
    return replace(
        config,
        vae=replace(config.vae, steps=3, frames_per_step=9),
        denoiser=replace(config.denoiser, clips=4, steps=3, batch=2, layers=2),
        processes=1,
        snapshots=3,
    )
