"""The two training stages as Lightning modules, with averaged weights."""

import copy
import math
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import lightning as L
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from miga_bench.backbones.tiny import models
from miga_bench.backbones.tiny.config import AutoencoderConfig, TrainConfig
from miga_bench.backbones.tiny.muon import Muon
from miga_bench.backbones.tiny.vae_clip import decode_clip, encode_clip, use_whole_clips


class Averaged(L.LightningModule):
    """A stage whose shadow copy ``average`` follows ``net`` and is the part that is kept.

    The copy is a child module, so it comes back from the training processes with the weights.
    """

    net: Any
    config: Any  # its family's; all have a warmup

    def __init__(self, config: Any, net: nn.Module, steps: int, rate: float, ema: float) -> None:
        super().__init__()
        self.config, self.net = config, net
        self.average = copy.deepcopy(net).requires_grad_(False)
        self.steps, self.rate, self.decay = steps, rate, ema

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Make the step's noise its own, whatever came before."""
        number = (self.config.seed, self.global_step, self.global_rank)
        torch.manual_seed(hash(number) % 2**63)

    def optimizer_step(self, *arguments: Any, **named: Any) -> None:
        """Move the average with every step; snapshots are taken after this and hold both."""
        super().optimizer_step(*arguments, **named)
        self.move_average(self.global_step + 1)

    def move_average(self, steps: int) -> None:
        """Follow the weights after so many steps; early on it forgets faster, to be useful at once."""
        decay = min(self.decay, (1 + steps) / (10 + steps))
        with torch.no_grad():
            ours: list[Tensor] = [p for p in self.average.parameters() if p.is_floating_point()]
            theirs = [p.detach() for p in self.net.parameters() if p.is_floating_point()]
            torch._foreach_lerp_(ours, theirs, 1 - decay)

    def configure_optimizers(self) -> Any:
        """Muon with a linear rise and a cosine fall to zero of the learning rate."""
        optimizer = Muon(
            [p for p in self.net.parameters() if p.requires_grad], self.rate, (0.95, 0.98)
        )
        warmup = max(1, round(self.config.warmup * self.steps))

        def factor(step: int) -> float:
            if step < warmup:
                return (step + 1) / warmup
            return 0.5 * (
                1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, self.steps - warmup)))
            )

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }


class AutoencoderTask(Averaged, ABC):
    """A stage one: an autoencoder on what is freshly rendered.

    Attributes:
        layout: Of the batches.
    """

    layout: ClassVar[torch.memory_format]

    def __init__(self, config: Any, net: nn.Module) -> None:
        # Convolutions of so few channels are up to a third faster with the channels innermost.
        for module in net.modules():
            if isinstance(module, nn.Conv3d):
                module.weight.data = module.weight.contiguous(memory_format=torch.channels_last_3d)
            elif isinstance(module, nn.Conv2d):
                module.weight.data = module.weight.contiguous(memory_format=torch.channels_last)
        super().__init__(config, net, config.vae.steps, config.vae.rate, config.vae.ema)

    @abstractmethod
    def encode(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        """Return the latents' mean and log-variance."""

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """Return what latents show, as the batch is."""

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        """Reconstruction and KL loss of pictures in [-1, 1], height and width last."""
        settings: AutoencoderConfig = self.config.vae
        batch = batch.to(memory_format=self.layout)
        mean, log_variance = (part.float() for part in self.encode(batch))
        latents = mean + torch.randn_like(mean) * (0.5 * log_variance).exp()
        error = self.decode(latents).float() - batch
        edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
        kl = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).mean()
        loss = error.abs().mean() + settings.square * error.square().mean()
        loss = loss + settings.edge * edges + settings.kl * kl
        self.log_dict(
            {"l1": error.detach().abs().mean(), "kl": kl.detach()}, prog_bar=True, logger=False
        )
        return loss


class VaeTask(AutoencoderTask):
    """Stage one: the autoencoder on clips [B, 3, F, 64, 64]."""

    layout = torch.channels_last_3d

    def __init__(self, config: TrainConfig) -> None:
        net = use_whole_clips(models.make_vae(config.vae))
        _keep_signal(net, config.vae.z_dim)
        super().__init__(config, net)

    def encode(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        """Return the latents' mean and log-variance."""
        return encode_clip(self.net, batch)

    def decode(self, latents: Tensor) -> Tensor:
        """Return the latents' clips."""
        return decode_clip(self.net, latents)


def _keep_signal(vae: Any, z_dim: int) -> None:
    """Start with weights that carry the picture through; the usual ones lose it for long.

    PyTorch's default shrinks the signal at every convolution until biases drown it, and latents that
    begin as noise teach the decoder to ignore them: both ended at one flat color in our trials.
    In time every layer begins by passing on the newest frame, so that what single pictures taught
    still holds when the clips grow longer.
    """
    for name, module in vae.named_modules():
        if not isinstance(module, (nn.Conv2d, nn.Conv3d)) or module.bias is None:
            continue
        weight = module.weight
        nn.init.normal_(module.bias, std=0.2)
        nn.init.normal_(weight, std=weight[0].numel() ** -0.5)
        if isinstance(module, nn.Conv3d):
            _pass_on(module, "time_conv" in name)
    with torch.no_grad():
        vae.quant_conv.weight[z_dim:] *= 0.1
        vae.quant_conv.bias[z_dim:] = -8.0
        vae.decoder.conv_out.weight *= 0.5


@torch.no_grad()
def _pass_on(conv: nn.Conv3d, resamples_time: bool) -> None:
    """Zero a convolution's look into the past; one that resamples time begins by copying frames."""
    weight = conv.weight
    rows, channels, length = weight.shape[:3]
    if not resamples_time:
        weight[:, :, :-1] = 0
        weight[:, :, -1] *= length**0.5
        return
    nn.init.zeros_(weight)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    same = torch.eye(channels)
    if rows == 2 * channels:  # one frame becomes two
        weight[:, :, -1, 0, 0] = torch.cat([same, same])
    else:  # two frames become one
        weight[:, :, length - 2 :, 0, 0] = same[..., None] / 2


class TextAndTransformer(nn.Module):
    """The two parts of stage two that learn together."""

    def __init__(self, transformer: nn.Module, text_encoder: nn.Module) -> None:
        super().__init__()
        self.transformer, self.text_encoder = transformer, text_encoder


class DenoiserTask(Averaged):
    """Stage two: flow matching on whole clips that share one time, as short-clip models train."""

    tokenizer: Any

    def __init__(self, config: TrainConfig) -> None:
        settings = config.denoiser
        transformer = models.make_transformer(settings, config.vae.z_dim)
        tokenizer = models.make_tokenizer()
        text_encoder = models.make_text_encoder(settings, len(tokenizer))
        net = TextAndTransformer(transformer, text_encoder)
        super().__init__(config, net, settings.steps, settings.rate, settings.ema)
        self.tokenizer = tokenizer
        # In a list, so that it is no child module: its weights are those of `net`.
        self.compiled: list[Any] = []

    def training_step(self, batch: tuple[Tensor, list[str]], batch_idx: int) -> Tensor:
        """Mean squared error of the velocity for normalized latents [B, z, f, 8, 8]."""
        latents, captions = batch
        net = self.net
        if not self.compiled:
            self.compiled.append(torch.compile(net.transformer, dynamic=False))
        shift = self.config.denoiser.shift
        uniform = torch.rand(len(latents))
        sigma = (shift * uniform / (1 + (shift - 1) * uniform)).view(-1, 1, 1, 1, 1)
        noise = torch.randn_like(latents)
        noisy = (1 - sigma) * latents + sigma * noise
        text = models.encode_text(self.tokenizer, net.text_encoder, captions)
        velocity = self.compiled[0](noisy, 1000 * sigma.flatten(), text, return_dict=False)[0]
        loss = F.mse_loss(velocity.float(), noise - latents)
        self.log("loss", loss.detach(), prog_bar=True, logger=False)
        return loss
