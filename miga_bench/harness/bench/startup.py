"""Time to ``miga-bench --help``, beside that of an empty Python program."""

from __future__ import annotations

import subprocess
import sys
import time
from functools import partial

from miga_bench.harness.bench.common import Part, Row, Say
from miga_bench.harness.bench.rounds import in_turns

ROUNDS = 10  # they take hardly any time
PROGRAMS = {"miga-bench --help": ("-m", "miga_bench", "--help"), "python -c pass": ("-c", "pass")}


def measure(say: Say, repeats: int) -> Part:
    """Start both in turns."""
    del repeats
    say(f"{ROUNDS} rounds")
    works = {name: partial(_run, *arguments) for name, arguments in PROGRAMS.items()}
    in_turns(works, 1)
    taken = in_turns(works, ROUNDS, time.perf_counter)
    return Part(
        {name: spread.document() for name, spread in taken.items()},
        [Row(f"{name}, seconds", *spread.text(".3f")) for name, spread in taken.items()],
    )


def _run(*arguments: str) -> None:
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
