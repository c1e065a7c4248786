"""Window plans: every slot written once, every read inside the queue, guidance before its window."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from miga_bench.sampling.pipeline import PassPlan, PipelinePass
from miga_bench.sampling.windows import (
    fifo_windows,
    growth_partition,
    guidance_slots,
    independent_groups,
    miga_windows,
    partition,
    windows_of_last_passes,
)


@st.composite
def geometries(draw):
    window = draw(st.integers(2, 24))
    stride = draw(st.integers(1, window))
    guidance = draw(st.integers(0, window - stride))
    zigzag = draw(st.integers(1, window))
    length = draw(st.integers(1, 120))
    number = draw(st.integers(0, 50))
    reach = draw(st.sampled_from(["chunks", "head", "anchor"]))
    return window, stride, guidance, zigzag, length, number, reach


@given(geometries(), st.booleans())
def test_miga_windows_write_every_slot_once_and_read_inside(geometry, growing):
    window, stride, guidance, zigzag, length, number, reach = geometry
    local = window - guidance
    ranges = (
        growth_partition(length, stride, local)
        if growing
        else partition(length, stride, local, number % stride)
    )
    plan = miga_windows(ranges, length, window, guidance, zigzag, reach)
    assert [slot for w in plan for slot in w.writes] == list(range(length))
    for w in plan:
        assert all(0 <= slot < length for slot in w.reads)
        assert len(set(w.reads)) == len(w.reads)
        anchors = guidance if w.anchored else 0
        assert len(w.reads) + anchors <= window
        written = w.reads[w.offset : w.offset + len(w.writes)]
        assert written == tuple(w.writes), "the written slots are the first local ones"
        guides = w.reads[: w.offset]
        assert list(guides) == sorted(guides)
        assert all(slot < w.writes.start for slot in guides), "guidance frames are cleaner"


@given(st.integers(2, 12), st.booleans(), st.integers(0, 30))
def test_windows_of_last_passes_hold_all_that_is_handed_out(window, lookahead, more):
    """Breaks if a window is left out that a later latent depends on, or one of the last pass is not."""
    context = window - window // 2 if lookahead else 0
    length = window + more + context
    plan = fifo_windows(length, window, context)
    counts = windows_of_last_passes(plan, context)
    assert counts == sorted(counts)
    whole = {}  # by frame: whether no pass was left out of it, nor of what it was made from
    for left in reversed(range(len(counts) + 2)):
        before = dict(whole)
        for number, w in enumerate(plan):
            made = left >= len(counts) or number < counts[left]
            # A slot's number falls by one with every pass, and so does the number of passes left.
            read = all(before.get(slot - left, True) for slot in w.reads)
            whole.update(dict.fromkeys((slot - left for slot in w.writes), made and read))
        assert whole[context - left], "it is handed out behind this pass"
    assert not counts or counts[0] == 1


@given(st.integers(2, 24), st.data())
def test_fifo_windows_write_all_but_the_context_once(window, data):
    context = data.draw(st.sampled_from([0, window - window // 2]))
    front = data.draw(st.integers(0, context))
    length = data.draw(st.integers(window, 100)) + front
    plan = fifo_windows(length, window, context, front)
    assert [slot for w in plan for slot in w.writes] == list(range(front, length))
    assert len({w.reads for w in plan}) == len(plan), "two windows of the same slots are one"
    for w in plan:
        assert all(0 <= slot < length for slot in w.reads)
        assert len(w.reads) == window
        assert w.reads[w.offset : w.offset + len(w.writes)] == tuple(w.writes)


@given(geometries())
def test_stage_2_cuts_its_row_as_partition_does(geometry):
    window, stride, guidance, _, length, number, _ = geometry
    row = PipelinePass(number, PassPlan(window, stride, guidance), length, early=True)
    cuts, start = [], 0
    while start < length:
        cuts.append(range(start, row._stop(start)))
        start = cuts[-1].stop
    assert cuts == partition(length, stride, window - guidance, number % stride)


def test_the_released_partitions():
    # 28 slots, local window 12, stride 8: shift 3 leaves 5 before the last 12.
    cuts = [(r.start, r.stop) for r in partition(28, 8, 12, 3)]
    assert cuts == [(0, 3), (3, 11), (11, 16), (16, 28)]
    cuts = [(r.start, r.stop) for r in growth_partition(29, 8, 12)]
    assert cuts == [(0, 1), (1, 9), (9, 17), (17, 29)]


def test_the_released_guidance_slots():
    assert guidance_slots(3, 4, 4, "chunks") == ()
    assert guidance_slots(4, 4, 4, "chunks") == (0, 1, 2, 3)
    assert guidance_slots(9, 4, 4, "chunks") == (1, 3, 5, 7)
    assert guidance_slots(16, 4, 4, "chunks") == (2, 6, 10, 14)
    assert guidance_slots(20, 4, 4, "chunks") == (6, 10, 14, 18)
    assert guidance_slots(30, 4, 7, "chunks") == (6, 13, 20, 27)
    assert guidance_slots(20, 4, 4, "head") == (0, 1, 2, 3)


@given(geometries())
def test_in_place_groups_never_read_what_they_write(geometry):
    window, stride, guidance, zigzag, length, number, reach = geometry
    ranges = partition(length, stride, window - guidance, number % stride)
    plan = miga_windows(ranges, length, window, guidance, zigzag, reach)
    groups = independent_groups(plan, in_place=True)
    assert [w for group in groups for w in group] == plan
    for group in groups:
        written = set()
        for w in group:
            assert written.isdisjoint(w.reads)
            written.update(w.writes)
    for before, group in itertools.pairwise(groups):
        made = {slot for w in before for slot in w.writes}
        assert not made.isdisjoint(group[0].reads), "it would not have had to wait"
    if guidance == 0:
        assert len(groups) == 1, "without guidance a pass is one batch"
