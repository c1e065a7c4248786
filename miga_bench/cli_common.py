"""What verbs share: exit codes, lines on stderr, the document on stdout."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from miga_bench.errors import counted, in_print

DONE, FAILED, WRONG_INPUT = 0, 1, 2


def say(text: str) -> None:
    """Tell the user a line on stderr."""
    print(f"miga-bench: {text}", file=sys.stderr)


def one_line(error: BaseException | None) -> str:
    """Return what an error says on one line; of the system's own, with the file."""
    if isinstance(error, OSError) and error.strerror:
        where = "" if error.filename is None else f" ({error.filename})"
        return in_print(f"{error.strerror.lower()}{where}")
    return " ".join(str(error).split())


def print_json(document: Mapping[str, Any]) -> None:
    """Print the last line of a verb that makes or measures something."""
    with read_or_not():
        print(json.dumps(document))


@contextmanager
def read_or_not() -> Iterator[None]:
    """Print, whether or not anybody still reads it: what it tells of is done all the same."""
    try:
        yield
        if sys.stdout is not None:  # a program without one prints nothing
            sys.stdout.flush()
    except BrokenPipeError:
        from miga_bench.harness.output import hush

        hush()


def ended(status: Mapping[str, Any] | None) -> int:
    """Say how a run ended, and return the exit code.

    Args:
        status: What ``status.json`` holds; None on ranks other than 0, whose word does not count.
    """
    if status is None:
        return DONE
    if status["status"] == "stopped":
        say(f"stopped: {status['run']} has {status['done']} of {counted(status['items'], 'video')}")
    print_json(status)
    return {"done": DONE, "failed": FAILED}.get(status["status"], 128 + (status["signal"] or 0))
