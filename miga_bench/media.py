"""Video files and pictures: write while generating, read back, lay out for the eye.

Frames are ``[3, H, W]`` tensors (``[N, 3, H, W]`` in batches), uint8 or float in [0, 1]. Nothing
here holds a whole video: writers stream, readers iterate, ``EvenSample`` keeps a bounded few.
"""

from __future__ import annotations

import errno
import functools
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from io import FileIO, RawIOBase
from itertools import groupby
from pathlib import Path
from types import TracebackType
from typing import Protocol

import av
import numpy as np
import torch
from av.container import OutputContainer
from av.error import FFmpegError
from av.video.reformatter import ColorRange, Colorspace
from av.video.stream import VideoStream
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from miga_bench.errors import NotFiniteError, UserError

INK = (32, 32, 32)
PAPER = (250, 250, 250)
BLANK = (208, 208, 208)
BT709 = 1  # the code of ITU-R BT.709 in H.264's color description
LIMITED_RANGE = 1
WORST_QUALITY = 51  # x264's last constant rate factor
FASTEST = 1000  # frames per second
SINK_DELAY = 8  # frames
B_FRAMES = 3  # in a row, at most, of x264's medium preset
# the header waits for the first fragment: it then says how much later than decoding showing begins, and the
# first frame is shown at 0
FRAGMENTED = "frag_keyframe+empty_moov+delay_moov+default_base_moof"


def to_uint8(frames: Tensor) -> Tensor:
    """Return frames as uint8, rounding floats in [0, 1] (values outside are clipped)."""
    if frames.dtype == torch.uint8:
        return frames
    return (frames.float().clamp(0, 1) * 255).round().to(torch.uint8)


class _Outbox:
    """What the muxer writes into: it never fails, so a full disk is met outside of native code."""

    def __init__(self) -> None:
        self.waiting = bytearray()

    def write(self, data: bytes) -> int:
        self.waiting += data
        return len(data)


class Sink(Protocol):
    """What takes a video's bytes in order: a pipe, a socket's file, a response."""

    def write(self, data: bytes, /) -> object:
        """Take all of them, and raise ``OSError`` where that fails."""


class VideoWriter:
    """An H.264 mp4 that is playable while it grows, however the process ends.

    The file is fragmented: what a killed process leaves plays up to its last whole fragment. Memory does not
    depend on the length. One encoder thread, so the bytes do not depend on the machine's cores. The file is
    created by the first frame.

    Args:
        path: Where to write; an existing file is replaced. Or anything with ``write(bytes)``, for example a
            pipe or a socket's file: it gets a fragment at a time, is never sought in, and stays open.
        frame_rate: Frames per second.
        quality: x264's constant rate factor, 0 to 51, lower is better.
        lossless: Keep every RGB value exactly (few players show such a file; readers do).
        delay: Frames from one that is pushed to its bytes, give or take two: one half is what the encoder looks
            ahead, one a fragment. None is two seconds for a path, and 8 frames for a sink, which costs no size;
            of small pictures 4 cost a tenth, 2 a third.
        outdated: Files that tell of an older video in this path; they go when the first frame replaces it.

    Attributes:
        created: Whether the first frame has created the file, or begun with what ``path`` is else.

    Raises:
        ValueError: The rate or the quality is none that a video can have.
    """

    def __init__(
        self,
        path: Path | str | Sink,
        frame_rate: float,
        *,
        quality: int = 16,
        lossless: bool = False,
        delay: int | None = None,
        outdated: Sequence[Path] = (),
    ) -> None:
        if not 0 < frame_rate <= FASTEST:  # neither is NaN
            raise ValueError(f"frame_rate is {frame_rate}: give one from above 0 to {FASTEST}")
        if not 0 <= quality <= WORST_QUALITY:
            raise ValueError(f"quality is {quality}: give one from 0 to {WORST_QUALITY}")
        if delay is not None and delay < 1:
            raise ValueError(f"delay is {delay}: give a number of frames, 1 or more")
        self.path = Path(path) if isinstance(path, str) else path
        self.frame_rate = max(Fraction(frame_rate).limit_denominator(1001), Fraction(1, 1001))
        self.quality = quality
        self.lossless = lossless
        self.outdated = outdated
        self._second = max(1, round(self.frame_rate))  # in frames
        usual = 2 * self._second
        self.delay = delay or (usual if isinstance(self.path, Path) else min(SINK_DELAY, usual))
        self.frames_written = 0
        self.created = False
        self._size: tuple[int, int] | None = None
        self._container: OutputContainer | None = None
        self._ended = False

    def _open(self, height: int, width: int) -> None:
        self._file: FileIO | None = None
        if isinstance(self.path, Path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self.path, "wb", buffering=0)  # noqa: SIM115 - closed by close()
            self._sink: Sink = self._file
        else:
            self._sink = self.path
        self.created = True
        for older in self.outdated:
            older.unlink(missing_ok=True)
        self._broken = False
        self._outbox = _Outbox()
        self._size = height, width
        ahead = self.delay // 2
        # a fragment need not begin with a keyframe; half a frame less, for times are rounded
        longest = int((self.delay - ahead - 0.5) / self.frame_rate * 1_000_000)
        muxing = {"movflags": FRAGMENTED, "flush_packets": "1", "frag_duration": str(longest)}
        self._container = av.open(self._outbox, "w", format="mp4", options=muxing)
        options = {"crf": str(self.quality), "preset": "medium", "rc-lookahead": str(ahead)}
        if ahead < B_FRAMES:  # which would wait longer than that
            options["bf"] = str(ahead)
        codec, pixels = "libx264", "yuv420p"
        if self.lossless:
            codec, pixels = "libx264rgb", "rgb24"
            options |= {"crf": "0"}
        stream = self._container.add_stream(codec, rate=self.frame_rate, options=options)
        assert isinstance(stream, VideoStream)
        stream.pix_fmt = pixels
        stream.height = height if self.lossless else height + height % 2
        stream.width = width if self.lossless else width + width % 2
        context = stream.codec_context
        context.gop_size = self._second
        context.thread_count = 1
        if not self.lossless:
            context.colorspace = context.color_primaries = context.color_trc = BT709
            context.color_range = LIMITED_RANGE
        self._stream = stream

    def push(self, frames: Tensor) -> None:
        """Append frames, ``[N, 3, H, W]``; odd sizes are padded by repeating the last line.

        Raises:
            OSError: The disk is full or gone; what was written so far stays playable.
            ValueError: The video was closed; or a frame has another size than the first, or a value that is
                not finite. None of these frames is written then.
        """
        if self._ended:
            raise ValueError("frames came after the video was closed")
        if frames.dtype != torch.uint8 and not frames.isfinite().all():
            raise NotFiniteError("frames hold values that are not finite: leave such frames out")
        height, width = frames.shape[-2:]
        tall, wide = self._size or (height, width)
        if (height, width) != (tall, wide):
            raise ValueError(
                f"frames of {width} x {height} pixels came after ones of {wide} x {tall}: a video's have one"
                " size; scale these, or write them to a video of their own"
            )
        for frame in to_uint8(frames).cpu():
            if self._container is None:
                self._open(*frame.shape[-2:])
            picture = self._picture(frame)
            picture.pts = self.frames_written
            self._mux(self._stream.encode(picture))
            self.frames_written += 1

    def _picture(self, frame: Tensor) -> av.VideoFrame:
        pad_right = self._stream.width - frame.shape[-1]
        pad_below = self._stream.height - frame.shape[-2]
        if pad_right or pad_below:
            padding = (0, pad_right, 0, pad_below)
            frame = torch.nn.functional.pad(frame[None].float(), padding, "replicate")[0].byte()
        rgb = av.VideoFrame.from_ndarray(frame.permute(1, 2, 0).contiguous().numpy(), "rgb24")
        if self.lossless:
            return rgb
        return rgb.reformat(
            format="yuv420p",
            dst_colorspace=Colorspace.ITU709,
            src_color_range=ColorRange.JPEG,
            dst_color_range=ColorRange.MPEG,
        )

    def _mux(self, packets: Sequence[av.Packet]) -> None:
        if self._container is not None:
            for packet in packets:
                self._container.mux(packet)
        self._send()

    def _send(self) -> None:
        """Put waiting fragments on disk whole; one that does not fit leaves no trace."""
        data, self._outbox.waiting = self._outbox.waiting, bytearray()
        if not data or self._broken:
            return
        file = self._file
        whole = file.tell() if file is not None and file.seekable() else None
        try:
            rest = bytes(data)
            while rest:
                taken = self._sink.write(rest)
                if taken is None and isinstance(self._sink, RawIOBase):  # that took nothing
                    raise BlockingIOError(errno.EAGAIN, "the sink is full: make it one that blocks")
                # pipes without a buffer take what they can, and say so
                rest = rest[taken if isinstance(taken, int) else len(rest) :]
        except OSError:
            self._broken = True
            if file is not None:
                if whole is not None:
                    with suppress(OSError):
                        file.truncate(whole)
                file.close()
            raise

    def close(self) -> None:
        """Write what the encoder still holds and close the file; closing twice does nothing.

        Raises:
            OSError: The disk is full or gone.
        """
        self._ended = True
        if self._container is None:
            return
        container, stream = self._container, self._stream
        try:
            self._mux(stream.encode(None))
            container.close()
            self._send()
        finally:
            self._container = None
            container.close()
            if self._file is not None:
                self._file.close()

    def __enter__(self) -> VideoWriter:
        """Return the writer itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close; an error already on its way is not replaced by one of closing."""
        if kind is None:
            self.close()
        else:
            with suppress(OSError):
                self.close()


def read_video(path: Path) -> Iterator[Tensor]:
    """Yield a video's frames, uint8 ``[3, H, W]``, one at a time."""
    with av.open(str(path)) as container:
        for picture in container.decode(video=0):
            yield torch.from_numpy(picture.to_ndarray(format="rgb24")).permute(2, 0, 1)


def count_frames(path: Path, hidden: bool = False) -> int:
    """Return how many frames a file shows, up to where it breaks off, without decoding them.

    Args:
        path: The file.
        hidden: Count those, too, that a file trimmed without encoding anew holds and does not show.
    """
    count = 0
    options = {"ignore_editlist": "1"} if hidden else {}
    with suppress(FFmpegError), av.open(str(path), options=options) as container:
        for packet in container.demux(video=0):
            count += packet.size > 0 and not packet.is_discard
    return count


class EvenSample:
    """A bounded, evenly spaced sample of a sequence whose length nobody knows.

    Every ``stride``-th frame is kept; when the room is full every second one goes and the stride
    doubles, so memory stays below ``capacity`` frames for ever. The newest frame is kept too.

    Args:
        capacity: Most frames to keep, at least 2.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.stride = 1
        self.seen = 0
        self._kept: list[Tensor] = []
        self._newest: Tensor | None = None

    def push(self, frames: Tensor) -> None:
        """Show the sample the next frames, ``[N, 3, H, W]``."""
        for frame in to_uint8(frames):
            if self.seen % self.stride == 0:
                if len(self._kept) == self.capacity:
                    self._kept = self._kept[::2]
                    self.stride *= 2
                if self.seen % self.stride == 0:
                    self._kept.append(frame.cpu().clone())
            self._newest = frame
            self.seen += 1
        if self._newest is not None:
            self._newest = self._newest.cpu().clone()

    def pick(self, count: int) -> list[tuple[int, Tensor]]:
        """Return at most ``count`` (frame number, frame), evenly spaced, with both ends."""
        kept = [(index * self.stride, frame) for index, frame in enumerate(self._kept)]
        if self._newest is not None and kept[-1][0] != self.seen - 1:
            kept.append((self.seen - 1, self._newest))
        if len(kept) <= count:
            return kept
        wanted = [round(i * (self.seen - 1) / (count - 1)) for i in range(count)]
        nearest = {min(range(len(kept)), key=lambda k: abs(kept[k][0] - w)) for w in wanted}
        return [kept[k] for k in sorted(nearest)]


@dataclass(frozen=True)
class Cell:
    """One picture of a contact sheet: a frame, or None for a blank, and the words under it."""

    frame: Tensor | None
    caption: str = ""


def contact_sheet(
    rows: Sequence[Sequence[Cell]],
    row_labels: Sequence[str] | None = None,
    title: str = "",
    cell_height: int = 128,
) -> Image.Image:
    """Lay frames out in rows, with a caption under each and a label before each row."""
    shape = next(c.frame.shape for row in rows for c in row if c.frame is not None)
    height, width = cell_height, round(cell_height * shape[-1] / shape[-2])
    labels = list(row_labels) if row_labels is not None else [""] * len(rows)
    font, (title_font, title) = _font(13), _drawable(title, 15)
    margin = max((_text_width(font, label) for label in labels), default=0)
    left, gap, line = (margin + 20 if margin else 8), 6, 18
    # a title longer than the sheet is broken over lines
    sheet_width = left + max(len(row) for row in rows) * (width + gap) + 2
    title_lines = _wrap(title, title_font, sheet_width - 16)
    top = 8 + 20 * len(title_lines)
    sheet = Image.new("RGB", (sheet_width, top + len(rows) * (height + line + gap)), PAPER)
    draw = ImageDraw.Draw(sheet)
    for number, text in enumerate(title_lines):
        draw.text((8, 6 + 20 * number), text, INK, font=title_font)
    for r, (row, label) in enumerate(zip(rows, labels, strict=True)):
        y = top + r * (height + line + gap)
        draw.text((10, y + height // 2 - 8), label, INK, font=font)
        for c, cell in enumerate(row):
            x = left + c * (width + gap)
            sheet.paste(_scaled(cell.frame, height, width), (x, y))
            draw.text((x + 2, y + height), cell.caption, INK, font=font)
    return sheet


class SideBySide:
    """Puts frames of several videos next to each other, in rows under labeled columns.

    Args:
        labels: One per column.
        rows: One caption per row of panels, shown under it.
        height: Height of each panel in pixels.
        width: Width of each panel in pixels.
    """

    def __init__(self, labels: Sequence[str], rows: Sequence[str], height: int, width: int) -> None:
        self.height, self.width, self.gap, self.top, self.line = height, width, 6, 24, 22
        canvas_width = len(labels) * (width + self.gap) + self.gap
        canvas_height = self.top + len(rows) * (height + self.line)
        # even, as H.264 wants it
        size = (canvas_width + canvas_width % 2, canvas_height + canvas_height % 2)
        self._empty = Image.new("RGB", size, PAPER)
        draw = ImageDraw.Draw(self._empty)
        for column, label in enumerate(labels):
            draw.text((self._corner(0, column)[0] + 2, 4), label, INK, font=_font(13))
        for row, caption in enumerate(rows):
            x, y = self._corner(row, 0)
            font, text = _drawable(caption, 13)
            draw.text((x + 2, y + height + 2), text, INK, font=font)

    def _corner(self, row: int, column: int) -> tuple[int, int]:
        x = self.gap + column * (self.width + self.gap)
        return x, self.top + row * (self.height + self.line)

    def compose(self, rows: Sequence[Sequence[Tensor | None]]) -> Tensor:
        """Return one uint8 frame ``[3, H, W]`` of all panels; None is a blank panel."""
        canvas = self._empty.copy()
        for r, frames in enumerate(rows):
            for c, frame in enumerate(frames):
                canvas.paste(_scaled(frame, self.height, self.width), self._corner(r, c))
        return to_tensor(canvas)


def to_tensor(image: Image.Image) -> Tensor:
    """Return a picture as uint8 ``[3, H, W]``; gray of 16 bits is scaled, which Pillow would cut off at 255.

    Raises:
        UserError: Its pixels have 32 bits, whole numbers or floats: nothing says which of them is white.
    """
    if image.mode.startswith("I;16"):
        gray = torch.from_numpy(np.asarray(image).astype(np.int32))
        return ((gray + 128) // 257).to(torch.uint8).expand(3, -1, -1)
    if image.mode in ("I", "F"):
        raise UserError(
            f"pixels of 32 bits (mode {image.mode}), of which nothing says what is white: save the picture"
            " with 8 or 16 bits"
        )
    flat = torch.frombuffer(bytearray(image.convert("RGB").tobytes()), dtype=torch.uint8)
    return flat.view(image.height, image.width, 3).permute(2, 0, 1)


def _scaled(frame: Tensor | None, height: int, width: int) -> Image.Image:
    """Return the frame as an image of that size: pixels repeated upwards, smoothed downwards."""
    if frame is None:
        return Image.new("RGB", (width, height), BLANK)
    image = Image.fromarray(to_uint8(frame).cpu().permute(1, 2, 0).contiguous().numpy())
    method = Image.Resampling.NEAREST if height >= image.height else Image.Resampling.LANCZOS
    return image.resize((width, height), method)


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _drawable(text: str, size: int) -> tuple[ImageFont.FreeTypeFont | ImageFont.ImageFont, str]:
    """Return a font for a text, and the text without what that font would draw as boxes.

    Pillow's own font holds little more than English; for other texts the first of this machine's fonts that has
    all their characters is taken. Where none has, each stretch that cannot be drawn becomes three dots.
    """
    own = _font(size)
    box = bytes(own.getmask("\U0010ffff"))  # of no character: drawn for those that the font lacks
    lacks = {c for c in set(text) if not c.isspace() and bytes(own.getmask(c)) == box}
    path = _font_with(frozenset(text)) if lacks else None
    if path is not None:
        return ImageFont.truetype(path, size), text
    parts = groupby(text, lacks.__contains__)
    return own, "".join("..." if lacking else "".join(part) for lacking, part in parts)


@functools.lru_cache(64)
def _font_with(characters: frozenset[str]) -> str | None:
    """Return the file of a font on this machine that has all of these characters, None if there is none."""
    import matplotlib
    from matplotlib.font_manager import findSystemFonts
    from matplotlib.ft2font import FT2Font

    wanted = {ord(character) for character in characters if not character.isspace()}
    # upright and of usual weight first
    found = sorted(findSystemFonts(), key=lambda path: ("Regular" not in path, path))
    for path in (*found, f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf"):
        with suppress(Exception):  # of a file that is no font or a broken one
            if wanted <= FT2Font(path).get_charmap().keys():
                return path
    return None


def _text_width(font: ImageFont.FreeTypeFont | ImageFont.ImageFont, text: str) -> int:
    return int(font.getlength(text))


def _wrap(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> list[str]:
    lines: list[str] = []
    for word in text.split():
        if lines and _text_width(font, f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
            continue
        lines.append("")
        for character in word:  # Chinese has no spaces, and is broken anywhere
            if lines[-1] and _text_width(font, lines[-1] + character) > width:
                lines.append("")
            lines[-1] += character
    return lines
