"""Whether anything may be fetched."""

from __future__ import annotations

import os

OFFLINE = ("MIGA_BENCH_OFFLINE", "HF_HUB_OFFLINE")


def downloads_off() -> str | None:
    """Return the environment variable that turns downloads off, None if they are on."""
    values = {name: os.environ.get(name, "").lower() for name in OFFLINE}
    return next((n for n, value in values.items() if value in ("1", "true", "yes", "on")), None)
