"""Streams of a server: threads read them, other threads close them, and several share a backbone."""

import gc
import threading
import time

import pytest
import torch
from simple_backbone import SimpleBackbone
from test_generate import SMALL
from test_stream import PROMPT, watched, wish

from miga_bench.harness.request import PromptAt
from miga_bench.harness.stream import FrameStream
from miga_bench.harness.video import Watcher

ENDLESS = {"frames": None, "endless": True}
PATIENCE = 60  # seconds that a thread is waited for before the test gives up


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

    class Slow(SimpleBackbone):
        def _denoise(self, latents, timesteps, text):
            time.sleep(0.02)
            return super()._denoise(latents, timesteps, text)

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
