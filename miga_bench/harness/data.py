"""What a run makes, as Lightning data: wishes in, items out, dealt to the ranks by their cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from lightning import LightningDataModule
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from miga_bench.errors import UserError, near
from miga_bench.harness.deal import deal
from miga_bench.harness.prompt_lists import Entry, Wish, check_frames, check_seeds, read_wishes
from miga_bench.harness.request import DEFAULT_FRAMES
from miga_bench.harness.writer import team_size

if TYPE_CHECKING:
    from miga_bench.harness.module import LongVideoModule


class DealtSampler(DistributedSampler):
    """A rank's share of the items; nothing is repeated to make the shares even.

    Args:
        costs: What each item is expected to take, the same on every rank.
        ranks: How many processes, or teams of them.
        rank: Which one this is.
    """

    def __init__(self, costs: Sequence[float], ranks: int, rank: int) -> None:
        self.mine = deal(costs, ranks)[rank]

    def __iter__(self) -> Iterator[int]:
        """Yield the numbers of this rank's items, longest first."""
        return iter(self.mine)

    def __len__(self) -> int:
        """Return how many items are this rank's."""
        return len(self.mine)

    def set_epoch(self, epoch: int) -> None:
        """Keep the shares: there is one epoch."""


class Specs(Dataset[dict[str, Any]]):
    """Items as plain values.

    Args:
        specs: What ``Item.spec`` returns.
    """

    def __init__(self, specs: Sequence[dict[str, Any]]) -> None:
        self._specs = specs

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._specs)

    def __getitem__(self, number: int) -> dict[str, Any]:
        """Return one of them."""
        return self._specs[number]


class PromptDataModule(LightningDataModule):
    """Which videos a run makes: prompts times seeds.

    Args:
        prompts: A list of prompts, or a file of them: .txt with one per line, .jsonl, .json or .yaml. An
            entry is a text, or a mapping with prompt and any of id, then, negative_prompt, frames, seeds,
            dimensions (those of VBench's that score its videos; by default all). Lines of a .txt that begin
            with "# " are comments. Or a list that comes with the package, tiny-world or vbench. Or the
            stories of a suite:
            narrlv:tiny, narrlv:natural, narrlv:release, or narrlv: and a suite's folder.
        seeds: Each prompt is made once with each.
        frames: Video frames to make; by default 300, for short its clip.
        limit: Only the first so many prompts; of a suite of narratives so many of each kind.
        tna: Of a suite of narratives the stories with so many atoms.
        whole_stories: Give a story to all methods as one prompt, instead of its parts one after the other to
            those whose prompt can change.
        prompt_ids: Only these prompts, by id.

    Raises:
        UserError: A prompt or a number is not what it must be.
    """

    allow_zero_length_dataloader_with_multiple_devices = True

    def __init__(
        self,
        prompts: str | list[Entry],
        seeds: list[int] | None = None,
        frames: int | None = None,
        limit: int | None = None,
        prompt_ids: list[str] | None = None,
        tna: list[int] | None = None,
        whole_stories: bool = False,
    ) -> None:
        super().__init__()
        self.seeds = tuple([0] if seeds is None else seeds)
        check_seeds(self.seeds, "data.seeds")
        if frames is not None:
            check_frames(frames, "data.frames")
        self.frames = frames
        if limit is not None and limit < 1:
            raise UserError(f"data.limit is {limit}: at least 1 prompt is wanted")
        wishes = read_wishes(prompts, frames or DEFAULT_FRAMES, tna or (), whole_stories)
        if prompt_ids is not None:
            wishes = _choose(wishes, prompt_ids)
        self.wishes = _first(wishes, limit)

    def predict_dataloader(self) -> DataLoader[dict[str, Any]]:
        """Return this rank's share of what is still to be made."""
        trainer: Any = self.trainer
        module: LongVideoModule = trainer.lightning_module
        specs, costs = module.open_work(self.wishes, self.seeds, self.frames)
        size = team_size(trainer)
        sampler = DealtSampler(costs, trainer.world_size // size, trainer.global_rank // size)
        module.share = [specs[number] for number in sampler if costs[number]]
        return DataLoader(Specs(specs), batch_size=1, sampler=sampler, collate_fn=_only)

    def transfer_batch_to_device(self, batch: Any, device: Any, dataloader_idx: int) -> Any:
        """Leave a spec alone: it holds no tensors."""
        return batch


def _only(batch: list[dict[str, Any]]) -> dict[str, Any]:
    (spec,) = batch
    return spec


def _first(wishes: Sequence[Wish], limit: int | None) -> list[Wish]:
    """Return the first wishes of each kind."""
    seen: Counter[str] = Counter()
    out = []
    for wish in wishes:
        seen[wish.kind] += 1
        if limit is None or seen[wish.kind] <= limit:
            out.append(wish)
    return out


def _choose(wishes: Sequence[Wish], ids: Sequence[str]) -> list[Wish]:
    known = {wish.id: wish for wish in wishes}
    for name in ids:
        if name not in known:
            raise UserError(f"data.prompt_ids has {name!r}: {near(name, known)}")
    return [wish for wish in wishes if wish.id in set(ids)]
