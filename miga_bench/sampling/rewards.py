"""What ScalingNoise searches for (arXiv 2503.16400): predicted frames that look like the anchor.

A candidate is judged long before it is clean, by the clean latents predicted in one step for all frames of
its window. The score is VBench's subject consistency of the clip ``anchor, frame 1, .., frame F``: the
mean over its frames of ``(cos(frame, frame before) + cos(frame, anchor)) / 2``. The released code reads
the last frame F times, so that its score rises and falls with ``cos(anchor, last frame)``, which is
then all that needs to be computed. Rewards differ in what the cosine is taken of.
"""

from __future__ import annotations

import copy
import functools
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Literal, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from miga_bench.backbones.base import Backbone, StreamingDecoder
from miga_bench.errors import UserError
from miga_bench.offline import downloads_off

Frames = Literal["all", "last"]
DINO = "facebook/dino-vitb16"
DINO_MEAN, DINO_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Reward(Protocol):
    """Scores the candidates of one beam."""

    def __call__(self, clean: Tensor, anchor: Tensor) -> Tensor:
        """Score candidates; the higher, the better.

        Args:
            clean: ``[K, F, C, H, W]``, the clean latents predicted for the F frames of the window that
                ends with each of K candidates, cleanest frame first.
            anchor: ``[C, H, W]``, the beam's last finished latent.

        Returns:
            ``[K]`` scores.
        """
        ...


class Consistency(ABC):
    """Subject consistency with the anchor; see the module.

    Args:
        frames: ``all`` frames of the window, as the paper says, or the ``last`` as released. Frames that
            are not read are not decoded.
    """

    def __init__(self, frames: Frames = "all") -> None:
        self.frames = frames

    @abstractmethod
    def features(self, latents: Tensor) -> Tensor:
        """Return the vectors to compare for latents ``[N, C, H, W]``: ``[N, D]``, of any length."""

    @torch.inference_mode()
    def __call__(self, clean: Tensor, anchor: Tensor) -> Tensor:
        """Score candidates in ``[-1, 1]``; see ``Reward``."""
        read = clean[:, -1:] if self.frames == "last" else clean
        features = self.features(torch.cat([anchor[None], read.flatten(0, 1)]))
        features = functional.normalize(features.float(), dim=1)
        first, rest = features[0], features[1:].unflatten(0, read.shape[:2])
        to_first = rest @ first
        if self.frames == "last":
            return to_first[:, 0]
        before = torch.cat([first.expand(len(rest), 1, -1), rest[:, :-1]], 1)
        return ((to_first + (rest * before).sum(-1)) / 2).mean(1)


class LatentSimilarity(Consistency):
    """Cosine of whole latents, all channels and places; nothing is decoded."""

    def features(self, latents: Tensor) -> Tensor:
        """Return the latents as vectors, ``[N, C * H * W]``."""
        return latents.flatten(1)


class DecodedConsistency(Consistency):
    """A reward that looks at pictures.

    Every latent is decoded by a decoder of its own, as the first of a video: one picture per latent in
    either family. Wan's decoder is causal and would make four frames of a later latent from those before
    it; alone, the latent is read as a still. That leaves out its motion, costs a quarter, and needs no
    decoder state per candidate.

    Args:
        decoder: Gives a fresh decoder, of which one latent is asked.
        frames: See ``Consistency``.
    """

    def __init__(self, decoder: Callable[[], StreamingDecoder], frames: Frames = "all") -> None:
        super().__init__(frames)
        self.decoder = decoder

    def pictures(self, latents: Tensor) -> Tensor:
        """Decode latents ``[N, C, H, W]`` one by one: ``[N, 3, height, width]`` in ``[0, 1]``."""
        return torch.cat([self.decoder().push(latent)[:1] for latent in latents.split(1)])


class FrameSimilarity(DecodedConsistency):
    """Cosine of decoded pictures around mid-gray, averaged over a grid of 16 x 16 cells."""

    def features(self, latents: Tensor) -> Tensor:
        """Return the cells' colors minus 0.5, ``[N, 3 * 16 * 16]``."""
        return functional.adaptive_avg_pool2d(self.pictures(latents), 16).sub(0.5).flatten(1)


class DinoSimilarity(DecodedConsistency):
    """Cosine of DINO ViT-B/16 class tokens, as VBench's subject consistency and the paper's reward.

    Args:
        decoder: See ``DecodedConsistency``.
        frames: See ``Consistency``.
        network: A transformers ``ViTModel``; by default DINO's is fetched when first used.
        size: Shorter side of the pictures it is given.
        square: Squash them to ``size`` by ``size``, as ScalingNoise's code does; else they keep their shape,
            as VBench's do.
        device: Where a fetched network runs.
    """

    def __init__(
        self,
        decoder: Callable[[], StreamingDecoder],
        frames: Frames = "all",
        network: Any = None,
        size: int = 224,
        square: bool = False,
        device: str = "cpu",
    ) -> None:
        super().__init__(decoder, frames)
        self.network, self.size, self.square, self.device = network, size, square, device

    def features(self, latents: Tensor) -> Tensor:
        """Return class tokens, ``[N, hidden size]``.

        Raises:
            UserError: The network cannot be fetched.
        """
        network = self.network = self.network or _dino_on(self.device)
        pictures = self.pictures(latents).to(network.device)
        height, width = pictures.shape[-2:]
        scale = self.size / min(height, width)
        size = (int(height * scale), int(width * scale))
        if self.square:
            size = (self.size, self.size)
        pictures = functional.interpolate(pictures, size, mode="bilinear")
        mean = torch.tensor(DINO_MEAN, device=pictures.device)[:, None, None]
        std = torch.tensor(DINO_STD, device=pictures.device)[:, None, None]
        pixels = ((pictures - mean) / std).to(network.dtype)
        output = network(pixel_values=pixels, interpolate_pos_encoding=True)
        return output.last_hidden_state[:, 0].to(latents.device)


@functools.cache
def fetch_dino() -> Any:
    """Return DINO's network in main memory, loaded once for all videos.

    Raises:
        UserError: It is not on this machine and cannot be fetched.
    """
    # transformers takes seconds to import, and only this reward needs it.
    from transformers import ViTModel

    off = downloads_off() is not None
    try:
        network = ViTModel.from_pretrained(DINO, add_pooling_layer=False, local_files_only=off)
    except Exception as error:  # networks fail in any way: OSError, httpx's errors, ...
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"reward is 'dino': {DINO} could not be loaded ({reason}); connect to the "
            "Hugging Face Hub once, or choose reward frame or latent"
        ) from None
    return network.eval()


def _dino_on(device: str) -> Any:
    """Return the network for one video; a copy on a GPU is freed with the video."""
    network = fetch_dino()
    return network if torch.device(device).type == "cpu" else copy.deepcopy(network).to(device)


RewardName = Literal["latent", "frame", "dino"]
REWARDS: dict[str, Callable[[Backbone, Frames], Reward]] = {
    "latent": lambda backbone, frames: LatentSimilarity(frames),
    "frame": lambda backbone, frames: FrameSimilarity(backbone.picture_decoder, frames),
    # What reads the last frame only is the released reward, which squashes its pictures, too.
    "dino": lambda backbone, frames: DinoSimilarity(
        backbone.picture_decoder, frames, square=frames == "last", device=backbone.device
    ),
}


def make_reward(name: str, backbone: Backbone, frames: Frames = "all") -> Reward:
    """Return a reward by its name; its network (see ``need_reward``) is loaded when it is first used.

    Raises:
        UserError: There is no such reward.
    """
    if name not in REWARDS:
        raise UserError(f"reward is {name!r}: it must be one of {', '.join(REWARDS)}")
    return REWARDS[name](backbone, frames)


def need_reward(name: str) -> None:
    """Load a reward's network, fetched if need be, before there is work that could be lost.

    Raises:
        UserError: It cannot be loaded.
    """
    if name == "dino":
        fetch_dino()
