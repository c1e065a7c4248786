"""What reports and tracking say an arm took, on numbers small enough to do by hand."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from miga_bench.harness.costs import cost_of
from miga_bench.harness.results import Arm, Results, Row
from miga_bench.harness.store import PASSES

COSTS = [
    {
        "windows": 30,
        "nfe": 60,
        "nfe_latents": 300,
        "flops": 9000,
        "skipped": 6,
        "reflection": {"search_windows": 3},
        "seconds": {"opening": 2.0, "decode": 1.0},
        "total_seconds": 3.0,
        "peak_memory_mib": {"process": 700.0, "gpu": 90.0},
    },
    {
        "windows": 70,
        "nfe": 140,
        "nfe_latents": 700,
        "flops": 21000,
        "skipped": 14,
        "reflection": {"search_windows": 17},
        "seconds": {"opening": 6.0, "decode": 1.0, "search": 4.0},
        "total_seconds": 11.0,
        "peak_memory_mib": {"process": 650.0, "gpu": 120.0},
    },
]
PASSES_OF = [
    [{"similarity": 0.9}, {"similarity": 0.8, "triggered": True, "accepted": True}, {"stage": "x"}],
    [
        {"similarity": 0.7, "triggered": True},
        {"similarity": 0.7, "triggered": True},
        {"similarity": 0.7, "triggered": True},
        {"similarity": 0.9},
        {"similarity": 0.9},
        {"similarity": 0.9},
    ],
]


@pytest.fixture
def run(tmp_path):
    arms = {"miga": Arm("miga", "miga", {"reflection": "continuous"}, {})}
    rows = []
    for number, (cost, passes, frames) in enumerate(zip(COSTS, PASSES_OF, (30, 70), strict=True)):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / PASSES).write_text("".join(f"{json.dumps(one)}\n" for one in passes))
        rows.append(
            Row("miga", f"p{number}", "text", 0, "k", "done", folder, frames, 8.0, cost=cost)
        )
    failed = Row("miga", "p9", "text", 0, "k", "failed", Path("nowhere"))
    return Results(tmp_path, "r", {}, {}, arms, [*rows, failed], {}, {})


def test_an_arms_cost_by_hand(run):
    """Breaks if a report's cost table divides by, or sums, something else than it says."""
    cost = cost_of(run, "miga")
    assert (cost.videos, cost.frames) == (2, 100)
    assert (cost.nfe, cost.nfe_per_frame, cost.latents_per_frame) == (100, 2.0, 10.0)
    assert (cost.flops, cost.flops_per_frame) == (15000, 300.0)
    assert cost.stages == {"opening": 4.0, "decode": 1.0, "search": 2.0}
    assert cost.seconds == {"opening": 0.08, "decode": 0.02, "search": 0.04}
    assert (cost.total_seconds, cost.seconds_per_frame) == (7.0, 0.14)
    assert cost.memory_mib == {"process": 700.0, "gpu": 120.0}
    assert (cost.judged, cost.triggers) == (8, 4)
    assert (cost.triggered, cost.accepted) == (0.5, 0.25)
    assert cost.search_share == 0.2
    assert cost.skipped == 0.1


def test_what_one_video_lacks_is_no_sum(run):
    """Breaks if half a sum stands as an arm's cost."""
    short = {name: value for name, value in COSTS[1].items() if name not in ("flops", "skipped")}
    rows = [run.rows[0], replace(run.rows[1], cost=short)]
    cost = cost_of(replace(run, rows=rows), "miga")
    assert (cost.flops, cost.flops_per_frame, cost.skipped) == (None, None, None)
    assert cost.nfe == 100


def test_without_reflection_nothing_is_said_of_searches(run):
    """Breaks if an arm that never looked seems never to have found anything."""
    arms = {"miga": replace(run.arms["miga"], settings={"reflection": "off"})}
    cost = cost_of(replace(run, arms=arms), "miga")
    assert (cost.judged, cost.triggered, cost.accepted, cost.search_share) == (0, None, None, None)
