"""The algorithms: tensors in, tensors out; no files, no Lightning, no configuration."""

from miga_bench.sampling.base import PassReport, PromptSchedule, Sampler
from miga_bench.sampling.fifo import Fifo, FifoSettings
from miga_bench.sampling.miga import Miga, MigaSettings
from miga_bench.sampling.noise import CounterNoise, NoiseSource
from miga_bench.sampling.short import Short, ShortSettings

METHODS: dict[str, type[Sampler]] = {"short": Short, "fifo": Fifo, "miga": Miga}

__all__ = [
    "METHODS",
    "CounterNoise",
    "Fifo",
    "FifoSettings",
    "Miga",
    "MigaSettings",
    "NoiseSource",
    "PassReport",
    "PromptSchedule",
    "Sampler",
    "Short",
    "ShortSettings",
]
