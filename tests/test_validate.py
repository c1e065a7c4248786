"""The pre-flight of a run: what it says is what the run then does, and it leaves no trace."""

import json
import os
import shutil
import time
from collections import Counter, namedtuple
from types import SimpleNamespace

import pytest
from run_workers import SETTINGS, configuration
from simple_backbone import SimpleBackbone
from wan_fixtures import tiny_folder

from miga_bench.backbones.hub_files import hub_id, missing_files
from miga_bench.backbones.loaded import LoadedBackbone
from miga_bench.cli import main
from miga_bench.harness import validate as page
from miga_bench.harness.locks import NamedLock
from miga_bench.harness.probe import Probe
from miga_bench.offline import offline
from miga_bench.sampling import METHODS, CounterNoise, PromptSchedule, resolve
from miga_bench.sampling.base import CommonSettings, Sampler
from miga_bench.sampling.estimate import Call, Estimate, estimate
from miga_bench.sampling.rewards import fetch_dino

FEW = {"data__limit": 2, "data__seeds": [0], "data__frames": 33}
TURNING = '[{"prompt": "a circle right", "then": {"17": "a circle up"}}]'
PAIR = ["--trainer.devices", 2, "--trainer.strategy", "ddp", "--run.window_parallel", 2]
ARMS = {"short": {"method": "short", "settings": {"steps": 2}}, "wide": {"settings": {"zigzag": 3}}}


@pytest.fixture
def look(tmp_path, capsys):
    """Return a function that validates a configuration: exit code, document, steps by name."""

    def validate(*options, **changes):
        config = configuration(tmp_path, **{**FEW, **changes})
        code = main(["validate", "--config", str(config), *map(str, options)])
        out, err = capsys.readouterr()
        (line,) = out.splitlines()
        document = json.loads(line)
        steps = {step["name"]: step for step in document["steps"]}
        shown = [line for line in err.splitlines() if line[:2].strip().isdecimal()]
        assert len(shown) == len(page.STEPS) == len(steps)
        assert document["starts"] == (code == 0)
        assert code in (0, 2)
        return code, document, steps

    return validate


def files(root):
    return {path: path.lstat().st_mtime_ns for path in root.rglob("*") if path.suffix != ".yaml"}


def test_a_team_takes_as_long_as_the_shares_of_its_busiest_process(look, monkeypatch):
    """Breaks if two processes are promised to be twice as fast where calls cannot be halved."""

    def seconds(_, found, frames):
        return sum(call.rows * count for call, count in found.shares.items())

    monkeypatch.setattr(Probe, "seconds", seconds)
    unguided = ["--model.settings.guidance_scale", 1]  # a window is one row
    _, alone, steps = look(*unguided)
    assert steps["time"]["status"] == "ok", steps
    _, pair, steps = look(*PAIR, *unguided)
    assert steps["time"]["status"] == "ok", steps
    alone, pair = alone["seconds"], pair["seconds"]
    assert alone["each_process"] / 2 < pair["each_process"] < alone["each_process"]
    assert pair["each_process"] == pair["in_all"]


def test_a_teams_seconds_are_those_of_its_largest_shares():
    probe = Probe(SimpleBackbone())
    probe._row = {(4, None): 2.0}
    found = Estimate(2, calls=Counter({Call(3, 4): 5}))  # two rows of three, five times
    assert probe.seconds(found, 0) == 5 * 2 * 2.0


def test_a_videos_cost_counts_latents_not_windows():
    """Breaks if a method whose few windows hold the whole video is dealt out last, as the shortest."""
    found = Estimate(calls=Counter({Call(2, 81): 3, Call(4, 21): 5}))
    assert (found.nfe, found.latents) == (26, 3 * 2 * 81 + 5 * 4 * 21)


def test_a_teams_largest_call_is_one_processs():
    """Breaks if all rows of a team are held against the memory of each."""
    backbone = SimpleNamespace(window=4, clip_bytes=lambda frames, copies: 10 * frames)
    sampler = METHODS["short"](resolve("short", SimpleBackbone()))
    looking = SimpleNamespace(model=SimpleNamespace(backbone=backbone, samplers={"": sampler}))
    found = Estimate(2, calls=Counter({Call(3, 4): 5, Call(1, 4): 1}))
    assert page.Preflight._call_bytes(looking, "p001-0", found) == 2 * 40


def test_it_says_what_the_run_then_does_and_leaves_no_trace(look, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(Probe, "seconds", lambda self, found, frames: found.nfe / 10)
    code, document, steps = look(model__arms=ARMS)
    assert code == 0
    assert files(tmp_path) == {}
    assert {step["status"] for step in steps.values()} <= {"ok", "note"}
    assert (document["items"], document["done"], document["todo"]) == (4, 0, 4)
    assert "run is new" in steps["run folder"]["text"]
    assert set(document["seconds"]["a_video"]) == {"short", "wide"}
    assert document["seconds"]["in_all"] == pytest.approx(document["nfe"] / 10, abs=0.06)
    assert main(["predict", "--config", str(tmp_path / "run.yaml")]) == 0
    capsys.readouterr()
    manifests = [json.loads(p.read_text()) for p in tmp_path.glob("items/*/manifest.json")]
    for name in ("windows", "nfe"):
        assert document[name] == sum(manifest["cost"][name] for manifest in manifests)
    made = sum(p.stat().st_size for p in tmp_path.glob("items/*/*") if p.is_file())
    assert 0.3 * made < document["disk"]["need_bytes"] < 10 * made
    before = files(tmp_path)
    _, document, steps = look(model__arms=ARMS)
    assert (document["done"], document["todo"], document["windows"]) == (4, 0, 0)
    assert "goes on: 4 of 4 videos are there" in steps["run folder"]["text"]
    shutil.rmtree(next((tmp_path / "items").glob("[0-9a-f]*")))
    _, document, _ = look("--no-probe", model__arms=ARMS)
    assert (document["done"], document["todo"], "seconds" in document) == (3, 1, False)
    assert set(files(tmp_path)) <= set(before)


def test_what_a_cache_saves_is_said_not_to_be_counted():
    flight = page.Preflight([])
    samplers = {
        arm: SimpleNamespace(settings=SimpleNamespace(cache=cache))
        for arm, cache in {"plain": 0.0, "cached": 0.1}.items()
    }
    flight.model = SimpleNamespace(samplers=samplers, prepare=lambda items: None)
    flight.items = dict.fromkeys(("plain/p-0", "cached/p-0"))
    flight.estimates = dict.fromkeys(("plain/p-0", "cached/p-0"), SimpleNamespace(windows=1, nfe=2))
    flight.todo = ["plain/p-0"]
    assert flight.work()[1].endswith("what a search adds is not in it")
    flight.todo = ["plain/p-0", "cached/p-0"]
    assert flight.work()[1].endswith("nor what a cache saves: arms that have one take less")


def test_a_run_that_would_be_refused(look, tmp_path, capsys):
    look()
    main(["predict", "--config", str(tmp_path / "run.yaml"), "--data.limit", "1"])
    capsys.readouterr()
    code, _, steps = look("--data.limit", 1, "--model.settings.zigzag", 3)
    assert (code, steps["run folder"]["status"]) == (2, "problem")
    assert "model.settings.zigzag 2 -> 3" in steps["run folder"]["text"]
    assert steps["time"]["text"] == "waits for run folder"
    lock = NamedLock(tmp_path / "run" / ".lock")
    lock.acquire()
    code, _, steps = look("--data.limit", 1)
    assert (code, "being written by process" in steps["run folder"]["text"]) == (2, True)
    lock.release()
    assert look("--data.limit", 1)[0] == 0
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").touch()
    code, _, steps = look("--run.name", "thesis")
    assert (code, "holds something that is no run" in steps["run folder"]["text"]) == (2, True)


@pytest.mark.parametrize(
    ("options", "step", "rule"),
    [
        (["--model.settings.zigzg", 3], "configuration", "did you mean zigzag"),
        (["--data.limit", 0], "configuration", "data.limit is 0"),
        (["--model.settings.steps", 1], "configuration", "steps is 1: it must be from 2 to 1000"),
        (
            ["--model.method", "fifo", "--model.settings", '{"cache": 0.1}', *PAIR],
            "configuration",
            "cache is 0.1: processes that make a video together (run.window_parallel) do not",
        ),
        (["--model.settings.zigzag", 99], "settings", "zigzag is 99: it must be from 1 to"),
        (["--trainer.precision", "64-true"], "backbone", "trainer.precision 64-true"),
        (["--trainer.accelerator", "tpu"], "configuration", ""),
        (["--run.window_parallel", 2], "configuration", "run.window_parallel is 2: it must divide"),
        (
            ["--model.method", "freelong", "--model.settings", "null", "--data.prompts", TURNING],
            "settings",
            "freelong makes the whole video under one prompt, which cannot change on the way",
        ),
    ],
)
def test_wrong_input_is_a_problem_of_its_step(look, tmp_path, options, step, rule):
    code, _, steps = look("--no-probe", *options)
    assert (code, steps[step]["status"]) == (2, "problem")
    assert rule in steps[step]["text"]
    assert files(tmp_path) == {}


def test_what_is_missing_is_said_and_not_fetched(look, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("VBENCH_CACHE_DIR", str(tmp_path / "vbench"))
    monkeypatch.setenv("HOME", str(tmp_path))
    code, _, steps = look("--no-probe", model__backbone="wan2.1-1.3b", model__settings={})
    told = steps["backbone"]["text"]
    assert (code, steps["settings"]["text"]) == (2, "waits for backbone")
    assert "transformer/diffusion_pytorch_model.safetensors" in told
    assert f"`hf download {hub_id('wan2.1-1.3b')}`" in told
    vbench = {"class_path": "SuiteScores", "init_args": {"suite": "vbench"}}
    code, _, steps = look("--no-probe", model__metrics=[vbench])
    assert (code, steps["scorers"]["status"], steps["settings"]["status"]) == (2, "problem", "ok")
    assert files(tmp_path) == {}


def test_scores_that_no_prompt_is_for_are_noted(look):
    """Breaks if scores that were asked for are missing in a report without a word."""
    told = [{"prompt": "a", "dimensions": ["dynamic_degree"]}, {"prompt": "b"}]
    suite = {
        "class_path": "SuiteScores",
        "init_args": {"dimensions": ["motion_smoothness", "dynamic_degree"]},
    }
    few = {"data__limit": 1, "model__metrics": [suite]}
    code, document, steps = look("--no-probe", data__prompts=told, **few)
    assert (code, steps["scorers"]["status"], len(document["scorers"])) == (0, "note", 1)
    assert steps["scorers"]["text"].endswith("no prompt is for motion_smoothness")
    _, document, steps = look("--no-probe", data__prompts=told, **{**few, "data__limit": 2})
    assert (steps["scorers"]["status"], len(document["scorers"])) == ("ok", 2)


def test_a_reward_that_is_not_here_is_a_problem_of_the_work(look, tmp_path, monkeypatch):
    """Breaks if a run starts whose every video fails at its first search."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    fetch_dino.cache_clear()
    searching = {"model__method": "scaling-noise", "model__settings": {"reward": "dino"}}
    code, _, steps = look("--no-probe", **searching)
    assert (code, steps["settings"]["status"], steps["work"]["status"]) == (2, "ok", "problem")
    assert "reward is 'dino': facebook/dino-vitb16 could not be loaded" in steps["work"]["text"]
    assert look("--no-probe", "--model.settings.reward", "latent", **searching)[0] == 0


def test_files_of_a_hub_model_that_are_there_are_not_missing(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert missing_files("videocrafter2") == ["model.ckpt"]
    folder = tmp_path / f"models--{hub_id('videocrafter2').replace('/', '--')}"
    (folder / "snapshots" / "abc").mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("abc")
    (folder / "snapshots" / "abc" / "model.ckpt").touch()
    assert missing_files("videocrafter2") == []
    assert hub_id("tiny-wan") is None


def test_a_text_encoder_that_has_to_run_is_missed_too(look, tmp_path, monkeypatch):
    """Breaks if only part of a Hub model is here and nobody says how to fetch the rest."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MIGA_BENCH_CACHE", str(tmp_path / "embeddings"))
    folder = tmp_path / "cache" / f"models--{hub_id('wan2.1-1.3b').replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0123abcd" * 5)
    snapshot = tiny_folder(folder / "snapshots" / ("0123abcd" * 5))
    (snapshot / "model_index.json").write_text("{}")
    settings = {"model__backbone": "wan2.1-1.3b", "model__settings": {"steps": 4}}
    settings |= {"model__method": "short", "model__arms": None}
    step = look("--no-probe", **settings)[2]["texts"]
    assert step["status"] != "problem", step["text"]
    shutil.rmtree(snapshot / "text_encoder")
    code, _, steps = look("--no-probe", **settings)
    told = steps["texts"]["text"]
    assert (code, steps["texts"]["status"]) == (2, "problem")
    assert "text_encoder/config.json, text_encoder/model.safetensors missing" in told
    assert f"`hf download {hub_id('wan2.1-1.3b')}`" in told


def test_stories_of_the_release_are_not_fetched(look, tmp_path, monkeypatch):
    def fetched(*arguments, **named):
        raise AssertionError("fetched")

    monkeypatch.setenv("MIGA_BENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("urllib.request.urlopen", fetched)
    code, _, steps = look("--no-probe", data__prompts="narrlv:release")
    assert (code, steps["configuration"]["status"]) == (2, "problem")
    assert "downloads are off (MIGA_BENCH_OFFLINE)" in steps["configuration"]["text"]
    assert not (tmp_path / "cache").exists()


def test_offline_ends_with_its_block(monkeypatch):
    from huggingface_hub import constants

    monkeypatch.delenv("MIGA_BENCH_OFFLINE", raising=False)
    before = constants.HF_HUB_OFFLINE
    with offline():
        assert constants.HF_HUB_OFFLINE
    assert before == constants.HF_HUB_OFFLINE
    assert "MIGA_BENCH_OFFLINE" not in os.environ


def test_a_disk_too_small(look, monkeypatch):
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(page.shutil, "disk_usage", lambda _: usage(10))
    code, _, steps = look("--no-probe")
    assert (code, "choose another run.root" in steps["disk"]["text"]) == (2, True)


@pytest.mark.parametrize(
    ("method", "step", "rule"),
    [
        ("freelong", "settings", "freelong denoises all 31 latents at once on tiny-wan"),
        ("fifo", "memory", "give a smaller settings.batch"),
    ],
)
def test_memory_too_small(look, monkeypatch, method, step, rule):
    monkeypatch.setattr(LoadedBackbone, "free_bytes", lambda self: 2**20)
    code, _, steps = look(
        "--no-probe",
        model__backbone="tiny-wan",
        model__method=method,
        model__settings={},
        data__frames=121,
        data__prompts=["a dog moves right on a blue field"],
    )
    assert (code, steps[step]["status"]) == (2, "problem")
    assert rule in steps[step]["text"]
    if step != "settings":  # of which the texts come
        assert steps["texts"]["status"] == "note"
        assert steps["texts"]["text"].endswith("passes over: dog")


def test_free_memory_that_is_not_known_is_not_the_models_fault(look, monkeypatch):
    monkeypatch.setattr(LoadedBackbone, "free_bytes", lambda self: None)
    changes = {"backbone": "tiny-wan", "method": "fifo", "settings": {}}
    changes = {f"model__{name}": value for name, value in changes.items()}
    code, document, steps = look("--no-probe", data__frames=121, **changes)
    assert (code, steps["memory"]["status"]) == (0, "note")
    assert steps["memory"]["text"].startswith("the largest denoiser call takes about")
    assert steps["memory"]["text"].endswith("; free memory is not known here")
    assert document["memory"]["peak_bytes"] > 0


class Untouched(Sampler[CommonSettings]):
    """Hands out noise: no denoiser call, no pass."""

    name = "untouched"

    def stream(self, backbone, prompts, noise, length=None, callback=None):
        yield from noise(range(length), "untouched")


def test_a_sampler_that_calls_no_denoiser(look, tmp_path):
    """Breaks if what has no call is an error of an empty sequence, in the run or before."""
    settings = {"steps": 2, "guidance_scale": 1.0}
    method = {"class_path": "test_validate.Untouched"}
    code, document, steps = look(model__method=method, model__settings=settings)
    assert (code, document["nfe"], document["windows"]) == (0, 0, 0)
    assert steps["memory"]["text"] == "no sampler calls the denoiser"
    assert main(["predict", "--config", str(tmp_path / "run.yaml")]) == 0


def test_prompts_that_say_the_same_are_noted_and_one_too_long_is_refused(look):
    twice = [{"prompt": "a dog", "seeds": [0]}, {"prompt": "A  dog", "seeds": [1]}]
    code, _, steps = look("--no-probe", data__prompts=twice)
    assert (code, steps["prompts"]["status"]) == (0, "note")
    assert "1 told more than once, the first 'a dog'" in steps["prompts"]["text"]
    long = ["a red circle " * 200]
    code, _, steps = look("--no-probe", model__backbone="tiny-wan", data__prompts=long)
    assert (code, "shorten" in steps["settings"]["text"]) == (2, True)
    short = {"model__method": "short", "model__settings": {"steps": 2}}
    wan = {"model__backbone": "tiny-wan", "data__prompts": long, **short}
    code, _, steps = look("--no-probe", "--model.long_prompts=cut", **wan)
    assert (code, steps["settings"]["status"]) == (0, "ok")


@pytest.mark.parametrize("method", ["short", "fifo", "miga"])
def test_the_calls_are_those_of_the_sampler(method):
    backbone = SimpleBackbone()
    settings = SETTINGS if method == "miga" else {"steps": 12}
    sampler = METHODS[method](
        resolve(method, backbone, None, {k: str(v) for k, v in settings.items()})
    )
    length = 6 if method == "short" else 9
    found = estimate(sampler, backbone, length)
    prompts = PromptSchedule(backbone.encode(["a"]), backbone.encode([""]))
    noise = CounterNoise(0, backbone.latent_shape)
    assert sum(1 for _ in sampler.stream(backbone, prompts, noise, length)) == length
    assert found.nfe == backbone.clean_denoiser.calls
    batches = sorted(rows for call, n in found.calls.items() for rows in [call.rows] * n)
    assert batches == sorted(backbone.clean_denoiser.batches)


def test_seconds_are_those_of_a_call_times_their_number():
    backbone, pause = SimpleBackbone(), 0.005
    quick = backbone.denoiser

    def slow(latents, timesteps, text):
        time.sleep(pause * len(latents))
        return quick(latents, timesteps, text)

    backbone.denoiser = slow
    sampler = METHODS["fifo"](resolve("fifo", backbone, None, {"steps": "12"}))
    found = estimate(sampler, backbone, 9)
    probe = Probe(backbone)
    probe.measure(found.calls)
    expected = found.nfe * pause
    assert expected <= probe.seconds(found, 33) < 3 * expected  # a busy machine sleeps longer


def test_a_shipped_experiment(capsys, tmp_path):
    command = ["validate", "stage2", "--no-probe", "--data.limit", "1"]
    command += ["--trainer.accelerator", "cpu", "--trainer.devices", "1"]
    assert main([*command, "--run.root", str(tmp_path)]) == 0
    assert json.loads(capsys.readouterr().out)["todo"] > 1
    assert main(["validate", "--on", "tiny-wan"]) == 2
    assert "--on is for shipped experiments" in capsys.readouterr().err
    assert main(["validate", "stage3"]) == 2
    assert "did you mean stage2?" in capsys.readouterr().err
