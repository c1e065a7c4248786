"""The command line: what it refuses, in one line with exit code 2, before any model work."""

import json
import subprocess
import sys

import pytest

from miga_bench.cli import main
from miga_bench.harness.stop import StopRequested

PROMPT = "a red circle moves right on a blue field"
ON_VC2 = (PROMPT, "--backbone", "tiny-videocrafter2")


def refused(capsys, *arguments):
    """Run, expect exit code 2, one line on stderr and nothing on stdout; return the line."""
    try:
        code = main([str(a) for a in arguments])
    except SystemExit as error:  # argparse
        code = error.code
    out, err = capsys.readouterr()
    assert (code, out, err.count("\n")) == (2, "", 1), err
    return err


@pytest.mark.parametrize(
    ("arguments", "rule"),
    [
        ([""], "prompt is empty"),
        (["   "], "prompt is empty"),
        (["word " * 1000], "5000 characters: shorten it to 4000"),
        ([PROMPT, "--frames", "0"], "--frames 0: a video has at least 1 frame"),
        ([PROMPT, "--frames", "-3"], "--frames -3: a video has at least 1 frame"),
        ([PROMPT, "--frames", "ten"], "invalid int value: 'ten'"),
        ([PROMPT, "--frames", "9", "--endless"], "exclude each other"),
        ([PROMPT, "--height", "0"], "--height 0"),
        ([PROMPT, "--then", "60"], "not FRAME:PROMPT"),
        ([PROMPT, "--then", "60: "], "prompt is empty"),
        ([PROMPT, "--then", "-5:b"], "'-5:b' is not FRAME:PROMPT: give a frame from 1 on"),
        ([PROMPT, "--then", "60:b", "--then", "50:c"], "frames must rise"),
        ([PROMPT, "--then", "0:b"], "frames must rise"),
        ([PROMPT, "--then", "60:b", "--frames", "60"], "begins after the last of 60 frames"),
        ([PROMPT, "--then", "300:b"], "begins after the last of 300 frames"),
        ([PROMPT, "--set", "steps"], "not NAME=VALUE"),
        ([PROMPT, "-o", "video.avi"], "name it for example video.mp4"),
        pytest.param(
            [PROMPT, "-o", "/proc/nowhere/a.mp4"],
            "cannot write in /proc",
            marks=pytest.mark.skipif(sys.platform != "linux", reason="there is no /proc"),
        ),
        ([PROMPT, "--framse", "3"], "did you mean --frames"),
        ([PROMPT, "--fram", "3"], "did you mean --frames"),
        ([PROMPT, "--fsp", "3"], "no option --fsp\n"),
        ([PROMPT, "--fps=3"], "no option --fps: a video has its model's frame rate"),
        ([PROMPT, "--image", "a.png"], "no option --image: models are text-to-video"),
        ([PROMPT, "--lora", "a"], "miga-bench export onnx --lora FILE merges one"),
        ([PROMPT, "--crf", "9"], "no option --crf: --lossless keeps"),
        (["a", "red", "circle"], "put a text of several words in quotes"),
        ([], "PROMPT"),
        ([PROMPT, "--method", "fiffo"], "unknown method 'fiffo': did you mean fifo?"),
        ([PROMPT, "--method", "MIGA"], "unknown method 'MIGA': did you mean miga?"),
        ([PROMPT, "--method", "freelong", "--endless"], "or use fifo, scaling-noise or miga"),
        ([PROMPT, "--method", "short", "--endless"], "or use fifo, scaling-noise or miga"),
        ([PROMPT, "--device", "mps"], "device mps is not there: this machine has cpu"),
        ([PROMPT, "--device", "xpu"], "device xpu is not there: this machine has cpu"),
        ([PROMPT, "--device", "meta"], "device meta is not there: this machine has cpu"),
        ([PROMPT, "--backbone", "tiny-wam"], "did you mean tiny-wan?"),
        ([PROMPT, "--backbone", "TINY-WAN"], "did you mean tiny-wan?"),
        ([PROMPT, "--denoiser", "ONNX:here"], "did you mean onnx?"),
        ([PROMPT, "--preset", "anchord"], "did you mean anchored?"),
        ([PROMPT, "--set", "zigzg=3"], "did you mean zigzag?"),
        (
            [*ON_VC2, "--method", "scaling-noise", "--preset", "release", "--set", "beems=1"],
            "scaling-noise has no setting 'beems': did you mean beams?",
        ),
        (["a\u202eb"], "the prompt holds the control character U+202E"),
        (
            [PROMPT, "--negative-prompt", "a\x07"],
            "negative prompt holds the control character U+0007",
        ),
        ([PROMPT, "--set", "steps=many"], "must be a whole number"),
    ],
)
def test_wrong_input_is_one_line_and_leaves_nothing(capsys, tmp_path, monkeypatch, arguments, rule):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)  # on any machine
    assert rule in refused(capsys, "generate", *arguments)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_exists_needs_force(capsys, tmp_path):
    for name in ("out.mp4", "out.png", "out.json"):
        path = tmp_path / name
        path.write_text("mine")
        assert "--force" in refused(capsys, "generate", PROMPT, "-o", tmp_path / "out.mp4")
        assert path.read_text() == "mine"
        path.unlink()


def test_a_folder_is_not_an_output(capsys, tmp_path):
    (tmp_path / "a.mp4").mkdir()
    assert "is a folder" in refused(capsys, "generate", PROMPT, "-o", tmp_path / "a.mp4")


def test_windows_is_refused_before_anything_is_imported(capsys, monkeypatch):
    """Breaks if it ends in the traceback of a module that is not there."""
    monkeypatch.setattr("miga_bench.cli.import_module", lambda name: pytest.fail(name))
    with monkeypatch.context() as there:
        there.setattr("miga_bench.cli.os.name", "nt")
        code = main(["generate", PROMPT])
    assert code == 2
    assert capsys.readouterr().err == (
        "miga-bench: this is Windows, and miga-bench runs on Linux and macOS: use WSL\n"
    )


def test_unknown_verb(capsys):
    assert "invalid choice: 'genrate'" in refused(capsys, "genrate", PROMPT)


def test_debug_shows_the_traceback(tmp_path):
    command = [sys.executable, "-m", "miga_bench", "generate", "", "--debug"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "Traceback" in done.stderr


@pytest.mark.parametrize(
    ("verb", "page", "said"),
    [
        (["score", "a.mp4"], "score", "stopped: the same command goes on"),
        (
            ["predict", "--config", "tiny-wan-miga"],
            "predict",
            "stopped: the same command goes on",
        ),
        (["demo"], "demo", "stopped"),
        (["export", "triton", "a", "-o", "b"], "export_triton", "stopped"),
    ],
)
def test_ctrl_c_does_not_say_that_nothing_was_written(capsys, monkeypatch, verb, page, said):
    def stop(args):
        raise KeyboardInterrupt

    monkeypatch.setattr(f"miga_bench.cli_{page}.run", stop)
    assert main(verb) == 130
    assert capsys.readouterr().err == f"miga-bench: {said}\n"


def test_a_video_stopped_before_its_first_frame_says_so(capsys, monkeypatch, tmp_path):
    def stop(request, watcher):
        raise StopRequested(15)

    monkeypatch.setattr("miga_bench.harness.generate.generate", stop)
    assert main(["generate", PROMPT, "--quiet", "-o", str(tmp_path / "out.mp4")]) == 143
    assert capsys.readouterr().err == "miga-bench: stopped: nothing was written\n"


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("methods", ["short", "fifo", "miga", "zigzag"]),
        ("backbones", ["tiny-wan", "wan2.1-1.3b"]),
        ("presets", ["paper", "release", "tiny", "anchored", "stage2_steps"]),
    ],
)
def test_list(capsys, what, words):
    assert main(["list", what]) == 0
    out = capsys.readouterr().out
    assert all(word in out for word in words)


@pytest.mark.parametrize(
    ("verb", "example"),
    [
        ([], ""),
        (["generate"], ""),
        (["predict"], "miga-bench predict --config tiny-wan-miga"),
        (["validate"], "miga-bench validate --config tiny-wan-miga"),
        (["demo"], ""),
        (["list"], ""),
        (["bench"], ""),
        (["train-tiny"], "--steps N"),
    ],
)
def test_help_loads_nothing_heavy(verb, example):
    """``--help`` imports neither torch nor anything else of weight."""
    code = (
        "import json, sys\nfrom miga_bench.cli import main\n"
        f"try: main({[*verb, '--help']!r})\nexcept SystemExit as end: assert end.code == 0\n"
        "print(json.dumps(sorted(m for m in sys.modules if '.' not in m)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(json.loads(done.stdout.splitlines()[-1]))
    heavy = {"torch", "lightning", "diffusers", "transformers", "numpy", "av", "rich", "matplotlib"}
    heavy |= {"yaml"}
    assert not heavy & loaded
    assert "usage: miga-bench" in done.stdout
    assert example in done.stdout


def test_a_verb_waits_for_no_other_verbs_module():
    """Breaks if each command imports the options of all."""
    code = (
        "import sys\nfrom miga_bench.cli import main\n"
        "try: main(['list', '--help'])\nexcept SystemExit: pass\n"
        "print(*sorted(m for m in sys.modules if m.startswith('miga_bench.cli_')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "miga_bench.cli_common miga_bench.cli_list"


def test_wrong_input_is_answered_without_torch():
    code = (
        "import sys\nfrom miga_bench.cli import main\n"
        "assert main(['generate', '']) == 2\nassert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)


def test_train_tiny_mixes_no_two_trainings(capsys, tmp_path, monkeypatch):
    """Breaks if a quick run's autoencoder is taken for that of the full training."""
    done = []
    for name in ("train_vae", "make_latents", "train_denoiser"):
        monkeypatch.setattr(
            f"miga_bench.backbones.tiny.stages.{name}", lambda *given, name=name: done.append(name)
        )
    out = ["--out", str(tmp_path / "new")]
    for stage, file in (("latents", "vae.pt"), ("denoiser", "vae.pt")):
        err = refused(capsys, "train-tiny", *out, "--stage", stage)
        assert f"new has no {file}, which --stage {stage} begins with" in err
    assert list(tmp_path.iterdir()) == []
    assert main(["train-tiny", *out, "--quick"]) == 0
    capsys.readouterr()
    (tmp_path / "new" / "vae.pt").touch()
    err = refused(capsys, "train-tiny", *out, "--quick", "--stage", "denoiser")
    assert "new has no latents/latents-*.pt" in err
    for family in ("wan", "videocrafter2"):
        err = refused(capsys, "train-tiny", *out, "--family", family)
        assert "new holds a training with vae." in err
    assert len(done) == 3
    assert main(["train-tiny", *out, "--quick", "--steps", "5"]) == 0
    assert len(done) == 6


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        (["--steps", "0"], "'0' is no number of steps: give 1 or more"),
        (["--steps", "-3"], "'-3' is no number of steps: give 1 or more"),
        (["--setps", "3"], "no option --setps: did you mean --steps"),
        (["--family", "nope"], "invalid choice: 'nope'"),
    ],
)
def test_train_tiny_refuses_in_one_line(capsys, tmp_path, monkeypatch, options, rule):
    monkeypatch.chdir(tmp_path)
    assert rule in refused(capsys, "train-tiny", *options)
    assert list(tmp_path.iterdir()) == []


BROKEN = """\
import os, sys
from miga_bench.cli import main
reader, writer = os.pipe()
os.dup2(writer, 1)
os.close(writer)
os.close(reader)  # whoever read is gone
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    "arguments",
    [
        ["list", "methods"],
        ["list", "methods", "--markdown"],
        ["--help"],
        ["predict", "--config", "tiny-wan-miga", "--print_config"],
        ["generate", PROMPT, "--quiet", "--method", "short", "--set", "steps=2", "--frames", "1"],
    ],
)
def test_a_reader_that_is_gone_is_no_failure(tmp_path, arguments):
    command = [sys.executable, "-c", BROKEN, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "out.mp4").exists() is (arguments[0] == "generate")


@pytest.mark.parametrize(
    ("arguments", "code"), [(["--version"], 0), (["train-tiny", "--steps", "0"], 2)]
)
def test_a_program_without_stdout_says_nothing_there(tmp_path, arguments, code):
    """Breaks if daemons, which have none, are told that finished work has failed."""
    command = " ".join([sys.executable, "-m", "miga_bench", *arguments, ">&-"])
    done = subprocess.run(command, shell=True, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, "Traceback" in done.stderr) == (code, False), done.stderr
