"""A report's differences from the baseline: what they are, in words and in tables, and how to read them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from miga_bench.harness.report import pictures, tables
from miga_bench.harness.report.comparisons import (
    BETTER,
    EITHER_SIDE,
    FEWEST,
    LESS,
    MORE,
    NOT_SHOWN,
    WORSE,
    Comparison,
)
from miga_bench.harness.report.document import Block, Fold, Heading, Paragraph
from miga_bench.harness.report.measures import Measure, motion_of
from miga_bench.harness.results import Results

UNFOLDED = 2  # arms whose differences are shown in full at once
NAMED = 6  # arms whose measures are named in the sentences at the top


def verdicts_in_words(arm: str, baseline: str, found: Sequence[Comparison], names: bool) -> str:
    """Say an arm's verdicts in a sentence, the measures by name or by number."""
    parts = []
    for verdict in (BETTER, WORSE):
        alike = [_short(one.measure) for one in found if one.verdict == verdict]
        if alike:
            parts.append(f"{verdict} in {', '.join(alike) if names else len(alike)}")
    parts += sorted({one.verdict for one in found if one.verdict in (MORE, LESS)})
    open_ones = sum(one.verdict == NOT_SHOWN for one in found)
    if open_ones:
        parts.append(f"no difference shown in {open_ones} of {len(found)}")
    if not parts:
        parts = [f"nothing can be said: below {FEWEST} prompts with both"]
    more = _changes_at_equal_motion(found)
    return f"{arm} against {baseline}: {'; '.join(parts)}.{more}"


def _changes_at_equal_motion(found: Sequence[Comparison]) -> str:
    """Name the measures whose verdict is another one at equal motion; empty for none."""
    changed: dict[str, list[str]] = {}
    for one in found:
        before, after = one.verdict, one.equal.verdict if one.equal is not None else one.verdict
        if before == after or not {before, after} & {BETTER, WORSE}:
            continue
        if after in (BETTER, WORSE):
            words = f"it is {after}"
        elif after == NOT_SHOWN:
            words = f"the {'gain' if before == BETTER else 'loss'} is not shown"
        else:
            words = "it cannot be said"
        changed.setdefault(words, []).append(_short(one.measure))
    parts = [f"{words} in {', '.join(names)}" for words, names in changed.items()]
    return f" At equal motion {'; '.join(parts)}." if parts else ""


def _short(measure: Measure) -> str:
    return measure.title.partition(" [")[0]


def differences(
    run: Results,
    baseline: str,
    found: Mapping[str, Sequence[Comparison]],
    measures: Sequence[Measure],
    prefix: str,
) -> list[Block]:
    """Return what a report says of each arm's differences from the baseline.

    Args:
        run: Holds the arms.
        baseline: The arm that others are held against.
        found: The comparisons with it, by arm.
        measures: The run's scores.
        prefix: Of the names of the pictures.
    """
    if not found:
        return []
    words = (
        f"Each arm minus {baseline} on the same prompts and seeds. A verdict needs {FEWEST} prompts and an"
        " interval (95 %, Student's t over prompts) without zero."
    )
    words += _by_chance([one for comparisons in found.values() for one in comparisons])
    blocks: list[Block] = [
        Heading(3, f"Differences from {baseline}"),
        Paragraph(words, "small"),
        Paragraph(_equal_motion_in_words(motion_of(measures)), "small"),
    ]
    lengths = _other_lengths(run, baseline)
    if lengths:
        blocks.append(Paragraph(lengths, "small"))
    if len(found) > 1:
        caption = f"Verdicts against {baseline}"
        blocks.append(tables.verdict_table(found, baseline, caption))
        names = {arm: _by_t_alone(comparisons) for arm, comparisons in found.items()}
        blocks += tables.sign_test_note([f"{arm}: {told}" for arm, told in names.items() if told])
    blocks += pictures.forests(prefix, baseline, found)
    for arm, comparisons in found.items():
        table = tables.difference_table(comparisons, f"{arm} minus {baseline}")
        fold = len(found) > UNFOLDED
        blocks.append(Fold(f"All numbers: {arm} minus {baseline}", [table]) if fold else table)
        if len(found) == 1:
            told = _by_t_alone(comparisons)
            blocks += tables.sign_test_note([told] if told else [])
    return blocks


def _by_t_alone(found: Sequence[Comparison]) -> str:
    return ", ".join(one.measure.title for one in found if one.by_t_alone)


def _by_chance(found: Sequence[Comparison]) -> str:
    """Say how many differences chance alone may show; a measure that is level for all prompts shows none."""
    count = sum(one.judged and one.wins + one.losses > 0 for one in found)
    if not count:
        return ""
    return (
        f" It is not corrected for there being {count} that could show a difference: at most about"
        f" {count / 20:.2g} would by chance alone, and being of the same videos they are not independent."
    )


def _equal_motion_in_words(motion: Measure | None) -> str:
    """Say what equal motion is and is not."""
    if motion is None:
        return "Motion was not measured: whether a gain comes from standing still cannot be said."
    words = (
        "At equal motion: a straight line is fitted to the pairs, difference of the score over"
        f" difference of {motion.title}; what it gives where both move alike is what is left, with an"
        " interval clustered by prompt. A pair of which one video has no measure of motion is not in it: n"
        " counts its pairs where they are fewer than the difference's. It is not given below"
        f" {FEWEST} prompts, nor where motion is the same number in every pair, nor where fewer than"
        f" {EITHER_SIDE} % of the pairs move as much or more, or as much or less, for equal motion would lie"
        " at the edge of what was seen. Where motion is measured coarsely, as by a 0 or 1 for a video, the"
        " line is too flat (regression dilution), and a part of what motion explains is still in what is"
        " left. Motion is itself an outcome of the method: nobody held it still, and what is left describes"
        " these videos."
    )
    if motion.base == "world/path":
        words += " The path is too long where a subject breaks up, for it leads from part to part."
    return words


def _other_lengths(run: Results, baseline: str) -> str:
    """Say which arms make videos of another length than the baseline."""
    lengths = {
        arm: sorted({row.frames for row in run.of(arm) if row.status == "done"}) for arm in run.arms
    }
    base = lengths[baseline]
    others = [arm for arm, frames in lengths.items() if frames and base and frames != base]
    if not others:
        return ""
    told = ", ".join(f"{arm} ({' or '.join(map(str, lengths[arm]))} frames)" for arm in others)
    return (
        f"Of another length than {baseline} ({' or '.join(map(str, base))} frames): {told}. Longer videos"
        " drift further, so these differences are of methods and lengths together."
    )
