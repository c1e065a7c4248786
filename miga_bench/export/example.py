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
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


"""
_CALL = """\
# on a GPU, with onnxruntime-gpu: providers=["CUDAExecutionProvider"]
session = ort.InferenceSession("{file}", providers=["CPUExecutionProvider"])
inputs = {{
    "latents": np.random.randn({rows}, {channels}, {frames}, {height}, {width}).astype(np.float32),
    # the timestep of each frame, from 0, clean, to 1000, noise
    "timesteps": np.full(({rows}, {frames}), 999, np.float32),
    "text": np.zeros(({rows}, {length}, {depth}), np.float32),  # the text encoder's output
{more}}}
(prediction,) = session.run(["prediction"], inputs)  # {meaning}
"""


def example(facts: Mapping[str, Any], file: str, inputs: Mapping[str, Port]) -> str:
    """Return a Python program that calls an exported denoiser once; it is run in the export's folder.

    Args:
        facts: The content of the export's ``backbone.json``.
        file: The denoiser's graph; what goes in is float32 whatever its precision.
        inputs: Of the graph; where sizes are free, the smallest call of a single row is shown.
    """
    latents = inputs["latents"]
    rows, _, frames, *_ = (
        size if isinstance(size, int) else least
        for size, least in zip(latents.shape, latents.min, strict=True)
    )
    channels, height, width = facts["latent_shape"]
    length, depth = inputs["text"].shape[1:]
    parts, more = "import numpy as np\nimport onnxruntime as ort\n\n", ""
    meaning = "the noise in the latents"
    lines = ""
    if rotary := facts.get("rotary"):
        head, (high, wide) = rotary["head_dim"], rotary["patch"]
        side = 2 * (head // 6)
        parts += "\n" + _ROTARY.format(half=head // 2, channels=(head - 2 * side, side, side))
        more = f"cos, sin = rotary({frames}, {height // high}, {width // wide})\n"
        meaning = "noise minus clean latents"
        lines = '    "cos": cos,\n    "sin": sin,\n'
    if "fps" in inputs:
        lines = f'    "fps": np.full({rows}, {facts["defaults"]["fps"]:g}, np.float32),\n'
    return (
        parts
        + more
        + _CALL.format(
            file=file,
            rows=rows,
            channels=channels,
            frames=frames,
            height=height,
            width=width,
            length=length,
            depth=depth,
            more=lines,
            meaning=meaning,
        )
    )
