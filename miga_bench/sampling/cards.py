"""The facts about every method: the one place that help, tables and README take them from."""

from __future__ import annotations

from dataclasses import dataclass

from miga_bench.sampling.base import Sampler
from miga_bench.sampling.presets import METHODS


@dataclass(frozen=True)
class MethodCard:
    """A method in a few words.

    Attributes:
        what: What it does.
        wan: What it follows on the Wan family: ``paper``, or whose reading it is.
        videocrafter2: The same on the VideoCrafter2 family.
        source: Paper, and the authors' code where there is some.
        license: Of the authors' code. None of it is used here.
    """

    what: str
    wan: str
    videocrafter2: str
    source: str
    license: str


CARDS: dict[str, MethodCard] = {
    "short": MethodCard(
        what="the plain short clip the model was trained for",
        wan="as trained",
        videocrafter2="as trained",
        source="Wan2.1 (arXiv 2503.20314), VideoCrafter2 (arXiv 2401.09047)",
        license="Apache-2.0; VideoCrafter's weights are for research",
    ),
    "fifo": MethodCard(
        what="FIFO-Diffusion: a queue with one noise level per frame; clean frames leave at the"
        " front, noise enters at the back",
        wan="our reading",
        videocrafter2="as in the paper, or as released",
        source="arXiv 2405.11473, jjihwan/FIFO-Diffusion_public",
        license="CC BY-NC-SA 4.0",
    ),
    "scaling-noise": MethodCard(
        what="ScalingNoise: FIFO's queue with a beam search over the noise that enters it",
        wan="our reading",
        videocrafter2="as released, or corrected (default)",
        source="arXiv 2503.16400, yanghlll/ScalingNoise",
        license="none given",
    ),
    "freelong": MethodCard(
        what="FreeLong: the whole video at once; slow changes from attention over all frames, fast"
        " ones from attention over near frames",
        wan="multi-band form (FreeLong++), our implementation from the paper",
        videocrafter2="as released, at any length",
        source="arXiv 2407.19918, aniki-ly/FreeLong; arXiv 2507.00162, no code",
        license="MIT; its VideoCrafter2 example is for research",
    ),
    "freepca": MethodCard(
        what="FreePCA: the whole video at once; windows take their consistent principal components"
        " from attention over all frames",
        wan="our adaptation",
        videocrafter2="as released, at any length",
        source="arXiv 2505.01172, JosephTiTan/FreePCA",
        license="none given",
    ),
    "miga": MethodCard(
        what="MIGA: frames share levels in chunks (zigzag), a second stage finishes them on one"
        " level, cleaner frames guide every window, and the queue's tail is searched again where it"
        " stops matching (self-reflection)",
        wan="as in the paper, or as released",
        videocrafter2="as in the paper, or as released",
        source="arXiv 2605.18233, AMAP-ML/MIGA",
        license="none given",
    ),
}

Table = list[tuple[str, ...]]


def tables() -> tuple[Table, Table]:
    """Return what the methods are, and where they come from; the first row is the headings."""
    are: Table = [("method", "what it does", "length", "memory")]
    come: Table = [("method", "on Wan", "on VideoCrafter2", "source", "license of the original")]
    for name, card in CARDS.items():
        are.append((name, card.what, *_length_and_memory(METHODS[name])))
        come.append((name, card.wan, card.videocrafter2, card.source, card.license))
    return are, come


def _length_and_memory(method: type[Sampler]) -> tuple[str, str]:
    """Return how long a method's videos are, and how its memory grows with that."""
    if method.endless:
        return "endless", "constant"
    if method.at_once:
        return "fixed", "grows with the length"
    return "one window", "one window"


def markdown() -> str:
    """Return the tables as README shows them."""
    texts = []
    for headings, *body in tables():
        lines = [headings, tuple("---" for _ in headings), *body]
        texts.append("\n".join(f"| {' | '.join(line)} |" for line in lines))
    return "\n\n".join(texts)
