"""Streams of a server: threads read them, other threads close them, and several share a backbone."""

import gc
import threading
import time
from itertools import pairwise

import pytest
import torch
from simple_backbone import SimpleBackbone
from test_generate import SMALL
from test_stream import PROMPT, watched, wish

from miga_bench.backbones import load_backbone
from miga_bench.harness.request import PromptAt
from miga_bench.harness.stream import FrameStream
from miga_bench.harness.turns import Turn
from miga_bench.harness.video import Watcher

ENDLESS = {"frames": None, "endless": True}
PATIENCE = 60  # seconds that a thread is waited for before the test gives up


def tiny_wan():
    return load_backbone("tiny-wan", device="cpu")


class Slow(SimpleBackbone):
    """A call takes a while."""

    def _denoise(self, latents, timesteps, text):
        time.sleep(0.02)
        return super()._denoise(latents, timesteps, text)


class Passes(Watcher):
    """Tells of every pass."""

    def __init__(self):
        self.seen, self.total = threading.Semaphore(0), 0

    def passed(self, report):
        self.total += 1
        self.seen.release()


@pytest.mark.parametrize("passes", [1, 300])
def test_another_thread_closes_a_stream_that_is_read(passes):
    """Breaks if a server cannot end a step that runs, and an endless video goes on for nobody."""
    backbone, alive = watched()
    gc.disable()
    try:
        shown, errors = Passes(), []
        stream = FrameStream(wish(**ENDLESS), backbone, shown)

        def read():
            try:
                for _ in stream:
                    pass
            except Exception as error:
                errors.append(error)

        reader = threading.Thread(target=read)
        reader.start()
        for _ in range(passes):
            assert shown.seen.acquire(timeout=PATIENCE)
        stream.close()
        reader.join(PATIENCE)
        assert not reader.is_alive()
        assert errors == []
        calls = backbone.calls
        assert list(stream) == []
        assert backbone.calls == calls
        stream.close()
        assert [one() for one in alive if one() is not None] == []
    finally:
        gc.enable()


def test_a_closed_stream_ends_with_the_pass_it_is_in():
    """Breaks if the first step, hundreds of calls long, is finished before the end is heard."""

    shown, got = Passes(), []
    stream = FrameStream(wish(**ENDLESS), Slow(), shown)
    reader = threading.Thread(target=lambda: got.extend(stream))
    reader.start()
    assert shown.seen.acquire(timeout=PATIENCE)
    stream.close()
    before = shown.total
    reader.join(PATIENCE)
    assert got == []
    assert shown.total <= before + 1


def test_a_watcher_may_close_the_stream_that_it_hears_of():
    class Closing(Watcher):
        def passed(self, report):
            stream.close()

    stream = FrameStream(wish(**ENDLESS), SimpleBackbone(), Closing())
    assert list(stream) == []


@pytest.mark.parametrize(
    ("method", "changes"),
    [
        ("miga", {}),
        ("miga", {"guidance_reach": "anchor"}),
        ("fifo", {"steps": "16"}),
    ],
)
def test_two_hundred_changes_keep_few_texts(method, changes):
    """Breaks if an endless stream keeps every text, or drops one that a frame behind still needs."""
    overrides = SMALL | changes if method == "miga" else changes
    live = FrameStream(wish(method=method, overrides=overrides, **ENDLESS), SimpleBackbone())
    parts, texts, kept = [], [], 0
    for number, frames in zip(range(230), live, strict=False):
        parts.append(frames)
        if number < 200:
            # twice at once now and then, and lengths, which are all that this model reads, differ
            for _ in range(1 + (number % 20 == 0)):
                text = "x" * (3 + 7 * len(texts) % 50)
                texts.append(PromptAt(text, live.then(text)))
        kept = max(kept, live._prompts.kept)
    assert len(texts) == 210
    assert kept < 80  # a text for every latent that is begun and not handed out
    known = FrameStream(
        wish(method=method, overrides=overrides, prompts=[*PROMPT, *texts], **ENDLESS),
        SimpleBackbone(),
    )
    for part, expected in zip(parts, known, strict=False):
        assert torch.equal(part, expected)


@pytest.mark.parametrize(
    ("loaded", "changes"),
    [
        (SimpleBackbone, {}),
        (SimpleBackbone, {"method": "fifo", "overrides": {"steps": "16"}}),
        # longer than a window, or the network's own attention would be left alone
        (
            tiny_wan,
            {
                "method": "freelong",
                "overrides": {"steps": "2", "guidance_scale": "1"},
                "frames": 85,
            },
        ),
    ],
)
def test_a_first_step_lets_other_streams_go_on(loaded, changes):
    """Breaks if every viewer stands still while another's first frame is made."""
    backbone, short = loaded(), {"method": "short", "overrides": {"steps": "4"}, "frames": 9}
    alone = list(FrameStream(wish(**short), backbone))
    expected = next(FrameStream(wish(**changes), backbone))
    got, ends = [], []

    class Served(Watcher):
        """Another stream is made whole between two passes of a first step, in another thread."""

        def passed(self, report):
            if not ends:
                other = FrameStream(wish(**short), backbone)
                reader = threading.Thread(target=lambda: got.extend(other))
                reader.start()
                reader.join(PATIENCE)
                ends.append(report.finished)
                assert not reader.is_alive()

    stream = FrameStream(wish(**changes), backbone, Served())
    assert torch.equal(next(stream), expected)
    assert ends == [0]
    assert torch.equal(torch.cat(got), torch.cat(alone))
    assert backbone.meter is None


def test_streams_take_turns_pass_by_pass():
    """Breaks if a lock goes back to the thread that let go of it, and the others starve."""
    order, begun = [], threading.Barrier(2)
    backbone = Slow()

    class Noted(Watcher):
        def __init__(self, name):
            self.name, self.first = name, True

        def passed(self, report):
            if self.first:
                self.first = False
                begun.wait(PATIENCE)
            order.append(self.name)

    streams = [FrameStream(wish(seed=k), backbone, Noted(k)) for k in range(2)]
    readers = [threading.Thread(target=next, args=(stream,)) for stream in streams]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join(PATIENCE)
    both = order[: 2 * (len(order) // 2) - 4]
    changes = sum(before != after for before, after in pairwise(both))
    assert changes > len(both) // 3  # a thread may wake too late for its turn


def test_a_turn_may_be_taken_again_and_an_interrupted_wait_ends_it():
    """Breaks if a stop while others have the turn is told as a lock's error, or takes the turn for ever."""
    one, shown = Turn(), []
    with one, one, one.let_go():
        other = threading.Thread(target=lambda: shown.append(one._own.acquire(blocking=False)))
        other.start()
        other.join(PATIENCE)
    assert shown == [False]

    class StoppedError(Exception):
        pass

    class Interrupted:
        def __enter__(self):
            raise StoppedError

        def __exit__(self, *error):
            pass

    usual = one._next
    with pytest.raises(StoppedError), one, one.let_go():
        one._next = Interrupted()
    one._next = usual
    taken = threading.Thread(target=lambda: one.__enter__())
    taken.start()
    taken.join(PATIENCE)
    assert not taken.is_alive()
