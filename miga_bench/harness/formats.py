"""The format of what is read again: ``run.yaml`` and the items' manifests say theirs, and have no other."""

from __future__ import annotations

from collections.abc import Mapping

FORMAT = 1


def check_format(document: object, origin: object) -> None:
    """Refuse what a version of miga-bench wrote that has another format.

    Args:
        document: Says its format under ``format``.
        origin: Of the document; says who wrote it under ``versions``.

    Raises:
        ValueError: It is of another format; the text says whose.
    """
    told = document.get("format") if isinstance(document, Mapping) else None
    if told != FORMAT:
        versions = origin.get("versions") if isinstance(origin, Mapping) else None
        writer = versions.get("miga-bench") if isinstance(versions, Mapping) else None
        raise ValueError(
            f"its format is {str(told)[:20]!r}, of miga-bench {str(writer)[:20]!r}; this version reads {FORMAT}"
        )
