"""How files were made: peaks of memory belong to one video, and what is written is whole."""

import errno
import os
import sys

import pytest
import torch

from miga_bench.backbones.residence import pick_dtype
from miga_bench.errors import Notice
from miga_bench.harness import machine, provenance
from miga_bench.harness.files import write_json
from miga_bench.harness.provenance import forget_peak_memory, peak_memory_mib


def test_a_file_is_the_old_one_or_the_whole_new_one(tmp_path, monkeypatch):
    def full(number):
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_json(path, {"a": 2})
    assert (path.read_text(), list(tmp_path.iterdir())) == ('{\n  "a": 1\n}\n', [path])


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets a peak be forgotten")
def test_a_peak_is_forgotten_once_its_memory_is_free():
    block = torch.ones(100 << 18)  # 100 MiB
    high = peak_memory_mib("cpu")["process"]
    del block
    assert peak_memory_mib("cpu")["process"] >= high - 1
    forget_peak_memory("cpu")
    assert peak_memory_mib("cpu")["process"] < high - 80


def test_a_peak_that_cannot_be_forgotten_is_nobodys(monkeypatch, tmp_path):
    """Outside Linux; breaks if a video is told to have taken what the one before it took."""
    monkeypatch.setattr(provenance, "_stale", False)
    monkeypatch.setattr(provenance, "RESET", tmp_path / "nowhere" / "clear_refs")
    assert "process" in peak_memory_mib("cpu")
    forget_peak_memory("cpu")
    assert "process" not in peak_memory_mib("cpu")
    monkeypatch.setattr(provenance, "RESET", tmp_path / "clear_refs")
    forget_peak_memory("cpu")
    assert "process" in peak_memory_mib("cpu")


ARM = """processor\t: 0
BogoMIPS\t: 50.00
CPU implementer\t: 0x41
CPU architecture: 8
CPU part\t: {}

processor\t: 1
CPU implementer\t: 0x41
"""


def test_arm_servers_are_told_apart(monkeypatch, tmp_path):
    """They have no model name: all were one machine, whose seconds may be compared."""
    monkeypatch.setattr(machine, "PROCESSORS", tmp_path / "cpuinfo")
    monkeypatch.setattr(machine.os, "cpu_count", lambda: 64)
    names = set()
    for part in ("0xd0c", "0xd40"):
        (tmp_path / "cpuinfo").write_text(ARM.format(part))
        names.add(machine.cpu_name().partition(", ")[2])
    cores = "64 cores"
    assert names == {f"implementer 0x41, part {part}, {cores}" for part in ("0xd0c", "0xd40")}
    (tmp_path / "cpuinfo").write_text("processor : 0\nmodel name\t: AMD EPYC: 7B13\n")
    assert machine.cpu_name() == "AMD EPYC: 7B13"


def test_apples_chips_are_told_apart(monkeypatch, tmp_path):
    """Python knows all of them as arm."""
    (tmp_path / "sysctl").write_text('#!/bin/sh\necho "$2 is Apple M3 Max"\n')
    (tmp_path / "sysctl").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(sys, "platform", "darwin")
    assert machine.cpu_name() == "machdep.cpu.brand_string is Apple M3 Max"
    (tmp_path / "sysctl").write_text("#!/bin/sh\nexit 1\n")
    assert machine.cpu_name()


def test_a_start_of_a_machine_is_one_for_its_processes(monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "BOOT", tmp_path / "boot_id")
    told = machine.started.__wrapped__
    assert told() is None or sys.platform == "darwin"
    (tmp_path / "boot_id").write_text("298196d7\n")
    assert told() == "298196d7"


def test_a_gpu_that_nothing_has_used_has_no_peak_to_forget(monkeypatch):
    def reset(device):
        raise RuntimeError("Invalid device argument: did you call init?")

    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", reset)
    forget_peak_memory("cuda:0")


def test_what_torch_does_not_see_of_a_gpu_is_not_told_as_all_of_it(monkeypatch):
    """Breaks if an exported denoiser is recorded with torch's share of the GPU alone."""
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 3 << 20)
    provenance._tell_untold.cache_clear()
    for denoiser in ("torch", "compile"):
        assert peak_memory_mib("cuda:0", denoiser)["gpu"] == 3
    with pytest.warns(Notice, match=r"the peak memory of cuda:0 is not recorded: PyTorch"):
        assert "gpu" not in peak_memory_mib("cuda:0", "onnx+cuda:fp16:0123456789abcdef")
    assert list(peak_memory_mib("cuda:0", "tensorrt:bf16:0123456789abcdef")) == ["process"]
    provenance._tell_untold.cache_clear()


@pytest.mark.parametrize(
    ("family", "capability", "dtype"),
    [
        ("wan", (9, 0), torch.bfloat16),
        ("wan", (8, 0), torch.bfloat16),
        ("wan", (7, 5), torch.float16),
        ("videocrafter2", (9, 0), torch.float16),
    ],
)
def test_a_gpu_takes_the_familys_half_precision(monkeypatch, family, capability, dtype):
    """Breaks if a GPU emulates bfloat16, or VideoCrafter2's guidance magnifies its rounding."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda place: capability)
    assert pick_dtype(None, torch.device("cuda:0"), family) == dtype
    assert pick_dtype(None, torch.device("cpu"), family) == torch.float32
