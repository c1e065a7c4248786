"""The tiny VideoCrafter2's two training stages as Lightning modules, with averaged weights."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from miga_bench.backbones.tiny import vc2_models
from miga_bench.backbones.tiny.config import VideoCrafterConfig
from miga_bench.backbones.tiny.models import make_tokenizer
from miga_bench.backbones.tiny.tasks import Averaged
from miga_bench.sampling.schedule import ddpm_schedule


class PictureVaeTask(Averaged):
    """Stage one: the autoencoder on freshly rendered pictures."""

    def __init__(self, config: VideoCrafterConfig) -> None:
        net = vc2_models.make_vae(config.vae)
        # Convolutions of so few channels are faster with the channels innermost.
        for module in net.modules():
            if isinstance(module, nn.Conv2d):
                module.weight.data = module.weight.contiguous(memory_format=torch.channels_last)
        super().__init__(config, net, config.vae.steps, config.vae.rate, config.vae.ema)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        """Reconstruction and KL loss of pictures [B, 3, 64, 64] in [-1, 1]."""
        settings, net = self.config.vae, self.net
        batch = batch.to(memory_format=torch.channels_last)
        posterior = net.encode(batch).latent_dist
        mean, log_variance = posterior.mean.float(), posterior.logvar.float()
        latents = mean + torch.randn_like(mean) * (0.5 * log_variance).exp()
        error = net.decode(latents).sample.float() - batch
        edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
        kl = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).mean()
        loss = error.abs().mean() + settings.square * error.square().mean()
        loss = loss + settings.edge * edges + settings.kl * kl
        self.log_dict(
            {"l1": error.detach().abs().mean(), "kl": kl.detach()}, prog_bar=True, logger=False
        )
        return loss


class TextAndUNet(nn.Module):
    """The two parts of stage two that learn together."""

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
