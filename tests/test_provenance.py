"""How files were made: peaks of memory belong to one video, and what is written is whole."""

import errno
import os
import sys

import pytest
import torch

from miga_bench.backbones.residence import pick_dtype
from miga_bench.errors import Notice
from miga_bench.harness import provenance
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
    ("capability", "dtype"),
    [((9, 0), torch.bfloat16), ((8, 0), torch.bfloat16), ((7, 5), torch.float16)],
)
def test_a_gpu_without_bfloat16_takes_float16(monkeypatch, capability, dtype):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda place: capability)
    assert pick_dtype(None, torch.device("cuda:0")) == dtype
    assert pick_dtype(None, torch.device("cpu")) == torch.float32
