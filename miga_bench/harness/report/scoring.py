"""Were a run's scores made as the paper's were? What it names as scorers, and how many prompts there are.

What the paper says: VBench's columns are VBench-Long's toolkit, NarrLV's are NarrLV's; their own scripts are
taken for what it ran (clip-to-clip scores on; Qwen2.5-VL 72B, five answers a question, Q-Align's quality).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from miga_bench.harness.prompt_lists import read_wishes
from miga_bench.harness.report.published import PublishedTable
from miga_bench.harness.results import Results

JUDGE = "Qwen2.5-VL-72B-Instruct"
VOTES = 5
NO_QUALITY = "without its quality term (Q-Align)"
_UNSAID = "the run does not say what scored its videos"


def how_scored(run: Results, table: PublishedTable) -> list[str]:
    """Return how the scores that a table has were not made as the paper's; of networks their labels tell.

    Args:
        run: With the scorers that its ``run.yaml`` names.
        table: Its toolkit says what is wanted; a table of costs wants nothing.
    """
    if table.toolkit == "vbench-long":
        plans = [one["plan"] for one in _of(run, "suite") if isinstance(one.get("plan"), Mapping)]
        return _unlike(plans, _not_vbench_long)
    return _unlike(_of(run, "story"), _not_narrlv) if table.toolkit == "narrlv" else []


def how_many_prompts(run: Results, table: PublishedTable, arms: Sequence[str]) -> list[str]:
    """Return whether the arms have fewer prompts than the table, or other ones.

    Args:
        run: The run.
        table: With its number of prompts or of stories.
        arms: Those that the table has; the one with the fewest counts.
    """
    out = []
    made = [[row for row in run.of(arm) if row.status == "done"] for arm in arms]
    if table.prompts:
        whole = _vbench()
        texts = [{row.prompt for row in rows} for rows in made]
        fewest = min(len(whole & found) for found in texts)
        if fewest < table.prompts:
            wanted = f"at least {table.prompts}" if table.prompts < len(whole) else "all"
            out.append(f"{fewest} of VBench's {len(whole)} prompts for these scores, not {wanted}")
        others = len(set().union(*texts) - whole)
        if others:
            out.append(f"{others} prompt{'s' * (others > 1)} that VBench does not have")
    if table.stories:
        cells = [
            len({row.prompt_id for row in rows if f"narrlv/{column}" in row.scores})
            for rows in made
            for column in table.columns
        ]
        if min(cells) != table.stories or max(cells) != table.stories:
            told = " to ".join(map(str, sorted({min(cells), max(cells)})))
            out.append(f"{told} stories in a cell, not {table.stories}")
    return out


def collapses(run: Results) -> list[str]:
    """Return by which rules the run's scorers made one number of NarrLV's three."""
    return sorted({str(one.get("collapse")) for one in _of(run, "story")})


def lacks_quality(run: Results) -> bool:
    """Tell whether NarrLV's scores of the run are without its quality term, of all its videos or of some."""
    return not all(one.get("quality") for one in _of(run, "story")) or not _of(run, "story")


def scored_by_clips(run: Results) -> bool:
    """Tell whether VBench-Long's clips scored the run's videos."""
    plans = [one.get("plan") for one in _of(run, "suite")]
    return any(isinstance(plan, Mapping) and bool(plan.get("long")) for plan in plans)


def _of(run: Results, name: str) -> list[Mapping[str, Any]]:
    return [one for one in run.scorers if one.get("scorer") == name]


def _unlike(found: Sequence[Mapping[str, Any]], what: Any) -> list[str]:
    """Return what is unlike in any of several scorers, each thing once."""
    if not found:
        return [_UNSAID]
    return list(dict.fromkeys(told for one in found for told in what(one)))


def _not_vbench_long(plan: Mapping[str, Any]) -> list[str]:
    if not plan.get("long"):
        return ["scored as whole videos, not by VBench-Long's clips"]
    if not plan.get("development"):
        return ["scored without VBench-Long's clip-to-clip scores"]
    return []


def _not_narrlv(story: Mapping[str, Any]) -> list[str]:
    out = []
    if story.get("suite") != "release":
        out.append(f"the stories are of the suite {story.get('suite')}, not NarrLV's")
    judge = str(story.get("judge_model") or story.get("judge"))
    if judge.rstrip("/").rpartition("/")[2] != JUDGE:  # a quantized one adds to the name
        out.append(f"judged by {judge}, not {JUDGE}")
    if str(story.get("judge")).startswith(("http://", "https://")):
        out.append(
            "the judge behind a URL is shown pictures, NarrLV's a video at 10 frames a second"
        )
    if story.get("votes") != VOTES:
        out.append(f"answers to a question: {story.get('votes')}, not {VOTES}")
    if story.get("variant") != "code":
        out.append(f"formulas of the variant {story.get('variant')}, not code")
    if story.get("collapse") != "mean":
        out.append(
            f"one number by {story.get('collapse')}, where the mean is taken for the paper's"
        )
    return out if story.get("quality") else [*out, f"NarrLV's scores are {NO_QUALITY}"]


@functools.cache
def _vbench() -> frozenset[str]:
    """Return the texts of VBench's prompts for the four scores."""
    return frozenset(prompt.text for wish in read_wishes("vbench") for prompt in wish.prompts)
