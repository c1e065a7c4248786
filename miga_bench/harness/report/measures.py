"""What the scores of a run are called, how they are printed, and which way is better."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Literal

from miga_bench.harness.results import Results, Row
from miga_bench.harness.scorers import Told
from miga_bench.metrics.statistics import SURE_FROM, Estimate, mean_of_means
from miga_bench.metrics.suites import DIMENSIONS, WITHIN_ONE

Better = Literal["higher", "lower"] | None

MINUS = "-"
FINEST = 3  # digits more than a measure's, where an interval would seem to reach zero
SAME = 1e-6  # of scores in [0, 1]: what summing in another order leaves
_ONE_ENCODER = (
    "background consistency is the same number here, of the same encoder, and is not shown"
)


@dataclass(frozen=True)
class Measure:
    """A score of a video.

    Attributes:
        label: As the videos' scores carry it.
        title: For people.
        meaning: What it tells, in one phrase.
        group: ``vbench``, ``world``, ``narrlv``, ``cost`` or ``other``: the table that it stands in.
        factor: Tables print the score times this.
        digits: Behind the point.
        better: Which way is better; None for motion, which is neither.
        unit: Of the printed number.
        share: Whether it is a share, or a mean that is never below 0 or above 1 either, as stored.
    """

    label: str
    title: str
    meaning: str
    group: str
    factor: float = 1
    digits: int = 2
    better: Better = "higher"
    unit: str = ""
    share: bool = False

    @property
    def base(self) -> str:
        """Return the label without the networks it was made with."""
        return base_of(self.label)

    @property
    def column(self) -> str:
        """Return the name that published tables give it."""
        return self.base.rpartition("/")[2]

    @property
    def is_motion(self) -> bool:
        """Tell whether it says how much a video moves, not how good it is."""
        return self.better is None

    @property
    def networks(self) -> str:
        """Return what stands in the label's brackets; empty for none."""
        return self.label.partition("[")[2].rstrip("]")

    def number(self, value: float | None, sign: bool = False, finer: int = 0) -> str:
        """Return a value as tables print it; no value is a dash, never a number.

        Args:
            value: As the score is stored.
            sign: Of a difference: shown, and kept where the digits are all zero.
            finer: Digits more than usual.
        """
        if value is None:
            return MINUS
        digits = self.digits + finer
        shown = round(value * self.factor + 0.0, digits)
        return f"{shown:+.{digits}f}" if sign else f"{shown + 0.0:.{digits}f}"

    def within(self, low: float, high: float) -> tuple[float, float]:
        """Return the ends of a mean's interval, cut where the score cannot be."""
        return (max(low, 0.0), min(high, 1.0)) if self.share else (low, high)

    def finer(self, low: float | None, high: float | None) -> int:
        """Return the digits more, at most three, that show that an interval is on one side of zero."""
        if low is None or high is None or low <= 0 <= high:
            return 0
        decides = min(abs(low), abs(high)) * self.factor
        enough = (more for more in range(FINEST) if round(decides, self.digits + more))
        return next(enough, FINEST)

    def interval(self, low: float | None, high: float | None, prompts: int) -> str:
        """Return a mean's interval as tables print it, cut where the score cannot be; none is an empty text.

        That of two prompts is no more than wide: it begins below what the score can be and ends above it.
        """
        if low is None or high is None or prompts < SURE_FROM:
            return ""
        return " to ".join(self.number(end) for end in self.within(low, high))

    def signed(
        self, value: float | None, low: float | None, high: float | None, prompts: int
    ) -> tuple[str, str]:
        """Return a difference and its interval, which may be empty; digits bear out the verdict."""
        if low is None or high is None or prompts < SURE_FROM:
            return self.number(value, sign=True), ""
        finer = self.finer(low, high)
        shown, start, end = (self.number(one, sign=True, finer=finer) for one in (value, low, high))
        return shown, f"{start} to {end}"


def _vbench(name: str, meaning: str, better: Better = "higher") -> Measure:
    title, share = name.replace("_", " "), name in WITHIN_ONE
    return Measure(name, title, meaning, "vbench", 100, 2, better, "x 100", share)


def _world(name: str, title: str, meaning: str, digits: int, better: Better, unit: str) -> Measure:
    factor = 100 if unit == "%" else 1
    share = unit == "%"
    return Measure(f"world/{name}", title, meaning, "world", factor, digits, better, unit, share)


# In the order of the tables.
KNOWN = [
    _vbench("overall_score", "mean of subject and background consistency, smoothness, flickering"),
    _vbench("subject_consistency", "does the subject stay itself"),
    _vbench("background_consistency", "does the scene stay itself"),
    _vbench("motion_smoothness", "does motion agree with interpolation"),
    _vbench("temporal_flickering", "how little do successive frames differ"),
    _vbench("dynamic_degree", "does anything move: share of videos, or of clips, that do", None),
    _vbench("aesthetic_quality", "do frames look good"),
    _vbench("imaging_quality", "are frames sharp and clean"),
    _vbench("overall_consistency", "does the video show its prompt"),
    _world(
        "hue_drift",
        "subject hue drift",
        "how far the subject's hue goes from the opening's",
        2,
        "lower",
        "degrees",
    ),
    _world(
        "size_drift",
        "subject size drift",
        "how far the subject's size goes from the opening's",
        3,
        "lower",
        "log",
    ),
    _world(
        "field_drift",
        "background color drift",
        "how far the field's color goes from the opening's",
        4,
        "lower",
        "",
    ),
    _world(
        "pattern_drift",
        "background pixel drift",
        "how far the field's pixels go from the opening's",
        4,
        "lower",
        "",
    ),
    _world(
        "flicker",
        "flicker",
        "how much the field differs from one frame to the next",
        4,
        "lower",
        "",
    ),
    _world("path", "path", "how far the subject travels", 2, None, "pixels per frame"),
    _world("found", "subject found", "share of frames that show a subject", 1, "higher", "%"),
    _world(
        "asked_color", "asked color", "share of frames that show the asked color", 1, "higher", "%"
    ),
    _world(
        "asked_shape", "asked shape", "share of frames that show the asked shape", 1, "higher", "%"
    ),
    _world(
        "asked_field",
        "asked field",
        "share of frames that show the asked field color",
        1,
        "higher",
        "%",
    ),
    _world(
        "asked_motion", "asked direction", "share of steps that go the asked way", 1, "higher", "%"
    ),
]
_NARRLV = {
    "fid": "fidelity: does the video show the scene and the subject that the story opens with",
    "cov": "coverage: the share of the story's atoms that are told",
    "coh": "coherence: are the changes from atom to atom shown",
}
# What a claim may be about beside scores; not in the tables of scores.
COSTS = [
    Measure("cost/nfe_per_frame", "denoiser evaluations per frame", "work", "cost", 1, 2, "lower"),
    Measure("cost/seconds_per_frame", "seconds per frame", "time", "cost", 1, 3, "lower", "s"),
    Measure(
        "cost/skipped",
        "evaluations cut short by the cache",
        "",
        "cost",
        100,
        1,
        "higher",
        "%",
        True,
    ),
    Measure("cost/peak_memory", "peak memory", "memory", "cost", 1, 0, "lower", "MiB"),
]
_BY_BASE = {measure.label: measure for measure in [*KNOWN, *COSTS]}
_ORDER = {name: number for number, name in enumerate(_BY_BASE)}


def base_of(label: str) -> str:
    """Return a label without the networks in its brackets."""
    return label.partition("[")[0]


def measure_of(label: str, told: Mapping[str, Told] | None = None) -> Measure:
    """Return what a label stands for; an unknown one is a share between 0 and 1, more being better.

    Args:
        label: Of a score.
        told: What the run's scorers say of numbers that are not ours, by label.
    """
    base = base_of(label)
    networks = label[len(base) :]
    if base in _BY_BASE:
        known = _BY_BASE[base]
        return replace(known, label=label, title=f"{known.title} {networks}".strip())
    prefix, slash, name = base.rpartition("/")
    if own := (told or {}).get(label):
        return Measure(label, group="other", **asdict(own))
    title = f"{name.replace('_', ' ')} {networks}".strip()
    story = prefix == "narrlv"
    meaning, group = _NARRLV.get(name, "") if story else "", prefix if slash else "other"
    # of a number of the user's own nobody has said that it cannot be above 1: it is not cut
    return Measure(label, title, meaning, group, 100, 2, "higher", "x 100", share=story)


def labels_of(run: Results) -> set[str]:
    """Return the labels of the scores that the run has, or has a reason for not having."""
    return {*run.overall, *(label for row in run.rows for label in (*row.scores, *row.reasons))}


def asked(run: Results, label: str) -> set[tuple[str, int]]:
    """Return the pairs whose videos a score is asked of; a cost is asked of all.

    A story has only its own cells of NarrLV: what no arm has for a prompt, nor a reason for not having, was not
    asked. Of a prompt's seeds some may be for fewer of VBench's dimensions, which the run then says.
    """
    if label.startswith("cost/"):
        return {row.pair for row in run.rows}
    prompts = {row.prompt_id for row in run.rows if label in row.scores or label in row.reasons}
    return {
        row.pair for row in run.rows if row.prompt_id in prompts and _is_for(run, row.pair, label)
    }


def _is_for(run: Results, pair: tuple[str, int], label: str) -> bool:
    """Tell whether a video is for a score; it is for all that are none of VBench's dimensions."""
    own, base = run.dimensions.get(f"{pair[0]}-{pair[1]}"), base_of(label)
    return not own or base in own or base not in DIMENSIONS


def measures_of(runs: Iterable[Results]) -> list[Measure]:
    """Return every score that some video of the runs has, or has a reason for not having.

    Subject and background consistency are one number where one encoder makes both, as the embedded one does:
    the first stands for both, or every gain would be counted twice.
    """
    runs = list(runs)
    rows = [row for run in runs for row in run.rows]
    labels = {label for run in runs for label in labels_of(run)}
    order = sorted(labels, key=lambda label: (_ORDER.get(base_of(label), len(_ORDER)), label))
    told = {label: one for run in runs for label, one in run.told.items()}
    measures = [measure_of(label, told) for label in order]
    subject, background = (
        next((m for m in measures if m.base == name), None)
        for name in ("subject_consistency", "background_consistency")
    )
    if subject is None or background is None or not _alike(rows, subject, background):
        return measures
    both = replace(subject, meaning=f"{subject.meaning}; {_ONE_ENCODER}")
    return [both if m is subject else m for m in measures if m is not background]


def _alike(rows: Sequence[Row], one: Measure, other: Measure) -> bool:
    """Tell whether two scores are one number: of the same networks, and the same on every video."""
    pairs = [(row.scores.get(one.label), row.scores.get(other.label)) for row in rows]
    return one.networks == other.networks != "" and all(
        a == b or (a is not None and b is not None and abs(a - b) < SAME) for a, b in pairs
    )


def value_of(row: Row, label: str) -> float | None:
    """Return a video's score, or what it cost; None where there is none."""
    if not label.startswith("cost/"):
        return row.scores.get(label)
    if row.status != "done" or not row.frames:
        return None
    if label == "cost/peak_memory":  # of the GPU where there is one, though nobody may know it
        on_gpu = "gpu" in (row.origin.get("hardware") or {})
        peak: float | None = row.cost["peak_memory_mib"].get("gpu" if on_gpu else "process")
        return peak
    if label == "cost/skipped":
        nfe, skipped = row.cost.get("nfe"), row.cost.get("skipped")
        return skipped / nfe if nfe and skipped is not None else None
    total: float = row.cost["nfe" if label == "cost/nfe_per_frame" else "total_seconds"]
    return total / row.frames


def mean_over(run: Results, rows: Sequence[Row], label: str) -> Estimate:
    """Return the mean of some of a run's videos with its interval over prompts; those without are left out."""
    scores = [[value_of(row, part) for row in rows] for part in run.overall.get(label, [label])]
    return mean_of_means(scores, [row.cluster for row in rows])


def motion_of(measures: Iterable[Measure]) -> Measure | None:
    """Return the measure of motion that others are held against: the finest there is."""
    found = {measure.base: measure for measure in measures if measure.is_motion}
    return found.get("world/path") or next(iter(found.values()), None)
