"""The public models' denoisers in their real size with random weights, for measurements of time and memory.

Modules are built on the meta device, where nothing is initialized, and each tensor is drawn once where it is
to lie: seconds on a GPU, and no memory but the weights' own. What a published checkpoint keeps in float32
is float32 here, too.

Shapes: F latents of a window, C, H, W of a latent.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from miga_bench.backbones.base import Backbone, LatentShape, StreamingDecoder
from miga_bench.backbones.schedule import Schedule, ddpm_schedule, flow_schedule
from miga_bench.backbones.solvers import DDIM, Solver, UniPC
from miga_bench.backbones.vc2_denoiser import KEEP_FLOAT32, VideoCrafterDenoiser, VideoCrafterUNet
from miga_bench.backbones.wan_checkpoint import KEEP_FLOAT32 as WAN_FLOAT32
from miga_bench.backbones.wan_denoiser import WanDenoiser
from miga_bench.errors import FailedError

DEVIATION = 0.02  # of weights; biases are 0 and norms' weights 1


@dataclass(frozen=True)
class RealModel:
    """A public model's denoiser.

    Attributes:
        name: As in ``miga-bench list backbones``.
        family: ``wan`` or ``videocrafter2``.
        build: Makes the network; called on the meta device.
        latent_shape: Of its trained size.
        window: F.
        text: Rows and width of a prompt's embedding.
        frames_per_latent: Frames that every further latent decodes to.
        keep_float32: Parts of dotted parameter names that stay float32.
    """

    name: str
    family: str
    build: Callable[[], nn.Module]
    latent_shape: LatentShape
    window: int
    text: tuple[int, int]
    frames_per_latent: int
    keep_float32: tuple[str, ...]


def wan_transformer() -> Any:
    """Return Wan2.1-T2V-1.3B's transformer with whatever weights its parts begin with."""
    from diffusers import WanTransformer3DModel

    return WanTransformer3DModel(
        num_attention_heads=12,
        attention_head_dim=128,
        in_channels=16,
        out_channels=16,
        text_dim=4096,
        freq_dim=256,
        ffn_dim=8960,
        num_layers=30,
    )


def _wan() -> nn.Module:
    network = wan_transformer()
    network.rope = nn.Identity()  # tables of the stock forward, which is not used
    module: nn.Module = network
    return module


WAN = RealModel(
    "wan2.1-1.3b",
    "wan",
    _wan,
    LatentShape(16, 60, 104),
    21,
    (512, 4096),
    4,
    WAN_FLOAT32,
)
VIDEOCRAFTER2 = RealModel(
    "videocrafter2",
    "videocrafter2",
    VideoCrafterUNet,
    LatentShape(4, 40, 64),
    16,
    (77, 1024),
    1,
    KEEP_FLOAT32,
)
MODELS = {model.name: model for model in (WAN, VIDEOCRAFTER2)}


def random_network(
    build: Callable[[], nn.Module],
    device: torch.device,
    dtype: torch.dtype,
    keep_float32: Collection[str],
    seed: int = 0,
) -> nn.Module:
    """Return a network with random weights, for inference.

    Args:
        build: Makes it, on the meta device.
        device: Where its weights are drawn.
        dtype: Their type.
        keep_float32: See ``RealModel``.
        seed: Of the weights; they differ between devices.
    """
    with torch.device("meta"):
        network = build()
    generator = torch.Generator(device).manual_seed(seed)
    state: dict[str, Tensor] = {}
    for name, empty in network.state_dict().items():
        kept = any(part in keep_float32 for part in name.split("."))
        kind = torch.float32 if kept else dtype
        values = torch.zeros(empty.shape, dtype=kind, device=device)
        if empty.dim() > 1:
            values.normal_(std=DEVIATION, generator=generator)
        elif name.endswith("weight"):
            values.fill_(1)
        state[name] = values
    network.load_state_dict(state, assign=True)
    return network.eval().requires_grad_(requires_grad=False)


class RandomBackbone(Backbone):
    """A real-size denoiser where a sampler can use it: no text encoder, no autoencoder.

    Args:
        model: Which.
        device: Where.
        dtype: Of the weights.
        latent_shape: Another size, None for the trained one.
    """

    def __init__(
        self,
        model: RealModel,
        device: torch.device,
        dtype: torch.dtype = torch.bfloat16,
        latent_shape: LatentShape | None = None,
    ) -> None:
        self.model, self._device, self._dtype = model, device, dtype
        self.name, self.family, self.window = model.name, model.family, model.window
        self.latent_shape = latent_shape or model.latent_shape
        self.frame_rate = 16.0 if model.family == "wan" else 10.0
        self.frames_per_latent = model.frames_per_latent
        self.network: Any = random_network(model.build, device, dtype, model.keep_float32)
        self.denoiser = self.fresh_denoiser()

    def fresh_denoiser(self) -> Any:
        """Return another denoiser of the same weights, not compiled."""
        wan = self.family == "wan"
        return (WanDenoiser(self.network) if wan else VideoCrafterDenoiser(self.network)).eval()

    @property
    def parameters(self) -> int:
        """How many the denoiser has."""
        return sum(parameter.numel() for parameter in self.network.parameters())

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """Return random embeddings of the right shape; all prompts have the same."""
        generator = torch.Generator().manual_seed(len(prompts))
        text = torch.randn(1, *self.model.text, generator=generator)
        return text.expand(len(prompts), -1, -1).to(self._device, self._dtype)

    def decoder(self) -> StreamingDecoder:
        """There is none.

        Raises:
            FailedError: Always.
        """
        raise FailedError(f"{self.name} with random weights has no decoder: nothing can be shown")

    def schedule(self, steps: int) -> Schedule:
        """Return the family's schedule, as the preset ``paper`` has it."""
        return (
            flow_schedule(steps, 5.0)
            if self.family == "wan"
            else ddpm_schedule(steps, rescale=True)
        )

    def solver(self, schedule: Schedule) -> Solver:
        """Return the family's solver."""
        return UniPC(schedule) if self.family == "wan" else DDIM(schedule)

    @property
    def device(self) -> str:
        """Where the denoiser runs."""
        return str(self._device)
