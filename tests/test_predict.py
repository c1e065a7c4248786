"""The verb predict: what it refuses, how values reach it, and every configuration that is shipped."""

import json
import logging
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from run_workers import CountingBackbone, configuration

from miga_bench.backbones import BACKBONES, known_as, one_spelling
from miga_bench.backbones.tiny.models import WEIGHTS as TINY_WEIGHTS
from miga_bench.cli import main
from miga_bench.harness.configurations import as_option, laid_over
from miga_bench.harness.items import Item
from miga_bench.harness.module import WEIGHTS
from miga_bench.harness.predict import predict, usual_precision
from miga_bench.harness.shipped import run_of, runs
from miga_bench.media import count_frames
from miga_bench.sampling import METHODS

FEW = {
    "short": {"steps": 2},
    "fifo": {"steps": 21},
    "scaling-noise": {"steps": 21, "reward": "latent"},
    "freelong": {"steps": 2},
    "freepca": {"steps": 2},
    "miga": {"steps": 8, "zigzag": 4, "stage2_steps": 2, "renoise": 0, "reflection_level": 7},
}


@pytest.fixture(autouse=True)
def leave_warnings_alone():
    levels = {
        name: logging.getLogger(name).level for name in ("lightning.pytorch", "lightning.fabric")
    }
    with warnings.catch_warnings():
        yield
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


def few_items(tmp_path, **changes):
    return configuration(tmp_path, **{"data__limit": 1, "data__seeds": [0]} | changes)


def manifest_of(root):
    (path,) = (root / "items").glob("*/manifest.json")
    return json.loads(path.read_text())


def test_there_is_a_configuration_for_every_method_and_backbone():
    """Breaks if the names that help shows are not those of the methods."""
    assert list(runs()) == sorted(f"{one}-{method}" for one in BACKBONES for method in METHODS)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_configurations_differ_in_what_their_method_can_make(backbone):
    """Breaks if a clip is asked to be long, or a video that is made at once to outgrow the memory."""
    documents = {method: run_of(f"{backbone}-{method}") for method in METHODS}
    frames = {method: document["data"].pop("frames") for method, document in documents.items()}
    long = frames["miga"]
    at_once = {"wan2.1-1.3b": 321, "videocrafter2": 128}.get(backbone, long)
    assert frames == dict.fromkeys(METHODS, long) | {
        "short": None,
        "freelong": at_once,
        "freepca": at_once,
    }
    for method, document in documents.items():
        assert document["model"].pop("method") == method
        assert document["run"].pop("name") == f"{backbone}-{method}"
    assert all(document == documents["miga"] for document in documents.values())


def test_later_configurations_win_value_by_value():
    parts = [{"data": {"frames": 5, "limit": 1}}, {"data": {"frames": 9}}, {"run": {"name": "a"}}]
    whole = laid_over(parts)
    assert whole == {"data": {"frames": 9, "limit": 1}, "run": {"name": "a"}}
    option, text = as_option(whole)
    assert (option, yaml.safe_load(text)) == ("--config", whole)
    assert laid_over([{"trainer": {"a": 1}}, {"trainer": {"class_path": "T"}}]) == {
        "trainer": {"class_path": "T"}
    }


@pytest.mark.parametrize("name", runs())
def test_every_configuration_runs_on_its_tiny_backbone(tmp_path, name):
    document = run_of(name)
    model = document["model"]
    tiny = f"tiny-{BACKBONES[model['backbone']].family}"
    few = {**FEW[model["method"]], "guidance_scale": 1}
    options = {
        "model.backbone": tiny,
        **{f"model.settings.{setting}": value for setting, value in few.items()},
        "data.frames": "null" if model["method"] == "short" else 5,
        "data.seeds": "[0]",
        "data.limit": 1,
        "trainer.accelerator": "cpu",
        "trainer.devices": 1,
        "trainer.strategy": "auto",
        "run.root": str(tmp_path),
    }
    if "height" in model:
        options |= {"model.height": 64, "model.width": 64}
    arguments = [f"--{option}={value}" for option, value in options.items()]
    status = predict([*as_option(document), *arguments])
    assert (status["status"], status["done"], status["failed"]) == ("done", 1, {})
    manifest = manifest_of(tmp_path)
    assert manifest["spec"]["settings"]["steps"] == few["steps"]
    frames = count_frames(next((tmp_path / "items").glob("*/video.mp4")))
    assert frames == manifest["frames"] == manifest["spec"]["frames"]
    assert torch.get_default_dtype() == torch.float32


def refused(capsys, *arguments):
    code = main(["predict", *map(str, arguments)])
    out, err = capsys.readouterr()
    assert (code, out, err.count("\n")) == (2, "", 1), err
    return err


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        (["--model.method", "mgia"], "unknown method 'mgia': did you mean miga?"),
        (["--model.settings.zigzg", "3"], "no setting 'zigzg': did you mean zigzag"),
        (["--model.settings.steps", "many"], "steps is 'many': it must be a whole number"),
        (["--model.settings.zigzag", "99"], "zigzag is 99: it must be from 1 to"),
        (["--model.preset", "anchord"], "did you mean anchored"),
        (["--model.compil", "true"], "no option --model.compil: check its name"),
        (["--data.seedz", "[1]"], "no option --data.seedz: did you mean --data.seeds?"),
        (["--trainer.max_epocs=3"], "did you mean --trainer.max_epochs"),
        (["--frames", "3"], "no option --frames: did you mean --data.frames?"),
        (["more"], "unexpected 'more': values stand behind options"),
        (
            ["--data.frames", "abc"],
            "data.frames cannot be abc: it must be a whole number or null",
        ),
        (
            ["--data.seeds", "0", "1"],
            "data.seeds cannot be 0: it must be a list like [0, 1] or null",
        ),
        (["--data.prompt_ids", "p1"], "it must be a list like [a, b] or null"),
        (["--model.offload", "maybe"], "model.offload cannot be maybe: it must be true or false"),
        (["--model.denoiser", "compile"], "cannot be compiled"),
        (["--model.denoiser", "onxx"], "did you mean onnx?"),
        (["--model.denoiser", "onnx:."], "class_path runs its own denoiser"),
        (["--data.limit", "0"], "data.limit is 0"),
        (["--data.frames", "0"], "data.frames is 0"),
        (["--data.seeds", "[1, 1]"], "a seed is in it twice"),
        (["--data.prompt_ids", "[p001, p9]"], "data.prompt_ids has 'p9'"),
        (["--data.prompts", "none.txt"], "cannot read none.txt"),
        (["--run.name", "../up"], "run.name is '../up'"),
        (["--run.fail_on_error", "1.5"], "run.fail_on_error is 1.5"),
        (["--run.window_parallel", "0"], "run.window_parallel is 0: it must divide"),
        (["--run.window_parallel", "2"], "which is 1 (trainer.devices times trainer.num_nodes)"),
        (
            ["--model.metrics", "[{class_path: StoryScores, init_args: {judgee: 3}}]"],
            "StoryScores': Option 'judgee' is not accepted",
        ),
        (["--trainer.accelerator", "abacus"], "trainer: You selected an invalid accelerator"),
        (["--trainer.devices", "abc"], "should be an int > 0: check --trainer options"),
        (["--trainer.precision", "64-true"], "trainer.precision 64-true: it may be 32-true"),
        (["--config", "none.yaml"], "cannot read none.yaml (no such file"),
        (["--run.about", "{tittle: a}"], "did you mean title?"),
        (
            ["--model.negative_prompt", "a\u202eb"],
            "model.negative_prompt holds the control character",
        ),
        (["--run.about", "{baseline: fifo}"], "baseline is 'fifo': a run without arms has none"),
        (
            ["--run.about", "{baseline: fiffo}", "--model.arms", "{fifo: {}, b: {preset: tiny}}"],
            "did you mean fifo?",
        ),
        (["--run.about", "{published: table_9}"], "run.about.published is 'table_9'"),
        (["--run.about", "{axis: zigzack}"], "did you mean zigzag?"),
        (["--run.about", "{published: null, axis: null}", "--data.seeds", "[1, 1]"], "in it twice"),
        (["--config", "wan2.1-1.3b-mig"], "did you mean wan2.1-1.3b-miga"),
        (["--config", "tiny-wan-migaa"], "'tiny-wan-migaa': did you mean tiny-wan-miga"),
    ],
)
def test_wrong_input_is_one_line_and_makes_nothing(capsys, tmp_path, options, rule):
    config = few_items(tmp_path)
    assert rule in refused(capsys, "--config", config, *options)
    assert not (tmp_path / "items").exists()
    assert not (tmp_path / "run" / "run.yaml").exists()


def test_a_file_that_is_no_yaml_is_one_line(capsys, tmp_path):
    bad = tmp_path / "bad.yaml"
    bad.write_text("model: {a: 3")
    said = refused(capsys, "--config", bad)
    assert f"{bad} is not YAML (while parsing a flow mapping at line 1, column 8" in said
    bad.write_text("")
    assert f"{bad} is not a configuration: give a mapping" in refused(capsys, "--config", bad)


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("modell: {method: miga}", "no setting modell.method: did you mean model.method?"),
        ("metod: miga", "no setting metod: did you mean model.method?"),
        ("modell: 3", "no setting modell: did you mean"),
        ("model: {metod: miga}", "no setting model.metod: did you mean model.method"),
        ("data: {frames: abc}", "data.frames cannot be abc: it must be a whole number or null"),
    ],
)
def test_a_name_that_is_none_has_its_near_one(capsys, tmp_path, text, rule):
    (tmp_path / "odd.yaml").write_text(text)
    assert rule in refused(capsys, "--config", tmp_path / "odd.yaml")


def test_other_values_under_the_same_name_are_refused(capsys, tmp_path):
    config = few_items(tmp_path)
    assert main(["predict", "--config", str(config)]) == 0
    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (document["status"], document["done"]) == ("done", 1)
    line = refused(
        capsys, "--config", config, "--model.settings.zigzag", "3", "--data.frames", "13"
    )
    assert "model.settings.zigzag 2 -> 3; prompts.p001.frames 9 -> 13" in line


def test_options_and_later_files_win(tmp_path):
    config = few_items(tmp_path)
    (tmp_path / "more.yaml").write_text("{data: {frames: 13}, model: {settings: {zigzag: 3}}}")
    more = ["--config", str(tmp_path / "more.yaml"), "--model.settings.steps", "9"]
    assert main(["predict", "--config", str(config), *more]) == 0
    spec = manifest_of(tmp_path)["spec"]
    assert (spec["frames"], spec["settings"]["zigzag"], spec["settings"]["steps"]) == (13, 3, 9)


def test_a_failed_video_does_not_stop_the_others(capsys, tmp_path):
    config = configuration(tmp_path, data__seeds=[0])
    poison = "--model.backbone.init_args.poison=a circle so red"
    assert main(["predict", "--config", str(config), poison]) == 1
    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (document["done"], document["failed"]) == (5, {"p002-0": "poisoned"})
    assert main(["predict", "--config", str(config), "--run.fail_on_error", "0.2"]) == 0
    capsys.readouterr()
    assert main(["predict", "--config", str(config)]) == 0  # nothing poisons it now
    assert len(list((tmp_path / "run" / "videos").iterdir())) == 6
    shown = json.loads((tmp_path / "run" / "prompts.json").read_text())
    assert shown["p002-0.mp4"] == "a circle so red"


@pytest.mark.parametrize("precision", ["bf16-true", "bf16-mixed"])
def test_the_denoiser_runs_in_the_trainers_precision(tmp_path, precision, monkeypatch):
    from miga_bench.backbones.wan_denoiser import WanDenoiser
    from miga_bench.backbones.wan_vae import WanStreamingDecoder

    seen = set()
    denoise, decode = WanDenoiser.forward, WanStreamingDecoder.push

    def watch_denoiser(self, latents, *others, **named):
        weights = next(self.transformer.blocks[0].attn1.to_q.parameters()).dtype
        if not latents.is_meta:  # as where its work is counted, without values
            seen.add(("denoiser", torch.is_autocast_enabled("cpu"), weights, latents.dtype))
        return denoise(self, latents, *others, **named)

    def watch_decoder(self, latents):
        seen.add(("decoder", torch.is_autocast_enabled("cpu")))
        return decode(self, latents)

    monkeypatch.setattr(WanDenoiser, "forward", watch_denoiser)
    monkeypatch.setattr(WanStreamingDecoder, "push", watch_decoder)
    config = few_items(
        tmp_path,
        model__backbone="tiny-wan",
        model__method="short",
        model__settings={"steps": 2},
        data__frames=1,
        trainer__precision=precision,
    )
    assert predict(["--config", str(config)])["status"] == "done"
    mixed = precision == "bf16-mixed"
    weights = torch.float32 if mixed else torch.bfloat16
    assert seen == {("denoiser", mixed, weights, torch.float32), ("decoder", False)}
    assert manifest_of(tmp_path)["spec"]["precision"] == precision
    assert set(WEIGHTS) >= {"32-true", precision}


def test_a_prompt_that_is_too_long_is_refused_or_cut_where_it_can_be_seen(capsys, tmp_path):
    """Breaks if the end of a prompt is left out and nobody is told, or a video is made before it is refused."""
    words = " ".join(["a red circle moves right"] * 20)
    changes = {
        "model__backbone": "tiny-wan",
        "model__method": "short",
        "model__settings": {"steps": 2},
    }
    config = few_items(tmp_path, data__prompts=[words, "a red circle"], data__limit=None, **changes)
    assert main(["predict", "--config", str(config)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert (
        "prompt p001: 'a red circle moves right a red circle mo'... is longer than tiny-wan" in line
    )
    assert "--model.long_prompts cut" in line
    assert not list(tmp_path.glob("items/*/manifest.json"))
    short = few_items(tmp_path, model__negative_prompt=words, **changes)
    assert main(["predict", "--config", str(short)]) == 2  # what guidance steers away from, too
    assert "is longer than tiny-wan reads" in capsys.readouterr().err
    config = few_items(tmp_path, data__prompts=[words, "a red circle"], data__limit=None, **changes)
    assert main(["predict", "--config", str(config), "--model.long_prompts", "cut"]) == 0
    assert "1 of 2 texts are longer than tiny-wan reads and are cut" in capsys.readouterr().err
    specs = [
        json.loads(path.read_text())["spec"]
        for path in (tmp_path / "items").glob("*/manifest.json")
    ]
    specs.sort(key=lambda spec: spec["uncut"] is None)
    (told,) = specs[0]["prompts"]
    assert words.startswith(told["text"] + " ")
    assert specs[0]["uncut"] == [words]
    assert specs[1]["uncut"] is None  # its key is what it is without the option
    assert Item.of(specs[0]).spec() == specs[0]
    assert json.loads((tmp_path / "run" / "prompts.json").read_text())["p001-0.mp4"] == words


@pytest.mark.parametrize(
    ("trainer", "model", "expected"),
    [
        ({}, {}, {"precision": "bf16-true"}),
        ({}, {"backbone": "videocrafter2"}, {"precision": "16-true"}),
        ({"precision": "32-true"}, {}, {}),
        ({"accelerator": "cpu"}, {}, {}),
        ({"accelerator": "gpu"}, {"denoiser": "compile"}, {"precision": "bf16-true"}),
        ({}, {"denoiser": "onnx:."}, {}),
        ({}, {"backbone": {"class_path": "own.Backbone"}}, {}),
    ],
)
def test_on_a_gpu_runs_compute_as_generate_does(monkeypatch, trainer, model, expected):
    """Breaks if a run of one's own takes float32 on a GPU because nobody said otherwise."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda place: (9, 0))
    config = SimpleNamespace(
        trainer=SimpleNamespace(**{"accelerator": "auto", "precision": None} | trainer),
        model=SimpleNamespace(**{"backbone": "wan2.1-1.3b", "denoiser": "torch"} | model),
    )
    assert usual_precision(config) == expected
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert usual_precision(config) == {}


def test_texts_of_what_is_still_to_be_made_are_encoded_ahead(tmp_path, monkeypatch):
    """Breaks if a large text encoder is loaded for each prompt of a run, or where nothing is to be made."""
    ahead = []
    monkeypatch.setattr(
        CountingBackbone,
        "encode_ahead",
        lambda self, texts: ahead.append(sorted(texts)),
        raising=False,
    )
    config = configuration(tmp_path, data__seeds=[0, 1], data__limit=2)
    assert predict(["--config", str(config)])["status"] == "done"
    assert predict(["--config", str(config)])["status"] == "done"
    (first, *rest) = ahead
    made = [json.loads(p.read_text()) for p in (tmp_path / "items").glob("*/manifest.json")]
    prompts = {one["spec"]["prompts"][0]["text"] for one in made}
    assert (len(made), len(prompts)) == (4, 2)
    assert set(first) == {"", *prompts}
    assert rest in ([], [[]])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_told_in_one_line(capsys, tmp_path):
    config = few_items(tmp_path, trainer__accelerator="gpu")
    assert main(["predict", "--config", str(config)]) == 2
    assert "--trainer.accelerator cpu" in capsys.readouterr().err


def test_a_scorer_that_refuses_is_heard(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("MIGA_BENCH_OFFLINE", "1")
    monkeypatch.setenv("MIGA_BENCH_CACHE", str(tmp_path / "cache"))
    scorer = {"class_path": "StoryScores", "init_args": {"narratives": "release", "judge": "a/b"}}
    config = few_items(tmp_path, model__metrics=[scorer])
    assert main(["predict", "--config", str(config)]) == 2
    said = capsys.readouterr().err
    assert "downloads are off" in said
    assert "subtypes" not in said


def test_print_config_begins_a_configuration_of_ones_own(capsys, tmp_path):
    mine = tmp_path / "my.yaml"
    for config in ("videocrafter2-freelong", mine):
        with pytest.raises(SystemExit) as ended:
            main(["predict", "--config", str(config), "--print_config", "--data.limit", "1"])
        assert ended.value.code == 0
        before, printed = mine.read_text() if mine.exists() else None, capsys.readouterr().out
        mine.write_text(printed)
    assert printed == before
    document = yaml.safe_load(printed)
    assert {"trainer", "model", "data", "run"} <= set(document)
    assert (document["data"]["frames"], document["data"]["limit"]) == (128, 1)


def test_lightning_starts_its_own_processes(tmp_path):
    config = configuration(tmp_path, data__seeds=[0])
    command = [sys.executable, "-m", "miga_bench", "predict", "--config", str(config)]
    command += ["--trainer.devices=2", "--trainer.strategy=ddp"]
    paths = {"PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin"}
    done = subprocess.run(command, capture_output=True, text=True, env=paths, check=False)
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    assert (json.loads(line)["status"], json.loads(line)["done"]) == ("done", 6)


def test_torchrun_starts_plain_processes_that_part_before_they_end(tmp_path):
    """A group of processes that is left to the end of Python aborts a few runs in a thousand."""
    config = configuration(tmp_path, data__seeds=[0])
    process = tmp_path / "process.py"
    process.write_text(
        "import sys\nfrom torch import distributed\nfrom miga_bench.cli import main\n"
        "code = main(sys.argv[1:])\nassert not distributed.is_initialized()\nsys.exit(code)\n"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += [str(process), "predict", "--config", str(config)]
    command += ["--trainer.devices=2", "--trainer.strategy=ddp"]
    paths = {"PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin"}
    done = subprocess.run(command, capture_output=True, text=True, env=paths, check=False)
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    assert (json.loads(line)["status"], json.loads(line)["done"]) == ("done", 6)


def test_a_models_folder_may_be_spelled_in_any_way(tmp_path, capsys, monkeypatch):
    """Breaks if ./model, or model copied to a job's own folder, is refused in its run, or made again."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(TINY_WEIGHTS, tmp_path / "model")
    few = {"model__method": "short", "model__settings": {"steps": 2}, "data__frames": 1}
    few |= {"data__prompts": ["a red circle moves right"], "data__seeds": [0]}
    config = configuration(tmp_path / "runs", model__backbone="model", model__preset="tiny", **few)
    for spelled in ("model", "./model", "elsewhere"):
        if spelled == "elsewhere":
            Path("model").rename(spelled)
        assert main(["predict", "--config", str(config), "--model.backbone", spelled]) == 0
        written = manifest_of(tmp_path / "runs")
        assert (
            written["backbone"]["name"] == "model"
        )  # of the first command: no other made anything
    assert written["spec"]["backbone"] == "wan from a path"
    assert known_as("tiny-wan", "wan") == one_spelling("tiny-wan") == "tiny-wan"
    assert main(["report", "runs/run", "-o", "out", "--prompts-shown", "0"]) == 0
    (row,) = (x for x in Path("out/report.md").read_text().splitlines() if "given as" in x)
    assert "elsewhere" in row
    capsys.readouterr()
