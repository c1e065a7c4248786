"""The plainest sampler of a tiny Wan folder: one clip per caption, all frames on one level, Euler steps."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanTransformer3DModel
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoTokenizer, UMT5EncoderModel

from miga_bench.backbones.tiny.models import WEIGHTS, encode_text

WINDOW = 21


class TinyWan:
    """The parts of a tiny Wan folder, loaded as the public weights are."""

    def __init__(self, folder: Path = WEIGHTS) -> None:
        load: dict[str, Any] = {"local_files_only": True}
        self.vae: Any = AutoencoderKLWan.from_pretrained(folder / "vae", **load).float().eval()
        # `from_pretrained` of this class wants the accelerate package, which we do not need.
        config = WanTransformer3DModel.load_config(folder / "transformer", **load)
        self.transformer: Any = WanTransformer3DModel.from_config(config).eval()
        weights = load_file(folder / "transformer" / "diffusion_pytorch_model.safetensors")
        self.transformer.load_state_dict(weights)
        self.text_encoder: Any = UMT5EncoderModel.from_pretrained(
            folder / "text_encoder", **load
        ).eval()
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder / "tokenizer", **load)
        self.shift = float(
            UniPCMultistepScheduler.from_pretrained(folder / "scheduler", **load).config.flow_shift
        )

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Frames [B, F, 3, 64, 64] in [0, 1] of normalized latents [B, z, f, 8, 8]."""
        config = self.vae.config
        mean = torch.tensor(config.latents_mean).view(1, -1, 1, 1, 1)
        std = torch.tensor(config.latents_std).view(1, -1, 1, 1, 1)
        frames: Tensor = self.vae.decode(latents * std + mean).sample
        return (frames.transpose(1, 2) / 2 + 0.5).clamp(0, 1)

    @torch.no_grad()
    def sample(
        self,
        captions: Sequence[str],
        steps: int = 30,
        guidance: float = 3.0,
        seed: int = 0,
        latents: int = WINDOW,
    ) -> Tensor:
        """Sample one clip per caption.

        Args:
            captions: B sentences.
            steps: Euler steps.
            guidance: Scale of classifier-free guidance; 1 is none.
            seed: Of the noise.
            latents: Latent frames per clip.

        Returns:
            Normalized latents [B, z, latents, 8, 8].
        """
        config = self.transformer.config
        text = encode_text(self.tokenizer, self.text_encoder, [*captions, ""])
        count = len(captions)
        both = torch.cat([text[:count], text[count:].expand(count, -1, -1)])
        shape = (count, config.in_channels, latents, 8, 8)
        x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        uniform = torch.linspace(1, 0, steps + 1)
        levels = self.shift * uniform / (1 + (self.shift - 1) * uniform)
        for here, there in itertools.pairwise(levels):
            time = (1000 * here).expand(2 * count)
            velocity = self.transformer(torch.cat([x, x]), time, both, return_dict=False)[0]
            said, unsaid = velocity.chunk(2)
            x = x + (there - here) * (unsaid + guidance * (said - unsaid))
        return x
