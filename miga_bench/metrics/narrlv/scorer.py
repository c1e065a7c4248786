"""NarrLV's scores from answers: fidelity, coverage and coherence of one video, and means over a suite.

Source: NarrLV (arXiv 2507.11245) and its released ``metric_cal.py``; the two differ, and both are here:

* ``code``: ``R_fid = (fid + q) / 2``, ``R_cov = (cov + q) / 2``, ``R_coh = (coh + q + rho) / 3``, where
  q is a fifth of the Q-Align quality of the first frame, rho the share of atoms with accuracy above
  0.2, and fid the mean over categories of the mean over questions.
* ``paper``: no q, ``R_coh = (coh + rho) / 2``, rho's threshold 0.3, fid the mean over all questions.

Without a quality, ``code`` leaves the q terms out and divides by one less; a score says whether it had one.
An accuracy is the share of "yes" among a question's answers; both variants gate with 0.3: the layout counts
as wrong where target or scene is missing, a transition where a state beside it is. What the original
turns into NaN, or stops at, is None with a reason. Everything is in [0, 1]; higher is better.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Literal, get_args

from miga_bench.errors import UserError
from miga_bench.metrics.narrlv.suite import (
    ANOMALIES,
    FACTORS,
    FIDELITY,
    LAYOUT,
    SCENE_TYPE,
    TARGET,
    Story,
)

Variant = Literal["code", "paper"]
Collapse = Literal["mean", "fid", "cov", "coh"]
Answers = Mapping[str, Sequence[Sequence[str | None]]]

VOTES = 5
GATE = 0.3
TAU: Mapping[Variant, float] = {"code": 0.2, "paper": 0.3}
QUALITY_UNIT = 0.2  # Q-Align's scale of 1 to 5 becomes 0.2 to 1


@dataclass(frozen=True)
class StoryScore:
    """Scores of the video of one story.

    Attributes:
        key: The item's key.
        factor: The item's factor.
        tna: The item's number of atoms.
        fid: R_fid in [0, 1], or None.
        cov: R_cov in [0, 1], or None.
        coh: R_coh in [0, 1], or None; always None for TNA 1, which has no transition.
        atoms: N_exp, the number of atoms told: R_cov * tna, or None.
        reasons: Why a score is None, by its name.
        categories: Mean accuracy of each category after the gates, where there is one.
        rho: Share of atoms told at all, or None.
        quality: Q-Align's score in [1, 5] that went in, or None.
        answers: How many answers were counted, at most five a question.
        unparsed: How many of these say neither yes nor no; they count neither way.
    """

    key: str
    factor: str
    tna: int
    fid: float | None
    cov: float | None
    coh: float | None
    atoms: float | None
    reasons: Mapping[str, str] = field(default_factory=dict)
    categories: Mapping[str, float] = field(default_factory=dict)
    rho: float | None = None
    quality: float | None = None
    answers: int = 0
    unparsed: int = 0


@dataclass(frozen=True)
class Cell:
    """Means over the videos of one factor and number of atoms, or over a factor's cells.

    Attributes:
        fid: Mean R_fid of the videos that have one, or None.
        cov: Mean R_cov likewise.
        coh: Mean R_coh likewise.
        collapsed: The one number; see `collapse_to`.
        videos: How many videos.
        absent: How many of them lack a score, by the score's name; TNA 1 lacks no coherence.
    """

    fid: float | None
    cov: float | None
    coh: float | None
    collapsed: float | None
    videos: int
    absent: Mapping[str, int]


@dataclass(frozen=True)
class Summary:
    """Scores of a suite.

    Attributes:
        cells: By factor and TNA.
        factors: By factor; the mean of its cells, each weighing the same.
        provenance: How the numbers were made: variant, collapse, thresholds, quality, counts.
    """

    cells: Mapping[tuple[str, int], Cell]
    factors: Mapping[str, Cell]
    provenance: Mapping[str, object]


def read_answer(answer: str | None) -> bool | None:
    """Return True for yes, False for no, None for neither.

    As the original: "no" anywhere is no, also within "not" or "unknown"; then "yes" anywhere is yes.
    """
    said = (answer or "").lower()
    if "no" in said:
        return False
    return True if "yes" in said else None


def accuracy(answers: Sequence[str | None]) -> float | None:
    """Return the share of yes among the first five answers that can be read; None if none can."""
    votes = [vote for vote in map(read_answer, answers[:VOTES]) if vote is not None]
    return fmean(votes) if votes else None


def score_video(
    item: Story, answers: Answers, *, quality: float | None = None, variant: Variant = "code"
) -> StoryScore:
    """Score one video.

    Args:
        item: Its prompt and questions.
        answers: By category, one list of answers per question in the item's order; the first five of
            each count.
        quality: Q-Align's score of the first frame, 1 to 5; ``paper`` takes none.
        variant: Which formulas; see the module.

    Returns:
        The scores.

    Raises:
        UserError: The answers are not those of the item, or the quality is out of range.
    """
    check_variant(variant)
    _check_answers(item, answers)
    if quality is not None and not 1 <= quality <= 5:
        raise UserError(f"quality of {item.key} is {quality}; Q-Align's scores are 1 to 5")
    q = None if quality is None or variant == "paper" else QUALITY_UNIT * quality

    acc: dict[str, list[float]] = {}
    mute: dict[str, str] = {}  # categories with a question that no answer decides
    for category, questions in item.questions.items():
        values = [accuracy(given) for given in answers[category]]
        acc[category] = [math.nan if value is None else value for value in values]
        for question, value in zip(questions, values, strict=True):
            if value is None:
                mute.setdefault(category, f"no answer to {question!r} says yes or no")
    _gate_layout(acc, variant)
    changes = _gate_transitions(item, acc)
    for category in ANOMALIES:
        if category in acc:
            acc[category] = [1 - value for value in acc[category]]

    states = [f"{name}_0" for name in item.evolutions]
    told = [category for category in item.questions if category in states][-1]
    rho = fmean(value > TAU[variant] for value in acc[told])
    flat = variant == "paper"
    raw = {
        "fid": _mean(acc, FIDELITY, flat),
        "cov": _mean(acc, states, flat),
        "coh": _mean(acc, changes, flat),
    }
    needs = {"fid": [*FIDELITY], "cov": states, "coh": [*changes, *states]}
    reasons = {name: why for name in raw if (why := _reason(item, name, needs[name], mute, flat))}
    scores: dict[str, float | None] = dict.fromkeys(raw)
    for name, value in raw.items():
        if name not in reasons:
            terms = [value, *([rho] if name == "coh" else []), *([] if q is None else [q])]
            scores[name] = fmean(terms)
    cov = scores["cov"]
    means = {category: fmean(values) for category, values in acc.items() if values}
    counted = [a for per in answers.values() for given in per for a in given[:VOTES]]
    return StoryScore(
        key=item.key,
        factor=item.factor,
        tna=item.tna,
        fid=scores["fid"],
        cov=cov,
        coh=scores["coh"],
        atoms=None if cov is None else cov * item.tna,
        reasons=reasons,
        categories={name: value for name, value in means.items() if not math.isnan(value)},
        rho=None if told in mute else rho,
        quality=None if q is None else quality,
        answers=len(counted),
        unparsed=sum(read_answer(answer) is None for answer in counted),
    )


def summarize(
    scores: Iterable[StoryScore], *, collapse: Collapse = "mean", variant: Variant = "code"
) -> Summary:
    """Average scores over the videos of each factor and TNA, as the original does per file.

    Args:
        scores: Of any number of videos, in any order.
        collapse: How three numbers become one. ``mean`` is a guess: the paper of MIGA prints one number
            per factor without saying which, and the mean of the three fits its level best.
        variant: What the videos were scored with; goes into the provenance.

    Raises:
        UserError: No scores, or an unknown way to collapse.
    """
    check_variant(variant)
    check_collapse(collapse)
    scores = sorted(scores, key=lambda score: score.key)
    if not scores:
        raise UserError("no scored videos; score at least one")
    grouped: dict[tuple[str, int], list[StoryScore]] = {}
    for score in scores:
        grouped.setdefault((score.factor, score.tna), []).append(score)
    order = sorted(grouped, key=lambda cell: (FACTORS.index(cell[0]), cell[1]))
    cells = {cell: _cell(grouped[cell], collapse) for cell in order}
    factors = {
        factor: _over([cells[cell] for cell in order if cell[0] == factor])
        for factor in FACTORS
        if any(cell[0] == factor for cell in order)
    }
    rated = sum(score.quality is not None for score in scores)
    return Summary(
        cells,
        factors,
        {
            "variant": variant,
            "collapse": collapse,
            "gate": GATE,
            "tau": TAU[variant],
            "quality": "all"
            if rated == len(scores)
            else f"{rated} of {len(scores)}"
            if rated
            else "none",
            "videos": len(scores),
            "answers": sum(score.answers for score in scores),
            "unparsed": sum(score.unparsed for score in scores),
            "absent": {score.key: dict(score.reasons) for score in scores if _lacks(score)},
        },
    )


def collapse_to(
    fid: float | None,
    cov: float | None,
    coh: float | None,
    collapse: Collapse = "mean",
    tna: int = 2,
) -> float | None:
    """Make one number of three; None where a part of it is missing, for the rest is another number.

    Args:
        fid: In [0, 1], or None.
        cov: Likewise.
        coh: Likewise; a story of one atom has none, and its ``mean`` is that of the other two.
        collapse: ``mean`` of the parts, or the name of one.
        tna: Number of atoms, from 1.

    Raises:
        UserError: An unknown way to collapse.
    """
    check_collapse(collapse)
    three = {"fid": fid, "cov": cov, "coh": coh}
    if collapse != "mean":
        return three[collapse]
    parts = [value for name, value in three.items() if name != "coh" or tna > 1]
    return None if None in parts else _fmean(parts)


def check_variant(variant: str) -> None:
    """Raise a UserError unless the variant is known."""
    if variant not in get_args(Variant):
        raise UserError(f"variant is {variant!r}; it must be one of {', '.join(get_args(Variant))}")


def check_collapse(collapse: str) -> None:
    """Raise a UserError unless the way to collapse is known."""
    if collapse not in get_args(Collapse):
        raise UserError(
            f"collapse is {collapse!r}; it must be one of {', '.join(get_args(Collapse))}"
        )


def _check_answers(item: Story, answers: Answers) -> None:
    if set(answers) != set(item.questions):
        odd = ", ".join(sorted(set(answers) ^ set(item.questions)))
        raise UserError(
            f"answers to {item.key} and its questions differ in {odd}; answer every category"
        )
    for category, questions in item.questions.items():
        given = answers[category]
        if len(given) != len(questions) or not all(given):
            raise UserError(
                f"{item.key}: {category!r} has {len(questions)} questions and answers to "
                f"{sum(map(bool, given))}; each needs at least one"
            )


def _gate_layout(acc: dict[str, list[float]], variant: Variant) -> None:
    """What is not there has no place; the released code says so even where no layout was asked."""
    if TARGET not in acc or SCENE_TYPE not in acc:
        return
    if any(acc[name] and fmean(acc[name]) < GATE for name in (TARGET, SCENE_TYPE)):
        if acc.get(LAYOUT):
            acc[LAYOUT] = [0.0] * len(acc[LAYOUT])
        elif variant == "code":
            acc[LAYOUT] = [0.0]


def _gate_transitions(item: Story, acc: dict[str, list[float]]) -> list[str]:
    """Zero transitions without their states, in the first evolution; return all categories of them."""
    changes = [f"{name}_1" for name in item.evolutions if f"{name}_1" in acc]
    if item.tna > 1:
        states = acc[f"{item.evolutions[0]}_0"]
        acc[changes[0]] = [
            0.0 if states[i] < GATE or states[i + 1] < GATE else value
            for i, value in enumerate(acc[changes[0]])
        ]
    return changes


def _mean(acc: Mapping[str, Sequence[float]], categories: Iterable[str], flat: bool) -> float:
    """Mean over questions (flat) or over categories; NaN where nothing can be said."""
    groups = [acc[category] for category in categories if category in acc]
    if flat:
        groups = [[value] for group in groups for value in group]
    if not groups or not all(groups):
        return math.nan
    return fmean(fmean(group) for group in groups)


def _reason(
    item: Story, name: str, categories: Sequence[str], mute: Mapping[str, str], flat: bool
) -> str | None:
    """Why this score does not exist, or None if it does."""
    asked = [category for category in categories if category in item.questions]
    if name == "coh" and not any(category.endswith("_1") for category in asked):
        return "a story of one atom has no transition"
    for category in asked:
        if category in mute:
            return mute[category]
    empty = [category for category in asked if not item.questions[category]]
    if empty and (not flat or len(empty) == len(asked)):
        return f"{empty[0]!r} has no questions"
    return None if asked else "no question asks about it"


def _cell(scores: Sequence[StoryScore], collapse: Collapse) -> Cell:
    fid, cov, coh = (
        _fmean(getattr(score, name) for score in scores) for name in ("fid", "cov", "coh")
    )
    absent = {
        name: count
        for name in ("fid", "cov", "coh")
        if (count := sum(name in _lacks(score) for score in scores))
    }
    one = collapse_to(fid, cov, coh, collapse, scores[0].tna)
    return Cell(fid, cov, coh, one, len(scores), absent)


def _over(cells: Sequence[Cell]) -> Cell:
    names = ("fid", "cov", "coh", "collapsed")
    fid, cov, coh, collapsed = (_fmean(getattr(cell, name) for cell in cells) for name in names)
    absent: dict[str, int] = {}
    for cell in cells:
        for name, count in cell.absent.items():
            absent[name] = absent.get(name, 0) + count
    return Cell(fid, cov, coh, collapsed, sum(cell.videos for cell in cells), absent)


def _lacks(score: StoryScore) -> list[str]:
    """Names of the scores that are missing though the story has what they measure."""
    return [name for name in score.reasons if name != "coh" or score.tna > 1]


def _fmean(values: Iterable[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return fmean(there) if there else None
