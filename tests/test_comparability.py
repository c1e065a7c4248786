"""When a run's scores can be set beside the paper's: by its settings, and by the paper's own arms only."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from miga_bench.harness.arms import ArmPlan, as_text, expand
from miga_bench.harness.report.comparability import comparability, why_not_comparable
from miga_bench.harness.report.measures import measure_of
from miga_bench.harness.report.published import published_tables
from miga_bench.harness.results import Arm, Results, Row
from miga_bench.harness.shipped import experiments, shipped
from miga_bench.sampling.presets import describe, resolve

SUBJECT = measure_of("subject_consistency")
WAN = {"backbone": "wan2.1-1.3b", "height": 480, "width": 832}
FRAMES = {"videocrafter2": 128, "wan2.1-1.3b": 161}


def run_of(name, on="wan2.1-1.3b", model=WAN, **settings):
    """Return a shipped experiment as it were if it had been made, with some settings of all arms changed."""
    told = shipped(name, on)["model"]
    own = {k: as_text(v) for k, v in (told.get("settings") or {}).items()}
    plans = expand(ArmPlan(told["method"], told["preset"], own), told.get("arms"), told.get("grid"))
    arms, rows = {}, []
    for arm, plan in plans.items():
        backbone = SimpleNamespace(name=on, family="wan" if "wan" in on else "videocrafter2")
        values = resolve(plan.method, backbone, plan.preset, {**plan.settings, **settings})
        arms[arm] = Arm(arm, plan.method, describe(values), {})
        frames = 81 if plan.method == "short" else FRAMES[on]
        rows.append(Row(arm, "p", "x", 0, arm, "done", Path(), frames))
    return Results(Path(), name, {}, {"backbone": on, **model}, arms, rows, {}, {})


@pytest.mark.parametrize("name", ["table1", "table2", "components", "guidance", "zigzag"])
@pytest.mark.parametrize("on", ["wan2.1-1.3b", "videocrafter2"])
def test_the_shipped_experiments_are_made_as_the_paper_says_whatever_arms_are_beside(name, on):
    key = shipped(name, on)["run"]["about"]["published"]
    table = published_tables()[key]
    if on not in table.backbones():
        return
    size = dict(zip(("height", "width"), table.sizes[on], strict=True))
    run = run_of(name, on, size)
    assert why_not_comparable(run, table, on, [SUBJECT]) == []
    assert comparability(run, table, [SUBJECT]).startswith(f"Made as {on} was")


def test_other_settings_and_sizes_under_the_papers_preset_are_named():
    table = published_tables()["table_1_vbench"]
    run = run_of("table1", model={**WAN, "height": 128, "width": 128}, steps=27)
    why = why_not_comparable(run, table, "wan2.1-1.3b", [SUBJECT])
    assert why == [
        "the videos have 128 x 128 pixels, the paper's 832 x 480",
        "other settings: steps 27, not 54 (fifo, miga)",
    ]


def test_how_many_windows_share_a_call_does_not_matter():
    table = published_tables()["table_1_vbench"]
    assert why_not_comparable(run_of("table1", batch=4), table, "wan2.1-1.3b", [SUBJECT]) == []


def test_a_run_without_the_papers_arms_is_not_comparable():
    (why,) = why_not_comparable(
        run_of("table1"), published_tables()["table_4_zigzag_width"], "videocrafter2", [SUBJECT]
    )
    assert why == "no arm of the run is in the paper's table"


def test_every_arm_of_a_published_table_of_scores_is_in_a_shipped_experiment():
    documents = [shipped(name, on) for name in experiments() for on in FRAMES]
    for key, table in published_tables().items():
        for backbone in table.backbones() if table.frames else ():
            arms = set()
            for one in documents:
                told = one["model"]
                if one["run"]["about"].get("published") == key and told["backbone"] == backbone:
                    base = ArmPlan(told["method"], "paper", {})
                    arms |= expand(base, told.get("arms"), told.get("grid")).keys()
            assert set(table.of(backbone)) <= arms
