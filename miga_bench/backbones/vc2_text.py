"""VideoCrafter2's text: CLIP embeddings of 77 tokens, all of which the denoiser attends to.

The rule of the released model: prompts are padded with token 0 (the vocabulary's "!") and not with
the end mark as CLIP's other users do, the encoder has no mask but the causal one, and the rows past
the end mark are kept. The encoder is without its last layer (see ``vc2_keys.convert_text``) but with
the norm behind it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from miga_bench.backbones.encoder_text import EncoderText

TEXT_LENGTH = 77
PADDING = 0


class VideoCrafterText(EncoderText):
    """Prompts to embeddings; see ``EncoderText`` for arguments, cache and the encoder's coming and going.

    A prompt that is too long is refused as there: OpenCLIP would cut its end off silently.
    """

    longest = TEXT_LENGTH

    @property
    def unknown(self) -> int | None:
        """The token of words that have no other; None if byte pairs spell every word, as CLIP's do."""
        token = super().unknown
        return None if token == self.tokenizer.eos_token_id else token

    @torch.no_grad()
    def _rows(self, encoder: Any, tokens: list[int]) -> Tensor:
        padded = tokens + [PADDING] * (self.length - len(tokens))
        out = encoder(input_ids=torch.tensor([padded], device=encoder.device))
        rows: Tensor = out.last_hidden_state[0].to("cpu", self.dtype)
        return rows
