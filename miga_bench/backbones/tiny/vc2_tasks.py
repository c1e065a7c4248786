"""The tiny VideoCrafter2's two training stages as Lightning modules, with averaged weights."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from miga_bench.backbones.schedule import ddpm_schedule
from miga_bench.backbones.tiny import vc2_models
from miga_bench.backbones.tiny.config import VideoCrafterConfig
from miga_bench.backbones.tiny.models import make_tokenizer
from miga_bench.backbones.tiny.tasks import AutoencoderTask, Averaged


class PictureVaeTask(AutoencoderTask):
    """Stage one: the autoencoder on pictures [B, 3, 64, 64]."""

    layout = torch.channels_last

    def __init__(self, config: VideoCrafterConfig) -> None:
        super().__init__(config, vc2_models.make_vae(config.vae))

    def encode(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        """Return the latents' mean and log-variance."""
        posterior = self.net.encode(batch).latent_dist
        return posterior.mean, posterior.logvar

    def decode(self, latents: Tensor) -> Tensor:
        """Return the latents' pictures."""
        pictures: Tensor = self.net.decode(latents).sample
        return pictures


class TextAndUNet(nn.Module):
    """The two parts of stage two; the text encoder is frozen by then, see ``vc2_text``."""

    def __init__(self, unet: nn.Module, text_encoder: nn.Module) -> None:
        super().__init__()
        self.unet, self.text_encoder = unet, text_encoder


class NoiseTask(Averaged):
    """Stage two: noise prediction on clips that share one step, as VideoCrafter2 was trained.

    The forward process has the dynamic rescale: clean latents shrink to 0.7 over the first 400 of
    1000 steps.
    """

    tokenizer: Any

    def __init__(self, config: VideoCrafterConfig) -> None:
        settings = config.denoiser
        tokenizer = make_tokenizer()
        net = TextAndUNet(
            vc2_models.make_unet(settings, config.vae.z_dim),
            vc2_models.make_text_encoder(settings, len(tokenizer)),
        )
        super().__init__(config, net, settings.steps, settings.rate, settings.ema)
        self.tokenizer = tokenizer
        self.process = ddpm_schedule(1000, rescale=True)

    def training_step(self, batch: tuple[Tensor, list[str], float], batch_idx: int) -> Tensor:
        """Mean squared error of eps for normalized latents [B, z, F, 8, 8]."""
        latents, captions, fps = batch
        net = self.net
        level = torch.randint(1, 1001, (len(latents),))
        alpha, sigma = (
            table[level].float().view(-1, 1, 1, 1, 1)
            for table in (self.process.alpha, self.process.sigma)
        )
        noise = torch.randn_like(latents)
        noisy = alpha * latents + sigma * noise
        text = vc2_models.encode_text(self.tokenizer, net.text_encoder, captions)
        rate = torch.full((len(latents),), fps)
        # Not compiled: that took two minutes of a core and saved nothing.
        eps = net.unet(noisy, self.process.timesteps[level], text, rate)
        loss = F.mse_loss(eps.float(), noise)
        self.log("loss", loss.detach(), prog_bar=True, logger=False)
        return loss
