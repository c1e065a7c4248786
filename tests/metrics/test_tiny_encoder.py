"""The embedded encoder: what its consistency sees of changes whose truth is known."""

import hashlib
import random
from dataclasses import replace

import pytest
import torch

from miga_bench.backbones.tiny import encoder as training
from miga_bench.backbones.tiny import score_checks
from miga_bench.metrics.networks.tiny import WEIGHTS, TinyEncoder, TinyNet, tiny_encoder

HUES = ["nothing", *(f"hue {degrees}" for degrees in score_checks.HUE_SHIFTS)]


@pytest.fixture(scope="module")
def clips():
    """The scores of several clips, by change."""
    return [score_checks.change_scores(tiny_encoder(), look) for look in score_checks.looks(5, 7)]


def test_every_change_costs_every_clip(clips):
    for row in clips:
        for name in score_checks.CHANGES:
            assert row[name] < row["nothing"], name


def test_the_score_falls_with_every_step_of_the_hue(clips):
    mean = [sum(row[name] for row in clips) / len(clips) for name in HUES]
    assert mean == sorted(mean, reverse=True)
    assert mean[0] - mean[-1] > 0.1
    for row in clips:  # of one clip, up to where colors have other names
        steps = [row[name] for name in HUES[:-1]]
        assert steps == sorted(steps, reverse=True)


def test_moving_and_the_codec_cost_little(clips):
    for row in clips:
        assert row["nothing"] > 0.95
        assert abs(row["codec"] - row["nothing"]) < 0.01


def test_moving_costs_less_than_a_large_change(clips):
    worst = min(row["nothing"] for row in clips)
    for name in set(score_checks.CHANGES) - {"hue 10", "hue 20", "field hue 20"}:
        assert sum(row[name] for row in clips) / len(clips) < worst, name


def test_unrelated_scenes_are_unlike():
    looks = score_checks.looks(20, 3)
    features = tiny_encoder()(torch.cat([score_checks.frames(look, range(1)) for look in looks]))
    cosines = (features @ features.T)[~torch.eye(len(looks), dtype=torch.bool)]
    assert cosines.mean().abs() < 0.1
    assert features.norm(dim=1).sub(1).abs().max() < 1e-5


def test_wrapping_around_the_edge_costs_nothing():
    look = score_checks.looks(1)[0]
    plain = replace(look, field_contrast=1.0)  # the field does not tell where it is
    inside = score_checks.frames(replace(plain, start=(32.0, 32.0)), range(1))
    across = score_checks.frames(replace(plain, start=(0.0, 0.0)), range(1))
    features = tiny_encoder()(torch.cat([inside, across]))
    assert (features[0] * features[1]).sum() > 0.999


def test_other_sizes_keep_their_aspect():
    look = score_checks.looks(1)[0]
    frame = score_checks.frames(look, range(1))
    large = torch.nn.functional.interpolate(frame, scale_factor=4, mode="nearest-exact")
    features = tiny_encoder()(frame), tiny_encoder()(large)
    assert (features[0] * features[1]).sum() > 0.999
    seen = []
    hook = tiny_encoder().net.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape))
    tiny_encoder()(torch.zeros(1, 3, 150, 90, dtype=torch.uint8))
    hook.remove()
    assert seen == [(1, 3, 106, 64)]


def test_the_shared_encoder_is_one_and_stays_as_trained():
    encoder = tiny_encoder()
    assert encoder is tiny_encoder()
    encoder.train()
    assert not any(module.training for module in encoder.modules())
    assert not any(parameter.requires_grad for parameter in encoder.parameters())


def test_the_weights_are_named_and_small():
    provenance = tiny_encoder().provenance
    assert provenance.sha256 == hashlib.sha256(WEIGHTS.read_bytes()).hexdigest()
    assert provenance.weights == WEIGHTS.name
    assert tiny_encoder().label == "tiny"
    assert WEIGHTS.stat().st_size <= 3e6


def test_training_repeats_and_learns(tmp_path):
    config = training.EncoderConfig(steps=6, groups=6)
    nets = [training.train(config) for _ in range(2)]
    for one, other in zip(
        nets[0].state_dict().values(), nets[1].state_dict().values(), strict=True
    ):
        assert torch.equal(one, other)
    rng = random.Random("seen by neither")
    frames = torch.cat([training.siblings(rng)[0] for _ in range(12)])
    torch.manual_seed(config.seed)
    losses = [
        training.contrast(net.train()(frames), config.temperature) for net in (TinyNet(), nets[0])
    ]
    assert losses[1] < losses[0]
    training.save(nets[0], tmp_path / "weights.safetensors")
    again = TinyEncoder(tmp_path / "weights.safetensors")
    assert torch.allclose(again.net.head.weight, nets[0].head.weight, atol=1e-3)


def test_siblings_differ_in_looks_and_frames_of_one_clip_do_not():
    # the average color does not depend on where the sprite is
    rng = random.Random(0)
    same, more, less = [], [], []
    for _ in range(40):
        frames, graded = training.siblings(rng)
        colors = frames.mean((2, 3)).unflatten(0, (3, 2))
        same.append((colors[:, 0] - colors[:, 1]).abs().max())
        if graded:
            less.append((colors[0, 0] - colors[1, 0]).abs().max())
            more.append((colors[0, 0] - colors[2, 0]).abs().max())
    same, less, more = (torch.tensor(values).mean() for values in (same, less, more))
    assert 2 * same < less < more


def test_degrading_adds_no_color():
    frames = torch.cat([training.siblings(random.Random(n))[0] for n in range(4)])
    worn = training.degrade(frames, random.Random(0))
    assert (worn - frames).abs().mean() > 0.003
    assert (worn.mean((2, 3)) - frames.mean((2, 3))).abs().max() < 0.01


def test_contrast_wants_neighbors_alike():
    pairs = torch.eye(4).repeat_interleave(2, 0)
    assert training.contrast(pairs, 0.1) < 0.01
    assert training.contrast(pairs.roll(1, 0), 0.1) > 5


def test_order_wants_more_change_farther_away():
    angles = torch.tensor([0.0, 0.5, 1.0]).repeat_interleave(2)
    turning = torch.stack([angles.cos(), angles.sin()], 1)
    swapped = turning[[0, 1, 4, 5, 2, 3]]
    yes, no = torch.tensor([True]), torch.tensor([False])
    assert training.order(turning, yes, 0.1) == 0
    assert training.order(swapped, yes, 0.1) > 0.3
    assert training.order(swapped, no, 0.1) == 0


@pytest.mark.parametrize("gap", [2, 6])
def test_midpoints_are_compared_with_the_truth(gap):
    report = score_checks.midpoints(3, gap)
    assert report["inside"]["pairs"] + report["edge"]["pairs"] == 9
    for errors in report.values():
        if errors["pairs"]:
            assert errors["flow"] < errors["average"] < errors["first"]
