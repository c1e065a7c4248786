"""Runs in a SLURM job: another project's checkpoints lie about, and a signal tells of the job's end."""

import os
import signal

import pytest
import run_workers
import torch
from run_workers import Workers, configuration, slurm
from test_faults import FEW, done_manifests, predict

from miga_bench.harness.stop import StopRequested, StopSignals


@pytest.fixture
def job(monkeypatch, tmp_path):
    """Be the only process of a job, in a folder of its own."""
    for name, value in slurm(0, 1, 0).items():
        monkeypatch.setenv(name, value)
    folder = tmp_path / "project"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def test_a_checkpoint_of_another_project_is_none_of_a_runs(job, tmp_path, capsys):
    """Lightning would load what lies in the current folder under this name into the model."""
    torch.save(
        {"state_dict": {"layer": torch.ones(1)}, "pytorch-lightning_version": "2.0.0"},
        job / "hpc_ckpt_1.ckpt",
    )
    code, status, said = predict(capsys, configuration(tmp_path, **FEW))
    assert (code, status["status"], status["done"]) == (0, "done", 2), said
    assert [path.name for path in job.iterdir()] == ["hpc_ckpt_1.ckpt"]


def test_a_signal_before_the_jobs_end_stops_the_run_and_the_same_command_goes_on(
    job, tmp_path, capsys, monkeypatch
):
    """As by ``#SBATCH --signal=USR1@120``; Lightning would write a checkpoint, requeue and go on."""
    config = configuration(tmp_path, **FEW)
    whole, stops = run_workers.CountingBackbone._denoise, iter([1])

    def stopping(self, *inputs):
        if done_manifests(tmp_path) and next(stops, None):  # in the second video
            os.kill(os.getpid(), signal.SIGUSR1)
        return whole(self, *inputs)

    monkeypatch.setattr(run_workers.CountingBackbone, "_denoise", stopping)
    code, status, said = predict(capsys, config)
    assert (code, status["status"], status["signal"]) == (138, "stopped", 10)
    assert said[-1] == f"miga-bench: stopped: {tmp_path / 'run'} has 1 of 2 videos"
    assert signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL
    assert list(job.iterdir()) == []
    code, status, _ = predict(capsys, config)
    assert (code, status["status"], status["done"]) == (0, "done", 2)


def test_the_signal_stops_a_team_of_two_machines(tmp_path):
    """Breaks if one process meets the others in Lightning's handler, and waits for ever."""
    slow = {"class_path": "run_workers.CountingBackbone", "init_args": {"seconds": 0.02}}
    changes = {"trainer__devices": 1, "trainer__num_nodes": 2, "trainer__strategy": "ddp"}
    changes |= {"run__window_parallel": 2, "model__backbone": slow}
    workers = Workers(["--config", configuration(tmp_path, **changes)], 2, slurm)
    assert workers.wait_for_rows(40)
    for process in workers.processes:
        os.kill(process.pid, signal.SIGUSR1)
    status = workers.finish()
    assert (status["status"], status["signal"]) == ("stopped", signal.SIGUSR1)


def test_who_listens_to_the_signal_keeps_it(monkeypatch):
    """Breaks if a program that requeues its job by it, and makes videos, does so no longer."""
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    heard = []
    before = signal.signal(signal.SIGUSR1, lambda number, frame: heard.append(number))
    try:
        with StopSignals():
            os.kill(os.getpid(), signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert heard == [signal.SIGUSR1]
    with pytest.raises(StopRequested), StopSignals():
        os.kill(os.getpid(), signal.SIGUSR1)
    monkeypatch.delenv("SLURM_JOB_ID")
    with StopSignals():
        assert signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL
