"""NarrLV: does a video tell its story? Suite, judges, answers on disk, scores (arXiv 2507.11245).

A judge (`ServerJudge`, `qwen.QwenJudge`, or anything of `Judge`'s shape) is asked a suite's questions by `ask`,
which keeps every answer in a file; `score_video` and `summarize` make scores of that file alone.
"""

from miga_bench.errors import JudgeDownError
from miga_bench.metrics.narrlv.answers import (
    AnswerFile,
    Asked,
    Slot,
    TensorVideo,
    Video,
    answers_to,
    ask,
    provenance_of,
    read_answers,
)
from miga_bench.metrics.narrlv.judge import Judge, Sampling, original_frames
from miga_bench.metrics.narrlv.quality import check_rated, read_quality
from miga_bench.metrics.narrlv.release import fetch_release
from miga_bench.metrics.narrlv.scorer import (
    Cell,
    StoryScore,
    Summary,
    collapse_to,
    score_video,
    summarize,
)
from miga_bench.metrics.narrlv.server import ServerJudge
from miga_bench.metrics.narrlv.suite import Story, Suite, load_suite

# QwenJudge is in narrlv.qwen: that module needs torch, the rest loads without it.
__all__ = [
    "AnswerFile",
    "Asked",
    "Cell",
    "Judge",
    "JudgeDownError",
    "Sampling",
    "ServerJudge",
    "Slot",
    "Story",
    "StoryScore",
    "Suite",
    "Summary",
    "TensorVideo",
    "Video",
    "answers_to",
    "ask",
    "check_rated",
    "collapse_to",
    "fetch_release",
    "load_suite",
    "original_frames",
    "provenance_of",
    "read_answers",
    "read_quality",
    "score_video",
    "summarize",
]
