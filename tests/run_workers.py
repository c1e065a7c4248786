"""Whole runs in processes that can be killed, started from one that has imported everything."""

import faulthandler
import multiprocessing
import os
import socket
from pathlib import Path

import torch
import yaml
from simple_backbone import SimpleBackbone

from miga_bench.harness.predict import predict

SETTINGS = {
    "steps": 8,
    "zigzag": 2,
    "guidance_frames": 2,
    "stride": 3,
    "stage2_steps": 2,
    "renoise": 0,
    "reflection": "off",
}
COUNTER = None  # a process of a run has one


class CountingBackbone(SimpleBackbone):
    """Counts its denoiser's calls where other processes see it; ``poison`` is a prompt that fails."""

    def __init__(self, poison: str = ""):
        super().__init__()
        self.poison = poison

    def _denoise(self, latents, timesteps, text):
        if COUNTER is not None:
            COUNTER[int(os.environ.get("RANK", "0"))] += 1
        return super()._denoise(latents, timesteps, text)

    def encode(self, prompts):
        if self.poison and self.poison in prompts:
            raise RuntimeError("poisoned")
        return super().encode(prompts)


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
    COUNTER = counter
    torch.set_num_threads(1)
    faulthandler.dump_traceback_later(100)  # says where it hangs, if it does
    os.environ.update(environment)
    results.put(predict(arguments))


def context():
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload(["run_workers"])
    return found


class Workers:
    """The processes of one run.

    Args:
        arguments: Of ``miga-bench predict``.
        count: How many; they find each other as under torchrun.
    """

    def __init__(self, arguments, count=1):
        fork = context()
        # a number per process and no lock, which one that is killed could take along
        self.counter, self.results = fork.RawArray("i", count), fork.Queue()
        port = str(free_port())
        self.processes = []
        for rank in range(count):
            environment = {} if count == 1 else torchrun(rank, count, port)
            task = (list(map(str, arguments)), self.counter, environment, self.results)
            self.processes.append(fork.Process(target=work, args=task, daemon=True))
        for process in self.processes:
            process.start()

    @property
    def calls(self):
        """How often all denoisers were called."""
        return sum(self.counter)

    def finish(self):
        """Wait for the end; return rank 0's status."""
        for process in self.processes:
            process.join(120)
            assert process.exitcode == 0, process
        found = [self.results.get(timeout=10) for _ in self.processes]
        return next(status for status in found if status)

    def end(self):
        for process in self.processes:
            process.kill()
            process.join()


def torchrun(rank, count, port):
    """Return the environment torchrun gives a process."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "GROUP_RANK": "0",
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "TORCHELASTIC_RUN_ID": "test",
    }


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]
