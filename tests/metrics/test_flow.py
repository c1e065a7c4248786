"""Flow and midpoints against the embedded world, where the truth is known."""

import random
from dataclasses import replace

import cv2
import pytest
import torch

from miga_bench.backbones.tiny import world
from miga_bench.backbones.tiny.grammar import held_out_prompts, parse_caption
from miga_bench.metrics.networks import flow
from miga_bench.metrics.networks.flow import DisFlow, FlowInterpolator


def looks(count, seed=0):
    rng = random.Random(seed)
    return [world.draw_look(parse_caption(p), rng) for p in held_out_prompts(count, seed)]


def frames(look, times):
    shown = [world.render(look, 1, time) for time in times]
    return (torch.cat(shown) * 255).round().byte()


def triples(gap, count=8):
    """The frames before, halfway and after, of several looks and times."""
    sets = [frames(look, (t, t + gap // 2, t + gap)) for look in looks(count) for t in (0, 20, 45)]
    return torch.stack(sets).unbind(1)


def error(one, other):
    return (one.float() - other.float()).abs().mean((1, 2, 3))


@pytest.mark.parametrize(("gap", "share"), [(2, 0.5), (6, 0.3), (12, 0.4)])
def test_the_midpoint_is_nearer_the_truth_than_averaging(gap, share):
    before, truth, after = triples(gap)
    middle = error(FlowInterpolator().midpoint(before, after), truth).mean()
    average = error(((before.int() + after.int() + 1) // 2).byte(), truth).mean()
    copy = error(before, truth).mean()
    assert middle < share * average
    assert average < copy


def test_a_subject_in_the_middle_is_found_even_where_luminance_is_flat():
    look = replace(
        looks(1)[0], hue=230.0, speed=1.0, motion="right", start=(20.0, 32.0), shape="circle"
    )
    first, second = frames(look, (0, 6))
    moved = DisFlow().flow(first[None], second[None])[0]
    subject = first.amax(0) > 200
    assert moved.dtype == torch.float32
    assert moved.shape == (2, 64, 64)
    assert moved[0][subject].median() == pytest.approx(6, abs=0.5)
    assert moved[1][subject].median() == pytest.approx(0, abs=0.5)
    far = torch.ones(64, 64, dtype=torch.bool)
    far[:, :50] = False
    assert moved[:, far].abs().mean() < 0.5


def test_equal_frames_are_given_back():
    noise = torch.randint(
        0, 256, (3, 3, 40, 56), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    assert torch.equal(FlowInterpolator().midpoint(noise, noise.clone()), noise)
    assert DisFlow().flow(noise, noise).abs().max() == 0


def test_one_pair_does_not_change_another():
    before, _, after = triples(6, count=2)
    together = FlowInterpolator().midpoint(before, after)
    alone = [
        FlowInterpolator().midpoint(b[None], a[None]) for b, a in zip(before, after, strict=True)
    ]
    assert torch.equal(together, torch.cat(alone))


def test_threads_change_nothing():
    before, _, after = triples(6, count=2)
    grown = [
        torch.nn.functional.interpolate(f.float(), size=(120, 160)).byte() for f in (before, after)
    ]
    results = []
    threads = cv2.getNumThreads()
    try:
        for count in (1, 3):
            cv2.setNumThreads(count)
            results.append((FlowInterpolator().midpoint(*grown), DisFlow().flow(*grown)))
    finally:
        cv2.setNumThreads(threads)
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)
    assert results[0][1].abs().max() > 1


@pytest.mark.parametrize("size", [(1, 1), (8, 8), (7, 40), (33, 17)])
def test_any_size(size):
    generator = torch.Generator().manual_seed(0)
    one, other = torch.randint(0, 256, (2, 2, 3, *size), dtype=torch.uint8, generator=generator)
    assert FlowInterpolator().midpoint(one, other).shape == one.shape
    assert DisFlow().flow(one, other).shape == (2, 2, *size)


def test_no_pairs():
    none = torch.zeros(0, 3, 16, 16, dtype=torch.uint8)
    assert FlowInterpolator().midpoint(none, none).shape == none.shape
    assert DisFlow().flow(none, none).shape == (0, 2, 16, 16)


def test_opencv_is_imported_late():
    assert not hasattr(flow, "cv2")


def test_scores_say_what_made_them():
    assert FlowInterpolator().label == DisFlow().label == "dis"
    assert "OpenCV" in FlowInterpolator().provenance.weights
