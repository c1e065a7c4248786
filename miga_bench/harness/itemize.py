"""From prompts, seeds and a method to the items of a run, their texts as the model reads them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from miga_bench.backbones.base import Backbone
from miga_bench.errors import Notice, UserError, placed
from miga_bench.harness.items import Item
from miga_bench.harness.prompt_lists import Wish
from miga_bench.harness.request import check_prompts
from miga_bench.harness.video import length, negative_prompt, prompt_starts
from miga_bench.sampling.base import Sampler


@dataclass
class Texts:
    """What a model reads of texts, and what of them is lost.

    Attributes:
        backbone: The model.
        may_cut: Whether a text that is too long is cut, not refused.
        read: By text, as the model reads it.
        unchanged: Prompts, by id, that change within a clip which shows their first text only.
    """

    backbone: Backbone
    may_cut: bool
    read: dict[str, str] = field(default_factory=dict)
    unchanged: dict[str, None] = field(default_factory=dict)

    def readable(self, wish: str, text: str) -> str:
        """Return a text of a wish as the model reads it.

        Raises:
            UserError: It is too long, and not to be cut.
        """
        if text not in self.read:
            self.read[text] = read = self.backbone.beginning(text)
            if read != text and not self.may_cut:
                raise UserError(
                    f"prompt {wish}: {text[:40]!r}... is longer than {self.backbone.name} reads, which ends"
                    f" behind {read[-40:]!r}: shorten it, or cut it there by --model.long_prompts cut"
                )
        return self.read[text]

    def tell(self) -> None:
        """Warn of what is lost."""
        cuts = [read for text, read in self.read.items() if read != text]
        if cuts:
            warnings.warn(
                f"{len(cuts)} of {len(self.read)} texts are longer than {self.backbone.name} reads and are cut,"
                f" the first behind {cuts[0][-40:]!r}; what was told is in each video's manifest",
                Notice,
                stacklevel=2,
            )
        if self.unchanged:
            first, more = next(iter(self.unchanged)), len(self.unchanged) - 1
            which = f"prompts {first} and {more} more change" if more else f"prompt {first} changes"
            warnings.warn(
                f"{which} within the clip that short makes, which cannot change on the way: it shows the first"
                " text",
                Notice,
                stacklevel=2,
            )


def itemize(
    wishes: Sequence[Wish],
    seeds: Sequence[int],
    sampler: Sampler[Any],
    texts: Texts,
    how: Mapping[str, Any],
    *,
    frames: int | None,
    negative: str | None,
    beside_others: bool,
) -> Iterator[tuple[str, Item]]:
    """Yield a method's items by name, ``id-seed``.

    Args:
        wishes: The prompts.
        seeds: For wishes that have none of their own.
        sampler: The method.
        texts: Reads them, and hears what is lost.
        how: What else the items are made of: fields of ``Item``.
        frames: Their length where a wish has none of its own; None is the method's default.
        negative: What to steer away from where a wish does not say; None is the backbone's.
        beside_others: Whether other methods make the same: a short clip beside longer ones is cut, not
            refused, to the model's clip, told the first prompt. What it should show is still all of
            them, and it is scored by that.

    Raises:
        UserError: A text begins after the end, two begin in one latent frame, or one is longer than the
            model reads.
    """
    for wish in wishes:
        wanted = wish.texts_for(one_prompt=sampler.at_once)
        read = tuple(replace(p, text=texts.readable(wish.id, p.text)) for p in wanted)
        own = wish.negative_prompt
        against = negative_prompt(negative if own is None else own, texts.backbone)
        if against:
            against = texts.readable(wish.id, against)
        item = Item(
            **how,
            prompts=wanted,
            negative_prompt=against,
            seed=0,
            frames=wish.frames or frames or 0,
            dimensions=wish.dimensions,
        )
        item = item.with_texts(read, [prompt.text for prompt in wanted])
        item = _with_length(wish.id, item, sampler, texts.backbone, beside_others)
        if len(item.prompts) < len(read) and read[1].frame < item.frames:
            texts.unchanged[wish.id] = None
        for seed in wish.seeds or seeds:
            yield f"{wish.id}-{seed}", replace(item, seed=seed)


def _with_length(
    wish: str, item: Item, sampler: Sampler[Any], backbone: Backbone, beside_others: bool
) -> Item:
    """Return the item with its number of frames, and what is told within them."""
    frames = length(item.request(), sampler, backbone)
    assert frames is not None
    if beside_others and sampler.one_clip:
        frames = min(frames, backbone.frames_of(backbone.window))
        item = item.with_texts(item.prompts[:1], item.wanted)
    with placed(f"prompt {wish}"):
        check_prompts(item.prompts, frames, option="then")
        prompt_starts(item.prompts, backbone, option="then")
    return replace(item, frames=frames)
