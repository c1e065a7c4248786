"""Video files: exact where promised, playable wherever the writing stopped, bounded memory."""

import errno
import io
import os
import threading
from contextlib import suppress
from fractions import Fraction
from itertools import pairwise
from types import SimpleNamespace

import av
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ImageDraw, ImageFont

from miga_bench import media
from miga_bench.media import (
    Cell,
    EvenSample,
    SideBySide,
    VideoWriter,
    contact_sheet,
    count_frames,
    read_video,
)


def clip(frames=20, height=32, width=48, seed=0):
    """Random rectangles of color that change from frame to frame."""
    generator = torch.Generator().manual_seed(seed)
    blocks = torch.rand(frames, 3, height // 16, width // 16, generator=generator)
    return torch.nn.functional.interpolate(blocks, scale_factor=16)


def write(path, frames, **options):
    with VideoWriter(path, 8, **options) as writer:
        for frame in frames:
            writer.push(frame[None])
    return path


def test_lossless_file_returns_every_value(tmp_path):
    frames = (clip() * 255).round().byte()
    path = write(tmp_path / "a.mp4", frames, lossless=True)
    assert torch.equal(torch.stack(list(read_video(path))), frames)


def test_lossy_file_keeps_colors_and_count(tmp_path):
    frames = clip()[:, :, :1, :1].expand(-1, -1, 32, 48)
    back = torch.stack(list(read_video(write(tmp_path / "a.mp4", frames)))).float() / 255
    assert back.shape == frames.shape
    assert count_frames(tmp_path / "a.mp4") == 20
    assert (back - frames).abs().max() < 0.03


def test_odd_sizes_are_padded_to_even(tmp_path):
    frames = clip()[:, :, :31, :47]
    back = torch.stack(list(read_video(write(tmp_path / "a.mp4", frames))))
    assert back.shape == (20, 3, 32, 48)
    assert torch.equal(back[:, :, -1, :46], back[:, :, -2, :46]) or (
        (back[:, :, -1].int() - back[:, :, -2].int()).abs().max() < 16
    )


def playable(path):
    """How many frames a player shows before the file breaks off."""
    count = 0
    with suppress(av.error.InvalidDataError):
        for _ in read_video(path):
            count += 1
    return count


def test_file_cut_anywhere_plays_up_to_its_last_whole_fragment(tmp_path):
    whole = write(tmp_path / "a.mp4", clip(48)).read_bytes()
    starts = [i - 4 for i in range(len(whole)) if whole[i : i + 4] == b"moof"]
    assert len(starts) >= 6  # at least one fragment per second
    cut = tmp_path / "cut.mp4"
    played = 0
    for start, end in pairwise([*starts[1:], len(whole)]):
        cut.write_bytes(whole[:start])
        assert playable(cut) > played
        played = playable(cut)
        for at in {start + 1, start + 7, start + 50, (start + end) // 2, end - 1}:
            cut.write_bytes(whole[:at])
            assert playable(cut) >= played
    assert played >= 40


@pytest.mark.parametrize("lossless", [False, True])
@pytest.mark.parametrize("rate", [16, 10, 4])
def test_a_video_begins_at_zero_even_if_cut_off(tmp_path, rate, lossless):
    """Breaks if players and what seeks by time show the first frame late, by frames that were reordered."""
    path = tmp_path / "a.mp4"
    with VideoWriter(path, rate, lossless=lossless) as writer:
        writer.push(clip(33))
    whole = path.read_bytes()
    for data, least in ((whole, 33), (whole[: whole.rindex(b"moof") + 20], 8)):
        path.write_bytes(data)
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            assert (stream.start_time, stream.average_rate) == (0, rate)
            assert stream.time_base is not None
            times = [frame.pts * stream.time_base for frame in container.decode(stream)]
        assert times == [Fraction(number, rate) for number in range(len(times))]
        assert least <= len(times) == count_frames(path) == count_frames(path, hidden=True)
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            container.seek(int(times[7] / stream.time_base), stream=stream)
            assert next(container.decode(stream)).pts <= times[7] / stream.time_base


def test_fragments_reach_the_disk_while_writing(tmp_path):
    path = tmp_path / "a.mp4"
    writer = VideoWriter(path, 8)
    for frame in clip(40):
        writer.push(frame[None])
    assert len(list(read_video(path))) >= 16
    writer.close()
    assert len(list(read_video(path))) == 40


class Drop:
    """A sink that takes at most so many bytes at a time, as pipes without a buffer do."""

    def __init__(self, most):
        self.most, self.data = most, b""

    def write(self, data):
        self.data += data[: self.most]
        return min(len(data), self.most)


def test_a_sink_gets_the_files_bytes_while_writing(tmp_path):
    write(tmp_path / "a.mp4", clip(40))
    sink, sizes = Drop(1000), []
    with VideoWriter(sink, 8, delay=16) as writer:
        for frame in clip(40):
            writer.push(frame[None])
            sizes.append(len(sink.data))
    assert len(set(sizes)) > 3  # fragment by fragment
    assert sink.data == (tmp_path / "a.mp4").read_bytes()


@pytest.mark.parametrize(("rate", "delay"), [(16, None), (4, None), (16, 4), (16, 1)])
def test_a_sink_gets_a_frames_bytes_a_few_frames_later(rate, delay):
    """Breaks if a served video's picture comes minutes after it was made, where a frame takes seconds."""
    sink, frames = io.BytesIO(), clip(60)
    with VideoWriter(sink, rate, **({} if delay is None else {"delay": delay})) as writer:
        for pushed, frame in enumerate(frames, 1):
            writer.push(frame[None])
            if pushed % 5 == 0 and pushed > 10:
                came = list(read_bytes(sink.getvalue()))
                assert len(came) >= pushed - (delay or 8) - 2
    assert len(list(read_bytes(sink.getvalue()))) == 60


def read_bytes(data):
    with av.open(io.BytesIO(data)) as container:
        yield from container.decode(video=0)


def test_a_sink_need_not_say_how_much_it_took(tmp_path):
    parts = []
    with VideoWriter(SimpleNamespace(write=parts.append), 8) as writer:
        writer.push(clip(20))
    (tmp_path / "a.mp4").write_bytes(b"".join(parts))
    assert len(list(read_video(tmp_path / "a.mp4"))) == 20


def test_a_named_pipe_is_written_without_seeking(tmp_path):
    path, got = tmp_path / "a.mp4", []
    os.mkfifo(path)
    reader = threading.Thread(target=lambda: got.append(path.read_bytes()))
    reader.start()
    write(path, clip(20))
    reader.join(10)
    write(tmp_path / "b.mp4", clip(20))
    assert got == [(tmp_path / "b.mp4").read_bytes()]


def test_frames_after_the_end_do_not_touch_the_file(tmp_path):
    path = tmp_path / "a.mp4"
    writer = VideoWriter(path, 8)
    writer.push(clip(8))
    writer.close()
    before = path.read_bytes()
    with pytest.raises(ValueError, match="closed"):
        writer.push(clip(1))
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("wish", "rule"),
    [
        ({"frame_rate": 0}, "frame_rate is 0: give one from above 0"),
        ({"frame_rate": float("nan")}, "frame_rate is nan"),
        ({"quality": 99}, "quality is 99: give one from 0 to 51"),
        ({"quality": -5}, "quality is -5"),
        ({"delay": 0}, "delay is 0: give a number of frames"),
    ],
)
def test_what_no_video_can_have_is_refused_before_work(tmp_path, wish, rule):
    """Breaks if a wrong rate or quality makes another file than was asked for, or a raw error of libav's."""
    with pytest.raises(ValueError, match=rule):
        VideoWriter(tmp_path / "a.mp4", **{"frame_rate": 8} | wish)


@pytest.mark.parametrize(
    ("frames", "rule"),
    [
        (clip(2, 48, 48), "frames of 48 x 48 pixels came after ones of 48 x 32: a"),
        (clip(2, 16, 48), "frames of 48 x 16 pixels"),
        (clip(2) * torch.tensor([1, float("nan")]).view(2, 1, 1, 1), "not finite"),
    ],
)
def test_frames_that_do_not_fit_are_refused_and_the_others_kept(tmp_path, frames, rule):
    """Breaks if frames are cropped, padded or black without a word."""
    with VideoWriter(str(tmp_path / "a.mp4"), 8) as writer:
        writer.push(clip(3))
        with pytest.raises(ValueError, match=rule):
            writer.push(frames)
        writer.push(clip(3))
    assert len(list(read_video(tmp_path / "a.mp4"))) == 6


def test_a_pipe_that_is_full_and_does_not_wait_is_an_error():
    """Breaks if bytes that a raw file did not take count as written."""

    class Full(io.RawIOBase):
        def write(self, data):
            return None

    with pytest.raises(BlockingIOError, match="the sink is full") as error:
        write(Full(), clip(40))
    assert error.value.errno == errno.EAGAIN


def test_no_frame_no_file(tmp_path):
    with VideoWriter(tmp_path / "a.mp4", 8):
        pass
    assert not (tmp_path / "a.mp4").exists()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="the system has no /dev/full")
def test_full_disk_is_an_oserror_that_says_so(tmp_path):
    full = tmp_path / "full.mp4"
    full.symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left") as error:
        write(full, clip(64))
    assert error.value.errno == errno.ENOSPC


def test_bytes_do_not_depend_on_how_frames_were_pushed(tmp_path):
    one_by_one = write(tmp_path / "a.mp4", clip())
    with VideoWriter(tmp_path / "b.mp4", 8) as writer:
        writer.push(clip())
    assert one_by_one.read_bytes() == (tmp_path / "b.mp4").read_bytes()


@given(length=st.integers(1, 300), capacity=st.integers(2, 20), count=st.integers(2, 8))
@settings(deadline=None, max_examples=50)
def test_even_sample_is_bounded_and_even(length, capacity, count):
    sample = EvenSample(capacity)
    for number in range(length):
        sample.push(torch.full((1, 3, 1, 1), number % 256, dtype=torch.uint8))
        assert len(sample._kept) <= capacity
    picked = sample.pick(count)
    numbers = [number for number, _ in picked]
    assert numbers == sorted(set(numbers))
    assert numbers[0] == 0
    assert numbers[-1] == length - 1
    assert len(numbers) <= count or len(numbers) <= capacity + 1
    assert all(frame.flatten()[0] == number % 256 for number, frame in picked)
    if capacity >= 2 * count and length > count:
        gaps = [b - a for a, b in pairwise(numbers)]
        assert max(gaps) <= 2 * (length - 1) / (count - 1) + 1


def test_contact_sheet_has_a_cell_for_every_frame_and_blank():
    frames = clip(3, 32, 32)
    sheet = contact_sheet(
        [[Cell(f, "0 s") for f in frames], [Cell(frames[0], "0 s"), Cell(None), Cell(None)]],
        row_labels=["miga", "short"],
        title="a red circle",
    )
    colors = {sheet.getpixel((x, y)) for x in range(sheet.width) for y in range(sheet.height)}
    assert (208, 208, 208) in colors
    assert tuple((frames[0, :, 0, 0] * 255).round().int().tolist()) in colors


def drawn(monkeypatch):
    """Return what is drawn from now on: texts, each with the file of its font (None is Pillow's own)."""
    seen = {}

    def text(self, xy, text, *rest, font, **named):
        seen[text] = font.path if isinstance(font.path, str) else None

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", text)
    return seen


def test_a_prompt_is_drawn_by_a_font_that_has_its_characters(tmp_path, monkeypatch):
    """Breaks if a Chinese or Russian prompt is a row of boxes on the sheet."""
    monkeypatch.setattr(
        "matplotlib.font_manager.findSystemFonts", lambda: [str(tmp_path / "no.ttf")]
    )
    media._font_with.cache_clear()
    (tmp_path / "no.ttf").write_text("no font")
    seen, cells = drawn(monkeypatch), [[Cell(clip(1, 32, 32)[0], "0 s")] * 4]
    contact_sheet(cells, title="a red circle")
    assert seen["a red circle"] is None
    contact_sheet(cells, title="\u043a\u043e\u0442 (a cat)")
    assert seen["\u043a\u043e\u0442 (a cat)"].endswith("DejaVuSans.ttf")
    contact_sheet(cells, title="seed 0: \u4e00\u53ea\u732b")  # of which no font here is sure
    assert seen["seed 0: ..."] is None
    SideBySide(["miga"], ["\u4e00 or \u732b"], 64, 64)
    assert seen["... or ..."] is None


def test_a_text_without_spaces_is_broken_where_the_sheet_ends(monkeypatch):
    """Breaks if most of a Chinese prompt is beyond the sheet's edge."""
    seen = drawn(monkeypatch)
    long = "".join(map(str, range(60)))
    sheet = contact_sheet([[Cell(clip(1, 32, 32)[0])] * 2], title=f"two {long}")
    lines = [line for line in seen if line]
    assert lines[0].startswith("two")
    assert "".join(lines) == f"two{long}"
    font = ImageFont.load_default(15)
    assert all(font.getlength(line) <= sheet.width - 16 for line in lines)


def test_side_by_side_shows_each_video_in_its_panel():
    layout = SideBySide(["short", "miga"], ["a red circle", "a blue square"], 64, 64)
    red = torch.tensor([1.0, 0, 0]).view(3, 1, 1).expand(3, 32, 32)
    out = layout.compose([[None, red], [red, None]])
    assert out.shape[1] % 2 == 0
    assert out.shape[2] % 2 == 0
    assert out[:, 40, 30].tolist() == [208, 208, 208]
    assert out[:, 40, 100].tolist() == [255, 0, 0]
    assert out[:, 40 + 64 + 22, 30].tolist() == [255, 0, 0]
