"""Documents with a seal, which no longer fits if a bit has flipped since they were written."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

SEAL = "seal"


def sealed(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return the document with a seal over all that is in it, as its last entry."""
    return {**document, SEAL: _digest(document)}


def opened(text: str | bytes) -> dict[str, Any]:
    """Return what a JSON text holds.

    Raises:
        ValueError: It is no JSON object, or its seal is missing or does not fit.
    """
    try:
        document = json.loads(text)
    except RecursionError:
        raise ValueError("nested without end") from None
    if not isinstance(document, dict):
        raise ValueError("no JSON object")
    if document.pop(SEAL, None) != _digest(document):
        raise ValueError("it has no seal that fits")
    return document


def _digest(document: Mapping[str, Any]) -> str:
    plain = json.loads(json.dumps(document))  # as it will be read back: keys are texts
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("ascii")).hexdigest()
