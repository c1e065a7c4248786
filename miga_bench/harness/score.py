"""Score videos: find them, score each once, keep every result as it comes, sum up."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from miga_bench import __version__
from miga_bench.errors import UserError, in_print
from miga_bench.harness.differences import differences
from miga_bench.harness.files import write_json
from miga_bench.harness.pool import each_done
from miga_bench.harness.provenance import hardware, versions
from miga_bench.harness.score_request import Plan, ScoreRequest
from miga_bench.harness.score_sources import Source, TruncatedError, find_videos, with_prompts
from miga_bench.harness.seals import opened, sealed
from miga_bench.metrics.suites import fast_encoders, make_scores, scoring_device

if TYPE_CHECKING:
    from torch import Tensor

    from miga_bench.metrics.base import VideoScore
    from miga_bench.metrics.long import LongVideo
    from miga_bench.metrics.networks.base import Network

Row = dict[str, Any]
Progress = Callable[[int, int, str], None]


def score(request: ScoreRequest, progress: Progress = lambda done, total, name: None) -> Row:
    """Score videos and write the results.

    The same command goes on where one was stopped: videos are known by their content.

    Args:
        request: What to score.
        progress: Called with videos done, videos in all, and the name of the one done last.

    Returns:
        The document that also lies in ``request.output``.

    Raises:
        UserError: Wrong input; nothing was scored.
    """
    request.check()
    plan, devices = request.plan, [scoring_device(device) for device in request.devices]
    sources = with_prompts(find_videos(request.videos, request.fps), request.prompts)
    check_sources(sources, plan)
    # made now, so that what is missing is said before work is done
    scores = make_scores(plan.dimensions, plan.networks, devices[0], request.aggregate)
    fast = clip_encoders(plan, devices[0])
    head = _head(plan, scores, fast)
    rows = dict(_known(request.journal, head))
    keys = {source.name: _key(source) for source in sources}
    waiting = [source for source in sources if keys[source.name] not in rows]
    done, again = len(sources) - len(waiting), False
    progress(done, len(sources), "")
    request.output.parent.mkdir(parents=True, exist_ok=True)
    _cut_broken_line(request.journal)
    with open(request.journal, "a", encoding="utf-8") as journal:
        if not journal.tell():
            _write_line(journal, head)
        for source, row in _score_all(waiting, plan, devices, scores):
            row = {"key": keys[source.name], **row}
            if not row.pop("passing"):
                _write_line(journal, sealed(row))
            else:
                again = True
            rows[row["key"]] = row
            done += 1
            progress(done, len(sources), source.name)
    from miga_bench.harness.score_summary import plot, summary

    found = [
        {**rows[keys[s.name]], "video": s.name, "prompt": s.prompt, "frame_rate": s.frame_rate}
        for s in sources
    ]
    document = {
        **summary(found, plan, scores, request.reading, fast),
        "decoder": head["decoder"],
        "versions": head["versions"],
        "hardware": hardware(devices[0]),
    }
    plot(document, request.picture)
    write_json(request.output, document)
    if not again:  # else --force tries only what may fare better
        request.journal.unlink(missing_ok=True)
    return document


def networks_of(scores: Sequence[VideoScore], fast: Mapping[str, Network]) -> dict[str, Any]:
    """Return the networks behind scores with their weights' hashes, by dimension and role.

    Args:
        scores: Of the plan's dimensions.
        fast: Encoders of VBench-Long's clip-to-clip scores, by dimension.
    """
    from miga_bench.metrics.networks.base import plain

    networks = {score.name: score.provenance()["networks"] for score in scores}
    for name, encoder in fast.items():
        networks[name] |= plain({"fast": encoder.provenance})
    return networks


def clip_encoders(plan: Plan, device: str) -> dict[str, Any]:
    """Return the encoders of clip-to-clip scores by dimension; none where the plan has no such scores.

    Raises:
        UserError: One's weights or package are missing.
    """
    if not (plan.long and plan.development):
        return {}
    return fast_encoders(plan.dimensions, plan.networks, device)


# A network that reads 32 tokens would hold the whole video against little but the first of its texts.
OF_ONE_TEXT = ("overall_consistency",)
_TEXT_CHANGES = {"value": None, "reason": "the video's text changes, and it is of one text"}


def check_sources(sources: Sequence[Source], plan: Plan) -> None:
    """Check that the videos have what the scores need.

    Raises:
        UserError: A prompt or a frame rate is missing, or frame rates differ where one is needed.
    """
    if "overall_consistency" in plan.dimensions:
        without = [source.name for source in sources if source.prompt is None]
        if without:
            raise UserError(
                f"overall_consistency needs the prompt of every video, {len(without)} have none (first: "
                f"{without[0]}): give --prompts FILE"
            )
    if not plan.long and "dynamic_degree" not in plan.dimensions:
        return
    what = "vbench-long" if plan.long else "dynamic_degree"
    rates = sorted({source.frame_rate or 0.0 for source in sources})
    if 0.0 in rates:
        name = next(source.name for source in sources if not source.frame_rate)
        raise UserError(f"{what} needs the frame rate, {name} does not say it: give --fps")
    if len(rates) > 1:
        raise UserError(
            f"{what} compares videos of one frame rate, these have {' and '.join(f'{r:g}' for r in rates)}"
            " frames a second: score them apart, or give --fps"
        )


def _key(source: Source) -> str:
    """Return what a video's values depend on beside the plan: content, frame rate, prompt."""
    told = json.dumps(
        [source.digest(), source.frame_rate, source.prompt, *[True] * source.changing]
    )
    return hashlib.sha256(told.encode()).hexdigest()


def _head(plan: Plan, scores: Sequence[VideoScore], fast: Mapping[str, Network]) -> Row:
    """Return how a journal begins: what all its values depend on beside the videos, as the document has it."""
    return {
        "plan": asdict(plan),
        "version": __version__,
        "networks": networks_of(scores, fast),
        "decoder": f"PyAV {version('av')}, all frames, RGB",
        "versions": versions(),
    }


def _known(journal: Path, head: Row) -> Iterator[tuple[str, Row]]:
    """Yield what a stopped command left.

    Raises:
        UserError: It was made by another plan, by another version, or with other networks or packages.
    """
    lines = _whole_lines(journal).decode("utf-8", "replace").splitlines()
    if not lines:
        return
    try:
        begun = json.loads(lines[0])
    except (ValueError, RecursionError):
        begun = None
    mine = json.loads(json.dumps(head))
    if not isinstance(begun, dict) or begun.get("plan") != mine["plan"]:
        raise UserError(
            f"{journal} holds the results of another scoring: finish that one, remove the file, or choose "
            "another -o"
        )
    if begun.get("version") != __version__:
        theirs = str(begun.get("version"))[:20]
        raise UserError(
            f"{journal} was begun by miga-bench {theirs}, this is {__version__}: finish it with that version,"
            " or remove the file"
        )
    if changed := differences(begun, mine):
        more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        raise UserError(
            f"{journal} was begun with other networks or packages ({in_print(changed[0])}{more}): finish it"
            " with those, or remove the file"
        )
    for line in lines[1:]:
        with suppress(ValueError):  # a line that is broken is a video to score
            row = opened(line)
            if isinstance(row.get("key"), str) and isinstance(row.get("scores"), dict):
                yield row["key"], row


def _whole_lines(journal: Path) -> bytes:
    """Return a journal without the line that a kill may have left unfinished at its end."""
    content = journal.read_bytes() if journal.exists() else b""
    return content[: content.rfind(b"\n") + 1]


def _cut_broken_line(journal: Path) -> None:
    """Cut off an unfinished last line, or the next line would be lost with it."""
    if journal.exists():
        os.truncate(journal, len(_whole_lines(journal)))


def _write_line(file: Any, row: Mapping[str, Any]) -> None:
    file.write(json.dumps(row) + "\n")
    file.flush()


def _score_all(
    sources: Sequence[Source], plan: Plan, devices: Sequence[str], scores: Sequence[VideoScore]
) -> Iterator[tuple[Source, Row]]:
    """Score videos, one process per device if there are several; else by the scores, which are on the first."""
    if len(devices) == 1 or len(sources) < 2:
        for source in sources:
            yield source, score_video(source, plan, devices[0], scores)
        return
    queue = multiprocessing.get_context("spawn").SimpleQueue()
    for device in devices:
        queue.put(device)
    longest_first = sorted(sources, key=lambda s: -(s.frames or 0))
    yield from each_done(
        partial(_score_on_mine, plan=plan), longest_first, len(devices), _take_device, queue
    )


_mine = "cpu"


def _take_device(queue: Any) -> None:
    global _mine
    _mine = queue.get()


def _score_on_mine(source: Source, plan: Plan) -> Row:
    return score_video(source, plan, _mine, _workers_scores(plan, _mine))


@cache
def _workers_scores(plan: Plan, device: str) -> list[VideoScore]:
    """Return the scores of this process, which ends with the scoring, for all videos that it is given."""
    return make_scores(plan.dimensions, plan.networks, device)


def score_video(source: Source, plan: Plan, device: str, scores: Sequence[VideoScore]) -> Row:
    """Return one video's values, or why it has none; see ``_whole`` and ``_by_clips``.

    ``passing`` tells that the reason may not lie in the video, for example if memory ran out.

    Args:
        source: The video.
        plan: What to measure.
        device: Where the scores are.
        scores: Of the plan's dimensions; what they hold of other videos is forgotten.
    """
    try:
        passed = [one.name for one in scores if source.changing and one.name in OF_ONE_TEXT]
        used = [one for one in scores if one.name not in passed]
        found = (_by_clips if plan.long else _whole)(source, plan, device, used)
        found |= dict.fromkeys(passed, _TEXT_CHANGES)
        return {"frames": found.pop("frames"), "scores": found, "reason": None, "passing": False}
    except (TruncatedError, UserError, RuntimeError, MemoryError) as error:
        for running in scores:
            running.drop()
        passing = isinstance(error, RuntimeError | MemoryError)
        said = in_print(str(error) or type(error).__name__)
        reason = f"{source.name} cannot be scored: {said}" if passing else f"{source.name} {error}"
        return {"frames": None, "scores": {}, "reason": reason, "passing": passing}


def _on_device(source: Source, device: str) -> Iterator[Tensor]:
    """Yield a video's pieces where the networks are, one tensor for all: scores share what they compute."""
    for piece in source.pieces():
        yield piece.to(device)


def _whole(source: Source, plan: Plan, device: str, scores: Sequence[VideoScore]) -> Row:
    """Score a whole video: of each dimension the terms, and the score over video time."""
    for one in scores:
        one.reset()
        one.begin(prompt=source.prompt, video_id=source.name, fps=source.frame_rate)
    frames = 0
    for piece in _on_device(source, device):
        frames += len(piece)
        for one in scores:
            one.extend(piece)
    row: Row = {"frames": frames}
    for one in scores:
        try:
            value = one.end()
        except UserError as error:
            row[one.name] = {"value": None, "reason": str(error)}
            continue
        series = [[first, last, round(mean, 6)] for first, last, mean in one.series.means()]
        row[one.name] = {"value": value, "terms": list(one.terms), "series": series}
    return row


def _by_clips(source: Source, plan: Plan, device: str, scores: Sequence[VideoScore]) -> Row:
    """Score a video as VBench-Long does: of each dimension the clips, where they lie, and the fast score."""
    from miga_bench.metrics.long import clip_length
    from miga_bench.metrics.long_stream import LongVideos

    assert source.frame_rate is not None
    fast = clip_encoders(plan, device)
    videos = LongVideos(scores, fast, clip_length(source.frame_rate), source.frame_rate)
    videos.begin(source.prompt)
    frames = 0
    for piece in _on_device(source, device):
        frames += len(piece)
        videos.extend(piece)
    found = videos.end(Path(source.name).stem)
    rows = {
        name: {
            "clips": v.clips,
            "length": v.clip_frames,
            "fast": v.fast,
            "reason": v.reason,
            "series": _clip_series(v, frames),
        }
        for name, v in found.items()
    }
    return {"frames": frames, **rows}


def _clip_series(video: LongVideo, frames: int) -> list[list[float]]:
    """Return first frame, last frame and score of each clip; the last may reach back into the one before."""
    length = video.clip_frames
    return [
        [min(n * length, frames - length), min((n + 1) * length, frames) - 1, round(score, 6)]
        for n, score in enumerate(video.clips)
    ]
