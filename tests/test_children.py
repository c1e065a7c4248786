"""The processes that Lightning starts by itself, one of them killed, or all stopped. About 30 s."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import run_workers
from lightning.fabric.plugins.environments import LightningEnvironment
from run_workers import WAIT, configuration
from test_faults import FEW, predict

from miga_bench.harness import children as page
from miga_bench.harness.children import Children
from miga_bench.harness.ranks import GONE, Gathering
from miga_bench.harness.stop import StopSignals

SLOW = {"class_path": "run_workers.CountingBackbone", "init_args": {"seconds": 0.02}}
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); "


class Command:
    """``miga-bench predict`` on two devices, in a process group of its own.

    Args:
        root: Of the run.
        options: Further ones.
    """

    def __init__(self, root, *options):
        config = configuration(root, model__backbone=SLOW)
        command = [sys.executable, "-m", "miga_bench", "predict", "--config", str(config)]
        command += ["--trainer.devices=2", "--trainer.strategy=ddp", *options]
        paths = [str(Path(__file__).parent), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
        environment = {
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            "OMP_NUM_THREADS": "1",
            "PATH": "/usr/bin",
        }
        self.root, self.said = root, [root / "out", root / "err"]
        with self.said[0].open("w") as out, self.said[1].open("w") as err:
            self.main = subprocess.Popen(
                command, stdout=out, stderr=err, env=environment, start_new_session=True
            )

    def child(self):
        """Return the process that Lightning has started."""
        (child,) = (
            one for one in psutil.Process(self.main.pid).children() if "predict" in one.cmdline()
        )
        return child

    def videos(self):
        return list((self.root / "items").glob("*/manifest.json"))

    def wait_for_a_video(self):
        until = time.monotonic() + WAIT
        while not self.videos():
            assert time.monotonic() < until
            assert self.main.poll() is None, self.said[1].read_text()
            time.sleep(0.01)

    def ended(self):
        """Wait for the end; return the exit code, what is on stdout and what is said on stderr."""
        code = self.main.wait(WAIT)
        out, err = (path.read_text().splitlines() for path in self.said)
        return code, out, [line for line in err if line.startswith("miga-bench")]

    def end(self):
        with suppress(ProcessLookupError):
            os.killpg(self.main.pid, signal.SIGKILL)


@pytest.fixture
def start(tmp_path):
    """Start a command; nothing of it outlives its test."""
    started = []

    def begin(*options):
        started.append(Command(tmp_path, *options))
        return started[-1]

    yield begin
    for command in started:
        command.end()


def test_a_child_that_is_killed_is_said_and_the_other_makes_its_share(start):
    """Breaks if one process of eight that lacks memory ends all, without a word."""
    command = start()
    command.wait_for_a_video()
    command.child().kill()
    code, out, said = command.ended()
    assert (code, out) == (1, [])
    assert said == [
        "miga-bench: process 1 was killed (signal 9), often for lack of memory: what it was to make is"
        " missing, and the same command makes it",
        f"miga-bench: {GONE}",
    ]
    assert 6 <= len(command.videos()) < 12


def test_a_stop_by_ctrl_c_is_said_whole(start, tmp_path):
    """Breaks if a child that has ended before ends the run while it tells MLflow."""
    command = start(f"--tracking.uri=sqlite:///{tmp_path / 'mlflow.db'}")
    command.wait_for_a_video()
    child = command.child()
    os.killpg(command.main.pid, signal.SIGINT)  # as a terminal does
    code, out, said = command.ended()
    assert code == 130
    (line,) = out
    status = json.loads(line)
    assert (status["status"], status["signal"]) == ("stopped", signal.SIGINT)
    assert status["tracking"]["status"] == "stopped"
    assert said == [f"miga-bench: stopped: {tmp_path / 'run'} has {status['done']} of 12 videos"]
    assert not child.is_running()


@pytest.fixture
def tended(monkeypatch):
    """Return what makes the children of a run of such processes."""
    monkeypatch.setattr(page, "POLL", 0.01)
    monkeypatch.setattr(page, "SETTLING", 0.01)
    monkeypatch.setattr(page.os, "_exit", sys.exit)
    made = []

    def make(*codes):
        children = Children(LightningEnvironment(), len(codes) + 1, 1)
        for code in codes:
            process = subprocess.Popen([sys.executable, "-c", f"{code}; print()"], stdout=-1)
            children.procs.append(process)
        made.append(children)
        return children

    yield make
    for children in made:
        for process in children.procs:
            process.kill()
            process.communicate()


def dies_by(number):
    return f"import os; os.kill(os.getpid(), {int(number)})"


def test_what_says_it_itself_or_was_asked_to_end_gets_no_line(tended, capsys):
    codes = ["pass", "exit(1)", dies_by(signal.SIGTERM), dies_by(signal.SIGSEGV)]
    tended(*codes)._watch()
    assert capsys.readouterr().err == (
        "miga-bench: process 4 was killed (signal 11): what it was to make is missing, and the same command"
        " makes it\n"
    )


@pytest.mark.parametrize(
    ("code", "line", "expected"),
    [
        (
            dies_by(signal.SIGKILL),
            "process 1 was killed (signal 9), often for lack of memory: n",
            1,
        ),
        (
            "exit(2)",
            "process 1 ended with exit code 2 before the others came (see what it says)",
            1,
        ),
        (dies_by(signal.SIGINT), "stopped: the same command goes on", 130),
        ("exit(143)", "stopped: the same command goes on", 143),
    ],
)
def test_a_child_that_ends_before_all_have_met_ends_the_run(tended, capsys, code, line, expected):
    """Breaks if that costs the minutes that others are waited for, which hear no signal."""
    children = tended(code, "import time; time.sleep(600)")
    children.gathering = Gathering(SimpleNamespace(world_size=1))
    with pytest.raises(SystemExit) as ended:
        children._watch()
    assert ended.value.code == expected
    assert capsys.readouterr().err.startswith(f"miga-bench: {line}")
    assert children.procs[1].wait(10) == -signal.SIGKILL


def test_a_stop_that_only_the_first_hears_is_passed_on(tended, monkeypatch):
    """Breaks if children go on, or are killed while they stop."""
    monkeypatch.setattr(page, "GRACE", 1.0)
    wish = "import signal; signal.signal(signal.SIGTERM, lambda *_: exit(5)); print(flush=True); "
    children = tended(*[start + "import time; time.sleep(600)" for start in (wish, "x = 1; ")])
    children.procs[0].stdout.readline()
    children.end()
    assert [process.poll() for process in children.procs] == [None, None]
    children.kill(signal.SIGKILL)  # as Lightning does
    children.end()
    assert [process.wait(10) for process in children.procs] == [5, -signal.SIGTERM]


def test_a_child_that_does_not_stop_is_killed(tended, monkeypatch):
    monkeypatch.setattr(page, "GRACE", 0.1)
    children = tended(STUBBORN + "print(flush=True); import time; time.sleep(600)")
    children.procs[0].stdout.readline()
    children.kill(signal.SIGKILL)
    children.end()
    assert children.procs[0].wait(10) == -signal.SIGKILL


def test_a_stop_that_comes_twice_means_nothing_to_lightning(tmp_path, capsys, monkeypatch):
    """Its handler meets the other ranks, which may be gone; it had the signal back while the run ended."""
    holders = []

    class Stopping(run_workers.CountingBackbone):
        def encode(self, prompts):
            os.kill(os.getpid(), signal.SIGTERM)
            return super().encode(prompts)

    monkeypatch.setattr(run_workers, "CountingBackbone", Stopping)
    monkeypatch.setattr(
        "lightning.pytorch.strategies.SingleDeviceStrategy.teardown",
        lambda self: holders.append(signal.getsignal(signal.SIGTERM)),
    )
    code, status, _ = predict(capsys, configuration(tmp_path, **FEW))
    assert (code, status["status"]) == (143, "stopped")
    assert isinstance(holders[0].__self__, StopSignals)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
