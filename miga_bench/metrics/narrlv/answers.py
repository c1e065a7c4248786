"""Asking a suite's questions, and the file in which every answer is kept as it comes.

The file is JSON lines: a header that says how the answers are made, then one line per (item, category,
question, vote), with the hash of the video where it is told. A killed run leaves at most one broken line, the
last; the next run removes it and asks only what is missing. Answers about another video of an item stay in the
file, for each may have been paid for, and are passed over. Scores are computed from the file alone, as often as
formulas change.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from miga_bench.errors import Notice, UserError, counted
from miga_bench.metrics.narrlv.judge import Judge, differences, seed_of
from miga_bench.metrics.narrlv.scorer import VOTES
from miga_bench.metrics.narrlv.suite import Story, Suite

if TYPE_CHECKING:
    from torch import Tensor

KIND = "narrlv-answers"
VERSION = 1


class Slot(NamedTuple):
    """Which answer: item's key, category, question's index, vote."""

    item: str
    category: str
    question: int
    vote: int


@dataclass(frozen=True)
class Asked:
    """Progress: one more answer.

    Attributes:
        slot: Which one.
        answer: As it came.
        done: How many answers are there now, those of earlier runs included.
        total: How many there will be.
    """

    slot: Slot
    answer: str
    done: int
    total: int


class Video(Protocol):
    """A video of which single frames can be had."""

    def __len__(self) -> int:
        """Return the number of frames, at least 1."""
        ...

    def pick(self, indices: Sequence[int]) -> Tensor:
        """Return frames, uint8 ``[N, 3, H, W]``; an index may repeat."""
        ...


class TensorVideo:
    """A video that is in memory.

    Args:
        frames: ``[T, 3, H, W]``, uint8 or float in [0, 1].
    """

    def __init__(self, frames: Tensor) -> None:
        if frames.dim() != 4 or frames.shape[1] != 3 or not len(frames):
            raise UserError(
                f"video of shape {tuple(frames.shape)}; it must be [T, 3, H, W] with T >= 1"
            )
        if frames.is_floating_point():
            frames = (frames.clamp(0, 1) * 255).round().byte()
        self._frames = frames

    def __len__(self) -> int:
        """Return the number of frames."""
        return len(self._frames)

    def pick(self, indices: Sequence[int]) -> Tensor:
        """Return frames, uint8 ``[N, 3, H, W]``."""
        return self._frames[list(indices)]


class AnswerFile:
    """Answers on disk; a context manager that holds the file for itself while it is open.

    Args:
        path: Where; made if it does not exist.
        provenance: How answers are made, plain values. A file made otherwise is refused.
        contents: Of each item's key the SHA-256 of its video: answers about any other are passed over. None
            takes what is there.

    Attributes:
        answers: What is there of these videos.
        others: What was answered about other videos of these items alone.

    Raises:
        UserError: The file is something else, is damaged, was made otherwise, or is being written.
    """

    def __init__(
        self,
        path: str | Path,
        provenance: Mapping[str, Any],
        contents: Mapping[str, str] | None = None,
    ) -> None:
        self.path = Path(path)
        self.provenance = json.loads(json.dumps(provenance))
        self.answers: dict[Slot, str] = {}
        self.others: frozenset[Slot] = frozenset()
        self._contents = contents
        header = {"kind": KIND, "version": VERSION, "provenance": self.provenance}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(self.path, "a+b")  # noqa: SIM115 - closed by close()
        try:
            self._lock()
            self._file.seek(0)
            lines = self._file.read().splitlines(keepends=True)
            whole = _whole(lines)
            if not whole and (not lines or _starts_header(lines[0])):
                self._file.truncate(0)
                self._write(header)
                return
            self.answers, self.others = _parse(self.path, whole, self.provenance, contents)
            self._file.truncate(sum(map(len, whole)))
        except BaseException:
            self._file.close()
            raise

    def _lock(self) -> None:
        with suppress(ImportError):  # not on Windows
            import fcntl

            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(
                    f"{self.path} is being written by another process; wait for it or choose another file"
                ) from None
            except OSError as error:
                raise UserError(
                    f"{self.path} takes no lock ({error.strerror}), without which two processes could write"
                    " it: choose a file on another disk"
                ) from None

    def _write(self, record: Mapping[str, Any]) -> None:
        # opened for appending: a record always lands at the end, and is on its way before we return
        self._file.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")
        self._file.flush()

    def add(self, slot: Slot, answer: str) -> None:
        """Keep one answer.

        Raises:
            OSError: The disk is full or gone.
        """
        about = {} if self._contents is None else {"video": self._contents[slot.item]}
        self._write({**slot._asdict(), **about, "answer": answer})
        self.answers[slot] = answer

    def close(self) -> None:
        """Close the file; closing twice does nothing."""
        self._file.close()

    def __enter__(self) -> AnswerFile:
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close."""
        self.close()


def read_answers(
    path: str | Path, contents: Mapping[str, str] | None = None
) -> tuple[dict[str, Any], dict[Slot, str]]:
    """Read a file of answers without changing it; a broken last line is left out.

    Args:
        path: The file.
        contents: See `AnswerFile`.

    Returns:
        Its provenance and its answers.

    Raises:
        UserError: It is not there, is something else, or is damaged.
    """
    path = Path(path)
    try:
        lines = _whole(path.read_bytes().splitlines(keepends=True))
    except OSError as error:
        raise UserError(
            f"cannot read answers from {path} ({error.strerror}): give the file that asking wrote"
        ) from None
    provenance = _header(path, lines)
    return provenance, _parse(path, lines, provenance, contents)[0]


def answers_to(
    item: Story, answers: Mapping[Slot, str], votes: int = VOTES
) -> dict[str, list[list[str]]]:
    """Return an item's answers as the scorer takes them: by category, a list per question.

    Raises:
        UserError: Some are missing.
    """
    missing = [slot for slot in slots(item, votes) if slot not in answers]
    if missing:
        raise UserError(
            f"{len(missing)} answers to {item.key} are missing, first {missing[0].category!r} question "
            f"{missing[0].question} vote {missing[0].vote}; ask on into the same file"
        )
    return {
        category: [
            [answers[Slot(item.key, category, question, vote)] for vote in range(votes)]
            for question in range(len(questions))
        ]
        for category, questions in item.questions.items()
    }


def slots(item: Story, votes: int = VOTES) -> list[Slot]:
    """Return every answer that an item needs, in order."""
    return [
        Slot(item.key, category, question, vote)
        for category, questions in item.questions.items()
        for question in range(len(questions))
        for vote in range(votes)
    ]


def provenance_of(suite: Suite, judge: Judge, votes: int = VOTES, seed: int = 0) -> dict[str, Any]:
    """Return what goes into the header of a file of these answers."""
    return {"judge": judge.provenance(), "suite": suite.digest, "votes": votes, "seed": seed}


def ask(
    suite: Suite,
    judge: Judge,
    videos: Callable[[Story], Video],
    path: str | Path,
    *,
    votes: int = VOTES,
    seed: int = 0,
    contents: Mapping[str, str] | None = None,
) -> Iterator[Asked]:
    """Ask everything that is not in the file yet; yields after each answer, which is on disk by then.

    A video is opened only if something about it is missing, and one at a time.

    Args:
        suite: What to ask.
        judge: Whom.
        videos: Returns an item's video.
        path: The file of answers, new or from an earlier run.
        votes: How often each question is asked.
        seed: Seed of the whole run; every answer has its own, derived from it.
        contents: Of each item's key the SHA-256 of its video, kept with the answers: what is there about
            another video is asked anew, and one line says how much. None trusts that it is about these.

    Raises:
        UserError: The file is refused (see `AnswerFile`) or votes is not positive.
        JudgeDownError: The judge cannot be reached; call again to go on.
    """
    if votes < 1:
        raise UserError(f"votes is {votes}; every question must be asked at least once")
    with AnswerFile(path, provenance_of(suite, judge, votes, seed), contents) as file:
        wanted = {item.key: slots(item, votes) for item in suite.items}
        total = sum(map(len, wanted.values()))
        done = sum(slot in file.answers for needed in wanted.values() for slot in needed)
        others = sum(slot in file.others for needed in wanted.values() for slot in needed)
        if others:
            warnings.warn(
                f"{path} has {counted(others, 'answer')} about other videos than these: asked anew",
                Notice,
                stacklevel=2,
            )
        with ThreadPoolExecutor(judge.concurrency) as pool:
            for item in suite.items:
                missing = [slot for slot in wanted[item.key] if slot not in file.answers]
                for slot, answer in _ask_item(item, missing, judge, videos, pool, seed):
                    file.add(slot, answer)
                    done += 1
                    yield Asked(slot, answer, done, total)


def _ask_item(
    item: Story,
    missing: Sequence[Slot],
    judge: Judge,
    videos: Callable[[Story], Video],
    pool: ThreadPoolExecutor,
    seed: int,
) -> Iterator[tuple[Slot, str]]:
    if not missing:
        return
    video = videos(item)
    shown: dict[tuple[int, ...], Tensor] = {}
    waiting: dict[Future[str], Slot] = {}
    try:
        for slot in missing:
            indices = tuple(judge.frames(len(video), slot.category))
            if indices not in shown:
                shown[indices] = video.pick(indices)
            text = item.questions[slot.category][slot.question]
            waiting[pool.submit(judge, shown[indices], text, seed_of(seed, *slot))] = slot
        failure: Exception | None = None
        for future in as_completed(waiting):
            try:
                answer = future.result()
            except CancelledError:
                continue
            except Exception as error:
                # what is under way is answered all the same, and kept; nothing new is begun
                failure = failure or error
                _cancel(waiting)
                continue
            yield waiting[future], answer
        if failure is not None:
            raise failure
    finally:
        _cancel(waiting)


def _cancel(futures: Iterable[Future[str]]) -> None:
    for future in futures:
        future.cancel()


def _whole(lines: Sequence[bytes]) -> list[bytes]:
    """The lines without the last one if it was never finished."""
    return [*lines[:-1]] if lines and not lines[-1].endswith(b"\n") else [*lines]


def _starts_header(line: bytes) -> bool:
    begin = f'{{"kind": "{KIND}"'.encode()
    return line.startswith(begin) or begin.startswith(line)


def _header(path: Path, lines: Sequence[bytes]) -> dict[str, Any]:
    try:
        record = json.loads(lines[0])
    except (ValueError, IndexError, RecursionError):
        record = None
    if not isinstance(record, dict) or record.get("kind") != KIND:
        raise UserError(f"{path} is not a file of answers; give another path")
    if record.get("version") != VERSION or not isinstance(record.get("provenance"), dict):
        raise UserError(
            f"{path} has answers of version {record.get('version')}, this reads {VERSION}; ask anew"
        )
    provenance: dict[str, Any] = record["provenance"]
    return provenance


def _parse(
    path: Path,
    lines: Sequence[bytes],
    provenance: Mapping[str, Any],
    contents: Mapping[str, str] | None,
) -> tuple[dict[Slot, str], frozenset[Slot]]:
    """The answers about the videos, and what was answered about other videos of these items alone."""
    before = _header(path, lines)
    if changed := differences(before, provenance):
        raise UserError(
            f"{path} was answered otherwise ({'; '.join(changed)}); keep the settings or choose another file"
        )
    answers: dict[Slot, str] = {}
    others: set[Slot] = set()
    for number, line in enumerate(lines[1:], 2):
        try:
            record = json.loads(line)
            slot = Slot(*(record[name] for name in Slot._fields))
            answer, video = record["answer"], record.get("video")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise UserError(
                f"{path} is damaged in line {number}; remove that line and run again"
            ) from None
        kinds = (str, str, int, int)  # of a slot's parts
        good = all(isinstance(part, kind) for part, kind in zip(slot, kinds, strict=True))
        if not good or not isinstance(answer, str):
            raise UserError(f"{path} is damaged in line {number}; remove that line and run again")
        if contents is None or contents.get(slot.item, "") == video:
            answers.setdefault(slot, answer)
        elif slot.item in contents:
            others.add(slot)
    return answers, frozenset(others - answers.keys())
