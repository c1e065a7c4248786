"""Where two documents differ, in a line that people read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def differences(before: object, now: object, where: str = "") -> list[str]:
    """Return where two documents differ, as ``path: before -> now``."""
    if not (isinstance(before, Mapping) and isinstance(now, Mapping)):
        return [] if before == now else [f"{where} {_short(before)} -> {_short(now)}"]
    out = []
    for name in dict.fromkeys([*before, *now]):
        path = f"{where}.{name}" if where else str(name)
        if name not in before:
            out.append(f"{path} (absent) -> {_short(now[name])}")
        elif name not in now:
            out.append(f"{path} {_short(before[name])} -> (absent)")
        else:
            out += differences(before[name], now[name], path)
    return out


def _short(value: object) -> str:
    text = repr(value) if not isinstance(value, Sequence) or isinstance(value, str) else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
