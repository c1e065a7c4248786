"""The released FIFO and MIGA loops, reproduced: tests/golden/README.md says how they were made."""

from pathlib import Path

import numpy as np
import pytest
import torch
from analytic import PROMPTS, AnalyticBackbone, PatternNoise

from miga_bench.sampling import Fifo, FifoSettings, Miga, MigaSettings, Short, ShortSettings
from miga_bench.sampling.base import Cost
from miga_bench.sampling.denoise import WindowDenoiser
from miga_bench.sampling.miga import _Video
from miga_bench.sampling.reflection import Reflection

GOLDEN = Path(__file__).parent / "golden"


def golden(name: str, key: str) -> torch.Tensor:
    """Return an array of a golden file frame by frame, [F, C, H, W]."""
    array = np.load(GOLDEN / f"{name}.npz")[key]
    return torch.from_numpy(array).transpose(0, 1) if array.ndim else torch.from_numpy(array)


def relative(result: torch.Tensor, expected: torch.Tensor) -> float:
    assert result.shape == expected.shape
    return float((result - expected).abs().max() / expected.abs().max())


def release(family: str, reflection: str = "off") -> MigaSettings:
    """The settings of the golden runs."""
    wan = family == "wan"
    return MigaSettings(
        steps=54 if wan else 64,
        zigzag=7 if wan else 4,
        guidance_frames=4,
        guidance_reach="chunks",
        stage2_steps=10 if wan else 9,
        renoise=10,
        stride=10 if wan else 8,
        guidance_scale=5.0 if wan else 12.0,
        reflection=reflection,
        reflection_threshold=-1.0,
        reflection_level=44 if wan else 51,
        reference_chunks=2 if wan else 3,
        candidates=3 if wan else 5,
        released=True,
    )


@pytest.mark.parametrize("family", ["wan", "videocrafter2"])
def test_short_clip_is_the_released_base_clip(family):
    backbone = AnalyticBackbone(family)
    settings = ShortSettings(54 if family == "wan" else 64, 5.0 if family == "wan" else 12.0)
    clip = Short(settings).sample(backbone, PROMPTS, PatternNoise(), backbone.window)
    expected = golden("miga_wan" if family == "wan" else "miga_vc2", "base")
    assert relative(clip, expected) < 1e-4


def test_fifo_is_the_released_loop():
    backbone = AnalyticBackbone("videocrafter2")
    released = FifoSettings(64, 12.0, released=True)
    made = Fifo(released).sample(backbone, PROMPTS, PatternNoise(), 24)
    assert relative(made, golden("fifo_vc2", "emitted")[48:]) < 1e-4
    base_calls = 2 * 63  # the golden count leaves the opening clip out
    assert backbone.denoiser.calls - base_calls == golden("fifo_vc2", "calls")
    lean = AnalyticBackbone("videocrafter2")
    assert torch.equal(Fifo(FifoSettings(64, 12.0)).sample(lean, PROMPTS, PatternNoise(), 24), made)
    # Of 8 windows the last pass needs 1, the one before 2, and so on.
    assert backbone.denoiser.calls - lean.denoiser.calls == 2 * (7 + 6 + 5 + 4 + 3 + 2 + 1)


@pytest.mark.parametrize(
    ("family", "name", "length"), [("videocrafter2", "miga_vc2", 48), ("wan", "miga_wan", 35)]
)
def test_miga_is_the_released_loop(family, name, length):
    backbone = AnalyticBackbone(family)
    made = Miga(release(family)).sample(backbone, PROMPTS, PatternNoise(), length)
    assert relative(made, golden(name, "final")) < 1e-4
    base_calls = 0 if family == "wan" else 2 * 63
    assert backbone.denoiser.calls - base_calls == golden(name, "calls")


@pytest.mark.parametrize(
    ("family", "name", "length"),
    [("videocrafter2", "miga_vc2_reflect", 96), ("wan", "miga_wan_reflect", 119)],
)
def test_reflection_is_the_released_search(family, name, length, monkeypatch):
    # The golden runs add 1 to every candidate's score, so that each search is adopted.
    score = Reflection._candidate_score
    monkeypatch.setattr(Reflection, "_candidate_score", lambda *args: score(*args) + 1)
    backbone = AnalyticBackbone(family)
    reports = []
    sampler = Miga(release(family, "growth"))
    made = torch.stack(
        list(sampler.stream(backbone, PROMPTS, PatternNoise(), length, reports.append))
    )
    assert relative(made, golden(name, "final")) < 1e-4
    judged = [r for r in reports if r.similarity is not None]
    assert [r.accepted for r in judged] == [False] + [True] * (len(judged) - 1)


@pytest.mark.parametrize(
    ("family", "name", "length"), [("videocrafter2", "miga_vc2", 48), ("wan", "miga_wan", 35)]
)
def test_stage_1_hands_over_the_released_latents(family, name, length):
    backbone = AnalyticBackbone(family)
    settings = release(family)
    solver = backbone.solver(backbone.schedule(settings.steps))
    scale = settings.guidance_scale
    denoiser = WindowDenoiser(backbone, PROMPTS, solver, PatternNoise(), scale, 1, Cost())
    video = _Video(settings, backbone, denoiser, length)
    video._open()
    dequeued = torch.cat([chunk.latents for chunk in video._stage_1()])
    assert relative(dequeued, golden(name, "dequeued")) < 1e-4
