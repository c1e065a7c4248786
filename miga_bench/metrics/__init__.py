"""Scores of videos; a room of its own that knows nothing of sampling.

Names are imported when they are used: listing them needs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from miga_bench.metrics.consistency import BackgroundConsistency, SubjectConsistency
    from miga_bench.metrics.dynamic import DynamicDegree
    from miga_bench.metrics.flickering import TemporalFlickering
    from miga_bench.metrics.frame_quality import AestheticQuality, ImagingQuality
    from miga_bench.metrics.narrative import NarrativeExpression
    from miga_bench.metrics.overall import OverallScore
    from miga_bench.metrics.overall_consistency import OverallConsistency
    from miga_bench.metrics.smoothness import MotionSmoothness

_HOMES = {
    "SubjectConsistency": "consistency",
    "BackgroundConsistency": "consistency",
    "MotionSmoothness": "smoothness",
    "TemporalFlickering": "flickering",
    "OverallScore": "overall",
    "DynamicDegree": "dynamic",
    "AestheticQuality": "frame_quality",
    "ImagingQuality": "frame_quality",
    "OverallConsistency": "overall_consistency",
    "NarrativeExpression": "narrative",
}

__all__ = [
    "AestheticQuality",
    "BackgroundConsistency",
    "DynamicDegree",
    "ImagingQuality",
    "MotionSmoothness",
    "NarrativeExpression",
    "OverallConsistency",
    "OverallScore",
    "SubjectConsistency",
    "TemporalFlickering",
]


def __getattr__(name: str) -> Any:
    """Import a score from its module."""
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
