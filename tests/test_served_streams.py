"""Streams of a server: threads read them, other threads close them, and several share a backbone."""

import gc
import threading
import time

import pytest
from simple_backbone import SimpleBackbone
from test_stream import watched, wish

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
