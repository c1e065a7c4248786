"""What is done with a prompt whatever runs the text encoder."""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Sequence

import ftfy

from miga_bench.errors import UserError


def clean_prompt(prompt: str) -> str:
    """Mend the encoding, resolve HTML entities (twice, as released) and join white space."""
    text = html.unescape(html.unescape(ftfy.fix_text(prompt)))
    return re.sub(r"\s+", " ", text).strip()


def check_tokens(prompt: str, tokens: int, length: int) -> None:
    """Refuse a prompt of more tokens than the model reads.

    Raises:
        UserError: It has more.
    """
    if tokens > length:
        raise UserError(
            f"the prompt has {tokens} tokens but the model reads {length}: shorten {prompt[:40]!r}..."
        )


def unknown_words(
    prompts: Sequence[str], unknown: int | None, tokens: Callable[[str], Sequence[int]]
) -> list[str]:
    """Return words that become the unknown token, in order, each once.

    Args:
        prompts: As typed.
        unknown: The token; None where every word has others.
        tokens: Turns a word into tokens.
    """
    words = dict.fromkeys(word.strip(".,;:!?") for p in prompts for word in clean_prompt(p).split())
    return [] if unknown is None else [word for word in words if unknown in tokens(word)]
