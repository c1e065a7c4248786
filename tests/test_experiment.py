"""The verb experiment: what is shipped, what it refuses, and every shipped experiment on a tiny backbone."""

import contextlib
import dataclasses
import json
import shutil
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml
from analytic import AnalyticBackbone
from diffusers import WanTransformer3DModel

from miga_bench.backbones import BACKBONES
from miga_bench.cli import main
from miga_bench.errors import Notice
from miga_bench.harness.about import check_about
from miga_bench.harness.arms import ArmPlan, expand
from miga_bench.harness.data import PromptDataModule
from miga_bench.harness.experiment import experiment
from miga_bench.harness.module import LongVideoModule
from miga_bench.harness.prompt_lists import read_wishes
from miga_bench.harness.report.again import settled
from miga_bench.harness.report.comparisons import FEWEST
from miga_bench.harness.report.published import published_tables
from miga_bench.harness.results import Arm, read_results
from miga_bench.harness.scorers import SuiteScores
from miga_bench.harness.shipped import experiments, places, shipped
from miga_bench.metrics.narrlv import load_suite
from miga_bench.prompts import LISTS, STORIES
from miga_bench.sampling import METHODS, PRESETS, estimate_windows, resolve

# few passes of few windows; the rules between settings still hold
FEW = {
    "short": {"steps": 2},
    "fifo": {"steps": 21},
    "scaling-noise": {"steps": 21, "reward": "latent", "beams": 1, "candidates": 1},
    "freelong": {"steps": 2},
    "freepca": {"steps": 2},
}


PUBLIC = ["wan2.1-1.3b", "videocrafter2"]


@pytest.fixture(scope="module")
def one_layer_folder(tmp_path_factory):
    whole = BACKBONES["tiny-wan"].where
    folder = tmp_path_factory.mktemp("weights") / "wan"
    shutil.copytree(whole, folder, ignore=shutil.ignore_patterns("transformer"))
    network = WanTransformer3DModel.from_pretrained(whole, subfolder="transformer")
    network.blocks = network.blocks[:1]
    network.register_to_config(num_layers=1)
    network.save_pretrained(folder / "transformer")
    return folder


@pytest.fixture
def one_layer(one_layer_folder, monkeypatch):
    """tiny-wan with the first of its five layers only: all shapes and rules as they are, in less time."""
    cut = dataclasses.replace(BACKBONES["tiny-wan"], where=one_layer_folder)
    monkeypatch.setitem(BACKBONES, "tiny-wan", cut)


def arms_of(document):
    model = document["model"]
    base = ArmPlan(model["method"], model["preset"], model.get("settings") or {})
    return expand(base, model.get("arms"), model.get("grid"))


@pytest.mark.parametrize("place", places())
@pytest.mark.parametrize("name", experiments())
def test_every_shipped_experiment_is_one(name, place):
    document = shipped(name, place)
    assert document["run"]["name"] == f"{name}-{place}"
    about = document["run"]["about"]
    arms = arms_of(document)
    assert about["baseline"] in arms
    assert about.get("published") is None or about["published"] in published_tables()
    LongVideoModule(**{**document["model"], "metrics": None})  # knows all names
    data = document["data"]
    prompts = data["prompts"]
    if prompts != "narrlv:release":  # which is fetched
        assert read_wishes(prompts, data.get("frames", 300), data.get("tna") or ())


class Place(AnalyticBackbone):
    """A place's family and window, without its weights."""

    can_cache = True

    def __init__(self, place):
        super().__init__(BACKBONES[place].family)
        self.name, self.preset = place, BACKBONES[place].preset

    @property
    def can_cut(self):
        return self.family == "videocrafter2"

    def reading(self, grid=None, rescale=None, fps=None):
        return self if self.can_cut else super().reading(grid, rescale, fps)

    def attending(self, attention):
        return contextlib.nullcontext()


@pytest.mark.parametrize("place", places())
@pytest.mark.parametrize("name", experiments())
def test_every_arm_of_a_shipped_experiment_is_possible_at_its_place(name, place):
    document, backbone = shipped(name, place), Place(place)
    for arm, plan in arms_of(document).items():
        sampler = METHODS[plan.method](resolve(plan.method, backbone, plan.preset, plan.settings))
        length = backbone.window * (1 if plan.method == "short" else 2)
        assert estimate_windows(sampler, backbone, length) > 0, arm


@pytest.mark.parametrize("place", places())
@pytest.mark.parametrize("name", experiments())
def test_a_reports_configuration_makes_the_same_whatever_presets_become(name, place, monkeypatch):
    document, backbone = shipped(name, place), Place(place)

    def settings_of(document):
        return {
            arm: resolve(plan.method, backbone, plan.preset, plan.settings)
            for arm, plan in arms_of(document).items()
        }

    before, plans = settings_of(document), arms_of(document)
    arms = {
        arm: Arm(arm, plans[arm].method, asdict(settings), {}) for arm, settings in before.items()
    }
    again = yaml.safe_load(yaml.safe_dump(settled(document, arms)))
    for table in PRESETS.values():
        for methods in table.values():
            for values in methods.values():
                if "guidance_scale" in values:
                    monkeypatch.setitem(values, "guidance_scale", 99.0)
    assert settings_of(again) == before
    assert settings_of(document) != before


def test_a_reports_configuration_holds_the_precision_that_the_machine_chose():
    configuration = {
        "trainer": {"precision": None},
        "model": {"method": {"class_path": "own.Sampler"}},
    }
    arms = {"own.Sampler": Arm("own.Sampler", "own.Sampler", {"steps": 2}, {})}
    assert settled(configuration, arms, "bf16-true")["trainer"] == {"precision": "bf16-true"}
    configuration["trainer"]["precision"] = "32-true"
    assert settled(configuration, arms, "bf16-true")["trainer"] == {"precision": "32-true"}


KEPT = sorted(path for path in (Path(__file__).parents[1] / "reports").glob("*/*.yaml"))


@pytest.mark.parametrize("path", KEPT, ids=lambda path: path.stem)
def test_the_configuration_of_a_kept_report_is_still_one(path):
    """Breaks if what a report says makes it again is refused, or names what there is no longer."""
    document = yaml.safe_load(path.read_text(encoding="utf-8"))
    backbone = Place(document["model"]["backbone"])
    for arm, plan in arms_of(document).items():
        sampler = METHODS[plan.method](resolve(plan.method, backbone, plan.preset, plan.settings))
        length = backbone.window * (1 if plan.method == "short" else 2)
        assert estimate_windows(sampler, backbone, length) > 0, arm
    check_about(document["run"]["about"], arms_of(document))
    data = document["data"]
    assert read_wishes(data["prompts"], data["frames"], data["tna"] or ())


@pytest.mark.parametrize("place", places())
def test_the_depth_of_stage_2_is_all_that_its_arms_differ_in(place):
    arms, backbone = arms_of(shipped("stage2", place)), Place(place)
    values = {
        name: dataclasses.asdict(resolve(plan.method, backbone, plan.preset, plan.settings))
        for name, plan in arms.items()
    }
    # The preset of the embedded models has a re-noise pass; the papers', which is for the others, has none.
    more = {"renoise": 10, "zigzag": 1, "guidance_frames": 0}
    name, more = ("preset", {}) if place.startswith("tiny-") else ("renoised", more)
    renoised = values.pop(name)
    assert renoised == dataclasses.asdict(
        resolve("miga", backbone, arms[name].preset, {"reflection": "off", **more})
    )
    assert renoised["renoise"] > 0
    for one in values.values():
        assert {**one, "stage2_steps": 0} == {**renoised, "renoise": 0, "stage2_steps": 0}


@pytest.mark.parametrize("name", experiments())
def test_every_embedded_experiment_runs(tmp_path, name, one_layer, capsys):
    document = shipped(name, "tiny-wan")
    model = document["model"]
    if name == "guidance":  # the other arms take fewer frames in the same way
        kept = ("none", "chunks-8", "head-8", "anchor-8")
        model["arms"] = {arm: model["arms"][arm] for arm in kept}
    for arm in (model.get("arms") or {}).values():
        if "method" in arm:
            arm["settings"] = {**arm.get("settings", {}), **FEW[arm["method"]], "guidance_scale": 1}
    base = {"steps": 27, "stage2_steps": 0, "renoise": 0} if name != "stage2" else {}
    model["settings"] = {**base, **model.get("settings", {}), "guidance_scale": 1}
    frames = {"data.frames": 9}
    if name == "table2":  # a story's parts need a latent each
        frames |= {"data.tna": "[2]"}
    if name == "efficiency":
        frames = {}
        document["data"]["prompts"] = [
            {**prompt, "frames": 5 + 4 * n} for n, prompt in enumerate(document["data"]["prompts"])
        ]
    more = {"run.root": tmp_path, "data.limit": 1, "data.seeds": "[0]", "tracking.enabled": "false"}
    status = experiment([document], [f"--{k}={v}" for k, v in {**frames, **more}.items()])
    assert status["status"] == "done"
    results = read_results(tmp_path / f"{name}-tiny-wan")
    assert set(results.arms) == set(arms_of(document))
    assert all(row.status == "done" and row.scores for row in results.rows)
    assert (tmp_path / f"{name}-tiny-wan" / "report" / "report.html").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "no experiment is named: give one (cache, components, "),
        (["zigzag", "components"], "zigzag and components are named: an experiment at a time"),
        (["zigzag", "--frames", "3"], "--data.frames? (see miga-bench experiment --help)"),
        (
            ["mine.yaml"],
            "mine.yaml is a file, not a shipped experiment: give it as --config mine.yaml",
        ),
        (["componets"], "did you mean components?"),
        (["components", "--on", "tiny-van"], "--on tiny-van: did you mean tiny-wan?"),
        (["--on", "tiny-wan"], "no experiment is named"),
    ],
)
def test_wrong_words_get_one_line(arguments, says, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").touch()
    assert main(["experiment", *arguments]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1


def test_a_stopped_experiment_writes_no_report_and_says_how_to(tmp_path, monkeypatch):
    status = {"status": "stopped", "done": 3, "run": str(tmp_path), "signal": 15}
    monkeypatch.setattr("miga_bench.harness.experiment.predict", lambda *arguments: status)
    monkeypatch.setattr(
        "miga_bench.harness.experiment._report", lambda folder: pytest.fail("it did")
    )
    with pytest.warns(Notice, match=f"miga-bench report {tmp_path} tells of what is there"):
        assert experiment([{"model": {"arms": {"a": {}}}}], []) == {**status, "report": None}


def test_a_configuration_without_arms_is_no_experiment(tmp_path, capsys):
    config = tmp_path / "plain.yaml"
    config.write_text(yaml.safe_dump({"model": {"method": "fifo"}, "data": {"prompts": ["a"]}}))
    assert main(["experiment", "--config", str(config)]) == 2
    assert (
        "this is no experiment: it has neither model.arms nor model.grid" in capsys.readouterr().err
    )


def test_shipped_prompt_lists_are_good():
    for name in LISTS:
        wishes = read_wishes(name)
        assert len({wish.prompts[0].text.lower() for wish in wishes}) == len(wishes) >= 100


def test_a_story_is_told_in_parts_or_whole():
    parts = read_wishes("narrlv:tiny", 90, [3])
    whole = read_wishes("narrlv:tiny", 90, [3], whole=True)
    assert [wish.id for wish in parts] == [wish.id for wish in whole]
    for told, at_once in zip(parts, whole, strict=True):
        assert [prompt.frame for prompt in told.prompts] == [0, 30, 60]
        assert len(at_once.prompts) == 1
        assert at_once.prompts[0].text.startswith(told.prompts[0].text)


@pytest.mark.parametrize("place", PUBLIC)
def test_drift_on_public_models_holds_subject_and_background_against_the_opening(place):
    plans = [
        SuiteScores(**one["init_args"]).plan
        for one in shipped("drift", place)["model"]["metrics"]
        if one["class_path"] == "SuiteScores"
    ]
    whole = [plan for plan in plans if not plan.long]
    assert [plan.dimensions for plan in whole] == [
        ("subject_consistency", "background_consistency")
    ]
    by_clips = [name for plan in plans if plan.long for name in plan.dimensions]
    assert not set(by_clips) & set(whole[0].dimensions)  # one label has one scorer


@pytest.mark.parametrize("place", places())
def test_efficiency_has_texts_enough_for_a_verdict_and_public_models_a_thousand_frames(place):
    data = shipped("efficiency", place)["data"]
    lengths = {}
    for wish in PromptDataModule(data["prompts"], limit=data.get("limit")).wishes:
        lengths.setdefault(wish.prompts[0].text, set()).add(wish.frames)
    assert len(lengths) >= FEWEST
    (told,) = {frozenset(of_text) for of_text in lengths.values()}
    assert len(told) == 3
    assert max(told) >= 1000 or place.startswith("tiny-")


@pytest.mark.parametrize("place", PUBLIC)
def test_efficiency_on_public_models_measures_the_methods_alone(place):
    """Breaks if what is measured is how many windows fit into a GPU, or the networks of scores."""
    document = shipped("efficiency", place)
    assert LongVideoModule(**document["model"]).metrics == []
    assert {str(plan.settings["batch"]) for plan in arms_of(document).values()} == {"1"}


@pytest.mark.parametrize("place", PUBLIC)
def test_the_papers_ablations_begin_at_one_row(place):
    """Tables 4 and 5, and those of reflection and of stage 2, share the row in which all is off."""
    arms = {
        f"{name} {arm}": plan
        for name in ("zigzag", "guidance", "reflection", "stage2")
        for arm, plan in arms_of(shipped(name, place)).items()
    }

    def settings_of(arm, **more):
        plan = arms[arm]
        return resolve(plan.method, Place(place), plan.preset, {**plan.settings, **more})

    row = settings_of("zigzag zigzag-1")
    assert settings_of("guidance none") == settings_of("reflection off") == row
    assert settings_of("stage2 stage2_steps-0", stage2_steps=row.stage2_steps) == row
    judged = settings_of("reflection reflection_threshold-0.01", reflection="off")
    assert judged == dataclasses.replace(row, reflection_threshold=0.01)


@pytest.mark.parametrize("place", places())
def test_every_cell_of_table_2_has_stories_enough_for_a_verdict(place):
    data = shipped("table2", place)["data"]
    assert not data.get("whole_stories")
    wishes = PromptDataModule("narrlv:tiny", tna=data["tna"], limit=data.get("limit")).wishes
    everything = read_wishes("narrlv:tiny")
    assert len({wish.prompts for wish in everything}) == len(everything)
    cells = Counter(wish.kind for wish in wishes)
    assert len(cells) == 9
    assert min(cells.values()) >= FEWEST


def test_methods_that_make_the_whole_video_at_once_get_a_story_as_one_text(tmp_path):
    arms = {"freepca": FEW["freepca"], "fifo": FEW["fifo"]}
    document = {
        "model": {
            "backbone": "tiny-wan",
            "preset": "tiny",
            "arms": {
                name: {"method": name, "settings": {**few, "guidance_scale": 1}}
                for name, few in arms.items()
            },
        },
        "data": {"prompts": "narrlv:tiny", "tna": [2], "frames": 97, "limit": 1},
        "run": {"name": "stories", "root": str(tmp_path)},
        "tracking": {"enabled": False},
    }
    ids = '["tiny_target_action_tna_2-1-0"]'
    assert experiment([document], [f"--data.prompt_ids={ids}"])["status"] == "done"
    told = {}
    for row in read_results(tmp_path / "stories").rows:
        spec = json.loads((row.folder / "manifest.json").read_text())["spec"]
        told[row.arm] = [(one["text"], one["frame"]) for one in spec["prompts"]]
        assert " / " in row.prompt  # the run tells the story with its parts, whichever arm is first
    (story,) = (
        s
        for s in load_suite(STORIES["tiny"]).select(["target_action"], [2]).items
        if (s.group, s.index) == ("1", 0)
    )
    assert told == {
        "freepca": [(story.prompt, 0)],
        "fifo": list(zip(story.segments, [0, 48], strict=True)),
    }


def test_the_configuration_can_be_printed(capsys):
    with pytest.raises(SystemExit) as end:
        main(["experiment", "zigzag", "--print_config"])
    assert end.value.code == 0
    assert yaml.safe_load(capsys.readouterr().out)["model"]["grid"] == {"zigzag": [1, 2, 4, 6, 8]}


def test_the_last_line_is_json_with_the_report(tmp_path, capsys):
    arguments = ["--run.root", str(tmp_path), "--data.limit", "1", "--data.seeds", "[0]"]
    few = ["--data.frames", "5", "--tracking.enabled", "false", "--model.settings.steps", "2"]
    config = tmp_path / "mine.yaml"
    model = {"backbone": "tiny-wan", "method": "short", "grid": {"guidance_scale": [1, 2]}}
    config.write_text(
        yaml.safe_dump({"model": model, "data": {"prompts": "tiny-world"}, "run": {"name": "m"}})
    )
    # an option's value right after --config FILE is not taken for the name of an experiment
    assert main(["experiment", "--config", str(config), *arguments, *few]) == 0
    status = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert status["items"] == status["done"] == 2
    assert status["report"] == str(tmp_path / "m" / "report" / "report.html")
