"""Videos as other systems leave them: accents taken apart, files beside files."""

import json
import unicodedata

import numpy as np
import pytest
import torch
from PIL import Image

from miga_bench.errors import UserError
from miga_bench.harness.score_sources import find_videos, pictures_of, with_prompts
from miga_bench.media import VideoWriter, to_tensor

ACCENTED = "caf\u00e9"
APART = unicodedata.normalize("NFD", ACCENTED)


def write(path):
    with VideoWriter(path, 8) as writer:
        writer.push(torch.zeros(2, 3, 16, 16, dtype=torch.uint8))


@pytest.mark.parametrize(("on_disk", "in_table"), [(APART, ACCENTED), (ACCENTED, APART)])
def test_a_name_is_found_however_its_accents_are_written(tmp_path, on_disk, in_table):
    """Some disks, and archives made on a Mac, take an accent and its letter apart."""
    write(tmp_path / "videos" / on_disk / f"{on_disk}.mp4")
    table = tmp_path / "prompts.json"

    def told(name, where):
        table.write_text(json.dumps({name: "a red circle"}))
        return [source.prompt for source in with_prompts(find_videos([where]), table)]

    folder = tmp_path / "videos"
    names = [f"{in_table}/{in_table}.mp4", f"{in_table}.mp4", in_table]
    assert [told(name, folder) for name in names] == [["a red circle"]] * 3
    assert told(names[0], folder / on_disk) == ["a red circle"]  # the table of the folder above
    assert told(names[1], folder / on_disk / f"{on_disk}.mp4") == ["a red circle"]


def test_two_prompts_of_one_name_are_refused_however_it_is_written(tmp_path):
    write(tmp_path / f"{ACCENTED}.mp4")
    table = tmp_path / "prompts.json"
    table.write_text(json.dumps({ACCENTED: "a red circle", APART: "a blue circle"}))
    with pytest.raises(UserError, match="two prompts for"):
        with_prompts(find_videos([tmp_path]), table)


def test_what_a_mac_leaves_beside_a_picture_is_no_picture(tmp_path):
    """Breaks if a sequence copied from a Mac cannot be read, or has twice its frames."""
    for number in range(3):
        Image.new("RGB", (16, 16)).save(tmp_path / f"{number}.png")
        (tmp_path / f"._{number}.png").write_bytes(b"\0\5\x16\7")
    assert [picture.name for picture in pictures_of(tmp_path)] == ["0.png", "1.png", "2.png"]
    (source,) = find_videos([tmp_path], fps=8)
    assert sum(len(piece) for piece in source.pieces()) == source.frames == 3


def pictures(folder, image):
    folder.mkdir()
    for number in range(2):
        image.save(folder / f"{number}.png")
    (source,) = find_videos([folder], fps=8)
    return source


def test_gray_pictures_of_16_bits_are_scaled(tmp_path):
    """Breaks if all that is above 255 of 65535 becomes white."""
    levels = np.arange(256)
    for number, more in enumerate((0, 100, -100)):
        gray = (257 * levels + more).clip(0, 65535).astype(np.uint16).reshape(16, 16)
        source = pictures(tmp_path / str(number), Image.fromarray(gray))
        (frames,) = source.pieces()
        assert (frames.shape, frames.dtype) == ((2, 3, 16, 16), torch.uint8)
        assert (frames == torch.arange(256).reshape(16, 16)).all()


@pytest.mark.parametrize("mode", ["I", "F"])
def test_pictures_that_do_not_say_what_is_white_are_refused(tmp_path, mode):
    with pytest.raises(UserError, match=rf"^pixels of 32 bits \(mode {mode}\), .*: save") as told:
        to_tensor(Image.new(mode, (16, 16)))
    assert "\n" not in str(told.value)


def test_the_picture_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    source = pictures(tmp_path / "shots", Image.new("RGB", (16, 16)))
    monkeypatch.setattr(Image, "open", lambda path: Image.new("F", (16, 16)))
    with pytest.raises(UserError, match=r"^0\.png: pixels of 32 bits"):
        list(source.pieces())
