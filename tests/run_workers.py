"""Whole runs in processes that can be killed, started from one that has imported everything."""

import errno
import faulthandler
import gc
import multiprocessing
import os
import signal
import socket
import sys
import time
from multiprocessing import forkserver
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import yaml
from ports import free_port
from simple_backbone import SimpleBackbone

from miga_bench.errors import UserError
from miga_bench.harness.lifeline import Lifeline
from miga_bench.harness.predict import predict
from miga_bench.harness.scorers import Found, ItemScorer

SETTINGS = {
    "steps": 8,
    "zigzag": 2,
    "guidance_frames": 2,
    "stride": 3,
    "stage2_steps": 2,
    "renoise": 0,
    "reflection": "off",
}
WAIT = 400  # seconds for a run of seconds: where other work has the cores, messages wait for their turn
COUNTER = None  # a process of a run has one
IMPORTED = os.getpid()  # the process that imported this; it is forked into those that work


class CountingBackbone(SimpleBackbone):
    """Counts the rows it denoises where other processes see it.

    Args:
        poison: A prompt that fails.
        poison_rank: The only process where it does; by default all.
        seconds: What a denoiser call takes longer.
        odd_rank: The only process with other weights.
    """

    configuration_hash = "counting"  # what it is given decides no whole video

    def __init__(
        self,
        poison: str = "",
        poison_rank: int | None = None,
        seconds: float = 0.0,
        odd_rank: int | None = None,
    ):
        super().__init__()
        if odd_rank == rank():
            self.weights_hash = "odd"
        self.poison, self.poison_rank, self.seconds = poison, poison_rank, seconds

    def _denoise(self, latents, timesteps, text):
        if COUNTER is not None:
            COUNTER[rank()] += len(latents)
        time.sleep(self.seconds)
        return super()._denoise(latents, timesteps, text)

    def encode(self, prompts):
        if self.poison and self.poison in prompts and self.poison_rank in (None, rank()):
            raise RuntimeError("poisoned")
        return super().encode(prompts)


def rank():
    return int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")))


def configuration(root, name="run", **changes):
    """Return a run of 12 short items as YAML says it."""
    document = {
        "model": {
            "backbone": {"class_path": "run_workers.CountingBackbone"},
            "method": "miga",
            "settings": SETTINGS,
        },
        "data": {
            "prompts": [f"a circle {'so ' * n}red" for n in range(6)],
            "seeds": [0, 1],
            "frames": 9,
        },
        "trainer": {"accelerator": "cpu", "devices": 1},
        "run": {"root": str(root), "name": name, "quiet": True},
    }
    for path, value in changes.items():
        group, _, key = path.partition("__")
        document[group][key] = value
    path = Path(root) / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(document))
    return path


def work(arguments, counter, environment, results):
    """Be one process of a run."""
    global COUNTER
    assert os.getpid() != IMPORTED, "the process was not forked from one that has imported this"
    COUNTER = counter
    torch.set_num_threads(1)
    faulthandler.dump_traceback_later(WAIT - 20)  # says where it hangs, if it does
    os.environ.update(environment)
    results.put(predict(arguments))


def context():
    """Return how to fork processes from one that has imported what all tests' processes need.

    There is one such process per test run, and its first user says what it imports.
    """
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload(["run_workers", "window_parallel_ranks"])
    with pytest.MonkeyPatch.context() as patch:
        # it finds them by this alone: pytest's own path does not reach it, and what it lacks it passes over
        patch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
        forkserver.ensure_running()
    return found


class Workers:
    """The processes of one run.

    Args:
        arguments: Of ``miga-bench predict``.
        count: How many; they find each other as under torchrun.
        launcher: Returns the environment of a process by its number, their count and a port.
    """

    def __init__(self, arguments, count=1, launcher=None):
        fork = context()
        # a number per process and no lock, which one that is killed could take along
        self.counter, self.results = fork.RawArray("i", count), fork.Queue()
        # where they find each other; not in one of them, where its port could be taken meanwhile
        self.meeting = None
        launcher, port = launcher or torchrun, free_port()
        if count > 1 and launcher is not slurm:
            self.meeting = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        self.processes = []
        for number in range(count):
            port = self.meeting.port if self.meeting else port
            environment = {} if count == 1 else launcher(number, count, port)
            task = (list(map(str, arguments)), self.counter, environment, self.results)
            self.processes.append(fork.Process(target=work, args=task, daemon=True))
        for process in self.processes:
            process.start()

    @property
    def rows(self):
        """How many rows all denoisers were given."""
        return sum(self.counter)

    def wait_for_rows(self, rows):
        """Wait until denoisers were given so many rows; tell whether they were before one ended."""
        while self.rows < rows:
            if not all(process.is_alive() for process in self.processes):
                return False
            time.sleep(0.001)
        return True

    def ended(self, within):
        """Wait so many seconds for all to end by themselves; return their exit codes."""
        until = time.monotonic() + within
        for process in self.processes:
            process.join(max(0, until - time.monotonic()))
        codes = [process.exitcode for process in self.processes]
        self.end()
        return codes

    def finish(self):
        """Wait for the end; return rank 0's status."""
        for process in self.processes:
            process.join(WAIT)
            assert process.exitcode == 0, process
        found = [self.results.get(timeout=10) for _ in self.processes]
        return next(status for status in found if status)

    def end(self):
        for process in self.processes:
            process.kill()
            process.join()


def torchrun(number, count, port):
    """Return the environment torchrun gives a process."""
    network = {"GLOO_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else {}
    return network | {
        "RANK": str(number),
        "LOCAL_RANK": str(number),
        "GROUP_RANK": "0",
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_RUN_ID": "test",
        "TORCHELASTIC_RESTART_COUNT": "0",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }


def torchrun_on_nodes(number, count, port):
    """Return the environment torchrun gives a process that is the only one of its node."""
    alone = {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "GROUP_RANK": str(number)}
    return torchrun(number, count, port) | alone


def slurm(number, count, port):
    """Return the environment srun gives a process that is the only one of its node."""
    network = {"GLOO_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else {}
    return network | {
        "SLURM_JOB_ID": "4711",
        "SLURM_JOB_NAME": "test",
        "SLURM_NTASKS": str(count),
        "SLURM_NTASKS_PER_NODE": "1",
        "SLURM_PROCID": str(number),
        "SLURM_LOCALID": "0",
        "SLURM_NODEID": str(number),
        "SLURM_NODELIST": "127.0.0.1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


class CountingScorer(ItemScorer):
    """Says how long a video's file is, not at once; counts as a denoiser's row."""

    name = "bytes"

    def identity(self):
        return {}

    def score(self, video, item):
        if COUNTER is not None:
            COUNTER[rank()] += 1
        time.sleep(0.02)
        return Found({"bytes": float(video.stat().st_size)})


class LackingScorer(ItemScorer):
    """Lacks its networks on one process."""

    name = "lacking"

    def __init__(self, lacking_rank: int):
        self.lacking_rank = lacking_rank

    def use(self, backbone):
        if rank() == self.lacking_rank:
            raise UserError("networks are not there: fetch them")

    def identity(self):
        return {}

    def score(self, video, item):
        return Found()


class LosingScorer(ItemScorer):
    """Loses one process while all load, or fails it there."""

    name = "losing"

    def __init__(self, lost_rank: int, how: str):
        self.lost_rank, self.how = lost_rank, how

    def use(self, backbone):
        if rank() != self.lost_rank:
            return
        if self.how == "is killed":  # as by the system, for lack of memory
            os.kill(os.getpid(), signal.SIGKILL)
        if self.how == "fails":
            raise OSError(errno.EIO, os.strerror(errno.EIO), "weights")
        # As a machine without power: its connections neither work nor end, until rank 0's system finds out.
        (line,) = [one for one in gc.get_objects() if isinstance(one, Lifeline)]
        line._closed = True
        line._line.shutdown(socket.SHUT_RDWR)
        os.kill(os.getpid(), signal.SIGSTOP)

    def identity(self):
        return {}

    def score(self, video, item):
        return Found()


def generate_command(arguments, out, err):
    """Be one process of ``miga-bench generate`` on the simple backbone; write what it says to two files."""
    import miga_bench.harness.generate as page
    from miga_bench.cli import main

    page.open_model = lambda *args, **kwargs: SimpleBackbone()
    for stream, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), stream)
    sys.exit(main(["generate", *arguments]))


def command(config, environment, said, start=300.0, grace=30.0):
    """Be one process of ``miga-bench predict``; write what it says to a file."""
    from miga_bench.cli import main
    from miga_bench.harness import lifeline, ranks

    ranks.START, lifeline.GRACE = start, grace
    os.environ.update(environment)
    os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT), 2)
    sys.exit(main(["predict", "--config", config]))
