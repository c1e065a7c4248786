"""MIGA's videos in time: without end, at constant memory, under prompts that change, watched while it fills."""

import dataclasses
import itertools
import math
from collections import Counter

import pytest
import torch
from analytic import PROMPTS, AnalyticBackbone
from test_sampling import NOISE, SMALL, LevelBackbone, LevelSolver, level_noise, miga

from miga_bench.errors import UserError
from miga_bench.sampling import Miga, PromptSchedule
from miga_bench.sampling.denoise import WindowDenoiser
from miga_bench.sampling.estimate import estimate
from miga_bench.sampling.miga import _Video

WATCHED = {"reflection": "continuous", "reflection_threshold": -2.0}  # every pass searches
TWO = torch.tensor([[[0.2]], [[0.4]]])


def video(length=None, prompts=PROMPTS, backbone=None, noise=NOISE, **changes):
    """Return a video in the making."""
    backbone = backbone or AnalyticBackbone("wan", window=8)
    chosen = dataclasses.replace(SMALL, **changes)
    denoiser = WindowDenoiser.of(chosen, backbone, prompts, noise, None)
    return _Video(chosen, backbone, denoiser, length)


@pytest.mark.parametrize(("reach", "zigzag"), [("chunks", 4), ("anchor", 3)])
def test_an_endless_video_begins_as_a_long_one(reach, zigzag):
    changes = {"guidance_reach": reach, "zigzag": zigzag, "batch": 1, **WATCHED}
    sampler = Miga(dataclasses.replace(SMALL, **changes))
    backbone = AnalyticBackbone("wan", window=8)
    endless = itertools.islice(sampler.stream(backbone, PROMPTS, NOISE), 40)
    assert torch.equal(torch.stack(list(endless)), miga(length=160, **changes)[:40])


@pytest.mark.parametrize(
    ("zigzag", "changes"),
    [(4, {}), (3, {}), (5, {}), (4, WATCHED), (3, {"guidance_reach": "anchor", **WATCHED})],
)
@pytest.mark.parametrize(
    "starts", [(0,), (0, 30), tuple(range(0, 200, 5)), tuple(range(0, 200, 12))]
)
def test_memory_does_not_grow_with_length(zigzag, changes, starts):
    """A stage of the pipeline holds about a window, whatever the length, and however often the text changes."""
    texts = torch.cat([TWO] * 20)[: len(starts)]
    prompts = PromptSchedule(texts, PROMPTS.negative, starts)
    made = video(prompts=prompts, zigzag=zigzag, candidates=1, **changes)
    held = []
    for _ in itertools.islice(made.stream(), 200):
        waiting = [len(p.waiting) for p in made.pipeline.passes if p.waiting is not None]
        held.append(len(made.queue) + sum(waiting) + len(made.clip))
        anchors = made.denoiser.anchors
        assert anchors is None or len(anchors.sets) <= 2
        stored = made.queue.latents.untyped_storage().nbytes()
        assert stored <= 2 * made.queue.latents.nbytes
    assert max(held[100:]) <= max(held[:100])
    assert max(held) < (SMALL.steps + 2) * zigzag + 5 * (8 + SMALL.stride) + 8


def test_what_leaves_a_queue_keeps_nothing_else_alive():
    made = video()
    made._open()
    front = made.queue.pop(4)
    for part in (front.latents, *front.state.values()):
        assert part.untyped_storage().nbytes() == part.nbytes


def test_no_chunk_enters_that_nothing_needs():
    made = video(24)
    list(made.stream())
    # what is left: as many as the opening clip put in
    assert made.queue.frames == list(range(24, 24 + 8))


def test_only_chunks_that_are_shown_are_judged():
    """Breaks if the queue's chunks behind the video's end, which only steady it, are searched for."""
    made, judged = video(24, candidates=1, **WATCHED), []
    watch = made.reflection

    def judge(queue, number):
        seen = watch(queue, number)
        if seen is not None:
            judged.append(queue.frames[queue.levels.index(SMALL.reflection_level)])
        return seen

    made.reflection = judge
    list(made.stream())
    assert max(judged) == 20


def test_an_estimate_leaves_searches_out_that_every_pass_begins():
    """Breaks if the evaluations of searches are counted where their windows are not."""
    backbone = AnalyticBackbone("wan", window=8)
    sampler = Miga(dataclasses.replace(SMALL, **WATCHED))
    plain = estimate(Miga(SMALL), backbone, 24, batch=4)
    assert estimate(sampler, backbone, 24, batch=4) == plain


class CutBackbone(LevelBackbone):
    """Can cut guidance frames off, and notes how many are."""

    can_cut = True
    cuts = frozenset()

    def check(self, latents, timesteps, text, cut=0):
        self.cuts |= {cut}
        for frames in latents[:, 1, cut:, 0, 0].tolist():
            assert frames == [frames[0] + k for k in range(len(frames))]
        return super().check(latents, timesteps, text)


def test_windows_with_and_without_guidance_frames_to_cut_share_no_call():
    """Breaks if they do where they are equally long: a call has one cut for all of its rows."""
    backbone = CutBackbone(8)
    changes = {"guidance_cut": True, "guidance_scale": 1.0, "batch": 64}
    miga(backbone, noise=level_noise(SMALL.steps), **changes)
    assert backbone.cuts == {0, SMALL.guidance_frames}


class TellingSolver(LevelSolver):
    """Keeps for each denoiser row which frames it wrote under which text."""

    def __init__(self, schedule):
        super().__init__(schedule)
        self.rows = {}

    def step(self, latents, prediction, levels, state, noise=None):
        for latent, told in zip(latents, prediction, strict=True):
            text, row = told[:, 0, 0].tolist()
            self.rows.setdefault((row, text), []).append(int(latent[1, 0, 0]))
        return super().step(latents, prediction, levels, state, noise)


class TellingBackbone(LevelBackbone):
    """Its prediction says its text and which row of all calls it is."""

    def __init__(self):
        super().__init__(8)
        self.seen = []  # text and frame numbers of each row

    def check(self, latents, timesteps, text):
        told = super().check(latents, timesteps, text)
        told[:, 0] = text[:, :, 0, None, None]
        told[:, 1] = torch.arange(len(text))[:, None, None, None] + len(self.seen)
        for row, one in zip(latents, text, strict=True):
            self.seen.append((float(one), row[1, :, 0, 0].tolist()))
        return told

    def solver(self, schedule):
        self.told = TellingSolver(schedule)
        return self.told


@pytest.mark.parametrize("reach", ["chunks", "anchor"])
@pytest.mark.parametrize("start", [12, 13, 26])
def test_a_window_is_told_the_prompt_of_the_middle_frame_it_writes(reach, start):
    backbone = TellingBackbone()
    prompts = PromptSchedule(torch.tensor([[[0.0]], [[1.0]]]), torch.zeros(1, 1, 1), (0, start))
    changes = {"guidance_reach": reach, "guidance_scale": 1.0, "batch": 3}
    sampler = Miga(dataclasses.replace(SMALL, **changes))
    sampler.sample(backbone, prompts, level_noise(SMALL.steps), 40)
    rows = backbone.told.rows
    for (_, text), frames in rows.items():
        assert frames == list(range(frames[0], frames[0] + len(frames)))
        assert text == (frames[len(frames) // 2] >= start), frames
    assert len(rows) == len(backbone.seen) > 100
    assert any(frames[0] < start <= frames[-1] for frames in rows.values())


def test_a_new_prompt_has_anchors_of_its_own_once_a_window_of_it_is_clean():
    backbone = TellingBackbone()
    prompts = PromptSchedule(torch.tensor([[[0.0]], [[1.0]]]), torch.zeros(1, 1, 1), (0, 13))
    changes = {"guidance_reach": "anchor", "guidance_scale": 1.0, "batch": 3}
    made = video(60, prompts, backbone, level_noise(SMALL.steps), **changes)
    stream = made.stream()
    for latents, own in ((13 + 4, {0}), (4, {1})):  # latents are finished four at a time
        assert len(list(itertools.islice(stream, latents))) == latents
        assert set(made.denoiser.anchors.sets) == own
    list(stream)
    ((number, anchors),) = made.denoiser.anchors.sets.items()
    # channels are level and frame: the ends of the first window of eight under the prompt, a step from clean
    assert (number, anchors[:, :, 0, 0].tolist()) == (1, [[1, 13], [1, 20]])
    assert made.clip == []
    used = {0.0: [], 1.0: []}
    for text, frames in backbone.seen[SMALL.steps :]:  # what comes before is the opening clip
        used[text].append(tuple(frames[:2]))
    assert set(used[0.0]) == {(0, 7)}
    own = used[1.0].index((13, 20))
    assert set(used[1.0][:own]) == {(0, 7)}
    assert set(used[1.0][own:]) == {(13, 20)}


@pytest.mark.parametrize("reach", ["chunks", "anchor"])
def test_a_change_of_prompt_changes_nothing_long_before_it(reach):
    """A latent sees seven frames ahead in each of its 14 passes, so nothing 98 frames on."""
    changes = {"guidance_reach": reach, "batch": 1, "length": 140}
    changed = miga(prompts=PromptSchedule(TWO, PROMPTS.negative, (0, 120)), **changes)
    plain = miga(**changes)
    assert torch.equal(changed[:22], plain[:22])
    assert not torch.equal(changed[:120], plain[:120])
    assert (changed[120:] != plain[120:]).flatten(1).any(1).all()


@pytest.mark.parametrize("stage2", [0, 3])
def test_the_lowest_level_of_growth_is_one_where_it_can_search(stage2):
    """Two levels below, growth ended before anything was judged; one below, before anything was compared."""
    reports = []
    watched = {"reflection": "growth", "reflection_threshold": -2.0, "candidates": 1, "length": 80}
    watched |= {"stage2_steps": stage2, "reflection_level": stage2 + 5}
    miga(callback=reports.append, **watched)
    judged = [r for r in reports if r.similarity is not None]
    assert [r.triggered for r in judged] == [False, True]
    with pytest.raises(UserError, match=f"from {stage2 + 5} to 11"):
        miga(**{**watched, "reflection_level": stage2 + 4})


def test_released_latents_are_finished_by_stage_2_or_the_renoise_pass():
    """Wan's stage 2 as released steps its latents as if they stood a level higher."""
    for changes in ({"renoise": 1}, {"renoise": 0, "stage2_steps": 0}):
        assert miga(released=True, length=4, **changes).shape[0] == 4
    other = AnalyticBackbone("videocrafter2", window=8)
    assert miga(other, released=True, length=4, renoise=0).shape[0] == 4


class Crew:
    """A team of so many processes, of which this one does all the work."""

    def __init__(self, size):
        self.size, self.calls = size, []

    def split(self, denoiser):
        def note(latents, *more, **options):
            self.calls.append(len(latents))
            return denoiser(latents, *more, **options)

        return note

    def capacity(self, windows):
        return windows * self.size


@pytest.mark.parametrize("size", [2, 4, 7])
@pytest.mark.parametrize("reach", ["chunks", "anchor"])
@pytest.mark.parametrize(("scale", "guided_from"), [(1.0, 0), (3.0, 0), (3.0, 6)])
def test_stage_2_waits_until_every_process_of_a_team_has_a_row(size, reach, scale, guided_from):
    """Breaks if the windows of a pass that is behind the others are made one by one, while most wait."""
    changes = {"guidance_reach": reach, "guidance_scale": scale, "batch": 64}
    changes |= {"guidance_from": guided_from}  # from 6 on: no window of stage 2
    backbone, waves = AnalyticBackbone("wan", window=8), []
    backbone.team = Crew(size)
    made = video(160, backbone=backbone, **changes)
    wave = made.pipeline._wave

    def note():
        work = wave()
        if work and made.pipeline.entered < 160:
            waves.append(sum(len(windows) for _, windows in work))
        return work

    made.pipeline._wave = note
    assert torch.equal(torch.stack(list(made.stream())), miga(length=160, **changes))
    rows = 1 if scale == 1 or guided_from else 2
    assert min(waves) * rows >= size
    assert (min(waves) - 1) * rows < size, "and no longer than that"
    alone = AnalyticBackbone("wan", window=8)
    alone.team = Crew(1)
    miga(alone, length=160, **changes)
    assert sum(backbone.team.calls) == sum(alone.team.calls), "no window more"


@pytest.mark.parametrize("size", [1, 3, 4])
def test_an_estimate_knows_the_calls_of_a_team_and_the_largest_share_of_each(size):
    """Breaks if ``validate`` tells a team's time as that of one process by so many."""
    changes = {"guidance_scale": 3.0, "batch": 2}
    backbone = AnalyticBackbone("wan", window=8)
    backbone.team = Crew(size)
    miga(backbone, length=80, **changes)
    sampler = Miga(dataclasses.replace(SMALL, **changes))
    found = estimate(sampler, AnalyticBackbone("wan", window=8), 80, team=size)
    rows = Counter({call.rows: count for call, count in found.calls.items()})
    assert rows == Counter(backbone.team.calls)
    shares = sorted(math.ceil(rows / size) for rows in backbone.team.calls)
    assert sorted(call.rows for call in found.shares.elements()) == shares


@pytest.mark.parametrize("size", [1, 4])
def test_a_team_hands_over_a_new_prompts_anchors_at_the_same_window(size):
    """Breaks if a team's windows wait where the time at which they run decides which anchors they see."""
    prompts = PromptSchedule(TWO, PROMPTS.negative, (0, 30))
    changes = {"guidance_reach": "anchor", "guidance_scale": 3.0, "batch": 64}
    backbone = AnalyticBackbone("wan", window=8)
    backbone.team = Crew(size)
    expected = miga(length=80, prompts=prompts, **changes)
    assert torch.equal(miga(backbone, length=80, prompts=prompts, **changes), expected)


def test_memory_of_a_team_does_not_grow_with_length():
    backbone = AnalyticBackbone("wan", window=8)
    backbone.team = Crew(16)
    made = video(backbone=backbone, guidance_scale=3.0, batch=64)
    held = [
        sum(len(p.waiting) for p in made.pipeline.passes if p.waiting is not None)
        for _ in itertools.islice(made.stream(), 400)
    ]
    assert max(held[200:]) <= max(held[:200])
