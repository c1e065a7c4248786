"""Which videos are of one prompt, where some of them come without it: intervals are over prompts.

VBench names the videos of a prompt after it, ``a cat-0.mp4`` to ``a cat-4.mp4``. Where two texts at least are
numbered like that, what stands before the number is taken for the prompt, for videos of a prompt that count one
by one make the interval too narrow. One text alone, ``sample-0.mp4`` to ``sample-99.mp4``, tells of no prompts.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

_NUMBERED = re.compile(r"(?P<text>.+)-(?:0|[1-9]\d*)(?:\.\w+)?", re.DOTALL)
# What an interval is over, for people.
OVER = {"prompt": "prompts", "name": "prompts, by the names of the videos", "video": "videos"}


def clusters(names: Sequence[str], prompts: Sequence[str | None]) -> tuple[list[str], str]:
    """Return what each video belongs to, and by what: a key of ``OVER``, the least certain of those needed.

    Args:
        names: ``[N]`` of the videos, with or without an ending.
        prompts: ``[N]`` theirs; None or empty where nobody knows.
    """
    texts = {
        name: match["text"]
        for name, prompt in zip(names, prompts, strict=True)
        if not prompt and (match := _NUMBERED.fullmatch(name))
    }
    several = {text for text, count in Counter(texts.values()).items() if count > 1}
    found, ways = [], set()
    for name, prompt in zip(names, prompts, strict=True):
        text = texts.get(name) if len(several) > 1 else None
        found.append(prompt or text or name)
        ways.add("prompt" if prompt else "name" if text else "video")
    return found, next(way for way in reversed(OVER) if way in ways)
