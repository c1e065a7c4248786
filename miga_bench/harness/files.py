"""Files that are written whole or not at all, and folders that are not there yet."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path


def nearest(folder: Path) -> Path:
    """Return the folder, or the nearest one above it that exists."""
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    return folder


def write_json(path: Path, document: Mapping[str, object]) -> None:
    """Write a JSON file atomically: readers see the old one or the whole new one."""
    write_text(path, json.dumps(document, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a file atomically: readers see the old one or the whole new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())  # or a machine that fails next could leave an empty file
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
