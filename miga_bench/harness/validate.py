"""Pre-flight of a run: what ``predict`` would do with the same configuration, step by step, nothing made.

Everything is asked of the parts that a run itself uses: the command line, the prompts, the module, the store.
Nothing is fetched and no video is made; the seconds come from a few denoiser calls, see ``probe``.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from miga_bench.backbones.hub_files import hub_id, missing_files
from miga_bench.errors import UserError, counted
from miga_bench.harness.deal import deal
from miga_bench.harness.files import nearest
from miga_bench.harness.items import Item
from miga_bench.harness.predict import parse
from miga_bench.harness.probe import Probe
from miga_bench.harness.scorers import SuiteScores, narrowed
from miga_bench.harness.teams import check_settings, check_size
from miga_bench.harness.writer import RunWriter
from miga_bench.offline import offline
from miga_bench.sampling.estimate import Estimate

OK, NOTE, PROBLEM, SKIPPED = "ok", "note", "problem", "skipped"
# bytes of a pixel in a file, on the safe side: at most what busy pictures take
LOSSY, LOSSLESS = 0.25, 2.0
SHEET_CELLS, PASS_BYTES = 24, 400
TIGHT = 0.8  # of the free memory or disk; more is worth a note
GIB = 2**30


@dataclass(frozen=True)
class Step:
    """One line of the pre-flight.

    Attributes:
        number: From 1.
        name: What was looked at.
        status: ``ok``, ``note``, ``problem`` or ``skipped``.
        text: What was found.
    """

    number: int
    name: str
    status: str
    text: str


@dataclass
class Preflight:
    """What the steps find, each building on those before it.

    Args:
        arguments: As for ``predict``.
        probing: Whether to time denoiser calls.
    """

    arguments: Sequence[str]
    probing: bool = True
    facts: dict[str, Any] = field(default_factory=dict)
    model: Any = None
    data: Any = None
    trainer: Any = None
    writer: Any = None
    items: dict[str, Item] = field(default_factory=dict)
    estimates: dict[str, Estimate] = field(default_factory=dict)
    todo: list[str] = field(default_factory=list)

    def configuration(self) -> tuple[str, str]:
        """Parse what was typed, as predict does."""
        cli = parse(self.arguments, "validate")
        self.model, self.data, self.trainer = cli.model, cli.datamodule, cli.trainer
        (self.writer,) = (c for c in self.trainer.callbacks if isinstance(c, RunWriter))
        self.model.trainer = self.trainer
        check_size(self.writer.window_parallel, self.trainer.world_size)
        settings = [sampler.settings for sampler in self.model.samplers.values()]
        check_settings(self.writer.window_parallel, settings)
        arms = self.model.arms
        self.facts["processes"] = ranks = self.trainer.world_size
        where = f"{self.trainer.strategy.root_device} in {self.trainer.precision}"
        told = f"{len(arms)} arms ({', '.join(arms)})" if arms else "no arms"
        return OK, f"{told}, {ranks} process{'es' if ranks > 1 else ''} on {where}"

    def prompts(self) -> tuple[str, str]:
        """Count the prompts; empty and repeated ones were refused when they were read."""
        wishes, seeds = self.data.wishes, self.data.seeds
        arms = len(self.model.arms)
        videos = max(arms, 1) * sum(len(wish.seeds or seeds) for wish in wishes)
        longest = max(
            ((prompt.text, wish.id) for wish in wishes for prompt in wish.prompts),
            key=lambda pair: len(pair[0]),
        )
        self.facts["prompts"] = len(wishes)
        told = (
            f"{counted(len(wishes), 'prompt')}, {counted(videos, 'video')} with their"
            f" {'arms and seeds' if arms else 'seeds'}; the longest has"
            f" {len(longest[0])} characters ({longest[1]})"
        )
        spoken = Counter(
            " / ".join(" ".join(prompt.text.lower().split()) for prompt in wish.prompts)
            for wish in wishes
        )
        again = [text for text, count in spoken.items() if count > 1]
        if again:
            return NOTE, f"{told}; {len(again)} told more than once, the first {_cut(again[0])!r}"
        return OK, told

    def backbone(self) -> tuple[str, str]:
        """Load the backbone from what is on this machine."""
        try:
            self.model.load()
        except UserError as error:
            raise _with_missing_files(self.model, error) from None
        backbone = self.model.backbone
        parts = (getattr(backbone.denoiser, "network", None), getattr(backbone, "vae", None))
        size = sum(_bytes(part) for part in parts if isinstance(part, nn.Module))
        digest = backbone.weights_hash
        self.facts["backbone"] = {
            "name": backbone.name,
            "weights_bytes": size,
            "weights_hash": digest,
        }
        digest = (digest or "none")[:12]
        # of exported graphs the size is not known
        weights = f"{size / 2**20:.0f} MiB of weights, " if size else ""
        return OK, f"{backbone.name}, {weights}sha256 {digest}"

    def settings(self) -> tuple[str, str]:
        """Walk every arm's queue with nothing in it, by the loaded backbone's window and schedule."""
        data = self.data
        self.items = self.model.items(data.wishes, data.seeds, data.frames)
        self.estimates = self.model.estimates(self.items, team=self.writer.window_parallel)
        frames = sorted({item.frames for item in self.items.values()})
        lengths = f"{frames[0]} to {frames[-1]}" if len(frames) > 1 else f"{frames[0]}"
        return OK, f"every arm keeps its method's rules; videos of {lengths} frames"

    def texts(self) -> tuple[str, str]:
        """Check the methods' texts, stories whole or in parts, against what the model reads."""
        backbone = self.model.backbone
        texts = list({prompt.text: None for item in self.items.values() for prompt in item.prompts})
        against = {item.negative_prompt: None for item in self.items.values()}
        try:
            backbone.check_prompts([*texts, *against])
        except UserError as error:
            raise _with_missing_files(self.model, error, text=True) from None
        unknown = backbone.unknown_words(texts)
        told = f"{len(texts)} texts, {len(against)} to steer away from"
        if unknown:
            return NOTE, f"{told}; the model passes over: {_cut(', '.join(unknown))}"
        return OK, told

    def scorers(self) -> tuple[str, str]:
        """Open the scorers, with what networks they need."""
        self.model.open_scorers()
        kinds = dict.fromkeys(wish.dimensions for wish in self.data.wishes)
        files = [one.file for kind in kinds for one in narrowed(self.model.metrics, kind)]
        self.facts["scorers"] = files = list(dict.fromkeys(files))
        told = ", ".join(files) or "none asked for"
        suites = [one for one in self.model.metrics if isinstance(one, SuiteScores)]
        asked = dict.fromkeys(name for suite in suites for name in suite.plan.dimensions)
        idle = [name for name in asked if all(kind and name not in kind for kind in kinds)]
        return (NOTE, f"{told}; no prompt is for {', '.join(idle)}") if idle else (OK, told)

    def run_folder(self) -> tuple[str, str]:
        """Compare the run with what lies on disk."""
        run, data = self.writer.run, self.data
        begun = run.look(self.model.made_of(data.wishes, data.seeds, self.items), self.items)
        store = run.store
        self.todo = [name for name, item in self.items.items() if not store.is_done(item.key)]
        made = self.items.keys() - self.todo
        done = len(made)
        unscored = sum(bool(store.unscored(self.items[name], self.model.metrics)) for name in made)
        self.facts |= {"items": len(self.items), "done": done, "unscored": unscored}
        shared = f", {done} of {len(self.items)} videos are there from other runs" if done else ""
        told = (
            f"{run.folder} goes on: {done} of {len(self.items)} videos are there"
            if begun
            else f"{run.folder} is new{shared}"
        )
        return OK, told + (f", {unscored} of them not scored yet" if unscored else "")

    def disk(self) -> tuple[str, str]:
        """Compare what the missing videos may take with what is free."""
        need = sum(_file_bytes(self.items[name], self.estimates[name]) for name in self.todo)
        free = shutil.disk_usage(nearest(self.writer.run.store.root)).free
        self.facts["disk"] = {"need_bytes": need, "free_bytes": free}
        each = need / max(1, len(self.todo)) / 2**20
        told = f"about {_size(need)} ({each:.1f} MiB a video), {_size(free)} free"
        if need > free:
            return PROBLEM, f"{told}: free some, or choose another run.root"
        return (NOTE if need > TIGHT * free else OK), told

    def memory(self) -> tuple[str, str]:
        """Compare the largest denoiser call with what is free beside the weights."""
        backbone = self.model.backbone
        if not any(estimate.calls for estimate in self.estimates.values()):
            return OK, "no sampler calls the denoiser"
        peak, arm = max(
            (self._call_bytes(name, estimate), name.rpartition("/")[0])
            for name, estimate in self.estimates.items()
        )
        free = backbone.free_bytes()
        self.facts["memory"] = {"peak_bytes": peak or None, "free_bytes": free}
        if not peak:
            return NOTE, f"{backbone.name} gives no estimate"
        of = f" (arm {arm})" if arm else ""
        told = f"the largest denoiser call takes about {_size(peak)}{of}"
        if free is None:
            return NOTE, f"{told}; free memory is not known here"
        told += f", {_size(free)} free"
        if peak > free:
            return PROBLEM, f"{told}: give a smaller settings.batch, or fewer frames"
        return (NOTE if peak > TIGHT * free else OK), told

    def _call_bytes(self, name: str, estimate: Estimate) -> int:
        sampler = self.model.samplers[name.rpartition("/")[0]]
        backbone = self.model.backbone
        copies = sampler.copies(backbone.window)
        each = (
            call.rows * (backbone.clip_bytes(call.frames, copies if call.attention else 0) or 0)
            for call in estimate.shares
        )
        return max(each, default=0)

    def work(self) -> tuple[str, str]:
        """Count what is still to be done, and have what it needs besides the backbone."""
        self.model.prepare([self.items[name] for name in self.todo])
        windows = sum(self.estimates[name].windows for name in self.todo)
        nfe = sum(self.estimates[name].nfe for name in self.todo)
        self.facts |= {"todo": len(self.todo), "windows": windows, "nfe": nfe}
        told = f"{counted(len(self.todo), 'video')}, {windows} windows, {nfe} denoiser evaluations"
        return OK, f"{told}; what a search adds is not in it{self._saved()}"

    def _saved(self) -> str:
        """Say what part of the counted work the missing videos may skip, as far as their settings tell."""
        arms = {name.rpartition("/")[0] for name in self.todo}
        cached = any(self.model.samplers[arm].settings.cache for arm in arms)
        return ", nor what a cache saves: arms that have one take less" if cached else ""

    def time(self) -> tuple[str, str]:
        """Time a few denoiser calls and a few decoded latents, and multiply."""
        if not self.probing:
            return SKIPPED, "--no-probe"
        if not self.todo:
            return OK, "nothing is to be made"
        probe = Probe(self.model.backbone)
        wanted: Counter[Any] = Counter()
        for name in self.todo:
            wanted.update(self.estimates[name].shares)
        probe.measure(wanted)
        seconds = [
            probe.seconds(self.estimates[name], self.items[name].frames) for name in self.todo
        ]
        team = self.writer.window_parallel
        hands = deal(seconds, max(1, self.trainer.world_size // team))
        longest = max(sum(seconds[number] for number in hand) for hand in hands)
        arms: dict[str, list[float]] = {}
        for name, value in zip(self.todo, seconds, strict=True):
            arms.setdefault(name.rpartition("/")[0], []).append(value)
        each = {arm: round(sum(values) / len(values), 3) for arm, values in arms.items()}
        self.facts["seconds"] = {
            "a_video": each,
            "in_all": round(sum(seconds), 1),
            "each_process": round(longest, 1),
        }
        videos = ", ".join(
            f"{arm} {_time(value)}" if arm else _time(value) for arm, value in each.items()
        )
        return OK, (
            f"about {_time(longest)} on each of {self.trainer.world_size} processes (a video: {videos});"
            f" searches, writing and scoring are not in it{self._saved()}"
        )


# name -> the step, and whose problem leaves nothing for it to look at
STEPS: Mapping[str, tuple[Callable[[Preflight], tuple[str, str]], Sequence[str]]] = {
    "configuration": (Preflight.configuration, ()),
    "prompts": (Preflight.prompts, ("configuration",)),
    "backbone": (Preflight.backbone, ("configuration",)),
    "settings": (Preflight.settings, ("configuration", "backbone")),
    "texts": (Preflight.texts, ("configuration", "backbone", "settings")),
    "scorers": (Preflight.scorers, ("configuration", "backbone")),
    "run folder": (Preflight.run_folder, ("configuration", "backbone", "settings")),
    "disk": (Preflight.disk, ("configuration", "backbone", "settings", "run folder")),
    "memory": (Preflight.memory, ("configuration", "backbone", "settings")),
    "work": (Preflight.work, ("configuration", "backbone", "settings", "run folder")),
    "time": (Preflight.time, ("configuration", "backbone", "settings", "run folder", "memory")),
}


def validate(
    arguments: Sequence[str], probing: bool, say: Callable[[Step], None] = lambda step: None
) -> dict[str, Any]:
    """Look at a run before it is made.

    Args:
        arguments: As for ``predict``.
        probing: Whether to time denoiser calls.
        say: Hears of each step when it is done.

    Returns:
        Whether it would start, the steps, and the numbers found.

    Raises:
        SystemExit: Only help or the configuration was asked for.
    """
    flight = Preflight(arguments, probing)
    steps: list[Step] = []
    for number, (name, (look, needed)) in enumerate(STEPS.items(), 1):
        lost = [step.name for step in steps if step.status == PROBLEM and step.name in needed]
        if lost:
            status, text = SKIPPED, f"waits for {lost[0]}"
        else:
            try:
                with offline():
                    status, text = look(flight)
            except UserError as error:
                status, text = PROBLEM, " ".join(str(error).split())
            except Exception as error:  # whatever it is, a run would not get past it
                status, text = PROBLEM, f"{type(error).__name__}: {' '.join(str(error).split())}"
        steps.append(Step(number, name, status, text))
        say(steps[-1])
    good = all(step.status != PROBLEM for step in steps)
    return {"starts": good, "steps": [vars(step) for step in steps], **flight.facts}


def _with_missing_files(model: Any, error: UserError, text: bool = False) -> UserError:
    """Say how to get public weights that are not here, with ``text`` the text encoder's, too."""
    name = model.backbone_name
    repository = hub_id(name)
    missing = missing_files(name, text) if repository else []
    if not missing:
        return error
    return UserError(
        f"{name}: {repository} is not all on this machine, {', '.join(missing)} missing: `hf download"
        f" {repository}` fetches it (so does predict, where there is a network), or give a folder as"
        " model.backbone"
    )


def _bytes(part: nn.Module) -> int:
    return sum(weight.numel() * weight.element_size() for weight in part.parameters())


def _file_bytes(item: Item, estimate: Estimate) -> int:
    """Return what an item's folder may take, on the safe side: video, contact sheet, list of passes."""
    pixels = item.height * item.width
    video = item.frames * pixels * (LOSSLESS if item.lossless else LOSSY)
    return int(video + 3 * SHEET_CELLS * pixels + PASS_BYTES * estimate.windows)


def _size(count: float) -> str:
    return f"{count / GIB:.1f} GiB" if count >= GIB / 10 else f"{count / 2**20:.0f} MiB"


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _cut(text: str, most: int = 80) -> str:
    return text if len(text) <= most else f"{text[: most - 3]}..."
