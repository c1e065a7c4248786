"""A sampler of the user's own, by its import path: its settings are given, swept, kept and told as ours are."""

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import pytest
import yaml
from run_workers import configuration

from miga_bench.cli import main
from miga_bench.errors import UserError
from miga_bench.harness.module import LongVideoModule
from miga_bench.harness.report.measures import measures_of
from miga_bench.harness.report.tables import caption_of
from miga_bench.harness.results import read_results
from miga_bench.harness.scorers import Found, ItemScorer, Told
from miga_bench.harness.tracking.facts import facts
from miga_bench.sampling import CounterNoise, Fifo, FifoSettings, Sampler, resolve
from miga_bench.sampling.base import CommonSettings
from miga_bench.sampling.presets import PRESETS, settings_class

WAN = SimpleNamespace(family="wan", preset="paper")
OF_NONE = SimpleNamespace(family="mine", preset="paper")


@dataclass(frozen=True)
class WaveSettings(CommonSettings):
    """What a user's method may have besides what all have."""

    height: float = 0.5
    tint: str = "Red"
    form: Literal["Sine", "saw"] = "saw"
    crest: int | None = None


class Waves(Sampler[WaveSettings]):
    """Noise as high as its settings say."""

    name = "waves"

    def stream(self, backbone, prompts, noise, length=None, callback=None):
        yield from noise(range(length), "waves") * self.settings.height


@dataclass(frozen=True)
class OpenSettings(CommonSettings):
    """Has one that must be given, and a default of its own for one of ours."""

    guidance_scale: float = 2.0
    depth: int = field(kw_only=True)


class Open(Waves, Sampler[OpenSettings]):
    """A method made of another, with settings of its own."""


@dataclass(frozen=True)
class OddSettings(CommonSettings):
    """Has a setting that no text gives."""

    sizes: tuple[int, ...] = ()


@dataclass(frozen=True)
class SwitchSettings(CommonSettings):
    """Has switches of words of its own, one of a name that ours has, too."""

    tide: Literal["on", "off"] = "on"
    reflection: Literal["on", "off"] = "off"


class Switch(Waves, Sampler[SwitchSettings]):
    """Is switched on and off."""


class Odd(Waves, Sampler[OddSettings]):
    """Cannot be had from YAML."""


class Deeper(Fifo):
    """Changes one of ours."""


class Forgetful(Waves):
    """Has a fault, as a method that is being written has."""

    def stream(self, backbone, prompts, noise, length=None, callback=None):
        if length and isinstance(noise, CounterNoise):  # not when its work is estimated
            yield {}["height"]


def test_a_fault_of_its_own_is_named_with_the_file_that_has_its_traceback(tmp_path, capsys):
    """Breaks if all that is said of a KeyError is the key."""
    method = "test_own_methods.Forgetful"
    small = {"steps": 8, "guidance_scale": 3.0}
    config = configuration(
        tmp_path, model__method=method, model__settings=small, data__limit=1, data__seeds=[0]
    )
    assert main(["predict", "--config", str(config)]) == 1
    said = " ".join(capsys.readouterr().err.split())
    (trace,) = (tmp_path / "items").glob("*/error.txt")
    assert f"p001-0 failed: KeyError: 'height' ({trace} has all of it)" in said
    assert "in stream" in trace.read_text()


class Weight(ItemScorer):
    """A score of the user's own: of it less is better."""

    name = "weight"

    def identity(self):
        return {}

    def score(self, video, item):
        return Found({"mine/weight": float(item.frames)})

    def told(self):
        return {"mine/weight": Told("weight", "how heavy", "g", digits=1, better="lower")}


def test_a_score_of_ones_own_says_which_way_is_better(tmp_path, capsys):
    """Breaks if a report calls the lighter video worse, or multiplies its weight by 100."""
    config = configuration(
        tmp_path,
        model__method="fifo",
        model__settings={"steps": 8, "guidance_scale": 3.0},
        model__metrics=[{"class_path": "test_own_methods.Weight"}],
        data__limit=1,
        data__seeds=[0],
    )
    assert main(["predict", "--config", str(config)]) == 0, capsys.readouterr().err
    (measure,) = measures_of([read_results(tmp_path / "run")])
    assert (measure.title, measure.unit, measure.better) == ("weight", "g", "lower")
    assert measure.number(9.0) == "9.0"
    assert caption_of(read_results(tmp_path / "run"), measure.group) == "Other scores"


def test_words_of_its_own_are_taken_as_they_are():
    """Breaks if YAML's off, which is false, is no off, or a word of ours takes the place of its own."""
    asked = {"tide": False, "reflection": "on"}
    settings = resolve("test_own_methods.Switch", WAN, overrides=asked)
    assert (settings.tide, settings.reflection) == ("off", "on")


def test_its_videos_are_known_by_its_code(tmp_path, monkeypatch, capsys):
    """Breaks if videos of one of ours, or of a method before it was edited, are taken for its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", list(sys.path))
    code = "from miga_bench.sampling import Fifo\n\nclass Mine(Fifo):\n    pass\n"
    keys = []
    for method, text in (("fifo", ""), ("edited.Mine", code), ("edited.Mine", code + "# new\n")):
        Path("edited.py").write_text(text)
        sys.modules.pop("edited", None)
        how = {"model__method": method, "model__settings": {"steps": 8, "guidance_scale": 3.0}}
        config = configuration(tmp_path, **how, data__limit=1, data__seeds=[0])
        run = f"--run.name=r{len(keys)}"
        assert main(["predict", "--config", str(config), run]) == 0, capsys.readouterr().err
        (row,) = read_results(tmp_path / f"r{len(keys)}").rows
        keys.append(row.key)
    assert len(set(keys)) == 3
    capsys.readouterr()


def test_its_settings_are_swept_and_are_in_keys_reports_tracking_and_the_yaml(tmp_path, capsys):
    """Breaks if a setting of the user's is lost on the way from YAML to the video and what is said of it."""
    method = {"class_path": "test_own_methods.Waves"}
    config = configuration(
        tmp_path,
        model__method=method,
        model__settings={"tint": "Deep blue", "form": "sine"},
        model__grid={"height": [0.5, 2]},
        data__limit=1,
        data__seeds=[0],
        run__about={"axis": "height"},
    )
    assert main(["predict", "--config", str(config)]) == 0
    specs = [json.loads(p.read_text())["spec"] for p in tmp_path.glob("items/*/manifest.json")]
    assert {spec["method"] for spec in specs} == {"test_own_methods.Waves"}
    found = sorted((spec["settings"] for spec in specs), key=lambda settings: settings["height"])
    plain = PRESETS["tiny"]["wan"]["short"]
    own = {"tint": "Deep blue", "form": "Sine", "crest": None}
    assert [settings["height"] for settings in found] == [0.5, 2.0]
    assert all({**settings, **plain, **own} == settings for settings in found)
    run = read_results(tmp_path / "run")
    assert [facts(run, arm).params["height"] for arm in run.arms.values()] == ["0.5", "2.0"]
    assert main(["report", str(tmp_path / "run"), "-o", str(tmp_path / "out")]) == 0
    capsys.readouterr()
    report = (tmp_path / "out" / "report.md").read_text()
    assert "height 2.0" in report
    (again,) = (tmp_path / "out").glob("*.yaml")
    model = yaml.safe_load(again.read_text())["model"]
    module = LongVideoModule(**{**model, "backbone": "tiny-wan"})
    arms = {name: sampler.settings.height for name, sampler in module.samplers.items()}
    assert arms == {"height-0.5": 0.5, "height-2": 2.0}


def test_what_a_dataclass_leaves_open_is_as_for_a_plain_clip():
    path = "test_own_methods.Open"
    settings = resolve(path, WAN, None, {"depth": "3"})
    assert (settings.steps, settings.guidance_scale, settings.depth) == (54, 2.0, 3)
    assert resolve("test_own_methods.Waves", WAN).guidance_scale == 5.0
    vc2 = SimpleNamespace(family="videocrafter2", preset="paper")
    assert resolve("test_own_methods.Waves", vc2, "release").grid == "stock"
    assert resolve(path, OF_NONE, None, {"depth": 3, "steps": 8}).steps == 8


@pytest.mark.parametrize(
    ("method", "model", "given", "rule"),
    [
        ("Waves", WAN, {"tint": None}, "tint is None: give it a value, or leave it out"),
        ("Waves", WAN, {"form": "sign"}, "form is 'sign': it must be one of Sine, saw"),
        ("Waves", WAN, {"crest": "1.5"}, "crest is '1.5': it must be a whole number"),
        ("Waves", WAN, {"steps": 1}, "steps is 1: it must be from 2 to 1000"),
        ("Waves", OF_NONE, {}, "has no value for steps, guidance_scale: give it as a setting"),
        ("Open", WAN, {}, "test_own_methods.Open has no value for depth: give it as a setting"),
        ("Odd", WAN, {}, "its setting sizes is a tuple[int, ...]: make it a bool, int"),
        ("WaveSettings", WAN, {}, "'test_own_methods.WaveSettings' is no sampler: give a class"),
        ("Sampler", WAN, {}, "'test_own_methods.Sampler' is no sampler: give a class"),
    ],
)
def test_what_is_refused(method, model, given, rule):
    with pytest.raises(UserError) as refused:
        resolve(f"test_own_methods.{method}", model, None, given)
    assert rule in str(refused.value)


def test_a_module_that_fails_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "own_broken.py").write_text("raise RuntimeError('of\\nits own')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=r"'own_broken.X' cannot be imported \(of its own\): give"):
        resolve("own_broken.X", WAN)
    with pytest.raises(UserError, match=r"cannot be imported \(No module named 'own_absent'"):
        resolve("own_absent.X", WAN)


def test_the_nearest_type_argument_counts():
    assert settings_class(Deeper) is FifoSettings
    assert settings_class(Open) is OpenSettings
    assert settings_class(type("Bare", (Sampler,), {})) is CommonSettings
