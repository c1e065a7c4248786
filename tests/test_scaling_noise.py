"""ScalingNoise: FIFO when nothing is searched, known proposals and choices, bounded memory."""

import dataclasses
import itertools

import pytest
import torch
from analytic import PROMPTS, AnalyticBackbone
from simple_backbone import SimpleBackbone

from miga_bench.backbones import load_backbone
from miga_bench.backbones.base import LatentShape
from miga_bench.backbones.schedule import ddpm_schedule, flow_schedule
from miga_bench.backbones.solvers import DDIM, FlowEuler, UniPC
from miga_bench.errors import UserError
from miga_bench.sampling import (
    CounterNoise,
    Fifo,
    FifoSettings,
    PromptSchedule,
    estimate_windows,
)
from miga_bench.sampling import scaling_noise as page
from miga_bench.sampling.base import Cost
from miga_bench.sampling.beams import Beam, agreed, best, select
from miga_bench.sampling.denoise import WindowDenoiser
from miga_bench.sampling.proposals import (
    KINDS,
    choose,
    draw_uniform,
    frequency_mixed,
    propose,
    renoised,
    tilted,
    uniform,
)
from miga_bench.sampling.rewards import (
    LatentSimilarity,
)
from miga_bench.sampling.scaling_noise import ScalingNoise, ScalingNoiseSettings, Search

FAMILIES = ("wan", "videocrafter2")
NOISE = CounterNoise(0, LatentShape(3, 4, 4))
SMALL = ScalingNoiseSettings(
    steps=12, guidance_scale=3.0, beams=2, candidates=3, greedy=0.8, reward="latent", lag=4
)
NEUTRAL = {"beams": 1, "candidates": 1, "proposal": "noise"}


def scaling_noise(length=20, backbone=None, judge=None, callback=None, noise=NOISE, **changes):
    """Sample the small settings with some of them changed."""
    sampler = ScalingNoise(dataclasses.replace(SMALL, **changes), judge)
    backbone = backbone or AnalyticBackbone("wan", window=8)
    return sampler.sample(backbone, PROMPTS, noise, length, callback)


def search(backbone=None, reward=None, cost=None, **changes):
    """Return a search and its cost."""
    s = dataclasses.replace(SMALL, **changes)
    backbone = backbone or AnalyticBackbone("wan", window=8)
    solver = backbone.solver(backbone.schedule(s.steps))
    cost = cost or Cost()
    denoiser = WindowDenoiser(backbone, PROMPTS, solver, NOISE, s.guidance_scale, 0, cost)
    return Search(s, 8, denoiser, reward or LatentSimilarity())


@pytest.mark.parametrize("window", [8, 7])
@pytest.mark.parametrize("lookahead", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_to_search_is_fifo_bit_for_bit(family, lookahead, window):
    fifo = Fifo(FifoSettings(12, 3.0, lookahead, released=True))
    backbone = AnalyticBackbone(family, window)
    reports, expected = [], []
    made = scaling_noise(backbone=backbone, lookahead=lookahead, callback=reports.append, **NEUTRAL)
    assert torch.equal(made, fifo.sample(backbone, PROMPTS, NOISE, 20, expected.append))
    assert reports == expected, "and costs the same"


@pytest.mark.parametrize("family", FAMILIES)
def test_searched_noises_make_another_video_of_the_same_frames(family):
    backbone = AnalyticBackbone(family, window=8)
    made = scaling_noise(backbone=backbone)
    assert made.shape == (20, 3, 4, 4)
    assert torch.isfinite(made).all()
    assert not torch.equal(made, scaling_noise(backbone=backbone, **NEUTRAL))
    assert not torch.equal(made, scaling_noise(backbone=backbone, released=True))


@pytest.mark.parametrize("released", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_batches_change_nothing_and_seeds_do(family, released):
    backbone = AnalyticBackbone(family, window=8)
    one = scaling_noise(10, backbone, batch=1, released=released)
    for batch in (3, 64):
        many = scaling_noise(10, backbone, batch=batch, released=released)
        torch.testing.assert_close(one, many, rtol=1e-5, atol=1e-5)
    assert torch.equal(one, scaling_noise(10, backbone, batch=1, released=released))
    other = CounterNoise(1, LatentShape(3, 4, 4))
    assert not torch.equal(one, scaling_noise(10, backbone, batch=1, noise=other))


def test_all_windows_of_a_pass_are_one_batch():
    backbone = AnalyticBackbone("wan", window=8)
    scaling_noise(backbone=backbone, batch=64, guidance_scale=1.0, lookahead=False, steps=16)
    assert set(backbone.denoiser.batches[16:]) <= {2, 1 + 6, 2 + 6}


# Proposals


def schedules():
    return [ddpm_schedule(64), ddpm_schedule(64, rescale=True), flow_schedule(54, 5.0)]


@pytest.mark.parametrize("schedule", schedules(), ids=["vp", "rescaled", "flow"])
@pytest.mark.parametrize("kind", KINDS)
def test_proposals_keep_the_variance_of_noise(kind, schedule):
    noise = CounterNoise(3, LatentShape(4, 64, 64))
    before = noise([5], "before")
    made = propose(kind, before, noise, 6, 1, schedule)
    assert made.shape == (1, 4, 64, 64)
    assert abs(float(made.std()) - 1) < 0.03
    assert abs(float(made.mean())) < 0.1
    assert torch.equal(made, propose(kind, before, noise, 6, 1, schedule))
    assert not torch.equal(made, propose(kind, before, noise, 6, 2, schedule))


def test_proposals_on_known_inputs():
    u, eps = torch.full((1, 1, 4, 4), 2.0), torch.full((1, 1, 4, 4), 3.0)
    vp, flow = ddpm_schedule(64), flow_schedule(54, 5.0)
    a, s = float(vp.alpha[-1]) ** 2, float(flow.sigma[-1])
    expected = a**0.5 * 2 + (1 - a) ** 0.5 * 3
    torch.testing.assert_close(renoised(u, eps, vp), torch.full_like(u, expected))
    torch.testing.assert_close(renoised(u, eps, flow), torch.full_like(u, (1 - s) * 2 + s * 3))
    for share, value in ((0.0, 2.0), (1.0, 3.0), (0.5, 2.5 / 0.5**0.5)):
        mixed = tilted(u, eps, torch.full_like(u, share))
        torch.testing.assert_close(mixed, torch.full_like(u, value))
    # A constant is the lowest frequency and comes from u; a checkerboard the highest, from the noise.
    board = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).repeat(2, 2)[None, None]
    for released in (True, False):
        kept = frequency_mixed(u + board, eps - 5 * board, released)
        torch.testing.assert_close(kept, u - 5 * board, rtol=1e-4, atol=1e-4)
    ramp = torch.linspace(-1, 1, 16).expand(1, 1, 16, 16)
    low = frequency_mixed(ramp, torch.zeros_like(ramp), True)
    high = frequency_mixed(torch.zeros_like(ramp), ramp, True)
    torch.testing.assert_close(low + high, ramp, rtol=1e-4, atol=1e-5)
    turned = frequency_mixed(ramp.mT, torch.zeros_like(ramp), True)
    torch.testing.assert_close(turned, low.mT, rtol=1e-4, atol=1e-5)


class WithoutFloat64(torch.Tensor):
    """A tensor as on Apple's GPU."""

    def double(self):
        raise TypeError("Cannot convert a MPS Tensor to float64 dtype")

    def cpu(self):
        return self.as_subclass(torch.Tensor)


def test_choices_are_drawn_where_there_is_no_float64():
    latent = torch.full((1, 4, 2, 2), 0.5)
    there = draw_uniform(lambda *_: latent.as_subclass(WithoutFloat64), 3, "choice")
    assert there == draw_uniform(lambda *_: latent, 3, "choice")


def test_choices_are_uniform_and_functions_of_their_key():
    kinds = [choose(NOISE, frame, draw) for frame in range(200) for draw in range(4)]
    assert kinds == [choose(NOISE, frame, draw) for frame in range(200) for draw in range(4)]
    for kind in KINDS:
        assert 150 < kinds.count(kind) < 250
    assert uniform(torch.tensor([-40.0, 0.0, 40.0])).tolist() == [0.0, 0.5, 1.0]
    assert choose(lambda *key: torch.full((1, 1, 1, 1), 40.0), 0, 0) == KINDS[-1]


@pytest.mark.parametrize("solver", [DDIM, FlowEuler, UniPC])
def test_clean_prediction_undoes_the_forward_process(solver):
    schedule = ddpm_schedule(16, rescale=True) if solver is DDIM else flow_schedule(16, 5.0)
    clean, noise = NOISE([0, 1, 2], "clean"), NOISE([0, 1, 2], "noise")
    levels = [1, 8, 16]
    noisy = schedule.add_noise(clean, levels, noise)
    prediction = noise if solver is DDIM else noise - clean
    made = solver(schedule).clean_prediction(noisy, prediction, levels)
    torch.testing.assert_close(made, clean, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["latent", "frame"])
def test_rewards_by_name(name):
    made = scaling_noise(4, SimpleBackbone(), reward=name, steps=8)
    assert made.shape == (4, 3, 4, 4)


# Choices


def test_survivors_of_known_scores():
    scores = torch.tensor([[0.1, 0.9, 0.8], [0.3, 0.2, 0.7]])
    assert select(scores, 2, True, False) == [(0, 0, 1), (0, 0, 2)]
    assert select(scores, 4, True, False) == [(0, 0, 1), (0, 0, 2), (1, 1, 2), (1, 1, 0)]
    assert select(scores, 2, True, True) == select(scores, 2, True, False)
    assert select(scores, 2, False, False) == [(0, 0, 1), (1, 1, 2)]
    equal = torch.zeros(2, 3)
    assert select(equal, 3, True, False) == [(0, 0, 0), (0, 0, 1), (0, 0, 2)]
    assert select(equal, 2, False, False) == [(0, 0, 0), (1, 1, 0)]


def test_the_released_survivors_that_are_not_greedy():
    """The queues of the best candidates' beams, here always beam 0, with each beam's own best newest slots."""
    scores = torch.tensor([[0.9, 0.8, 0.7], [0.1, 0.6, 0.2], [0.3, 0.2, 0.5]])
    assert select(scores, 3, False, True) == [(0, 0, 0), (0, 1, 1), (0, 2, 2)]
    swapped = torch.tensor([[0.1, 0.2], [0.4, 0.3]])
    assert select(swapped, 2, False, True) == [(1, 0, 1), (1, 1, 0)]


def beam(marks, score):
    waiting = tuple((mark, torch.full((1, 1, 1), float(mark))) for mark in marks)
    return Beam(None, (), waiting, None, score)


def test_latents_are_final_when_beams_agree_or_must():
    def values(final):
        return [int(latent) for latent in final]

    beams = [beam([1, 2, 3], 0.1), beam([1, 2, 4], 0.9), beam([1, 5, 6], 0.5)]
    final, kept = agreed(beams, lag=2, left=None)
    assert values(final) == [1]
    assert [len(b.waiting) for b in kept] == [2, 2, 2]
    final, kept = agreed(beams, lag=1, left=None)
    assert values(final) == [1, 2], "the best beam's"
    assert [b.waiting[0][0] for b in kept] == [3, 4, 4], "the one that differs became a copy of it"
    final, kept = agreed(beams, lag=9, left=3)
    assert values(final) == [1, 2, 4]
    assert best(kept).score == 0.9


class Scripted:
    """Scores that are told."""

    def __init__(self, *rounds):
        self.rounds, self.anchors, self.seen = list(rounds), [], []

    def __call__(self, clean, anchor):
        self.anchors.append(anchor)
        self.seen.append(clean)
        return torch.tensor(self.rounds.pop(0))


def test_the_chosen_candidates_become_the_beams():
    reward = Scripted([0.0, 1.0, 0.0], [0.0, 0.0, 2.0])
    found = search(reward=reward, greedy=1.0, proposal="noise", beams=2)
    found.advance()
    assert found.similarity is None
    assert len(found.beams) == 2
    frame = found.beams[0].queue.frames[-1] + 1
    tried = [NOISE([frame], "queue", draw) for draw in (5, 1)]
    found.advance()
    assert [b.score for b in found.beams] == [2.0, 1.0]
    # UniPC remembers the latent that a step started from.
    for survivor, noise in zip(found.beams, tried, strict=True):
        assert torch.equal(survivor.queue.state["x"][-1:], noise)
    assert reward.seen[0].shape == (3, 8, 3, 4, 4), "all frames of the last window are predicted"


def test_candidates_are_scored_by_the_clean_frames_that_they_lead_to():
    """Breaks if a frame's noise is taken off as if it stood on another level."""
    backbone, reward = AnalyticBackbone("wan", window=8), Scripted([0.0] * 3, [0.0] * 3)
    backbone.denoiser = lambda x, t, _: (x - 0.5) / (t.clamp(min=1) / 1000)[:, None, :, None, None]
    found = search(backbone, reward)
    found.advance()
    found.advance()
    for seen in reward.seen:
        torch.testing.assert_close(seen, torch.full_like(seen, 0.5), rtol=0, atol=0.02)


def test_every_pass_has_a_draw_of_its_own_for_being_greedy(monkeypatch):
    """Breaks if one draw decides for the whole video."""
    drawn = []

    def watch(scores, keep, greedy, released):
        drawn.append(greedy)
        return select(scores, keep, greedy, released)

    monkeypatch.setattr(page, "select", watch)
    found = search(greedy=0.5, candidates=2)
    for _ in range(10):
        found.advance()
    assert set(drawn) == {True, False}


def test_a_released_survivor_has_one_beams_queue_and_anothers_newest_slots():
    apart, last = [[2.0, 0.0], [1.0, 0.0]], [[2.0, 1.0], [0.5, 0.0]]
    reward = Scripted(*apart * 12, *last)
    found = search(reward=reward, candidates=2, greedy=0.0, proposal="noise", released=True)
    for _ in range(1 + 12):
        found.advance()
    older = (
        12 - found.context - 1
    )  # of a queue after a pass, what its last windows have not written
    one, other = (beam.marks[:older] for beam in found.beams)
    assert not set(one) & set(other)
    frame = found.beams[0].queue.frames[-1] + 1
    found.advance()
    assert [beam.score for beam in found.beams] == [2.0, 0.5]
    # Both have beam 0's queue, since its candidates are the two best, but the second beam 1's newest slots.
    one, other = (beam.marks for beam in found.beams)
    assert one[:older] == other[:older]
    assert not set(one[-found.context :]) & set(other[-found.context :])
    for survivor, draw in zip(found.beams, (0, 2), strict=True):
        assert torch.equal(survivor.queue.state["x"][-1:], NOISE([frame], "queue", draw))


def fronts_and_anchors(released):
    """Return what each beam finished in every pass, and what its candidates were held against."""
    reward = Scripted(*[[1.0, 0.0]] * 60)
    # Never greedy: both beams live on, so that in time their finished frames differ.
    found = search(reward=reward, candidates=2, greedy=0.0, lag=99, released=released)
    fronts = []
    step = found._step

    def watch(queue, writes, prediction):
        run = step(queue, writes, prediction)
        if writes.start == found.context and len(queue) > found.window:
            finished.append(run[0].latents[0])
        return run

    found._step = watch
    for _ in range(20):
        finished = []
        found.advance()
        fronts.append(finished)
    return fronts, reward.anchors


def test_each_beam_has_an_anchor_of_its_own():
    fronts, anchors = fronts_and_anchors(False)
    assert [len(finished) for finished in fronts[-3:]] == [2, 2, 2], "the beams' histories differ"
    before = fronts[-2]
    assert torch.equal(anchors[-2], before[0])
    assert torch.equal(anchors[-1], before[1])


def test_the_released_anchor_is_what_was_finished_last_by_any_beam():
    """The first beam's is the last one's of the pass before, the second's the first one's of this pass."""
    fronts, anchors = fronts_and_anchors(True)
    for now in range(2, 20):
        first, second = anchors[2 * now - 2 : 2 * now]
        assert torch.equal(first, fronts[now - 1][-1])
        assert torch.equal(second, fronts[now][0])


def test_the_released_anchor_without_a_settled_window():
    reward = Scripted(*[[1.0, 0.0]] * 8)
    found = search(reward=reward, candidates=2, lookahead=False, steps=8, released=True)
    for _ in range(4):
        found.advance()
    assert not found.settled
    assert not torch.equal(reward.anchors[-1], reward.anchors[-2])


def test_the_released_first_pass_is_without_guidance():
    backbone = AnalyticBackbone("wan", window=8)
    found = search(backbone, released=True)
    backbone.denoiser.calls = 0
    found.advance()
    plain, backbone.denoiser.calls = backbone.denoiser.calls, 0
    found.advance()
    assert plain == len(found.settled) + 1
    # The beams are still one, so that all but the candidates is paid for once.
    assert backbone.denoiser.calls == 2 * (len(found.settled) + 6)


# Streams


def test_memory_is_bounded_without_an_end():
    # Never greedy: beams have no common ancestor, and only the lag makes them agree.
    for changes in ({"greedy": 0.0}, {"greedy": 0.5}, {"greedy": 0.0, "candidates": 1}):
        found = search(**changes)
        given, held = [], []
        for _ in range(50):
            found.advance()
            given.append(len(found.final(None)))
            assert len(found.beams) == SMALL.beams
            held.append([len(b.queue) for b in found.beams] + [len(b.waiting) for b in found.beams])
        assert all(row[:2] == [12 + 4 - 1] * 2 for row in held)
        assert max(max(row[2:]) for row in held) <= SMALL.lag
        assert sum(given) + held[-1][2] == 50 - 4, "warm-up aside, nothing is lost"


def test_no_window_is_denoised_twice():
    found, seen = search(greedy=1.0), set()
    known = found.denoiser.denoiser

    def spy(latents, timesteps, text):
        for row in latents[: len(latents) // 2]:
            key = row.numpy().tobytes()
            assert key not in seen
            seen.add(key)
        return known(latents, timesteps, text)

    found.denoiser.denoiser = spy
    for _ in range(20):
        found.advance()
        seen.clear()


@pytest.mark.parametrize("greedy", [1.0, 0.0])
def test_a_prefix_of_an_endless_video(greedy):
    sampler = ScalingNoise(dataclasses.replace(SMALL, greedy=greedy, lag=6))
    endless = sampler.stream(AnalyticBackbone("wan", window=8), PROMPTS, NOISE)
    first = torch.stack(list(itertools.islice(endless, 24)))
    reports = []
    made = scaling_noise(24, greedy=greedy, lag=6, callback=reports.append)
    passes = sum(report.stage == "queue" for report in reports)
    assert passes == 12 - 8 + 24, "what waits at the end takes no pass more"
    # What still waits at the end is the best beam's, which need not be the endless video's.
    assert torch.equal(made[: 24 - 6], first[: 24 - 6])


def test_the_estimate_leaves_the_search_out():
    backbone = AnalyticBackbone("wan", window=8)
    sampler = ScalingNoise(dataclasses.replace(SMALL, reward="dino"))
    reports = []
    scaling_noise(backbone=backbone, callback=reports.append)
    expected = estimate_windows(sampler, backbone, 20)
    assert reports[-1].windows - reports[-1].search_windows == expected
    assert backbone.denoiser.calls == 2 * reports[-1].windows
    assert estimate_windows(Fifo(FifoSettings(12, 3.0, released=True)), backbone, 20) == expected


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"steps": 7}, "at least the 8 latents"),
        ({"beams": 0}, "beams is 0"),
        ({"candidates": 0}, "candidates is 0"),
        ({"greedy": 1.5}, "probability"),
        ({"greedy": float("nan")}, "probability"),
        ({"lag": -1}, "lag"),
        ({"reward": "clip"}, "latent, frame, dino"),
        ({"proposal": "pink"}, "mixture, noise, renoise, frequency, tilted"),
        ({"guidance_scale": -1.0}, "guidance_scale"),
    ],
)
def test_impossible_settings_are_refused_with_the_rule(changes, word):
    with pytest.raises(UserError, match=word):
        scaling_noise(**changes)


def test_on_the_embedded_model():
    backbone = load_backbone("tiny-wan", device="cpu")
    text = backbone.encode(["a red circle moves right", ""])
    prompts = PromptSchedule(text[:1], text[1:])
    noise = CounterNoise(0, backbone.latent_shape)
    settings = ScalingNoiseSettings(
        steps=backbone.window, guidance_scale=1.0, beams=2, candidates=2, greedy=0.8,
        reward="frame", released=True,
    )  # fmt: skip
    made = ScalingNoise(settings).sample(backbone, prompts, noise, 2)
    assert made.shape == (2, *backbone.latent_shape)
    assert torch.isfinite(made).all()
