"""Which dimensions there are, and the scores of a suite with its networks."""

from __future__ import annotations

import functools
import importlib
import warnings
from collections.abc import Sequence
from typing import Any

from miga_bench.errors import Notice, UserError, near

# The four of the overall score, which is their mean.
OVERALL = (
    "subject_consistency",
    "background_consistency",
    "motion_smoothness",
    "temporal_flickering",
)
# dimension -> what it tells
DIMENSIONS: dict[str, str] = {
    "subject_consistency": "does the subject stay itself",
    "background_consistency": "does the scene stay itself",
    "motion_smoothness": "does motion agree with interpolation",
    "temporal_flickering": "how little do successive frames differ",
    "dynamic_degree": "does anything move",
    "aesthetic_quality": "do frames look good",
    "imaging_quality": "are frames sharp and clean",
    "overall_consistency": "does the video show its prompt",
}
DEFAULT = (*OVERALL, "dynamic_degree")
# Those that cannot leave [0, 1]: of the others a network answers freely, or they are cosines.
WITHIN_ONE = frozenset({"overall_score", *DEFAULT})
# What the embedded networks can judge.
EMBEDDED = DEFAULT
NETWORKS = ("tiny", "vbench")

_CLASSES = {name: "".join(part.title() for part in name.split("_")) for name in DIMENSIONS}
# dimension -> VBench's networks, in the order its score takes them
_PUBLIC: dict[str, tuple[str, ...]] = {
    "subject_consistency": ("Dino",),
    "background_consistency": ("Clip",),
    "motion_smoothness": ("Amt",),
    "temporal_flickering": (),
    "dynamic_degree": ("Raft",),
    "aesthetic_quality": ("Aesthetic",),
    "imaging_quality": ("Musiq",),
    "overall_consistency": ("ViClip",),
}
# VBench-Long's fast branch; the original's for backgrounds with its development flag is DreamSim
_FAST = {"subject_consistency": "DinoV2", "background_consistency": "DreamSim"}
_MODULES = {
    "Dino": "dino",
    "DinoV2": "dino",
    "Clip": "clip",
    "Amt": "amt",
    "Raft": "raft",
    "Aesthetic": "judges",
    "Musiq": "judges",
    "ViClip": "viclip",
    "DreamSim": "dreamsim",
}


def check_dimensions(names: Sequence[str] | None, networks: str) -> tuple[str, ...]:
    """Return the dimensions to score, checked.

    Args:
        names: As given; None is the default.
        networks: ``tiny`` or ``vbench``.

    Raises:
        UserError: A name is unknown, or needs networks that are not the embedded ones.
    """
    if networks not in NETWORKS:
        raise UserError(f"unknown networks {networks!r}: there are {', '.join(NETWORKS)}")
    for name in names or ():
        if name not in DIMENSIONS:
            known = near(name, DIMENSIONS, 0.5, "there are")
            raise UserError(f"unknown dimension {name!r}: {known}")
        if networks == "tiny" and name not in EMBEDDED:
            raise UserError(
                f"{name} has no embedded network: use --networks vbench, whose weights are fetched"
            )
    return tuple(name for name in DIMENSIONS if name in (names or DEFAULT))


def overall_label(labels: Sequence[str]) -> str:
    """Return the label of the mean of the four scores with these labels: their networks, each once."""
    networks = [label.partition("[")[2].rstrip("]") for label in labels]
    named = ",".join(dict.fromkeys(n for n in networks if n))
    return f"overall_score[{named}]" if named else "overall_score"


def scoring_device(device: str) -> str:
    """Return where scores run: on the device; in place of Apple's GPU, which has no float64, on the CPU.

    Args:
        device: Where they would run.
    """
    if not device.startswith("mps"):
        return device
    warnings.warn(
        f"scores run on the CPU: {device} has no float64, in which they are summed",
        Notice,
        stacklevel=3,
    )
    return "cpu"


def make_scores(
    dimensions: Sequence[str],
    networks: str = "tiny",
    device: str = "cpu",
    aggregate: Any = None,
) -> list[Any]:
    """Return the scores of some dimensions, on a device.

    Args:
        dimensions: Names in ``DIMENSIONS``.
        networks: ``tiny`` for the embedded ones, ``vbench`` for the public ones.
        device: Where networks run.
        aggregate: See ``VideoScore``; None is each dimension's own rule.

    Raises:
        UserError: A network's weights or package are missing.
    """
    if networks == "tiny":
        scores = [_embedded(name, aggregate) for name in dimensions]
    else:
        scores = [_public(name, aggregate, device) for name in dimensions]
    return [score.eval().to(device) for score in scores]


def _embedded(name: str, aggregate: Any) -> Any:
    from miga_bench import metrics

    # the defaults of all scores are the embedded networks
    return getattr(metrics, _CLASSES[name])(aggregate=aggregate)


def _public(name: str, aggregate: Any, device: str) -> Any:
    from miga_bench import metrics

    networks = [public_network(role, device) for role in _PUBLIC[name]]
    return getattr(metrics, _CLASSES[name])(*networks, aggregate=aggregate)


@functools.cache
def public_network(name: str, device: str = "cpu") -> Any:
    """Return one of VBench's own networks; scores on a device share it.

    Args:
        name: A class in ``miga_bench.metrics.networks``.
        device: Where it runs.

    Raises:
        UserError: Its weights or its package are missing.
    """
    module = importlib.import_module(f"miga_bench.metrics.networks.{_MODULES[name]}")
    made = getattr(module, name)
    if name == "DreamSim":  # its package remembers where it was made
        return made(device=device).eval()
    return made().eval().to(device)


def fast_encoders(
    dimensions: Sequence[str], networks: str = "tiny", device: str = "cpu"
) -> dict[str, Any]:
    """Return the encoders of VBench-Long's fast branch by dimension."""
    from miga_bench.metrics.long import mapping_table

    names = [name for name in dimensions if mapping_table(name) is not None]
    if not names:
        return {}
    if networks == "tiny":
        from miga_bench.metrics.networks.tiny import tiny_encoder

        return dict.fromkeys(names, tiny_encoder())
    return {name: public_network(_FAST[name], device) for name in names}
