"""What decides a run's videos, as ``run.yaml`` records it and later commands are checked against it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from miga_bench.harness.items import Item
from miga_bench.harness.prompt_lists import Wish

OF_AN_ITEM = ("prompts", "uncut", "negative_prompt", "seed", "frames")


def made_of(
    wishes: Sequence[Wish],
    seeds: Sequence[int],
    items: Mapping[str, Item],
    arm_of: Mapping[str, str],
) -> dict[str, Any]:
    """Return what decides the items, under the names a user gave it.

    Args:
        wishes: The prompts.
        seeds: For wishes that have none of their own.
        items: By name.
        arm_of: The arm of each item's key; an empty name where the run is no experiment.
    """
    arms = {arm_of[item.key]: item.spec() for item in items.values()}
    how = () if "" in arms else ("method", "settings", "code_hash")
    # of a prompt over all arms: a short clip lacks what the others have, a story at once when parts begin
    longest: dict[str, Item] = {}
    sizes: dict[str, tuple[int, int]] = {}
    for name, item in items.items():
        prompt = name.rpartition("/")[2]
        size = (item.frames, len(item.prompts))
        if prompt not in sizes or size > sizes[prompt]:
            longest[prompt], sizes[prompt] = item, size
    prompts = {}
    for wish in wishes:
        of_wish = list(wish.seeds or seeds)
        item = longest[f"{wish.id}-{of_wish[0]}"]
        # the texts as given, with the frames they begin at, whatever of them the model was told
        tellings = [
            t for t in (wish.prompts, wish.at_once) if item.wanted == tuple(p.text for p in t)
        ]
        given = tellings[0] if tellings else wish.prompts
        prompts[wish.id] = {
            "prompt": given[0].text,
            "then": {prompt.frame: prompt.text for prompt in given[1:]},
            "negative_prompt": item.negative_prompt,
            "frames": item.frames,
            "seeds": of_wish,
        }
    first = next(iter(items.values())).spec()
    model = {name: value for name, value in first.items() if name not in (*OF_AN_ITEM, *how)}
    if "" in arms:
        return {"model": model, "prompts": prompts}
    told = {arm: {name: spec[name] for name in how} for arm, spec in arms.items()}
    return {"model": model, "arms": told, "prompts": prompts}
