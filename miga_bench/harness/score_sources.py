"""Videos to score: files and folders of anybody's, found, checked and read in pieces."""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import torch
from av.error import FFmpegError
from PIL import Image
from torch import Tensor

from miga_bench.errors import Notice, UserError, close_names, did_you_mean, placed
from miga_bench.media import count_frames, read_video, to_tensor

VIDEO_SUFFIXES = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".gif")
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg")
PIECE = 32  # frames read before they are scored
LONGEST_REASON = 200  # characters of another library's error that a message repeats


class TruncatedError(Exception):
    """A video breaks off before its end, or goes on in another size."""


@dataclass(frozen=True)
class Source:
    """One video.

    Attributes:
        name: Unique among the videos scored together: its place below the folder that was given.
        path: A file, or a folder of numbered pictures.
        frame_rate: Frames per second; None for pictures without ``--fps``.
        frames: What the file says of its length; None where it does not say.
        prompt: What it was made from, several texts joined by " / "; None if nobody knows.
        changing: Whether its text changes along the video.
    """

    name: str
    path: Path
    frame_rate: float | None
    frames: int | None
    prompt: str | None = None
    changing: bool = False

    def pieces(self) -> Iterator[Tensor]:
        """Yield the frames, uint8 ``[N, 3, H, W]``, N at most ``PIECE``.

        Raises:
            TruncatedError: It breaks off, or a frame is of another size; what came before was yielded.
            UserError: A picture says not what is white.
        """
        waiting: list[Tensor] = []
        read = 0
        size: torch.Size | None = None
        try:
            for frame in self._frames():
                size = size or frame.shape
                if frame.shape != size:
                    raise TruncatedError(
                        f"has frames of {_pixels(size)} pixels, and after {read} one of {_pixels(frame.shape)}"
                    )
                waiting.append(frame)
                read += 1
                if len(waiting) == PIECE:
                    yield torch.stack(waiting)
                    waiting = []
        except (FFmpegError, OSError) as error:
            raise TruncatedError(f"cannot be read after {read} frames ({_plain(error)})") from error
        if waiting:
            yield torch.stack(waiting)
        if self.frames is not None and read < self.frames and self._lacks(read):
            raise TruncatedError(f"breaks off after {read} of {self.frames} frames")

    def _lacks(self, read: int) -> bool:
        """Tell whether frames are missing; those that a trimmed file holds but does not show are not."""
        stored = count_frames(self.path, hidden=True)
        return stored < (self.frames or 0) or read < count_frames(self.path)

    def _frames(self) -> Iterator[Tensor]:
        if self.path.is_file():
            yield from read_video(self.path)
            return
        for picture in pictures_of(self.path):
            with Image.open(picture) as image, placed(picture.name):
                frame = to_tensor(image)
            yield frame

    def digest(self) -> str:
        """Return the SHA-256 of the content."""
        digest = hashlib.sha256()
        for path in [self.path] if self.path.is_file() else pictures_of(self.path):
            with open(path, "rb") as file:
                hashlib.file_digest(file, lambda: digest)  # one for all files
        return digest.hexdigest()


def find_videos(paths: Sequence[Path], fps: float | None = None) -> list[Source]:
    """Return the videos at and below the paths, in the order of their names.

    A folder that holds pictures and no folders is one video; any other folder is searched.

    Args:
        paths: Files and folders.
        fps: Frame rate to assume, instead of what files say.

    Raises:
        UserError: A path does not exist, a file is no video, or there is none at all.
    """
    if fps is not None and not 0 < fps <= 1000:
        raise UserError(f"--fps {fps}: frames per second must be above 0 and at most 1000")
    found: dict[str, Path] = {}
    for path in paths:
        for name, video in _below(path):
            if found.setdefault(name, video).resolve() != video.resolve():
                raise UserError(
                    f"{video} and {found[name]} have the same name {name}: score them by the folder "
                    "above both"
                )
    if not found:
        where = ", ".join(str(path) for path in paths) or "nothing"
        kinds = " ".join(VIDEO_SUFFIXES)
        raise UserError(f"no videos in {where}: give files ({kinds}) or folders that hold some")
    return [_open(name, path, fps) for name, path in sorted(found.items())]


def pictures_of(folder: Path) -> list[Path]:
    """Return a folder's pictures in the order of the numbers in their names."""
    found = [
        path
        for path in folder.iterdir()
        # a Mac leaves ._1.png beside 1.png on other systems' disks
        if path.suffix.lower() in PICTURE_SUFFIXES and not path.name.startswith(".")
    ]
    return sorted(found, key=lambda p: ([int(n) for n in re.findall(r"\d+", p.stem)], p.name))


def _below(path: Path) -> Iterator[tuple[str, Path]]:
    if path.is_file():
        if path.suffix.lower() not in VIDEO_SUFFIXES:
            kinds = " ".join(VIDEO_SUFFIXES)
            raise UserError(f"{path} is no video: its name must end in one of {kinds}")
        yield path.name, path
        return
    if not path.is_dir():
        raise UserError(f"no such file or folder: {path}")
    if _is_sequence(path):
        yield path.resolve().name, path
        return
    for below in sorted(path.rglob("*")):
        name = below.relative_to(path).as_posix()
        if any(part.startswith(".") for part in below.relative_to(path).parts):
            continue
        if below.suffix.lower() in VIDEO_SUFFIXES if below.is_file() else _is_sequence(below):
            yield name, below


def _is_sequence(folder: Path) -> bool:
    """Tell whether this is a folder with the numbered pictures of one video, and no videos."""
    if not folder.is_dir():
        return False
    entries = [p for p in folder.iterdir() if not p.name.startswith(".")]
    pictures = [p for p in entries if p.suffix.lower() in PICTURE_SUFFIXES]
    others = [p for p in entries if p.is_dir() or p.suffix.lower() in VIDEO_SUFFIXES]
    return len(pictures) > 1 and not others and all(re.search(r"\d", p.stem) for p in pictures)


def _open(name: str, path: Path, fps: float | None) -> Source:
    """Read what a file says of itself."""
    if path.is_dir():
        return Source(name, path, fps, len(pictures_of(path)))
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise UserError(f"{path} holds no video stream: leave it out")
            stream = container.streams.video[0]
            rate = stream.average_rate or stream.base_rate
            frames = stream.frames or None
            size = path.stat().st_size
    except FFmpegError as error:
        raise UserError(
            f"{path} cannot be read as a video ({_plain(error)}): is it complete? leave it out or "
            "make it again"
        ) from error
    if not size:
        raise UserError(f"{path} is empty: leave it out or make it again")
    return Source(name, path, fps or (float(Fraction(rate)) if rate else None), frames)


def with_prompts(sources: Sequence[Source], prompts: Path | None) -> list[Source]:
    """Return the sources with their prompts.

    Args:
        sources: The videos.
        prompts: A JSON object or JSON lines: video name to prompt (``{"video": ..., "prompt": ...}``
            on a line; a list of texts where the text changes). None takes the record that
            ``miga-bench generate`` writes beside a video, where there is one.

    Raises:
        UserError: The file is no such file, or names none of the videos.
    """
    if prompts is None:
        return [_of_texts(source, _recorded(source.path)) for source in sources]
    table = _read_prompts(prompts)
    found = {source.name: _named(source, table) for source in sources}
    used = {name for names in found.values() for name in names}
    others = [name for name in table if name not in used]
    if others and not used:
        known = {source.name for source in sources} | {Path(s.name).stem for s in sources}
        near = close_names(others[0], known, most=1)
        hint = did_you_mean(near).rstrip() or "leave it out"
        raise UserError(f"{prompts} names {others[0]!r}, which is not among the videos: {hint}")
    if others:  # a run's list names the videos, too, that are still to be made
        warnings.warn(
            f"{len(others)} of the {len(table)} names in {prompts} are not among the videos and are passed"
            f" over; the first is {others[0]!r}",
            Notice,
            stacklevel=2,
        )
    for source in sources:
        if len({tuple(table[name]) for name in found[source.name]}) > 1:
            raise UserError(
                f"{prompts} has several prompts that may be meant for {source.name}: score the folder above,"
                " whose videos have the names that are in it"
            )
    return [
        _of_texts(source, table[names[0]] if (names := found[source.name]) else [])
        for source in sources
    ]


def _named(source: Source, table: Mapping[str, list[str]]) -> list[str]:
    """Return the names in a table that mean a video, by the first rule that finds any.

    The rules: its own name; the end of its path, for the table of a folder above; a name that ends in its
    own, for the table of the folder it was copied from.
    """
    own, path = _as_one(source.name), _as_one(source.path.absolute().as_posix())
    for name in (own, _as_one(Path(source.name).stem)):
        if name in table:
            return [name]
    above = [name for name in table if path.endswith(f"/{name}")]
    return above or [name for name in table if name.endswith(f"/{own}")]


def _as_one(name: str) -> str:
    """Return a name with its accents as a table's have them: some disks take them apart."""
    return unicodedata.normalize("NFC", name)


def _of_texts(source: Source, texts: Sequence[str]) -> Source:
    return replace(source, prompt=" / ".join(texts) or None, changing=len(texts) > 1)


def _read_prompts(path: Path) -> dict[str, list[str]]:
    rule = (
        "it must be a JSON object of video name to prompt, or lines of {video, prompt}; a list of texts is of a"
        " video whose text changes"
    )
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"--prompts {path} cannot be read ({_plain(error)}): check its name, and save it as UTF-8"
        ) from error
    try:
        whole = json.loads(text)
    except (ValueError, RecursionError):
        whole = None
    entries: list[tuple[Any, Any]]
    if isinstance(whole, dict) and "video" not in whole:
        entries = list(whole.items())
    else:
        try:
            lines = [json.loads(line) for line in text.splitlines() if line.strip()]
            entries = [(line["video"], line["prompt"]) for line in lines]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise UserError(f"--prompts {path}: {rule} ({_plain(error)})") from error
    table: dict[str, list[str]] = {}
    for name, prompt in entries:
        texts = prompt if isinstance(prompt, list) else [prompt]
        known = texts and all(isinstance(text, str) and text.strip() for text in texts)
        if not isinstance(name, str) or not known:
            raise UserError(f"--prompts {path}: the entry {name!r} has no text; {rule}")
        if table.setdefault(_as_one(name), texts) != texts:
            raise UserError(f"--prompts {path} has two prompts for {name!r}: keep one")
    return table


def _recorded(video: Path) -> list[str]:
    """Return the texts in the record beside a video that this program made; none if there is no record."""
    try:
        record: Any = json.loads(video.with_suffix(".json").read_text(encoding="utf-8"))
        return [str(prompt["text"]) for prompt in record["prompts"]]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return []


def _pixels(shape: Sequence[int]) -> str:
    return f"{shape[-1]}x{shape[-2]}"


def _plain(error: BaseException) -> str:
    text = getattr(error, "strerror", None) or str(error)
    return " ".join(str(text).split()).lower()[:LONGEST_REASON]
