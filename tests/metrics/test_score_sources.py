"""Videos as other systems leave them: accents taken apart, files beside files."""

import json
import unicodedata

import pytest
import torch
from PIL import Image

from miga_bench.errors import UserError
from miga_bench.harness.score_sources import find_videos, pictures_of, with_prompts
from miga_bench.media import VideoWriter

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
