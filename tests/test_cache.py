"""The first-block cache: what is computed again and what is not, and that off is absent. Seconds."""

import dataclasses
import itertools

import pytest
import torch
from analytic import PROMPTS, AnalyticBackbone
from simple_backbone import SimpleBackbone
from test_flops import by_hand
from test_sampling import NOISE, SMALL, miga
from vc2_fixtures import tiny_folder

from miga_bench.backbones import load_backbone
from miga_bench.errors import Notice, UserError
from miga_bench.harness.flops import FlopMeter
from miga_bench.harness.request import GenerateRequest, PromptAt
from miga_bench.harness.stop import StopSignals
from miga_bench.harness.video import Video, Watcher
from miga_bench.sampling import (
    METHODS,
    CounterNoise,
    Fifo,
    FifoSettings,
    Miga,
    PromptSchedule,
    Short,
    ShortSettings,
    denoise,
    estimate_windows,
    resolve,
)
from miga_bench.sampling.base import Cost
from miga_bench.sampling.cache import BlockCache, CachedRow, relative_change
from miga_bench.sampling.denoise import WindowDenoiser
from miga_bench.sampling.miga import _Video
from miga_bench.sampling.reflection import Reflection
from miga_bench.sampling.windows import miga_windows, partition

ALWAYS = 1e9  # cuts short whatever was computed before
NEVER = 1e-12
WATCH = {"reflection": "continuous", "reflection_threshold": -2.0}


class BlockDenoiser:
    """Two blocks that mix frames, and output layers that do not; counts the rows of the second.

    Memory is for ``most`` rows of the second block.
    """

    def __init__(self):
        self.deep_rows, self.calls, self.most = 0, 0, None

    def __call__(self, latents, timesteps, text, *, cut=0, shortcut=None):
        self.calls += len(latents)
        before = latents.transpose(1, 2)  # [B, F, C, H, W]
        level = (timesteps / 1000)[:, :, None, None, None]
        words = text.reshape(-1, 1, 1, 1, 1)
        after = before + (0.2 + level) * torch.tanh(before + before.mean(1, keepdim=True)) + words

        def rest(rows):
            hidden = after[rows]
            self.deep_rows += len(hidden)
            mean = hidden.mean(1, keepdim=True)
            return hidden + torch.sin(hidden) * (0.5 + level[rows]) - 0.3 * mean + words[rows]

        out = rest(slice(None)) if shortcut is None else shortcut(before, after, rest)
        if self.most and len(latents) > self.most:  # as late as it can be
            raise torch.OutOfMemoryError("CUDA out of memory")
        return (0.4 * out).transpose(1, 2)


class BlockBackbone(AnalyticBackbone):
    def __init__(self, window=8):
        super().__init__("wan", window)
        self.denoiser = BlockDenoiser()

    @property
    def can_cache(self):
        return True


def fifo(backbone=None, length=20, callback=None, prompts=PROMPTS, **changes):
    settings = dataclasses.replace(FifoSettings(12, 3.0), **changes)
    backbone = backbone or BlockBackbone()
    return Fifo(settings).sample(backbone, prompts, NOISE, length, callback)


def small(backbone=None, **changes):
    return miga(backbone or BlockBackbone(), **changes)


def caches(monkeypatch):
    """Return the list of all caches made from now on."""
    made = []

    class Watched(BlockCache):
        def __init__(self, threshold):
            super().__init__(threshold)
            made.append(self)

    monkeypatch.setattr(denoise, "BlockCache", Watched)
    return made


@pytest.fixture(scope="module")
def vc2(tmp_path_factory):
    folder = tiny_folder(tmp_path_factory.mktemp("vc2") / "model")
    return load_backbone(folder, device="cpu", window=4)


@pytest.fixture(scope="module")
def wan():
    return load_backbone("tiny-wan", device="cpu", window=4, height=32, width=32)


@pytest.mark.parametrize("sample", [fifo, small])
def test_off_is_absent_and_nothing_skipped_is_the_same_bits(sample):
    """Breaks if an unused cache changes a bit, or a denoiser is told of one that is off."""
    plain = sample()
    assert torch.equal(sample(cache=0.0), plain)
    sample(AnalyticBackbone("wan", window=8), cache=0.0)  # its denoiser knows no shortcut
    backbone, reports = BlockBackbone(), []
    assert torch.equal(sample(backbone, cache=NEVER, callback=reports.append), plain)
    assert reports[-1].skipped == 0
    assert backbone.denoiser.deep_rows == backbone.denoiser.calls == reports[-1].nfe


def settings(method, backbone, **changes):
    few = {"steps": 8, "guidance_scale": 2.0}
    if method == "miga":
        few |= {"zigzag": 1, "guidance_frames": 2, "stride": 2, "stage2_steps": 2, "renoise": 2}
        few |= {"reflection": "off"}
    return resolve(method, backbone, "paper", few | changes)


def words(backbone):
    prompts = PromptSchedule(backbone.encode(["a red circle"]), backbone.encode([""]))
    return prompts, CounterNoise(5, backbone.latent_shape)


def video(backbone, method="miga", callback=None, said=None, **changes):
    sampler = METHODS[method](settings(method, backbone, **changes))
    length = 4 if method == "short" else 5
    return sampler.sample(backbone, *(said or words(backbone)), length, callback)


@pytest.mark.parametrize(
    ("family", "method"), [("wan", "short"), ("wan", "fifo"), ("wan", "miga"), ("vc2", "miga")]
)
@torch.inference_mode()
def test_both_networks_with_nothing_and_with_everything_skipped(family, method, request):
    """Breaks if a network's parts, taken one by one, are not the network."""
    backbone = request.getfixturevalue(family)
    plain = video(backbone, method)
    assert torch.equal(video(backbone, method, cache=NEVER), plain)
    skipping = video(backbone, method, cache=ALWAYS)
    assert skipping.isfinite().all()
    assert not torch.equal(skipping, plain)
    assert torch.equal(video(backbone, method), plain)  # nothing stays behind


@torch.inference_mode()
def test_guidance_frames_that_are_cut_off(vc2):
    """Breaks if the cut does not reach both parts of the network."""
    plain = video(vc2, guidance_cut=True)
    assert torch.equal(video(vc2, guidance_cut=True, cache=NEVER), plain)
    assert not torch.equal(video(vc2), plain)


def test_the_whole_network_runs_once_for_frames_that_may_always_be_skipped():
    backbone, reports = BlockBackbone(), []
    Short(ShortSettings(12, 3.0, cache=ALWAYS)).sample(backbone, PROMPTS, NOISE, 8, reports.append)
    assert reports[-1].nfe == backbone.denoiser.calls == 24
    assert reports[-1].skipped == 22  # all but the first step, with both halves
    assert backbone.denoiser.deep_rows == 2


@pytest.mark.parametrize("sample", ["fifo", "small", "wan", "vc2"])
@torch.inference_mode()
def test_the_video_is_the_same_whatever_the_batch(sample, request):
    """Breaks if a row is decided on with others, or reads what rows beside it wrote."""
    videos, counts = [], []
    for batch in (1, 2, 64):
        reports = []
        changes = {"batch": batch, "callback": reports.append}
        if sample in ("wan", "vc2"):
            made = video(request.getfixturevalue(sample), cache=0.35, **changes)
        else:
            made = {"fifo": fifo, "small": small}[sample](cache=0.2, **changes)
        videos.append(made)
        counts.append((reports[-1].skipped, reports[-1].nfe))
    assert counts[0] == counts[1] == counts[2]
    assert 0 < counts[0][0] < counts[0][1] / 2  # some of those that could be
    for other in videos[1:]:
        torch.testing.assert_close(other, videos[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("released", [False, True])
@pytest.mark.parametrize("sample", [fifo, small])
def test_memory_does_not_grow_with_length(sample, released, monkeypatch):
    """Breaks if frames that left are still remembered: an endless video would fill the memory."""
    made, held = caches(monkeypatch), []
    changes = {} if sample is fifo else {"zigzag": 3}

    def watch(report):
        held.append(len(made[-1].entries))

    sample(length=150, cache=0.1, callback=watch, released=released, **changes)
    half = len(held) // 2
    assert max(held[half:]) <= 1.2 * max(held[:half])
    frames = {frame for frame, _ in made[-1].entries}
    assert min(frames) > 150 - 60, "only what is still on its way"
    assert max(held) <= 2 * (12 if sample is fifo else 14 * 3 + 5 * 12)


@pytest.mark.parametrize("length", [5, 24, 61])
def test_streaming_is_all_at_once(length):
    """Breaks if what stage 2 skips depends on when its passes are made."""
    backbone, threshold = BlockBackbone(), 0.15
    chosen = dataclasses.replace(SMALL, cache=threshold)
    reports = []
    streamed = Miga(chosen).sample(backbone, PROMPTS, NOISE, length, reports.append)
    solver = backbone.solver(backbone.schedule(chosen.steps))
    denoiser = WindowDenoiser(backbone, PROMPTS, solver, NOISE, 3.0, 1, Cost())
    denoiser.cache = BlockCache(threshold)
    video = _Video(chosen, backbone, denoiser, length)
    video._open()
    row, *rest = video._stage_1()
    for chunk in rest:
        row = row + chunk

    def walk(queue, steps):
        for number in range(steps):
            ranges = partition(len(queue), chosen.stride, 8, number % chosen.stride)
            plan = miga_windows(ranges, len(queue), 8, 0, 1, "anchor")
            denoiser.denoise(queue, plan, "collected", in_place=False)
        return queue.latents

    row = type(row).fresh(row.latents, row.levels, row.frames, solver)
    clean = walk(row, chosen.stage2_steps)
    noise = NOISE(row.frames, "renoise")
    noisy = denoiser.schedule.add_noise(clean, [chosen.renoise] * len(row), noise)
    denoiser.forget(row.frames)
    last = type(row).fresh(noisy, [chosen.renoise] * len(row), row.frames, solver)
    collected = walk(last, chosen.renoise)
    torch.testing.assert_close(streamed, collected[:length], rtol=1e-5, atol=1e-5)
    assert 0 < reports[-1].skipped < reports[-1].nfe


def test_an_endless_video_begins_as_one_that_ends():
    sampler = Fifo(FifoSettings(12, 3.0, cache=0.1))
    endless = sampler.stream(BlockBackbone(), PROMPTS, NOISE)
    begun = torch.stack(list(itertools.islice(endless, 20)))
    torch.testing.assert_close(begun, fifo(cache=0.1), rtol=1e-5, atol=1e-5)
    assert not torch.equal(begun, fifo())


def test_candidates_leave_no_trace_and_adopted_ones_begin_anew(monkeypatch):
    """Breaks if a search reads or writes what the cache knows of the frames that it searches for."""
    counts = {}
    for score in (-9.0, 9.0):
        monkeypatch.setattr(Reflection, "_candidate_score", lambda *_, score=score: score)
        reports = []
        watched = small(length=60, cache=ALWAYS, callback=reports.append, **WATCH)
        assert any(report.triggered for report in reports)
        assert any(report.accepted for report in reports) == (score > 0)
        last = reports[-1]
        counts[score] = last.skipped, last.nfe - 2 * last.search_windows
        if score < 0:
            plain = []
            alone = small(length=60, cache=ALWAYS, callback=plain.append)
            assert torch.equal(watched, alone)
            assert plain[-1].skipped == reports[-1].skipped
            assert plain[-1].nfe < reports[-1].nfe
    assert counts[9.0][1] == counts[-9.0][1], "the same windows without the searches"
    assert counts[9.0][0] < counts[-9.0][0], "an adopted tail is computed in full"


def test_a_call_that_does_not_fit_is_made_again_in_parts():
    """Breaks if a call that failed leaves entries, which its second try would find."""
    tight, whole, parts = BlockBackbone(), [], []
    expected = small(cache=0.1, callback=whole.append)
    tight.denoiser.most = 3
    with pytest.warns(Notice, match="with 3 per call"):
        found = small(tight, cache=0.1, callback=parts.append)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert (parts[-1].skipped, parts[-1].nfe) == (whole[-1].skipped, whole[-1].nfe)
    assert whole[-1].skipped > 0


class Passes:
    """Calls the cache with rows of one number a frame: what the first block adds, and the rest."""

    def __init__(self, threshold=0.1):
        self.cache = BlockCache(threshold)

    def __call__(self, rows, added, deep):
        """Return what comes out, and the numbers of the rows that were run in full."""
        added, deep = (torch.tensor(part)[:, :, None] for part in (added, deep))
        before, ran = torch.full_like(added, 5.0), []

        def rest(picked):
            ran.extend(torch.arange(len(added))[picked].tolist())
            return (before + added + deep)[picked]

        call = self.cache.call(rows)
        out = call(before, before + added, rest)
        assert call.settle() == len(rows) - len(ran)
        return (out - before - added)[..., 0].tolist(), ran


def test_changes_are_measured_from_where_the_rest_was_run():
    """Breaks if small changes, each below the threshold, may add up to any size."""
    row, call = CachedRow([7, 8], 0, 0), Passes(0.1)
    ran = []
    for number in range(8):
        out, full = call([row], [[1 + 0.04 * number] * 2], [[float(number)] * 2])
        ran.append(len(full))
        assert out[0] == pytest.approx(2 * [max(k for k in range(number + 1) if ran[k])], abs=1e-5)
    assert ran == [1, 0, 0, 1, 0, 0, 1, 0]  # 3 x 0.04 of 1; 3 x 0.04 of 1.12


def test_the_frame_that_changed_most_decides():
    call = Passes(0.1)
    row = CachedRow([7, 8], 0, 0)
    call([row], [[1.0, 1.0]], [[1.0, 1.0]])
    assert call([row], [[1.0, 1.15]], [[2.0, 2.0]])[1] == [0]
    assert call([row], [[1.0, 1.2]], [[3.0, 3.0]])[1] == []
    exact = Passes(0.25)
    exact([row], [[1.0, 1.0]], [[1.0, 1.0]])
    assert exact([row], [[1.0, 1.25]], [[2.0, 2.0]])[1] == [0], "less than the threshold, it says"


def test_a_row_is_known_by_the_frames_that_it_writes():
    """Breaks if entries belong to places in a window, or frames that are only read need any."""
    call = Passes(0.1)
    call([CachedRow([7, 8], 0, 0)], [[1.0, 2.0, 9.0]], [[10.0, 20.0, 0.0]])
    # a place further on, behind a guidance frame, and with another frame behind them
    out, ran = call([CachedRow([7, 8], 1, 0)], [[6.0, 1.0, 2.0, 3.0]], [[0.0] * 4])
    assert (out, ran) == ([[0.0, 10.0, 20.0, 0.0]], [])
    assert call([CachedRow([8, 9], 0, 0)], [[2.0, 1.0]], [[0.0, 0.0]])[1] == [0]  # 9 is new
    assert call([CachedRow([7, 8, 9], 0, 0)], [[1.0, 2.0, 1.0]], [[0.0] * 3])[1] == []


def test_branches_prompts_and_strangers_keep_apart():
    call = Passes(0.1)
    rows = [CachedRow([7], 0, 0), CachedRow([7], 0, None), None]
    assert call(rows, [[1.0], [2.0], [3.0]], [[1.0], [2.0], [3.0]])[1] == [0, 1, 2]
    assert len(call.cache.entries) == 2
    out, ran = call(rows, [[1.0], [2.0], [3.0]], [[7.0], [8.0], [9.0]])
    assert (out, ran) == ([[1.0], [2.0], [9.0]], [2])
    # another prompt is another branch, and takes the place of the one before
    assert call([CachedRow([7], 0, 1)], [[1.0]], [[4.0]])[1] == [0]
    assert call([CachedRow([7], 0, 0)], [[1.0]], [[4.0]])[1] == [0]
    assert len(call.cache.entries) == 2
    call.cache.forget([7, 99])
    assert not call.cache.entries


def test_an_entry_keeps_no_other_frames_alive():
    call = Passes(0.1)
    call([CachedRow([7, 8], 0, 0)], [[1.0, 2.0]], [[1.0, 2.0]])
    for entry in call.cache.entries.values():
        for kept in (entry.first, entry.deep):
            assert kept.untyped_storage().nbytes() == kept.nbytes


def test_the_opening_clip_has_entries_for_both_halves_of_guidance_and_leaves_none():
    """Breaks if the queue's first pass may reuse what the clip's last step kept: its noise is another."""
    chosen, held = FifoSettings(12, 3.0, cache=ALWAYS), []
    denoiser = WindowDenoiser.of(
        chosen, BlockBackbone(), PROMPTS, NOISE, lambda _: held.append({*denoiser.cache.entries})
    )
    denoiser.denoise_clip(8)
    assert held[-1] == {(frame, half) for frame in range(8) for half in (False, True)}
    assert not denoiser.cache.entries


def test_a_change_is_relative_and_nothing_divides_by_zero_unseen():
    then = torch.tensor([[[1.0, -3.0]], [[0.0, 0.0]]])
    now = torch.tensor([[[2.0, -3.0]], [[0.0, 0.0]]])
    assert relative_change(now, then).tolist()[0] == pytest.approx(1 / 4)
    call, row = Passes(0.1), CachedRow([7], 0, 0)
    call([row], [[0.0]], [[1.0]])
    assert call([row], [[0.0]], [[1.0]])[1] == [0]


def test_a_prompt_that_changes_is_felt_at_once():
    prompts = PromptSchedule(torch.tensor([0.2, 0.9]).reshape(2, 1, 1), PROMPTS.negative, (0, 12))
    backbone, reports = BlockBackbone(), []
    one = BlockBackbone()
    fifo(one, cache=ALWAYS)
    changed = fifo(backbone, cache=ALWAYS, prompts=prompts, callback=reports.append)
    assert backbone.denoiser.deep_rows > one.denoiser.deep_rows
    assert reports[-1].skipped == backbone.denoiser.calls - backbone.denoiser.deep_rows
    assert not torch.equal(changed, fifo(cache=ALWAYS))


@pytest.mark.parametrize("family", ["wan", "vc2"])
@torch.inference_mode()
def test_operations_are_those_that_were_done(family, request, monkeypatch):
    """Breaks if a row that was cut short is counted as a whole one, or as nothing."""
    backbone, meter, full = request.getfixturevalue(family), FlopMeter(), FlopMeter()
    said = words(backbone)  # the text encoder is not counted
    with by_hand(backbone.denoiser, monkeypatch) as total:
        expected = video(backbone, said=said, cache=0.35)
    with meter.on(backbone):
        assert torch.equal(video(backbone, cache=0.35), expected)
    assert meter.cost() == {"flops": total[0]}
    with full.on(backbone):
        video(backbone)
    assert meter.flops < full.flops


def test_the_threshold_is_given_by_text():
    backbone = BlockBackbone()
    sampler = Fifo(resolve("fifo", backbone, None, {"cache": "0.1"}))
    assert estimate_windows(sampler, backbone, 9) > 0


class SimpleBlocks(SimpleBackbone):
    """Makes video files, by blocks."""

    def __init__(self):
        super().__init__()
        self.denoiser = BlockDenoiser()

    @property
    def can_cache(self):
        return True


def test_the_record_says_what_was_skipped(tmp_path):
    costs = []
    for overrides in ({"steps": "8", "cache": "0.3"}, {"steps": "8"}):
        backbone = SimpleBlocks()
        chosen = resolve("fifo", backbone, None, overrides)
        out = tmp_path / f"{len(costs)}.mp4"
        request = GenerateRequest((PromptAt("a red circle"),), out, "fifo", frames=9)
        video = Video(request, backbone, Fifo(chosen))
        video.plan(Watcher())
        with StopSignals() as stop:
            record = video.write(out, tmp_path / "out.png", Watcher(), stop).record
        costs.append(record["cost"])
        assert record["settings"].get("cache") == chosen.cache or not chosen.cache
        skipped = backbone.denoiser.calls - backbone.denoiser.deep_rows
        assert record["cost"].get("skipped", 0) == skipped
    assert 0 < costs[0]["skipped"] < costs[0]["nfe"] == costs[1]["nfe"]
    assert "skipped" not in costs[1]


@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf")])
@pytest.mark.parametrize("sample", [fifo, small])
def test_impossible_thresholds_are_refused(sample, value):
    with pytest.raises(UserError, match="it must be a finite number of at least 0"):
        sample(cache=value)


@pytest.mark.parametrize("method", ["scaling-noise", "freelong", "freepca"])
def test_methods_that_take_none_say_so_before_they_work(method):
    backbone = BlockBackbone()
    sampler = METHODS[method](resolve(method, backbone, "paper", {"steps": 12, "cache": 0.1}))
    with pytest.raises(UserError, match=f"cache is 0.1: {method} .* use short, fifo or miga"):
        estimate_windows(sampler, backbone, 9)
    assert backbone.denoiser.calls == 0


def test_denoisers_that_take_none_say_so_before_they_work(wan):
    foreign = AnalyticBackbone("wan", window=8)
    with pytest.raises(UserError, match="needs an uncompiled PyTorch denoiser"):
        estimate_windows(Fifo(FifoSettings(12, 3.0, cache=0.1)), foreign, 9)
    sampler = Fifo(settings("fifo", wan, cache=0.1))
    assert wan.can_cache
    wan.denoiser.network.compile(backend=lambda *_: pytest.fail("it was compiled"))
    try:
        with pytest.raises(UserError, match="needs an uncompiled PyTorch denoiser"):
            estimate_windows(sampler, wan, 9)
    finally:
        wan.denoiser.network._compiled_call_impl = None


def test_processes_that_share_a_video_refuse_it():
    from miga_bench.harness.teams import check_settings

    cached, refused = FifoSettings(12, 3.0, cache=0.1), r"cache is 0\.1: .*run\.window_parallel"
    check_settings(1, [cached])
    check_settings(2, [FifoSettings(12, 3.0)])
    with pytest.raises(UserError, match=refused):
        check_settings(2, [FifoSettings(12, 3.0), cached])

    backbone = BlockBackbone()
    backbone.team = object()
    with pytest.raises(UserError, match=refused):
        WindowDenoiser.of(cached, backbone, PROMPTS, NOISE, None)
