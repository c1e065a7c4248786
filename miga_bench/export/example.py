"""The example in an export's model card: its denoiser in ONNX Runtime, without this package."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from miga_bench.export.sidecar import Port

# Angles of the rotary tables as ``backbones.rotary`` has them: a head's channels are shared out over the axes.
_ROTARY = """\
def rotary(frames, rows, columns):
    \"\"\"Return cosines and sines of all tokens' places, [1, frames * rows * columns, 1, {half}].\"\"\"
    places = np.indices((frames, rows, columns)).reshape(3, -1)
    angles = [
        place[:, None] / 10000.0 ** (np.arange(0, channels, 2) / channels)
        for place, channels in zip(places, {channels})
    ]
    angles = np.concatenate(angles, axis=1)[None, :, None]
    return np.cos(angles).astype({cos}), np.sin(angles).astype({sin})


"""
_CALL = """\
session = ort.InferenceSession("{file}")
inputs = {{
    "latents": np.random.randn({rows}, {channels}, {window}, {height}, {width}).astype({latents}),
    # a level for each frame, from 0, clean, to 1000, noise
    "timesteps": np.full(({rows}, {window}), 999, {timesteps}),
    "text": np.zeros(({rows}, {length}, {depth}), {text}),  # the text encoder's output
{more}}}
(prediction,) = session.run(["prediction"], inputs)  # {meaning}
"""


def example(facts: Mapping[str, Any], file: str, inputs: Mapping[str, Port]) -> str:
    """Return a Python program that calls an exported denoiser once; it is run in the export's folder.

    Args:
        facts: The content of the export's ``backbone.json``.
        file: The denoiser's graph.
        inputs: Of the graph.
    """
    rows, _, window = (
        size if isinstance(size, int) else usual
        for size, usual in zip(inputs["latents"].shape, (1, 0, facts["window"]), strict=False)
    )
    types = {name: f"np.{port.dtype}" for name, port in inputs.items()}
    channels, height, width = facts["latent_shape"]
    length, depth = inputs["text"].shape[1:]
    parts, more = "import numpy as np\nimport onnxruntime as ort\n\n", ""
    meaning = "the noise in the latents"
    if rotary := facts.get("rotary"):
        head, (high, wide) = rotary["head_dim"], rotary["patch"]
        side = 2 * (head // 6)
        parts += "\n" + _ROTARY.format(
            half=head // 2,
            channels=(head - 2 * side, side, side),
            cos=types["cos"],
            sin=types["sin"],
        )
        more = f"cos, sin = rotary({window}, {height // high}, {width // wide})\n"
        meaning = "noise minus clean latents"
    lines = '    "cos": cos,\n    "sin": sin,\n' if more else ""
    if "fps" in inputs:
        rate = facts["defaults"]["fps"] if facts.get("defaults") else facts["frame_rate"]
        lines = f'    "fps": np.full({rows}, {rate:g}, {types["fps"]}),\n'
    return (
        parts
        + more
        + _CALL.format(
            file=file,
            rows=rows,
            channels=channels,
            window=window,
            height=height,
            width=width,
            length=length,
            depth=depth,
            latents=types["latents"],
            timesteps=types["timesteps"],
            text=types["text"],
            more=lines,
            meaning=meaning,
        )
    )
