"""The parts, one after the other, in one table and one document."""

from __future__ import annotations

import importlib
import json
import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from miga_bench.errors import FailedError, UserError, in_print, told
from miga_bench.harness.bench import MOST_REPEATS, PARTS, REPEATS
from miga_bench.harness.bench.common import Part, Row, Say
from miga_bench.harness.output import Output
from miga_bench.harness.provenance import hardware, versions

WIDTH = 132


def run_parts(only: Sequence[str] | None = None, repeats: int = REPEATS) -> dict[str, Any]:
    """Measure the chosen parts, print a table, return the document for the last line.

    Args:
        only: Names in ``PARTS``, None for all.
        repeats: Rounds of what is timed in rounds.

    Raises:
        UserError: ``repeats`` is out of range.
        FailedError: A part failed; the other parts are printed all the same.
    """
    if not 1 <= repeats <= MOST_REPEATS:
        raise UserError(f"--repeats is {repeats}: it must be from 1 to {MOST_REPEATS} rounds")
    torch.set_num_threads(1)
    log = Console(stderr=True, highlight=False, soft_wrap=True)
    names = list(dict.fromkeys(only or PARTS))
    facts = hardware("cpu")
    failed: dict[str, Exception] = {}
    document: dict[str, Any] = {
        "hardware": facts,
        "versions": versions(),
        "repeats": repeats,
        "load_before": _load(),
    }
    table = Table("measurement", "median", "min to max", "target", title=_title(facts))
    for number, name in enumerate(names, 1):
        where = f"[{number}/{len(names)}] {name}"
        start = time.perf_counter()
        try:
            part = _measure(name)(partial(_say, log, where), repeats)
        except Exception as error:  # whatever it is: the other parts have taken minutes, too
            failed[name] = error
            said = in_print(told(error))
            log.print(f"{where}: {said}", markup=False)
            part = Part({"error": said}, [Row(name, "failed")])
        log.print(f"{where}: done in {time.perf_counter() - start:.0f} s", markup=False)
        table.add_section()
        for row in part.rows:  # told at once, too, for whoever stops before the table
            log.print(f"  {row.measurement}: {row.value} {row.spread}".rstrip(), markup=False)
            table.add_row(row.measurement, row.value, row.spread, row.target)
        document[name] = part.document
    document["load_after"] = _load()
    Output(WIDTH).print(table)
    if failed:
        print(json.dumps(document))
        raise FailedError(
            f"{', '.join(failed)} failed: see above what it said; the rest is measured"
        ) from next(iter(failed.values()))
    return document


def _measure(name: str) -> Callable[[Say, int], Part]:
    measure: Callable[[Say, int], Part] = importlib.import_module(
        f"miga_bench.harness.bench.{name}"
    ).measure
    return measure


def _say(log: Console, where: str, what: str) -> None:
    log.print(f"{where}: {what} ...", markup=False)


def _title(facts: dict[str, object]) -> str:
    return f"miga-bench bench: {facts['cpu']}, {facts['cores']} cores"


def _load() -> list[float]:
    """Return how busy the machine was in the last 1, 5 and 15 minutes: processes that want a core."""
    return [round(value, 2) for value in os.getloadavg()]
