"""Wan2.1's text: UMT5 embeddings, padded with zeros.

The rule of the released model: the encoder sees the real tokens only, and its rows are followed by
zeros up to exactly the model's text length. Cross attention has no mask: the zero rows count.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from miga_bench.backbones.encoder_text import EncoderText

TEXT_LENGTH = 512

# The authors' default (wan/configs/shared_config.py of Wan2.1, Apache-2.0), which the model was
# tuned with: garish colors, overexposed, static, blurred details, subtitles, ... walking backwards.
NEGATIVE_PROMPT = (
    "\u8272\u8c03\u8273\u4e3d\uff0c\u8fc7\u66dd\uff0c\u9759\u6001\uff0c\u7ec6\u8282\u6a21\u7cca"
    "\u4e0d\u6e05\uff0c\u5b57\u5e55\uff0c\u98ce\u683c\uff0c\u4f5c\u54c1\uff0c\u753b\u4f5c\uff0c"
    "\u753b\u9762\uff0c\u9759\u6b62\uff0c\u6574\u4f53\u53d1\u7070\uff0c\u6700\u5dee\u8d28\u91cf"
    "\uff0c\u4f4e\u8d28\u91cf\uff0cJPEG\u538b\u7f29\u6b8b\u7559\uff0c\u4e11\u964b\u7684\uff0c"
    "\u6b8b\u7f3a\u7684\uff0c\u591a\u4f59\u7684\u624b\u6307\uff0c\u753b\u5f97\u4e0d\u597d\u7684"
    "\u624b\u90e8\uff0c\u753b\u5f97\u4e0d\u597d\u7684\u8138\u90e8\uff0c\u7578\u5f62\u7684\uff0c"
    "\u6bc1\u5bb9\u7684\uff0c\u5f62\u6001\u7578\u5f62\u7684\u80a2\u4f53\uff0c\u624b\u6307\u878d"
    "\u5408\uff0c\u9759\u6b62\u4e0d\u52a8\u7684\u753b\u9762\uff0c\u6742\u4e71\u7684\u80cc\u666f"
    "\uff0c\u4e09\u6761\u817f\uff0c\u80cc\u666f\u4eba\u5f88\u591a\uff0c\u5012\u7740\u8d70"
)


class WanText(EncoderText):
    """Prompts to embeddings ``[N, TEXT_LENGTH, D]``; see ``EncoderText`` for all but the encoder's rows."""

    longest = TEXT_LENGTH

    @torch.no_grad()
    def _rows(self, encoder: Any, tokens: list[int]) -> Tensor:
        ids = torch.tensor([tokens], device=encoder.shared.weight.device)
        out = encoder(input_ids=ids, attention_mask=torch.ones_like(ids))
        rows: Tensor = out.last_hidden_state[0].to("cpu", self.dtype)
        return rows
