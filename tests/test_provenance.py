"""How files were made: peaks of memory belong to one video."""

import sys

import pytest
import torch

from miga_bench.harness.provenance import forget_peak_memory, peak_memory_mib


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets a peak be forgotten")
def test_a_peak_is_forgotten_once_its_memory_is_free():
    block = torch.ones(100 << 18)  # 100 MiB
    high = peak_memory_mib("cpu")["process"]
    del block
    assert peak_memory_mib("cpu")["process"] >= high - 1
    forget_peak_memory("cpu")
    assert peak_memory_mib("cpu")["process"] < high - 80
