"""What tells machines apart: since when this one runs, and what its processor is."""

from __future__ import annotations

import functools
import os
import platform
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

BOOT = Path("/proc/sys/kernel/random/boot_id")
PROCESSORS = Path("/proc/cpuinfo")
PATIENCE = 10.0  # seconds for what takes milliseconds


@functools.cache
def started() -> str | None:
    """Return what all processes share that run on this machine since it was started, and nobody else has.

    Unlike its name, which changes on a laptop with the network, and ``/etc/machine-id``, which machines that
    start from one image may share; only copies of a running virtual machine share this, too. Containers have
    that of the kernel below them, as they have its locks. None where the system has no such thing.
    """
    with suppress(OSError):
        return BOOT.read_text(encoding="ascii").strip() or None
    return _sysctl("kern.bootsessionuuid") if sys.platform == "darwin" else None


def cpu_name() -> str:
    """Return what processor this is; of an ARM server, which has no name, maker and part by their numbers.

    Those come with the count of cores: cloud machines differ by it, and by nothing else that is told.
    """
    if sys.platform == "darwin" and (name := _sysctl("machdep.cpu.brand_string")):
        return name
    facts: dict[str, str] = {}
    with suppress(OSError):
        for line in PROCESSORS.read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            facts.setdefault(name.strip(), value.strip())
    if named := facts.get("model name"):
        return named
    if "CPU part" in facts:
        maker, part = facts.get("CPU implementer", "?"), facts["CPU part"]
        return f"{platform.machine()}, implementer {maker}, part {part}, {os.cpu_count()} cores"
    return platform.processor() or platform.machine()


def _sysctl(name: str) -> str | None:
    """Return what macOS says of itself under a name; None if it says nothing."""
    with suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(
            ["sysctl", "-n", name], capture_output=True, text=True, check=True, timeout=PATIENCE
        )
        return done.stdout.strip() or None
    return None
