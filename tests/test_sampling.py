"""What holds of every queue, whatever its settings: levels, frames, neutral elements, streaming."""

import dataclasses
import itertools
from contextlib import contextmanager

import pytest
import torch
from analytic import PROMPTS, AnalyticBackbone, PatternNoise
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from miga_bench.backbones.base import LatentShape
from miga_bench.backbones.schedule import Schedule
from miga_bench.backbones.solvers import Solver
from miga_bench.errors import NumericalError, UserError
from miga_bench.sampling import (
    METHODS,
    CounterNoise,
    Fifo,
    FifoSettings,
    Miga,
    MigaSettings,
    PromptSchedule,
    ScalingNoise,
    Short,
    ShortSettings,
    estimate_windows,
    reflection,
    resolve,
)
from miga_bench.sampling.base import Cost
from miga_bench.sampling.denoise import WindowDenoiser
from miga_bench.sampling.miga import _Video
from miga_bench.sampling.pipeline import PipelinePass
from miga_bench.sampling.scaling_noise import ScalingNoiseSettings
from miga_bench.sampling.windows import miga_windows, partition

SMALL = MigaSettings(
    steps=12,
    zigzag=4,
    guidance_frames=2,
    guidance_reach="chunks",
    stage2_steps=3,
    renoise=2,
    stride=4,
    guidance_scale=3.0,
    reflection="off",
    reflection_threshold=0.01,
    reflection_level=9,
    reference_chunks=1,
    candidates=2,
)
NOISE = CounterNoise(0, LatentShape(3, 4, 4))


def miga(backbone=None, length=24, noise=NOISE, prompts=PROMPTS, callback=None, **changes):
    """Sample the small settings with some of them changed."""
    sampler = Miga(dataclasses.replace(SMALL, **changes))
    backbone = backbone or AnalyticBackbone("wan", window=8)
    return torch.stack(list(sampler.stream(backbone, prompts, noise, length, callback)))


class LevelSchedule(Schedule):
    """A schedule whose noisy latents say their level: channel 0 = level, channel 1 = frame."""

    def add_noise(self, clean, levels, noise):
        out = noise.clone()
        out[:, 0] = torch.tensor(levels, dtype=out.dtype)[:, None, None]
        return out


class LevelSolver(Solver):
    """Lowers the level a latent says, after checking that it is told the truth."""

    def step(self, latents, prediction, levels, state, noise=None):
        assert latents[:, 0, 0, 0].tolist() == levels
        assert min(levels) > self.schedule.clean
        lower = latents.clone()
        lower[:, 0] -= 1
        return lower, state


class LevelBackbone(AnalyticBackbone):
    """Checks that the denoiser is told the level of every frame it sees."""

    def __init__(self, window, family="wan"):
        super().__init__(family, window)
        self.denoiser = self.check

    def check(self, latents, timesteps, text):
        assert torch.equal(latents[:, 0, :, 0, 0] * 10, timesteps)
        assert latents.shape[2] <= self.window
        return torch.zeros_like(latents)

    def schedule(self, steps):
        tables = torch.arange(steps + 1).float()
        return LevelSchedule(steps, tables * 10, tables.double(), tables.double())

    def solver(self, schedule):
        return LevelSolver(schedule)


def level_noise(steps):
    """Noise that says top level and frame number."""

    def noise(frames, purpose, draws=0):
        out = torch.full((len(frames), 2, 2, 2), float(steps))
        out[:, 1] = torch.tensor(frames, dtype=torch.float)[:, None, None]
        return out

    return noise


@st.composite
def miga_settings(draw):
    window = draw(st.sampled_from([4, 6, 8, 12, 16, 21]))
    zigzag = draw(st.integers(1, window))
    stride = draw(st.integers(1, window))
    steps = window // zigzag + draw(st.integers(5, 14))
    references = draw(st.integers(1, 2))
    room = steps - window // zigzag - 1
    stage2 = draw(st.integers(0, room))
    reflection = draw(st.sampled_from(["off", "continuous", "growth"]))
    lowest = stage2 + references + (4 if reflection == "growth" else 1)
    if lowest > steps - 1:
        reflection = "off"
    return window, MigaSettings(
        steps=steps,
        zigzag=zigzag,
        guidance_frames=draw(st.integers(0, window - stride)),
        guidance_reach=draw(st.sampled_from(["chunks", "head", "anchor"])),
        stage2_steps=stage2,
        renoise=draw(st.integers(0, steps)),
        stride=stride,
        guidance_scale=draw(st.sampled_from([1.0, 2.0])),
        reflection=reflection,
        reflection_threshold=-2.0,
        reflection_level=min(lowest, steps - 1),
        reference_chunks=references,
        candidates=2,
        batch=draw(st.integers(1, 8)),
        released=draw(st.booleans()),
    )


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(miga_settings(), st.sampled_from(["wan", "videocrafter2"]), st.integers(1, 40))
def test_miga_latents_leave_in_order_and_clean(drawn, family, length):
    window, chosen = drawn
    if chosen.released and family == "wan":
        # The released stage 2 of Wan tells its latents' level one too high.
        chosen = dataclasses.replace(chosen, stage2_steps=0)
    backbone, noise = LevelBackbone(window, family), level_noise(chosen.steps)
    passes = []
    made = Miga(chosen).sample(backbone, PROMPTS, noise, length, passes.append)
    stage_1 = [r.levels for r in passes if r.stage in ("growth", "stage1")]
    assert stage_1[0][0] == chosen.steps - window // chosen.zigzag - 1
    assert made[:, 0].unique().tolist() == [0.0], "every latent leaves at the clean level"
    assert made[:, 1, 0, 0].tolist() == list(range(length)), "frame numbers are contiguous"


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 12), st.integers(0, 20), st.booleans(), st.booleans(), st.integers(1, 30))
def test_fifo_latents_leave_in_order_and_clean(window, more, lookahead, growth, length):
    steps = window + more
    sampler = Fifo(FifoSettings(steps, 2.0, lookahead, growth=growth))
    made = sampler.sample(LevelBackbone(window), PROMPTS, level_noise(steps), length)
    assert made[:, 0].unique().tolist() == [0.0]
    assert made[:, 1, 0, 0].tolist() == list(range(length))


def test_zigzag_of_one_walks_as_fifo():
    # All of MIGA's parts off: each pass hands out one latent, and levels rise by one per slot.
    reports = []
    made = miga(
        zigzag=1, stage2_steps=0, renoise=0, guidance_frames=0, length=20, callback=reports.append
    )
    assert len(made) == 20
    steady = [r for r in reports if r.stage == "stage1"]
    assert not [r for r in reports if r.stage == "stage2"]
    out = [b.finished - a.finished for a, b in itertools.pairwise(steady[1:])]
    assert set(out) == {1}
    backbone = AnalyticBackbone("wan", window=8)
    seen = []
    backbone.denoiser = lambda x, t, c: seen.append(t) or torch.zeros_like(x)
    miga(
        backbone,
        zigzag=1,
        stage2_steps=0,
        renoise=0,
        guidance_frames=0,
        guidance_scale=1,
        length=20,
    )
    grid = backbone.schedule(SMALL.steps).timesteps.tolist()
    for timesteps in seen[SMALL.steps :]:
        for row in timesteps.tolist():
            levels = [grid.index(t) for t in row]
            assert levels == list(range(levels[0], levels[0] + len(row)))


def test_off_is_absent_bit_for_bit():
    plain = miga(guidance_frames=0)
    for reach in ("head", "anchor"):
        assert torch.equal(plain, miga(guidance_frames=0, guidance_reach=reach))
    for kind in ("continuous", "growth"):
        seen = []
        never = miga(length=61, reflection=kind, reflection_threshold=10.0, callback=seen.append)
        assert any(report.similarity is not None for report in seen), "there is something to judge"
        assert torch.equal(miga(length=61), never), "a watch that never triggers changes nothing"
    assert not torch.equal(miga(), plain)
    assert not torch.equal(miga(), miga(renoise=0))
    assert not torch.equal(miga(), miga(stage2_steps=0, renoise=2))


def test_guidance_scale_of_one_leaves_the_unconditional_half_out():
    backbone = AnalyticBackbone("wan", window=8)
    miga(backbone, guidance_scale=1.0)
    other = PromptSchedule(PROMPTS.text, torch.full((1, 1, 1), 9.0))
    assert torch.equal(miga(guidance_scale=1.0), miga(guidance_scale=1.0, prompts=other))
    assert backbone.denoiser.calls == estimate_windows(
        Miga(dataclasses.replace(SMALL, guidance_scale=1.0)), backbone, 24
    )


@pytest.mark.parametrize(
    ("reach", "zigzag"), [("chunks", 4), ("anchor", 4), ("chunks", 3), ("head", 5), ("anchor", 7)]
)
@pytest.mark.parametrize(
    ("length", "stage2", "renoise"),
    [(5, 3, 2), (8, 3, 2), (24, 3, 2), (61, 3, 2), (24, 3, 0), (24, 0, 2), (24, 0, 0)],
)
def test_streaming_is_all_at_once(reach, zigzag, length, stage2, renoise):
    backbone = AnalyticBackbone("wan", window=8)
    chosen = dataclasses.replace(
        SMALL, guidance_reach=reach, zigzag=zigzag, stage2_steps=stage2, renoise=renoise
    )
    streamed = Miga(chosen).sample(backbone, PROMPTS, NOISE, length)

    # All at once: collect what leaves stage 1, then walk the whole row level by level.
    solver = backbone.solver(backbone.schedule(chosen.steps))
    denoiser = WindowDenoiser(backbone, PROMPTS, solver, NOISE, 3.0, 1, Cost())
    video = _Video(chosen, backbone, denoiser, length)
    video._open()
    row, *rest = video._stage_1()
    for chunk in rest:
        row = row + chunk
    anchors = chosen.guidance_frames if reach == "anchor" else 0

    def walk(queue, steps):
        for number in range(steps):
            ranges = partition(len(queue), chosen.stride, 8 - anchors, number % chosen.stride)
            plan = miga_windows(ranges, len(queue), 8, anchors, 1, "anchor")
            denoiser.denoise(queue, plan, "collected", in_place=False)
        return queue.latents

    if not stage2 and not renoise:
        assert torch.equal(streamed, row.latents[:length]), "what is off is absent bit for bit"
    row = type(row).fresh(row.latents, row.levels, row.frames, solver)
    clean = walk(row, chosen.stage2_steps)
    level = [chosen.renoise] * len(row)
    noisy = denoiser.schedule.add_noise(clean, level, NOISE(row.frames, "renoise"))
    collected = walk(type(row).fresh(noisy, level, row.frames, solver), chosen.renoise)
    torch.testing.assert_close(streamed, collected[:length], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("reach", ["chunks", "anchor"])
@pytest.mark.parametrize("length", [5, 24, 61])
def test_windows_that_do_not_wait_change_nothing(monkeypatch, reach, length):
    """Stage 2 begins a window when what it reads is there; waiting longer gives the same, bit for bit."""
    early = miga(batch=1, length=length, guidance_reach=reach)
    begin = PipelinePass.__init__
    monkeypatch.setattr(
        PipelinePass,
        "__init__",
        lambda self, index, plan, length, early: begin(self, index, plan, length, False),
    )
    assert torch.equal(miga(batch=1, length=length, guidance_reach=reach), early)


@pytest.mark.parametrize("family", ["wan", "videocrafter2"])
def test_mixed_precision_is_the_denoisers_alone(family, monkeypatch):
    """Breaks if a sampler's own sums and similarities are narrowed with the network's."""
    backbone, inside, seen = (
        AnalyticBackbone(family, window=8),
        [],
        {"denoiser": set(), "sampler": set()},
    )

    @contextmanager
    def narrow():
        inside.append(True)
        yield
        inside.pop()

    def watch(where, work):
        def watched(*given, **named):
            seen[where].add(bool(inside))
            return work(*given, **named)

        return watched

    backbone.arithmetic = narrow
    backbone.denoiser = watch("denoiser", backbone.denoiser)
    monkeypatch.setattr(reflection, "similarity", watch("sampler", reflection.similarity))
    kind = type(backbone.solver(backbone.schedule(SMALL.steps)))
    monkeypatch.setattr(kind, "step", watch("sampler", kind.step))
    miga(backbone, reflection="continuous", reflection_threshold=-2.0)
    assert seen == {"denoiser": {True}, "sampler": {False}}


@pytest.mark.parametrize("zigzag", [4, 3, 5])
def test_batches_change_nothing(zigzag):
    watch = {"reflection": "continuous", "reflection_threshold": -2.0, "zigzag": zigzag}
    one = miga(batch=1, **watch)
    for batch in (3, 64):
        many = miga(batch=batch, **watch)
        torch.testing.assert_close(one, many, rtol=1e-5, atol=1e-5)


def test_a_pass_of_independent_windows_is_one_batch():
    backbone = AnalyticBackbone("wan", window=8)
    miga(backbone, batch=64, guidance_scale=1.0, guidance_frames=0)
    assert max(backbone.denoiser.batches) > 4


def test_same_seed_same_video_and_another_seed_another():
    assert torch.equal(miga(), miga())
    assert not torch.equal(miga(), miga(noise=CounterNoise(1, LatentShape(3, 4, 4))))


@pytest.mark.parametrize(
    "sampler",
    [
        Fifo(FifoSettings(12, 1.0)),
        ScalingNoise(ScalingNoiseSettings(12, 1.0, 2, 2, 1.0, "latent")),
    ],
    ids=lambda sampler: sampler.name,
)
def test_a_latent_keeps_nothing_else_alive(sampler):
    for latent in sampler.stream(AnalyticBackbone("wan", window=8), PROMPTS, NOISE, 3):
        assert latent.untyped_storage().nbytes() == latent.numel() * latent.element_size()


@pytest.mark.parametrize("reach", ["chunks", "head", "anchor"])
@pytest.mark.parametrize(("family", "window"), [("videocrafter2", 16), ("wan", 21)])
@pytest.mark.parametrize("zigzag", [1, 2, 4, 6, 8])
def test_the_widths_of_the_papers_ablation_on_both_windows(family, window, zigzag, reach):
    """Table 4's widths: 6 does not divide VideoCrafter2's window, only 1 divides Wan's."""
    backbone, seen = AnalyticBackbone(family), []
    steps = window // zigzag + 9
    changes = {"steps": steps, "zigzag": zigzag, "guidance_reach": reach, "stride": 8}
    changes |= {"reflection": "continuous", "reflection_threshold": -2.0, "reflection_level": 7}
    watched = miga(backbone, length=30, callback=seen.append, **changes)
    assert torch.isfinite(watched).all()
    assert any(report.triggered for report in seen)
    alone = miga(backbone, length=30, batch=1, **changes)
    torch.testing.assert_close(watched, alone, rtol=1e-4, atol=1e-4)


def test_reflection_continuous_watches_longer_than_growth():
    def judged(kind):
        reports = []
        miga(
            length=80,
            reflection=kind,
            reflection_threshold=-2.0,
            candidates=1,
            callback=reports.append,
        )
        return [r for r in reports if r.similarity is not None]

    growth, continuous = judged("growth"), judged("continuous")
    assert {r.stage for r in growth} == {"growth"}
    assert len(continuous) > len(growth)
    assert all(r.triggered for r in continuous[1:]), "every drop of more than -2 triggers"
    assert continuous[-1].search_windows > growth[-1].search_windows > 0


def test_reflection_adopts_only_better_tails():
    reports = []
    miga(
        length=60,
        reflection="continuous",
        reflection_threshold=-2.0,
        noise=NOISE,
        callback=reports.append,
    )
    judged = [r for r in reports if r.similarity is not None]
    assert any(r.accepted for r in judged)
    assert any(r.triggered and not r.accepted for r in judged)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"zigzag": 9}, "from 1 to the window's 8 latents"),
        ({"zigzag": 0}, "from 1 to the window's 8 latents"),
        ({"guidance_frames": 5}, "0 to 4"),
        ({"stride": 9}, "window"),
        ({"steps": 1}, "steps"),
        ({"steps": 1001}, "from 2 to 1000"),
        ({"stage2_steps": 10}, "0 to 9"),
        ({"renoise": 13}, "renoise"),
        ({"guidance_scale": float("nan")}, "guidance_scale"),
        ({"reflection": "continuous", "reflection_level": 12}, "from 5 to 11"),
        ({"reflection": "growth", "reflection_level": 7}, "growth it must be from 8 to 11"),
        ({"released": True, "renoise": 0}, "set renoise to 1 or more"),
        ({"reflection": "continuous", "candidates": 0}, "candidates"),
        ({"reflection": "continuous", "reflection_threshold": float("inf")}, "finite"),
        ({"batch": -1}, "batch"),
    ],
)
def test_impossible_settings_are_refused_with_the_rule(changes, word):
    with pytest.raises(UserError, match=word):
        miga(**changes)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"steps": 3}, "at least 4"),
        ({"stage2_steps": 9}, "from 0 to 8"),
        ({"renoise": 12}, "from 0 to 11"),
        ({"reflection": "continuous", "reflection_level": 5}, "from 6 to 11"),
        ({"reflection": "growth", "reflection_level": 8}, "from 9 to 11"),
    ],
)
def test_the_rules_know_where_videocrafter2_is_clean(changes, word):
    """Breaks if a rule forgets that the last step of its grid changes nothing: level 1 is clean."""
    with pytest.raises(UserError, match=word):
        miga(AnalyticBackbone("videocrafter2", window=8), **changes)


def test_fifo_and_short_refuse_what_they_cannot():
    backbone = AnalyticBackbone("wan", window=8)
    with pytest.raises(UserError, match="at least the 8 latents"):
        Fifo(FifoSettings(7, 3.0)).sample(backbone, PROMPTS, NOISE, 4)
    with pytest.raises(UserError, match="at most 8 latents"):
        Short(ShortSettings(5, 3.0)).sample(backbone, PROMPTS, NOISE, 9)
    with pytest.raises(UserError, match="at most 8 latents"):
        next(Short(ShortSettings(5, 3.0)).stream(backbone, PROMPTS, NOISE, None))


def test_nan_stops_with_frame_and_level():
    backbone = AnalyticBackbone("wan", window=8)
    known, calls = backbone.denoiser, []

    def broken(latents, timesteps, text):
        calls.append(1)
        out = known(latents, timesteps, text)
        return out * float("nan") if len(calls) > 15 else out

    backbone.denoiser = broken
    with pytest.raises(NumericalError, match=r"latent frame \d+, level \d+ of 12"):
        miga(backbone)


@pytest.mark.parametrize("method", ["fifo", "miga"])
def test_the_estimate_is_the_count(method):
    backbone = AnalyticBackbone("wan")
    sampler = METHODS[method](resolve(method, backbone, None, {"steps": 54}))
    expected = estimate_windows(sampler, backbone, 30)
    reports = []
    changes = {"reflection": "off"} if method == "miga" else {}
    sampler = METHODS[method](dataclasses.replace(sampler.settings, **changes))
    list(sampler.stream(backbone, PROMPTS, PatternNoise(), 30, reports.append))
    assert reports[-1].windows == expected
    assert backbone.denoiser.calls == 2 * expected


def test_settings_are_parsed_and_unknown_names_say_what_is_near():
    backbone = AnalyticBackbone("wan")
    chosen = resolve("miga", backbone, None, {"reflection": "off", "zigzag": "3"})
    assert (chosen.reflection, chosen.zigzag) == ("off", 3)
    typed = resolve("miga", backbone, None, {"reflection": False, "zigzag": 3, "guidance_scale": 5})
    assert (typed.reflection, typed.zigzag, repr(typed.guidance_scale)) == ("off", 3, "5.0")
    assert resolve("miga", backbone, None, {"guidance_to": None}).guidance_to is None
    assert resolve("miga", backbone, "anchored").guidance_reach == "anchor"
    for preset in ("paper", "release"):
        for family in ("wan", "videocrafter2"):
            Miga(resolve("miga", AnalyticBackbone(family), preset))
    cases = [
        (("miga", backbone, None, {"zigzg": 1}), "did you mean zigzag"),
        (("miga", backbone, None, {"steps": "many"}), "whole number"),
        (("miga", backbone, None, {"steps": True}), "steps is 'True': it must be a whole number"),
        (("miga", backbone, None, {"zigzag": 4.5}), "zigzag is '4.5': it must be a whole number"),
        (("miga", backbone, None, {"guidance_scale": [5]}), "finite number"),
        (("fifo", backbone, None, {"lookahead": 2}), "true or false"),
        (("miga", backbone, None, {"guidance_reach": 1}), "chunks, head, anchor"),
        (("miga", backbone, None, {"guidance_reach": "far"}), "chunks, head, anchor"),
        (("miga", backbone, "papr"), "did you mean paper"),
        (("mega", backbone), "did you mean miga"),
    ]
    for arguments, words in cases:
        with pytest.raises(UserError, match=words):
            resolve(*arguments)
