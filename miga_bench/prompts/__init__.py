"""Prompt suites as data."""

from pathlib import Path

FOLDER = Path(__file__).parent
LISTS = {name: FOLDER / f"{name}.yaml" for name in ("tiny-world", "vbench")}
STORIES = {name: FOLDER / name for name in ("tiny", "natural")}
