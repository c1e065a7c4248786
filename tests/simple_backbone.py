"""The analytic backbone with a decoder: quick, whole enough to make video files."""

import torch
from analytic import AnalyticBackbone


class SimpleDecoder:
    """One frame for the first latent, four for each later one; the picture is the latent's."""

    def __init__(self):
        self.pushed = 0

    def push(self, latents):
        frames = []
        for latent in latents:
            frames += [torch.sigmoid(latent)] * (4 if self.pushed else 1)
            self.pushed += 1
        return torch.stack(frames).repeat_interleave(4, 2).repeat_interleave(4, 3)


class SimpleBackbone(AnalyticBackbone):
    """Wan's geometry with a window of 6; the text is its length; call ``poison_at`` gives NaN."""

    def __init__(self, poison_at=None):
        super().__init__("wan", window=6)
        self.name, self.preset, self.frames_per_latent = "tiny-simple", "tiny", 4
        self.calls, self.poison_at, self.clean_denoiser = 0, poison_at, self.denoiser
        self.denoiser = self._denoise

    def _denoise(self, latents, timesteps, text):
        self.calls += 1
        out = self.clean_denoiser(latents, timesteps, text)
        return out * float("nan") if self.calls == self.poison_at else out

    def encode(self, prompts):
        return torch.tensor([len(prompt) / 10 for prompt in prompts]).reshape(-1, 1, 1)

    def decoder(self):
        return SimpleDecoder()
