"""How long one waits for an endless video: what is denoised before its first frame leaves.

A real run of the default preset, without guidance, so that a window is one denoiser evaluation, on one thread
by processor time. ``counts.py`` says how the least is derived. Windows of searches are counted apart where
they come on top of it (MIGA's self-reflection); ScalingNoise's candidates are part of its least.
"""

from __future__ import annotations

import time
from typing import Any

from miga_bench.backbones import EMBEDDED, load_backbone
from miga_bench.backbones.base import Backbone
from miga_bench.harness.bench.common import Part, Row, Say, maker, prompts_of
from miga_bench.harness.bench.counts import windows_before_first
from miga_bench.harness.bench.rounds import timed
from miga_bench.sampling import METHODS, CounterNoise, PassReport, resolve


def measure(say: Say, repeats: int) -> Part:
    """Count and time for each endless method on each embedded model, once: counts do not vary."""
    del repeats
    part = Part({"settings": "default preset, guidance off", "models": {}})
    for model in EMBEDDED:
        backbone = load_backbone(model, device="cpu")
        maker(backbone, "short", {"steps": 4}, backbone.window)()  # warm-up
        part.document["models"][model] = {}
        for method in (name for name, kind in METHODS.items() if kind.endless):
            say(f"{method} on {model}")
            found = until_first(backbone, method, {"guidance_scale": 1.0})
            part.document["models"][model][method] = found
            searched = f" + {found['search']} of searches" if found["search"] else ""
            part.rows.append(
                Row(
                    f"{model}, {method}: windows before the first frame; seconds",
                    f"{found['windows']}{searched}; {found['seconds']:.1f}",
                    target=f"least {found['least']}",
                )
            )
    return part


def until_first(backbone: Backbone, method: str, overrides: dict[str, Any]) -> dict[str, Any]:
    """Run an endless method until its first latent leaves.

    Returns:
        ``windows`` of the method itself, ``search`` windows on top, the ``least`` windows it allows, and
        ``seconds``.
    """
    settings = resolve(method, backbone, overrides=overrides)
    last: list[PassReport] = []
    stream = METHODS[method](settings).stream(
        backbone,
        prompts_of(backbone),
        CounterNoise(0, backbone.latent_shape),
        callback=lambda report: last.append(report),
    )
    seconds, _ = timed(lambda: next(stream), time.process_time)
    cost = last[-1]
    search = cost.search_windows if method == "miga" else 0
    return {
        "windows": cost.windows - search,
        "search": search,
        "least": windows_before_first(settings, backbone),
        "seconds": round(seconds, 3),
    }
