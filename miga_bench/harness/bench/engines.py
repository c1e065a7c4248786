"""The same video by PyTorch, torch.compile and ONNX Runtime, one thread, processor time.

The graph is exported here into a temporary folder. VideoCrafter2's network takes minutes to export and
to compile: ``make bench-export`` measures calls of both families.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from miga_bench.backbones import load_backbone
from miga_bench.export.choice import DenoiserChoice
from miga_bench.export.onnx_folder import export_onnx
from miga_bench.export.opening import open_model
from miga_bench.export.request import OnnxRequest
from miga_bench.harness.bench.common import MODEL, SMALL, Part, Row, Say, apart, maker, prompts_of
from miga_bench.harness.bench.rounds import in_turns, timed


def measure(say: Say, repeats: int) -> Part:
    """Make a video by each in turns; what comes before (export, compilation) is reported apart."""
    eager = load_backbone(MODEL, device="cpu")
    length, prompts = eager.window + eager.window // 2, prompts_of(eager)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "onnx"
        say("exporting to ONNX")
        exporting, _ = timed(lambda: export_onnx(OnnxRequest(MODEL, folder)))
        backbones = {
            "eager": eager,
            "compile": open_model(MODEL, DenoiserChoice("compile"), device="cpu"),
            "onnx": open_model(MODEL, DenoiserChoice("onnx", folder), device="cpu"),
        }
        works = {
            name: maker(backbone, "miga", SMALL, length, prompts)
            for name, backbone in backbones.items()
        }
        say("warm-up: each once, which compiles")
        first = {name: timed(work) for name, work in works.items()}
        say(f"{repeats} rounds")
        taken = in_turns(works, repeats)
    part = Part({"settings": SMALL, "latents": length, "export_seconds": round(exporting, 1)})
    wanted = first["eager"][1]
    for name, spread in taken.items():
        gain, difference = taken["eager"].over(spread), apart(first[name][1], wanted)
        part.document[name] = {
            "seconds": spread.document(),
            "speedup_over_eager": gain.document(),
            "first_video_seconds": round(first[name][0], 2),
            "relative_difference": difference,
        }
        if name != "eager":
            part.rows.append(Row(f"eager / {name}", *gain.text(".2f")))
            part.rows.append(Row(f"{name}: largest relative difference", f"{difference:.1e}"))
    compiling = first["compile"][0] - first["eager"][0]
    part.rows.append(Row("seconds, once: torch.compile", f"{compiling:.0f}"))
    part.rows.append(Row("seconds, once: export to ONNX", f"{exporting:.0f}"))
    return part
