"""Scores against golden numbers that VBench's own functions gave; see ``vbench_original.py``."""

import importlib.util
import json
from pathlib import Path

import pytest
from formula import AMT_CLIPS, CLIPS, Blur, clip, clip_shapes, dino_shapes, state

from miga_bench.errors import NumericalError
from miga_bench.metrics.frame_quality import AestheticQuality
from miga_bench.metrics.functional.consistency import feature_consistency
from miga_bench.metrics.functional.dynamics import pair_motion
from miga_bench.metrics.functional.flickering import temporal_flickering
from miga_bench.metrics.functional.smoothness import motion_smoothness
from miga_bench.metrics.networks.amt import padded_midpoint
from miga_bench.metrics.networks.clip import Clip
from miga_bench.metrics.networks.dino import Dino
from miga_bench.metrics.networks.judges import Aesthetic

GOLDEN = json.loads((Path(__file__).parent / "golden" / "vbench.json").read_text())
needs_vbench = pytest.mark.skipif(
    importlib.util.find_spec("vbench") is None,
    reason="AMT may not be shipped; make test-vbench compares with it",
)


@pytest.fixture(scope="module")
def dino():
    return Dino(weights=state("dino", dino_shapes()))


@pytest.fixture(scope="module")
def tower():
    return Clip(weights=state("clip", clip_shapes()))


def made(name):
    return clip(name, *(CLIPS | AMT_CLIPS)[name][:3])


def golden(score, name):
    names = AMT_CLIPS if name in AMT_CLIPS else CLIPS
    return pytest.approx(GOLDEN[score]["videos"][list(names).index(name)], abs=1e-6)


@pytest.mark.parametrize("name", CLIPS)
def test_temporal_flickering(name):
    assert temporal_flickering(made(name)).item() == golden("temporal_flickering", name)


@pytest.mark.parametrize("name", CLIPS)
def test_subject_consistency(name, dino):
    assert feature_consistency(dino(made(name))).item() == golden("subject_consistency", name)


@pytest.mark.parametrize("name", CLIPS)
def test_background_consistency(name, tower):
    assert feature_consistency(tower(made(name))).item() == golden("background_consistency", name)


@pytest.mark.parametrize("name", CLIPS)
def test_aesthetic_quality(name):
    tower = Clip(weights=state("aesthetic", clip_shapes(patch=14)))
    head = state("aesthetic", {"weight": (1, 64), "bias": (1,)})
    score = AestheticQuality(Aesthetic(tower, weights=head))
    score.update(made(name))
    assert score.compute().item() == golden("aesthetic_quality", name)


@pytest.mark.parametrize("name", CLIPS)
def test_motion_smoothness(name):
    def midpoint(before, after):
        return padded_midpoint(Blur(), before, after)

    assert motion_smoothness(made(name), midpoint).item() == golden("motion_smoothness", name)


@needs_vbench
@pytest.mark.filterwarnings("ignore:.*torch.meshgrid.*:UserWarning")
@pytest.mark.parametrize("side", [0, 1])
def test_the_least_sides_are_those_from_which_correlations_have_a_scale(side):
    """Breaks if a size is refused that the original can judge, or its NaN becomes a number."""
    import argparse

    from formula import fill

    from miga_bench.metrics.networks import original
    from miga_bench.metrics.networks.amt import Amt
    from miga_bench.metrics.networks.raft import Raft

    amt = fill(original.module("third_party.amt.networks.AMT-S").Model(), "amt").state_dict()
    options = argparse.Namespace(small=False, mixed_precision=False, alternate_corr=False)
    raft = fill(original.module("third_party.RAFT.core.raft").RAFT(options), "raft").state_dict()

    def pair(network, smaller):
        sides = [network.least_side, network.least_side]
        sides[side] -= smaller
        return clip("least", 2, *sides).split(1)

    interpolator, flow = Amt(weights=amt), Raft(weights=raft)
    interpolator.midpoint(*pair(interpolator, 0))
    pair_motion(*pair(flow, 0), flow.flow)
    with pytest.raises(NumericalError):
        interpolator.midpoint(*pair(interpolator, 1))
    with pytest.raises(NumericalError):
        pair_motion(*pair(flow, 1), flow.flow)


@needs_vbench
@pytest.mark.parametrize("name", AMT_CLIPS)
def test_motion_smoothness_with_amt(name):
    from formula import fill

    from miga_bench.metrics.networks import original
    from miga_bench.metrics.networks.amt import Amt

    network = fill(original.module("third_party.amt.networks.AMT-S").Model(), "amt")
    amt = Amt(weights=network.state_dict())
    assert motion_smoothness(made(name), amt.midpoint).item() == golden(
        "motion_smoothness_amt", name
    )
