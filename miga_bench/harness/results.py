"""What a run made, read back from its folder: arms, videos, scores, cost. Reports and tracking start here.

Nothing is remembered between making and reading: ``run.yaml`` says what the run is made of, and every item's
folder holds its manifest and, under ``scores/``, a file for each scorer the run names.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from miga_bench.errors import UserError
from miga_bench.harness.configurations import yaml_of
from miga_bench.harness.formats import check_format
from miga_bench.harness.names import NAME
from miga_bench.harness.prompt_lists import NARRATIVES
from miga_bench.harness.scorers import Told
from miga_bench.harness.store import VIDEO, Store
from miga_bench.metrics.suites import OVERALL, overall_label

SEVERAL_ATOMS = re.compile(r"_tna_([2-9]|\d\d)")  # in the names of stories
Series = dict[str, list[list[float]]]


@dataclass(frozen=True)
class Arm:
    """One way to make the videos of an experiment.

    Attributes:
        name: Of its folder; a run without arms has one, named after its method.
        method: The method's name.
        settings: All of its settings.
        changed: Those of them (and ``method``) that are not the same in all arms of the run.
    """

    name: str
    method: str
    settings: Mapping[str, Any]
    changed: Mapping[str, Any]


@dataclass(frozen=True)
class Row:
    """One video.

    Attributes:
        arm: Name of its arm.
        prompt_id: Of its prompt.
        prompt: Its texts, joined by " / ".
        seed: Of its noise.
        key: Of its item.
        status: ``done``, ``failed`` or ``missing``.
        folder: Of its item; holds ``video.mp4``, ``sheet.png``, ``passes.jsonl``.
        frames: In the file; 0 if there is none.
        frame_rate: Frames a second; 0 if unknown.
        error: Why it failed.
        cost: ``nfe``, ``nfe_latents``, ``flops``, ``windows``, ``passes``, ``reflection``, ``skipped`` where
            there is a cache, and, measured, ``seconds`` by stage, ``total_seconds``, ``peak_memory_mib``.
        scores: By label; None where there is a reason instead.
        reasons: Why a score is None, by label.
        series: By label, the score over the video: ``[first, last, mean]`` of each bin.
        origin: ``hardware``, ``processes``, ``versions`` and ``git``, as far as the manifest says them. They
            need not be the run's: another one, or the same one earlier, may have made the item.
    """

    arm: str
    prompt_id: str
    prompt: str
    seed: int
    key: str
    status: str
    folder: Path
    frames: int = 0
    frame_rate: float = 0.0
    error: str | None = None
    cost: Mapping[str, Any] = field(default_factory=dict)
    scores: Mapping[str, float | None] = field(default_factory=dict)
    reasons: Mapping[str, str] = field(default_factory=dict)
    series: Series = field(default_factory=dict)
    origin: Mapping[str, Any] = field(default_factory=dict)

    @property
    def machine(self) -> str:
        """Return what its seconds and its memory were measured on; empty if nobody knows."""
        hardware, processes = self.origin.get("hardware") or {}, self.origin["processes"]
        together = f"{processes} processes a video" if processes > 1 else ""
        name = str(hardware.get("gpu") or hardware.get("cpu") or "")
        return ", ".join(part for part in (name, together) if part)

    @property
    def cluster(self) -> str:
        """Return what intervals are clustered by: the text, which several lengths of a video may share."""
        return self.prompt or self.prompt_id

    @property
    def pair(self) -> tuple[str, int]:
        """Return what the videos of all arms are matched by: prompt and seed."""
        return self.prompt_id, self.seed


@dataclass(frozen=True)
class Results:
    """A run as it lies on disk.

    Attributes:
        folder: The run's.
        name: The run's.
        about: ``title``, ``question``, ``published`` (a key of the published tables), ``axis`` (the setting
            that a curve is drawn over) and ``baseline`` (the arm that others are compared with), as far as
            the run says them.
        model: Backbone, weights hash, precision, height and width of all videos.
        arms: By name, in the order of the configuration.
        rows: All videos, arm by arm.
        provenance: When, from which code, on what.
        configuration: The whole configuration.
        scorers: Of its videos, each all that decides its numbers.
        changing: Whether prompts ask for a change along the video.
        dimensions: By prompt and seed, those of VBench's that score its videos; all where it says nothing.
        overall: Where prompts are for some dimensions, the labels of the four whose means the overall score is
            the mean of, by its own label: no video need have all four.
        told: What scorers of the user's own say of their numbers, by label.
    """

    folder: Path
    name: str
    about: Mapping[str, Any]
    model: Mapping[str, Any]
    arms: Mapping[str, Arm]
    rows: Sequence[Row]
    provenance: Mapping[str, Any]
    configuration: Mapping[str, Any]
    scorers: Sequence[Mapping[str, Any]] = ()
    changing: bool = False
    dimensions: Mapping[str, Sequence[str]] = field(default_factory=dict)
    overall: Mapping[str, Sequence[str]] = field(default_factory=dict)
    told: Mapping[str, Told] = field(default_factory=dict)

    def of(self, arm: str) -> list[Row]:
        """Return an arm's videos."""
        return [row for row in self.rows if row.arm == arm]


def read_results(
    folder: Path, store: Store | None = None, reading: Callable[[], None] = lambda: None
) -> Results:
    """Read a run.

    Args:
        folder: With ``run.yaml`` in it.
        store: The items below the folder's root; a store that is passed again reads no video twice.
        reading: Called before each video, since large ones take their time.

    Raises:
        UserError: There is none, or it cannot be read.
    """
    path = folder / "run.yaml"
    try:
        document = yaml_of(path.read_text(encoding="utf-8"))
        check_format(document, document.get("provenance"))
        made_of, items = document["made_of"], document["items"]
        arms = _arms(made_of)
        store = store or Store(folder.parent)
        identities = _mapping(document, "scorers")
        scorers = list(identities)
        _check_names([document["name"], *arms, *made_of["prompts"], *items.values(), *scorers])
        configuration = _mapping(document, "configuration")
        about = _mapping(_mapping(configuration, "run"), "about")
        provenance = _mapping(document, "provenance")
        model = {name: made_of["model"].get(name) for name in MODEL}
        changing = _changes(made_of["prompts"], _mapping(configuration, "data").get("prompts"))
        prompts = {
            f"{prompt_id}-{seed}": (
                prompt_id,
                seed,
                " / ".join([wish["prompt"], *wish["then"].values()]),
            )
            for prompt_id, wish in made_of["prompts"].items()
            for seed in wish["seeds"]
        }
        dimensions = _mapping(document, "dimensions")
        rows = []
        for name, key in items.items():
            reading()
            arm, _, rest = name.rpartition("/")
            mine = _scorers_of(identities, dimensions.get(rest))
            rows.append(_row(arm or next(iter(arms)), *prompts[rest], key, store, mine))
        judging = [one for one in identities.values() if isinstance(one, Mapping)]
        overall = _overall(judging, rows) if dimensions else {}
        told = {label: Told(**one) for label, one in _mapping(document, "told").items()}
    except FileNotFoundError:
        raise UserError(f"{folder} is no run: it has no run.yaml; runs lie in ROOT/NAME") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        problem = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        raise UserError(
            f"{path} cannot be read ({problem}): is it a run's? if so, make the run under another name"
        ) from error
    return Results(
        folder,
        document["name"],
        about,
        model,
        arms,
        rows,
        provenance,
        configuration,
        judging,
        changing,
        dimensions,
        overall,
        told,
    )


def _scorers_of(identities: Mapping[str, Any], dimensions: Sequence[str] | None) -> list[str]:
    """Return whose scores of a video count: those of other dimensions may lie there for another run."""
    if not dimensions:
        return list(identities)
    plans = {file: one.get("plan") for file, one in identities.items()}
    return [f for f, plan in plans.items() if not plan or {*plan["dimensions"]} <= {*dimensions}]


def _overall(scorers: Sequence[Mapping[str, Any]], rows: Sequence[Row]) -> dict[str, list[str]]:
    """Return the overall score's label and its four, where one suite has scored all four."""
    suites: dict[object, set[str]] = {}
    for plan in [one["plan"] for one in scorers if one.get("scorer") == "suite"]:
        suite = plan["long"], plan["networks"], plan["development"]
        suites.setdefault(suite, set()).update(plan["dimensions"])
    labels = sorted({label for row in rows for label in (*row.scores, *row.reasons)})
    four = [label for name in OVERALL for label in labels if label.partition("[")[0] == name]
    whole = any(names >= {*OVERALL} for names in suites.values()) and len(four) == len(OVERALL)
    return {overall_label(four): four} if whole else {}


def check_items_are_there(run: Results) -> None:
    """Refuse a run whose folder was copied without its items, which lie beside it.

    Raises:
        UserError: None of them is below the run's root, but some were made.
    """
    made = any((run.folder / "videos").rglob("*.mp4"))  # links, which may lead nowhere
    if made and not any(row.folder.exists() for row in run.rows):
        root = run.folder.parent
        raise UserError(
            f"{run.folder} is there, but its videos are not: none of its {len(run.rows)} items is in"
            f" {root / 'items'}; copy the folder items of the run's root to {root}, too"
        )


def _changes(prompts: Mapping[str, Any], source: object) -> bool:
    """Tell whether a text follows another, or stories of several atoms are told at once."""
    if any(wish["then"] for wish in prompts.values()):
        return True
    stories = isinstance(source, str) and source.startswith(NARRATIVES)
    return stories and any(SEVERAL_ATOMS.search(prompt_id) for prompt_id in prompts)


def _mapping(document: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Return a part of a document, which may be missing or empty.

    Raises:
        ValueError: It is something else.
    """
    part = document.get(name) or {}
    if not isinstance(part, Mapping):
        raise ValueError(f"{name} is no mapping")
    return part


def _check_names(names: Sequence[object]) -> None:
    """Refuse names that would lead to a file elsewhere.

    Raises:
        ValueError: A name cannot be a file's.
    """
    for name in names:
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise ValueError(f"{name!r} names no file of a run")


ORIGIN = ("hardware", "processes", "versions", "git")
MODEL = ("backbone", "weights_hash", "precision", "height", "width")


def _arms(made_of: Mapping[str, Any]) -> dict[str, Arm]:
    model = made_of["model"]
    told = made_of.get("arms") or {
        model["method"]: {"method": model["method"], "settings": model["settings"]}
    }
    names = {"method"}.union(*(arm["settings"] for arm in told.values()))
    plain = {name: {"method": arm["method"], **arm["settings"]} for name, arm in told.items()}
    first = next(iter(plain.values()))
    varied = {n for n in names if any(arm.get(n) != first.get(n) for arm in plain.values())}
    return {
        name: Arm(
            name,
            arm["method"],
            arm["settings"],
            {key: value for key, value in plain[name].items() if key in varied},
        )
        for name, arm in told.items()
    }


def _row(
    arm: str,
    prompt_id: str,
    seed: int,
    prompt: str,
    key: str,
    store: Store,
    scorers: Sequence[str],
) -> Row:
    row: dict[str, Any] = {
        "arm": arm,
        "prompt_id": prompt_id,
        "prompt": prompt,
        "seed": seed,
        "key": key,
        "folder": store.folder(key),
    }
    manifest = store.manifest(key)
    if manifest is None:
        return Row(**row, status="missing")
    timings = manifest["timings"]
    measured = {k: v for k, v in timings.items() if k not in ("started", *ORIGIN)}
    row |= {
        "status": manifest["status"],
        "frames": manifest["frames"],
        "frame_rate": manifest["frame_rate"],
        "error": manifest["error"],
        "cost": {**manifest["cost"], **measured},
        "origin": {n: v for n, v in {**manifest, **timings}.items() if n in ORIGIN},
    }
    found: Any = {"scores": {}, "reasons": {}, "series": {}}
    for scorer in scorers:
        document = store.scores(key, scorer, manifest["files"].get(VIDEO, {}).get("sha256"))
        if document is None:
            continue  # broken, or of a video that was here before
        for part, values in found.items():
            values |= document[part]
    return Row(**row, **found)
