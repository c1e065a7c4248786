"""Arms: what they inherit, what a grid spans, how they are called, and what is refused in which words."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from run_workers import configuration

from miga_bench.cli import main
from miga_bench.errors import UserError
from miga_bench.harness.arms import ArmPlan, expand

BASE = ArmPlan("miga", "tiny", {"steps": "8", "zigzag": "2"})


def test_an_arm_is_the_base_with_other_values_laid_over_it():
    arms = expand(
        BASE, {"same": None, "wide": {"settings": {"zigzag": 7}}, "p": {"preset": "paper"}}, None
    )
    assert arms["same"] == BASE
    assert arms["wide"] == ArmPlan("miga", "tiny", {"steps": "8", "zigzag": "7"})
    assert arms["p"] == ArmPlan("miga", "paper", BASE.settings)


def test_an_arm_with_a_method_of_its_own_takes_none_of_the_bases_settings():
    arms = expand(BASE, {"fifo": {"method": "fifo", "settings": {"steps": 21}}}, None)
    assert arms == {"fifo": ArmPlan("fifo", "tiny", {"steps": "21"})}


def test_an_arm_that_names_the_bases_method_keeps_its_settings():
    assert expand(BASE, {"a": {"method": "miga"}}, None) == {"a": BASE}


def test_a_grid_spans_all_combinations_and_names_them_after_their_values():
    arms = expand(BASE, {"own": None}, {"zigzag": [2, 3], "cut": [0.5, None]})
    assert list(arms) == [
        "own",
        "zigzag-2.cut-0.5",
        "zigzag-2.cut-None",
        "zigzag-3.cut-0.5",
        "zigzag-3.cut-None",
    ]
    assert arms["zigzag-3.cut-None"].settings == {"steps": "8", "zigzag": "3", "cut": None}


@given(
    st.dictionaries(
        st.sampled_from(["steps", "zigzag", "stride", "renoise"]),
        st.lists(st.integers(0, 99), min_size=1, max_size=3, unique=True),
        min_size=1,
    )
)
def test_every_combination_is_one_arm(grid):
    arms = expand(BASE, None, grid)
    count = 1
    for values in grid.values():
        count *= len(values)
    found = {tuple(arm.settings[name] for name in grid) for arm in arms.values()}
    assert len(arms) == len(found) == count


@pytest.mark.parametrize(
    ("arms", "grid", "rule"),
    [
        ({"a": {"setings": {}}}, None, "model.arms.a has 'setings': did you mean settings"),
        ({"a": [1]}, None, "model.arms.a is [1]: a mapping is wanted"),
        ({"a": []}, None, "model.arms.a is []: a mapping is wanted"),
        ({"a": {"settings": [3]}}, None, "model.arms.a.settings is [3]: settings by name"),
        ({"a": {"method": None}}, None, "model.arms.a.method is None: a name is wanted"),
        (
            {"a": {"method": {"class_path": "own.Sampler", "init_args": {"settings": {}}}}},
            None,
            "a name is wanted, or class_path alone, whose settings stand in settings",
        ),
        ({"a": {"preset": 3}}, None, "model.arms.a.preset is 3: a name is wanted"),
        ({}, None, "the experiment is empty"),
        (None, {}, "the experiment is empty"),
        ({"a": None}, {}, "the experiment is empty"),
        (None, {"zigzag": []}, "model.grid.zigzag is []: a list of values is wanted"),
        (None, {"zigzag": 3}, "model.grid.zigzag is 3: a list of values is wanted"),
        ({"zigzag-2": None}, {"zigzag": [2]}, "the arm 'zigzag-2' twice"),
        (None, {"zigzag": [2, 2]}, "the arm 'zigzag-2' twice"),
        ({"A": None, "a": None}, None, "the arms 'A' and 'a' differ in case only"),
        ({"../x": None}, None, "the arm '../x' cannot name a folder: letters"),
        ({"a/b": None}, None, "the arm 'a/b' cannot name a folder"),
        ({"a..b": None}, None, "the arm 'a..b' cannot name a folder"),
        ({"": None}, None, "the arm '' cannot name a folder"),
        ({3: None}, None, "the arm 3 cannot name a folder"),
        (None, {"stages": [[1, 2]]}, "the arm 'stages-[1, 2]' cannot name a folder"),
    ],
)
def test_what_is_refused(arms, grid, rule):
    with pytest.raises(UserError) as refused:
        expand(BASE, arms, grid)
    assert rule in str(refused.value)


def refusal(capsys, tmp_path, **model):
    config = configuration(
        tmp_path,
        data__limit=1,
        data__seeds=[0],
        **{f"model__{name}": value for name, value in model.items()},
    )
    code = main(["predict", "--config", str(config)])
    out, err = capsys.readouterr()
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert not (tmp_path / "items").exists()
    assert not (tmp_path / "run" / "run.yaml").exists()
    return err


@pytest.mark.parametrize(
    ("model", "rule"),
    [
        ({"arms": {"a": {"method": "fiffo"}}}, "arm a: unknown method 'fiffo': did you mean fifo"),
        ({"arms": {"a": {"preset": "papr"}}}, "arm a: unknown preset 'papr': did you mean paper"),
        (
            {"arms": {"a": {"settings": {"zigzg": 1}}}},
            "arm a: miga has no setting 'zigzg': did you mean zigzag",
        ),
        (
            {"arms": {"a": {"settings": {"zigzag": "x"}}}},
            "arm a: zigzag is 'x': it must be a whole number",
        ),
        (
            {"arms": {"a": {"settings": {"zigzag": None}}}},
            "arm a: zigzag is None: give it a value",
        ),
        (
            {"arms": {"a": {"settings": {"zigzag": 99}}}},
            "arm a: zigzag is 99: it must be from 1 to",
        ),
        ({"grid": {"zigzg": [1]}}, "arm zigzg-1: miga has no setting 'zigzg'"),
        ({"grid": {"zigzag": [2, 3], "stride": [2.5]}}, "arm stride-2.5.zigzag-2: stride is '2.5'"),
        ({"arms": {}}, "the experiment is empty"),
        (
            {"arms": {"a": None, "b": {"settings": {"zigzag": 2}}}},
            "the arms a and b make the same videos",
        ),
        (
            {"method": {"class_path": "own.Sampler", "init_args": {}}},
            "a name is wanted, or class_path alone",
        ),
        (
            {"arms": {"a": {"method": "test_own_methods.Wave"}}},
            "arm a: method 'test_own_methods.Wave' cannot be imported (module 'test_own_methods' has no",
        ),
        (
            {"arms": {"a": {"method": "test_own_methods.Waves", "settings": {"heigth": 1}}}},
            "arm a: test_own_methods.Waves has no setting 'heigth': did you mean height",
        ),
    ],
)
def test_a_run_refuses_it_in_one_line_that_names_the_arm(capsys, tmp_path, model, rule):
    assert rule in refusal(capsys, tmp_path, **model)
