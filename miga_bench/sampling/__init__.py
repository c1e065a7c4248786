"""The algorithms: tensors in, tensors out; no files, no Lightning, no configuration."""

from miga_bench.sampling.base import PassReport, PromptSchedule, Sampler
from miga_bench.sampling.estimate import estimate_windows
from miga_bench.sampling.fifo import Fifo, FifoSettings
from miga_bench.sampling.freelong import FreeLong, FreeLongSettings
from miga_bench.sampling.freepca import FreePca, FreePcaSettings
from miga_bench.sampling.miga import Miga, MigaSettings
from miga_bench.sampling.noise import CounterNoise, NoiseSource
from miga_bench.sampling.preset_values import PRESETS
from miga_bench.sampling.presets import METHODS, resolve
from miga_bench.sampling.scaling_noise import ScalingNoise, ScalingNoiseSettings
from miga_bench.sampling.short import Short, ShortSettings

__all__ = [
    "METHODS",
    "PRESETS",
    "CounterNoise",
    "Fifo",
    "FifoSettings",
    "FreeLong",
    "FreeLongSettings",
    "FreePca",
    "FreePcaSettings",
    "Miga",
    "MigaSettings",
    "NoiseSource",
    "PassReport",
    "PromptSchedule",
    "Sampler",
    "ScalingNoise",
    "ScalingNoiseSettings",
    "Short",
    "ShortSettings",
    "estimate_windows",
    "resolve",
]
