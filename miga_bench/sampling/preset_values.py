"""The values of the presets, by family and method."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Values = Mapping[str, Any]

_WAN_MIGA = {
    "steps": 54,
    "zigzag": 7,
    "guidance_frames": 4,
    "guidance_reach": "chunks",
    "stage2_steps": 10,
    "renoise": 0,
    "stride": 10,
    "guidance_scale": 5.0,
    "reflection": "continuous",
    "reflection_threshold": 0.01,
    "reflection_level": 44,
    "reference_chunks": 2,
    "candidates": 3,
}
_VC2_MIGA = {
    "steps": 64,
    "zigzag": 4,
    "guidance_frames": 6,
    "guidance_reach": "chunks",
    "stage2_steps": 9,
    "renoise": 0,
    "stride": 8,
    "guidance_scale": 12.0,
    "reflection": "continuous",
    "reflection_threshold": 0.01,
    "reflection_level": 51,
    "reference_chunks": 3,
    "candidates": 5,
}
_WAN_PLAIN = {"steps": 54, "guidance_scale": 5.0}
_VC2_PLAIN = {"steps": 64, "guidance_scale": 12.0}
# VideoCrafter's own way of sampling, which FreeLong and FreePCA keep.
_VC2_STOCK = {"steps": 50, "guidance_scale": 12.0, "grid": "stock", "rescale": True, "fps": 28.0}
# The released queues know nothing of the dynamic rescale; their opening clip does (see ``opening_reading``).
_UNSCALED = {"rescale": False}
# Of both released loops, and of no paper: the algorithm ends with stage 2.
_RENOISED = {"renoise": 10}
_SEARCH = {
    "beams": 3,
    "candidates": 5,
    "greedy": 0.8,
    "reward": "dino",
    "proposal": "mixture",
    "lookahead": True,
    "lag": 16,
}
_BANDS = {"blend": "bands", "start": "specmix"}
_LOW_PASS = {"blend": "lowpass", "start": "shuffled"}

# Half the large models' steps, and the same shares of them: a laptop's minutes count.
_TINY_WAN = {"steps": 27, "guidance_scale": 3.0}
_TINY_WAN_MIGA = {
    **_WAN_MIGA,
    **_TINY_WAN,
    # At 4 and more the subject loses its shape and its way: see reports/methods.md.
    "zigzag": 2,
    "stage2_steps": 5,
    "renoise": 5,
    "reflection_level": 22,
    # Two latents of 64 places: chance alone passes for drift. At 0.01 searches were 55 % of all windows.
    "reflection_threshold": 0.1,
}
_TINY_VC2 = {"steps": 32, "guidance_scale": 4.0}
_TINY_VC2_MIGA = {
    **_VC2_MIGA,
    **_TINY_VC2,
    "guidance_frames": 4,
    "stage2_steps": 5,
    "renoise": 5,
    "reflection_level": 26,
    # On 64 places chance alone moves the similarity by 0.03 a pass; at 0.01 searches were 44 % of all windows.
    "reflection_threshold": 0.03,
}
_TINY_SEARCH = {**_SEARCH, "beams": 2, "candidates": 3, "reward": "latent"}

# preset -> family -> method -> settings
PRESETS: dict[str, dict[str, dict[str, Values]]] = {
    "paper": {
        "wan": {
            "short": _WAN_PLAIN,
            "fifo": _WAN_PLAIN,
            "scaling-noise": {**_WAN_PLAIN, **_SEARCH},
            "freelong": {**_WAN_PLAIN, **_BANDS},
            "freepca": {**_WAN_PLAIN, "stride": 5},
            "miga": _WAN_MIGA,
        },
        "videocrafter2": {
            "short": _VC2_PLAIN,
            "fifo": _VC2_PLAIN,
            "scaling-noise": {**_VC2_PLAIN, **_SEARCH},
            "freelong": {**_VC2_STOCK, **_LOW_PASS},
            "freepca": {**_VC2_STOCK, "stride": 4},
            "miga": _VC2_MIGA,
        },
    },
    "release": {
        "wan": {
            "short": _WAN_PLAIN,
            "fifo": _WAN_PLAIN,
            "miga": {**_WAN_MIGA, **_RENOISED, "released": True, "reflection": "growth"},
        },
        "videocrafter2": {
            "short": _VC2_STOCK,
            "fifo": {**_VC2_PLAIN, **_UNSCALED, "released": True},
            "scaling-noise": {**_VC2_PLAIN, **_UNSCALED, **_SEARCH, "released": True},
            "freelong": {**_VC2_STOCK, **_LOW_PASS},
            "freepca": {**_VC2_STOCK, "stride": 4},
            "miga": {
                **_VC2_MIGA,
                **_UNSCALED,
                **_RENOISED,
                "released": True,
                "guidance_frames": 4,
                "reflection": "off",
                "reflection_threshold": 0.001,
            },
        },
    },
    "tiny": {
        "wan": {
            "short": _TINY_WAN,
            "fifo": _TINY_WAN,
            "scaling-noise": {**_TINY_WAN, **_TINY_SEARCH},
            "freelong": {**_TINY_WAN, **_BANDS},
            "freepca": {**_TINY_WAN, "stride": 5},
            "miga": _TINY_WAN_MIGA,
        },
        "videocrafter2": {
            "short": _TINY_VC2,
            "fifo": _TINY_VC2,
            "scaling-noise": {**_TINY_VC2, **_TINY_SEARCH},
            "freelong": {**_TINY_VC2, **_LOW_PASS},
            "freepca": {**_TINY_VC2, "stride": 4},
            "miga": _TINY_VC2_MIGA,
        },
    },
}
