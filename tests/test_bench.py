"""The suite of measurements: its counts against the samplers, its arithmetic, its table and errors."""

import json
import os
import time

import pytest
import torch
from simple_backbone import SimpleBackbone

from miga_bench.backbones import load_backbone
from miga_bench.cli import main
from miga_bench.errors import FailedError
from miga_bench.harness import endurance
from miga_bench.harness.bench import PARTS, common, memory, suite
from miga_bench.harness.bench.common import Part, Row, TimeMeter, apart, in_a_process, maker
from miga_bench.harness.bench.counts import windows_before_first, windows_per_latent
from miga_bench.harness.bench.first import until_first
from miga_bench.harness.bench.rounds import Spread, in_turns
from miga_bench.sampling import METHODS, resolve
from miga_bench.sampling.estimate import estimate_windows

SMALL = {"steps": 14, "guidance_scale": 1.0}
MIGA = {
    **SMALL,
    "zigzag": 2,
    "guidance_frames": 2,
    "stride": 3,
    "stage2_steps": 3,
    "renoise": 2,
    "reflection": "off",
}
SEARCH = {**SMALL, "beams": 2, "candidates": 3, "reward": "latent"}
CASES = {
    "fifo": ("fifo", SMALL),
    "fifo without lookahead": ("fifo", {**SMALL, "lookahead": False}),
    "fifo that grows": ("fifo", {**SMALL, "growth": True}),
    "miga": ("miga", MIGA),
    "miga without stage 2": ("miga", {**MIGA, "stage2_steps": 0, "renoise": 0}),
    "miga of chunks that do not divide the window": ("miga", {**MIGA, "zigzag": 4}),
    "miga anchored": ("miga", {**MIGA, "guidance_reach": "anchor"}),
}


@pytest.mark.parametrize("case", CASES)
def test_windows_of_a_further_latent_are_the_samplers(case):
    """Breaks if the formula and the sampler's own walk part."""
    method, overrides = CASES[case]
    backbone = SimpleBackbone()
    settings = resolve(method, backbone, "paper", overrides)
    # The cuts repeat after so many latents.
    period = settings.zigzag * settings.stride if method == "miga" else 1
    sampler, base = METHODS[method](settings), 12 * period + 60
    first, later = (estimate_windows(sampler, backbone, n) for n in (base, base + period))
    assert (later - first) / period == pytest.approx(windows_per_latent(settings, backbone))


def test_fifo_waits_for_no_more_than_its_queue():
    """One frame: the opening, and ``T - f + 1`` passes of ``ceil(T / (f / 2))`` windows."""
    found = until_first(SimpleBackbone(), "fifo", SMALL)
    assert found["windows"] == found["least"] == 14 + (14 - 6 + 1) * 5


def test_scaling_noise_waits_for_its_candidates_too():
    """What beams do not share comes on top of the least."""
    found = until_first(SimpleBackbone(), "scaling-noise", SEARCH)
    assert found["least"] == 14 + 9 * 5 + 8 * (2 * 3 - 1)
    assert found["windows"] >= found["least"]
    alone = until_first(SimpleBackbone(), "scaling-noise", {**SEARCH, "beams": 1, "candidates": 1})
    assert alone["windows"] == alone["least"] == 14 + 9 * 5


@pytest.mark.parametrize("case", CASES)
def test_no_method_makes_one_wait_for_more_than_the_least(case):
    """A window that happens to be ready may be made in the batch of the last one that is needed."""
    found = until_first(SimpleBackbone(), *CASES[case])
    assert found["least"] <= found["windows"] <= found["least"] + 1
    assert found["search"] == 0


@pytest.mark.parametrize("case", CASES)
def test_an_endless_videos_bar_ends_at_its_first_frame(case):
    """Breaks if the walk with nothing in it does not end, or counts what comes behind the first frame."""
    method, overrides = CASES[case]
    backbone = SimpleBackbone()
    settings = resolve(method, backbone, overrides=overrides)
    windows = estimate_windows(METHODS[method](settings), backbone, None)
    assert windows == until_first(backbone, method, overrides)["windows"]


def test_the_least_of_a_miga_counted_by_hand():
    """Window 6, chunks of 2, stage 2 from level 1 and no re-noise pass.

    The opening takes 5 windows; it fills levels 2 to 4, three chunks. A chunk enters, and the queue's front
    is within two of the exit, so nothing grows: pass 0 has 4 chunks, 8 slots, windows of 3 slots but the
    last, that of 6: 2 windows ([0, 2), [2, 8)). The first window of stage 2 reads 6 latents, three chunks;
    the first leaves behind pass 0, so there are 3 passes. From the second on there are 4 chunks, too
    (T - e = 4), cut with shifts 1 and 2: [0, 1), [1, 2), [2, 8) and [0, 2), [2, 8). Stage 2 takes 1.
    """
    overrides = {**MIGA, "steps": 5, "guidance_frames": 0, "stage2_steps": 1, "renoise": 0}
    settings = resolve("miga", SimpleBackbone(), "paper", overrides)
    assert windows_before_first(settings, SimpleBackbone()) == 5 + 2 + 3 + 2 + 1


def test_videocrafter2_ends_one_level_above_zero():
    """On its grid a clip takes a window less than there are steps."""
    backbone = load_backbone("tiny-videocrafter2", device="cpu")
    settings = resolve("fifo", backbone)
    assert windows_before_first(settings, backbone) == 31 + (32 - 16 + 1) * 4


def test_spread():
    spread, other = Spread((3.0, 1.0, 2.0)), Spread((1.0, 2.0, 4.0))
    assert spread.document() == {"median": 2.0, "min": 1.0, "max": 3.0, "rounds": 3}
    assert spread.over(other).values == (3.0, 0.5, 0.5)
    assert spread.times(2).text(".1f") == ("4.0", "2.0 to 6.0")
    assert Spread((1.0,)).text(".1f") == ("1.0", "")


def test_contenders_take_turns():
    order = []
    works = {name: (lambda name=name: order.append(name)) for name in "ab"}
    taken = in_turns(works, 3, time.perf_counter)
    assert "".join(order) == "ababab"
    assert all(len(spread.values) == 3 for spread in taken.values())


def test_the_meter_times_the_denoiser_alone():
    """The clock ticks once in each call and never outside."""
    ticks = iter(range(1000))
    backbone = SimpleBackbone()
    meter = TimeMeter(lambda: float(next(ticks)))
    backbone.meter = meter
    maker(backbone, "short", {"steps": 4}, 6)()
    assert meter.seconds == backbone.calls == 4
    assert meter.largest == 2  # a window and its unconditional half


def test_apart_is_a_share_of_the_largest():
    assert apart(torch.tensor([1.0, -5.0]), torch.tensor([1.0, -4.0])) == 0.25


def test_a_process_that_fails_says_why():
    with pytest.raises(FailedError, match=r"ended with 1: ValueError: no such thing"):
        in_a_process("-c", "raise ValueError('no such thing')")
    ranks = "print('[rank1]: miga_bench.errors.LostError: gone', 'the launcher: ranks ended', sep=chr(10), "
    with pytest.raises(FailedError, match=r"LostError: gone"):
        in_a_process("-c", f"import sys; {ranks}file=sys.stderr); sys.exit(1)")
    assert in_a_process("-c", "print('so'); print('{\"a\": 1}')") == {"a": 1}


@pytest.mark.parametrize("name", PARTS)
def test_every_part_has_its_page(name):
    assert callable(suite._measure(name))


def test_the_table_and_the_document(monkeypatch, capsys):
    """Chosen parts alone are measured, in the order asked; what is measured is said; JSON is last."""
    rounds = []

    def part(name):
        def measure(say, repeats):
            rounds.append(repeats)
            say(f"looking at {name}")
            return Part({"found": name}, [Row(f"what of {name}", "1.00", "0.90 to 1.10", "<= 2")])

        return measure

    monkeypatch.setattr(suite, "_measure", part)
    assert main(["bench", "--only", "plain", "--only", "memory", "--repeats", "2"]) == 0
    said = capsys.readouterr()
    document = json.loads(said.out.splitlines()[-1])
    assert rounds == [2, 2]
    assert document["plain"] == {"found": "plain"}
    assert "overhead" not in document
    assert document["hardware"]["cpu"] in said.out
    assert "what of memory" in said.out
    assert "0.90 to 1.10" in said.out
    assert "[2/2] memory: looking at memory ..." in said.err
    assert "  what of memory: 1.00 0.90 to 1.10" in said.err


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (FailedError("python ended with 1: it broke"), "python ended with 1: it broke"),
        (
            AttributeError("module 'os' has no such thing"),
            "AttributeError: module 'os' has no such",
        ),
    ],
)
def test_a_part_that_fails_loses_no_other(monkeypatch, capsys, error, told):
    """Breaks if twelve minutes of measurements are lost because the thirteenth went wrong, in whatever way."""

    def part(name):
        def measure(say, repeats):
            if name == "plain":
                raise error
            return Part({"found": name}, [Row(f"what of {name}", "1.00")])

        return measure

    monkeypatch.setattr(suite, "_measure", part)
    assert main(["bench", "--only", "plain", "--only", "memory"]) == 1
    said = capsys.readouterr()
    document = json.loads(said.out.splitlines()[-1])
    assert document["plain"]["error"].startswith(told)
    assert document["memory"] == {"found": "memory"}
    assert "what of memory" in said.out
    assert f"[1/2] plain: {told}" in said.err
    assert "plain failed" in said.err
    with pytest.raises(FailedError) as failed:
        suite.run_parts(["plain"])
    assert failed.value.__cause__ is error  # what --debug shows


def test_memory_is_skipped_at_once_where_processes_are_not_shown(monkeypatch, tmp_path):
    """Breaks if 5,000 frames are made before it is said that nothing could be seen."""
    monkeypatch.setattr(endurance, "PROC", tmp_path)
    monkeypatch.setattr(memory, "watch", lambda *_: pytest.fail("began to make the video"))
    part = memory.measure(pytest.fail, 1)
    assert "measure on Linux" in part.document["skipped"]
    assert [row.value for row in part.rows] == ["skipped"]


@pytest.mark.parametrize("repeats", ["0", "101"])
def test_repeats_out_of_range(repeats, capsys):
    assert main(["bench", "--repeats", repeats]) == 2
    said = capsys.readouterr()
    assert said.err.count("\n") == 1
    assert f"--repeats is {repeats}: it must be from 1 to 100" in said.err


def test_methods_are_measured_in_small(monkeypatch):
    """The page's own function on a quick model: every number is there, and they fit together."""
    from miga_bench.harness.bench import methods

    monkeypatch.setattr(methods, "load_backbone", lambda *_, **__: SimpleBackbone())
    found = methods.measure_one("tiny-simple", "fifo", 2)
    assert found["seconds_per_frame"]["rounds"] == 2
    assert 0 < found["share_outside"]["median"] < 1
    assert found["windows_per_further_latent"] == 9  # 27 steps, windows of 6 that write 3
    assert found["frames"] == 1 + 4 * 8
    assert methods._rows("it", {**found, "peak_memory_mib": 1.0})[0].value.endswith("; 1")
    # where the system does not let a peak be forgotten
    unknown = methods._rows("it", {**found, "peak_memory_mib": None})
    assert unknown[0].value.endswith("; not known")


def test_cores_are_counted_where_the_system_has_no_affinity(monkeypatch):
    """Breaks on macOS otherwise, where ``os`` has no such function."""
    monkeypatch.delattr(common.os, "sched_getaffinity", raising=False)
    assert common.usable_cores() == os.cpu_count()


def test_batches_are_measured_in_small(monkeypatch):
    """Each limit makes the same video in larger calls, and its speed is told over that of single windows."""
    from miga_bench.harness.bench import batch

    threads = torch.get_num_threads()
    monkeypatch.setattr(batch, "load_backbone", lambda *_, **__: SimpleBackbone())
    monkeypatch.setattr(batch, "SMALL", {**MIGA, "guidance_scale": 3.0})
    part = batch.measure(lambda _: None, 2)
    torch.set_num_threads(threads)
    rows = part.document["rows_of_largest_call"]
    assert (rows["1"], rows["2"], rows["4"]) == (2, 4, 8)  # windows and their unconditional halves
    assert rows["all"] > 8
    alone = part.document["one thread, processor"]
    assert alone["1"]["speedup_over_1"]["median"] == 1
    assert set(alone) == set(batch.LIMITS)
    assert len(part.rows) == 2 * len(batch.LIMITS)


def test_a_whole_generate_is_held_against_the_plain_loop(monkeypatch):
    """Both ways load, make, decode and write the same video; the clock runs over all of it."""
    from miga_bench.harness.bench import whole

    few = {"steps": 6, "zigzag": 7, "stage2_steps": 1, "renoise": 1, "reflection": "off"}
    monkeypatch.setattr(whole, "OVERRIDES", few)
    monkeypatch.setattr(whole, "usable_cores", lambda: 1)
    threads = torch.get_num_threads()
    part = whole.measure(lambda _: None, 1, frames=13)
    torch.set_num_threads(threads)
    assert part.document["mean_difference_of_255"] <= whole.MOST_APART
    assert part.document["seconds"]["plain"]["rounds"] == part.document["speedup"]["rounds"] == 1
    assert part.document["frames"] == 13
