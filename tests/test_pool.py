"""No worker outlives what it worked for. About 10 s, most of it the workers' imports."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress

import pytest

from miga_bench.harness.pool import each_done


@pytest.fixture
def slow_to_notice(monkeypatch):
    """The pool's own thread is told of a process's end and then waits for its turn, as on a busy machine."""
    waitpid = os.waitpid

    def late(pid, options):
        found = waitpid(pid, options)
        if found[0] and threading.current_thread() is not threading.main_thread():
            time.sleep(0.2)
        return found

    monkeypatch.setattr(os, "waitpid", late)


def test_an_error_ends_the_others(slow_to_notice):
    began = time.monotonic()
    with pytest.raises(ValueError, match="non-negative"):
        list(each_done(time.sleep, [-1, 600], 2))
    assert not multiprocessing.active_children()
    assert time.monotonic() - began < 500


def test_a_reader_that_wants_no_more_ends_the_others(slow_to_notice):
    results = each_done(time.sleep, [0, 600], 1)
    assert next(results) == (0, None)
    results.close()
    assert not multiprocessing.active_children()


def test_workers_end_with_a_parent_that_is_killed():
    code = (
        "import os, time; from miga_bench.harness.pool import each_done;"
        "list(each_done(time.sleep, [3600], 1, os.write, 1, b'begun'))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        assert process.stdout.read(5) == b"begun"
        process.kill()
        process.communicate(timeout=60)  # the output ends when the last that holds it has ended
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
