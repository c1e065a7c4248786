"""Self-reflection, case by case: what is compared, when it searches, what it adopts."""

from dataclasses import dataclass, replace

import pytest
import torch
from analytic import AnalyticBackbone

from miga_bench.backbones.base import LatentShape
from miga_bench.sampling import CounterNoise, PromptSchedule
from miga_bench.sampling import reflection as page
from miga_bench.sampling.base import Cost, Reflected
from miga_bench.sampling.denoise import WindowDenoiser
from miga_bench.sampling.queue import Queue
from miga_bench.sampling.reflection import Reflection, similarity

ZIGZAG, LEVEL, TOP = 2, 7, 10
DELTA = 0.25  # binary, as all scores here: differences are exact
# Slots where the reference and the judged chunk begin; as released, one chunk lies before the reference.
REFERENCE, JUDGED = ZIGZAG, 3 * ZIGZAG


def maps(*rows):
    """Return latents ``[F, 2, 1, 2]`` whose means over the channels are the rows."""
    wanted = torch.tensor(rows, dtype=torch.float)[:, None, None, :]
    return torch.cat([wanted + 5, wanted - 5], 1)


def test_similarity_is_the_mean_cosine_of_all_pairs_or_the_cosine_of_the_means():
    judged, reference = maps([2, 0], [0, 3]), maps([4, 0], [3, 4], [0, -1])
    # cosines of [1, 0] and [0, 1] with [1, 0], [0.6, 0.8], [0, -1]
    pairs = [1, 0.6, 0, 0, 0.8, -1]
    assert float(similarity(judged, reference)) == pytest.approx(sum(pairs) / 6)
    # of the means, the longer counts more: [1, 1.5] and [7/3, 1]
    cosine = (7 / 3 + 1.5) / ((1 + 1.5**2) ** 0.5 * ((7 / 3) ** 2 + 1) ** 0.5)
    assert float(similarity(judged, reference, "set")) == pytest.approx(cosine)


def test_similarity_reaches_from_opposite_to_alike():
    for pooling in ("frames", "set"):
        one = maps([1, 2], [1, 2])
        assert float(similarity(one, 3 * one, pooling)) == pytest.approx(1)
        assert float(similarity(one, -one, pooling)) == pytest.approx(-1)


@dataclass
class Watch:
    """A reflection whose scores are told beforehand, and a queue of six chunks, the fourth of them judged."""

    reflection: Reflection
    queue: Queue
    asked: list  # what was compared with what, in order
    scores: list  # what is said of it

    def passes(self, *scores, number=0):
        """Judge a pass with these scores: of the queue, then of the candidates."""
        self.scores += scores
        seen = self.reflection(self.queue, number)
        assert not self.scores, "every score was asked for"
        return seen


@pytest.fixture
def watch(monkeypatch):
    def make(starts=(0,), **changes):
        backbone = AnalyticBackbone("wan", window=4)
        noise = CounterNoise(0, LatentShape(3, 4, 4))
        solver = backbone.solver(backbone.schedule(TOP))
        text = torch.arange(float(len(starts))).reshape(-1, 1, 1)
        prompts = PromptSchedule(text, torch.zeros(1, 1, 1), starts)
        denoiser = WindowDenoiser(backbone, prompts, solver, noise, 1.0, 8, Cost())

        def fresh_chunk(frames, purpose, draw):
            return Queue.fresh(noise(frames, purpose, draw), [TOP] * len(frames), frames, solver)

        settings = {
            "denoiser": denoiser,
            "fresh_chunk": fresh_chunk,
            "level": LEVEL,
            "reference": 2,
            "zigzag": ZIGZAG,
            "window": 4,
            "stride": 2,
            "threshold": DELTA,
            "candidates": 3,
            "pooling": "frames",
        }
        frames = list(range(10, 22))
        levels = [LEVEL - 3 + slot // ZIGZAG for slot in range(len(frames))]
        queue = Queue.fresh(noise(frames, "slots"), levels, frames, solver)
        found = Watch(Reflection(**(settings | changes)), queue, [], [])

        def told(judged, reference, pooling="frames"):
            found.asked.append((judged.clone(), reference.clone(), pooling))
            return torch.tensor(found.scores.pop(0))

        monkeypatch.setattr(page, "similarity", told)
        return found

    return make


@pytest.mark.parametrize("pooling", ["frames", "set"])
def test_the_judged_chunk_is_compared_with_those_right_before_it(watch, pooling):
    watched = watch(pooling=pooling)
    before = watched.queue.latents.clone()
    assert watched.passes(0.5) == Reflected(similarity=0.5)
    ((judged, reference, told),) = watched.asked
    assert torch.equal(judged, before[JUDGED : JUDGED + ZIGZAG])
    assert torch.equal(reference, before[REFERENCE:JUDGED])
    assert told == pooling


def test_nothing_is_judged_where_the_level_or_a_reference_is_missing(watch):
    watched = watch()
    shorter = replace(watched, queue=watched.queue[1:])
    assert shorter.passes() is None
    above = replace(watched, queue=watched.queue[:JUDGED])
    assert above.passes() is None
    assert watched.asked == []


def test_only_a_drop_of_more_than_delta_searches(watch):
    watched = watch()
    assert watched.passes(0.75) == Reflected(similarity=0.75)
    assert watched.passes(0.75 - DELTA) == Reflected(similarity=0.5)
    assert watched.passes(0.875) == Reflected(similarity=0.875)  # a rise of more than delta
    fallen = 0.875 - DELTA - 2**-10
    assert watched.passes(fallen, -1.0, -1.0, -1.0) == Reflected(fallen, triggered=True)
    # it is held against the pass before, not against the best
    assert watched.passes(fallen - DELTA) == Reflected(fallen - DELTA)


def test_the_best_tail_is_adopted_behind_a_frozen_reference(watch):
    watched = watch()
    watched.passes(0.75)
    before = watched.queue[:]
    tails = []
    search = watched.reflection._search

    def listed(*of):
        tails[:] = search(*of)
        return tails

    watched.reflection._search = listed
    seen = watched.passes(0.25, 0.125, 0.875, 0.5, number=1)
    assert seen == Reflected(similarity=0.875, triggered=True, accepted=True)
    queue = watched.queue
    assert torch.equal(queue.latents[:JUDGED], before.latents[:JUDGED])
    assert torch.equal(queue.latents[JUDGED:], tails[1].latents)
    for name, value in queue.state.items():
        assert torch.equal(value[JUDGED:], tails[1].state[name]), name
    assert (queue.frames, queue.levels) == (before.frames, before.levels)
    # each candidate's first chunk was compared with the same reference
    for tail, (judged, reference, _) in zip(tails, watched.asked[2:], strict=True):
        assert torch.equal(judged, tail.latents[:ZIGZAG])
        assert torch.equal(reference, before.latents[REFERENCE:JUDGED])
    assert len({tuple(tail.latents.flatten().tolist()) for tail in tails}) == 3
    # the next pass is held against what was adopted
    assert watched.passes(0.5, -1.0, -1.0, -1.0) == Reflected(0.5, triggered=True)


@pytest.mark.parametrize("chunks", [1, 2, 3])
def test_a_short_tail_is_taken_down_to_the_same_levels(watch, chunks):
    """Breaks if candidates near the video's end, where no chunk follows, are compared at another level."""
    watched = watch()
    watched.queue = watched.queue[: JUDGED + chunks * ZIGZAG]
    before = watched.queue[:]
    watched.passes(0.75)
    seen = watched.passes(0.25, 0.875, 0.5, 0.5)
    assert seen == Reflected(similarity=0.875, triggered=True, accepted=True)
    assert (watched.queue.frames, watched.queue.levels) == (before.frames, before.levels)
    assert not torch.equal(watched.queue.latents[JUDGED:], before.latents[JUDGED:])


def test_a_chunk_that_is_not_handed_out_is_not_judged(watch):
    first = 16  # frame of the judged chunk
    watched = watch(shown=first + 1)
    assert watched.passes(0.75) == Reflected(similarity=0.75)
    watched = watch(shown=first)
    assert watched.passes() is None


def test_a_tail_that_is_only_as_good_is_not_adopted(watch):
    watched = watch()
    watched.passes(0.75)
    before = watched.queue.latents.clone()
    assert watched.passes(0.25, 0.125, 0.25, 0.0) == Reflected(0.25, triggered=True)
    assert torch.equal(watched.queue.latents, before)
    assert watched.passes(0.0) == Reflected(0.0)  # held against the score that stayed


def test_the_tails_of_every_search_are_drawn_anew(watch):
    watched = watch()
    drawn = []
    for number in (3, 3, 4):
        watched.reflection.last = 0.75
        watched.passes(0.25, -1.0, -1.0, -1.0, number=number)
        drawn.append(watched.asked[-1][0])
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[1], drawn[2])


def test_no_judgement_reaches_across_a_change_of_prompt(watch):
    for start in range(13, 18):  # within the reference or the judged chunk, frames 12 to 17
        watched = watch(starts=(0, start))
        watched.reflection.last = 0.75
        assert watched.passes() is None
        assert watched.reflection.last is None
    for start in (12, 18):
        watched = watch(starts=(0, start))
        watched.reflection.last = 0.75
        assert watched.passes(0.75) == Reflected(0.75)


def test_the_first_judgement_after_a_change_of_prompt_only_records(watch):
    watched = watch(starts=(0, 18))
    watched.passes(0.75)
    moved = replace(watched.queue, frames=[frame + 2 for frame in watched.queue.frames])
    here, watched.queue = watched.queue, moved
    assert watched.passes() is None
    watched.queue = here
    assert watched.passes(-0.75) == Reflected(-0.75)
