"""What --force replaces: an export, whole and alone, and nothing that is somebody else's."""

import json

import pytest
from helpers import refusal
from onnx_fixtures import embedded_wan

from miga_bench.export.onnx_folder import staged
from miga_bench.export.request import FACTS, check_output
from miga_bench.export.triton import export_triton

AN_EXPORT = {"format": 1, "weights_hash": "ab", "row_flops": [1, 2, 3]}


def export(folder, facts=AN_EXPORT):
    folder.mkdir()
    (folder / FACTS).write_text(json.dumps(facts))
    (folder / "denoiser.onnx").write_bytes(b"graph")
    return folder


def test_an_export_is_replaced_if_asked(tmp_path):
    folder = export(tmp_path / "mine")
    assert "add --force" in refusal(lambda: check_output(folder, overwrite=False))
    check_output(folder, overwrite=True)
    check_output(tmp_path / "new", overwrite=False)
    (tmp_path / "empty").mkdir()
    check_output(tmp_path / "empty", overwrite=False)


@pytest.mark.parametrize(
    "facts",
    [None, {"window": 21, "flow_shift": 3.0}, ["format", "weights_hash", "row_flops"]],
    ids=["no facts", "a model's own file", "no mapping"],
)
def test_a_folder_that_is_no_export_is_never_replaced(tmp_path, facts):
    """Breaks if --force deletes a thesis, or the model that is exported."""
    folder = export(tmp_path / "precious", facts)
    if facts is None:
        (folder / FACTS).unlink()
    assert "is not that" in refusal(lambda: check_output(folder, overwrite=True))


@pytest.mark.parametrize("name", ["notes.txt", "prompts.json", "tokenizer/a.docx", "more/a.json"])
def test_an_export_with_something_of_the_users_in_it_is_not_replaced(tmp_path, name):
    folder = export(tmp_path / "mine")
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("mine")
    assert f"would delete {name}" in refusal(lambda: check_output(folder, overwrite=True))


def test_the_folder_one_is_in_is_not_replaced(tmp_path, monkeypatch):
    folder = export(tmp_path / "mine")
    (folder / "engines").mkdir()
    for place in (folder, folder / "engines"):
        monkeypatch.chdir(place)
        assert "the folder you are in" in refusal(lambda: check_output(folder, overwrite=True))


def test_a_model_of_a_triton_repository_is_known_by_its_files(tmp_path):
    embedded, repository = embedded_wan(), tmp_path / "models"
    model = repository / "tiny-wan"
    export_triton(embedded, repository)
    assert "add --force" in refusal(lambda: export_triton(embedded, repository))
    export_triton(embedded, repository, overwrite=True)
    for name in ("labels.txt", "1/notes.txt"):
        (model / name).write_text("mine")
        message = refusal(lambda: export_triton(embedded, repository, overwrite=True))
        assert f"would delete {name}" in message
        (model / name).unlink()
    (model / "config.pbtxt").unlink()
    assert "is not that" in refusal(lambda: export_triton(embedded, repository, overwrite=True))


def test_what_is_there_goes_only_when_the_new_one_is_whole(tmp_path):
    folder = export(tmp_path / "mine")

    def half():
        with staged(folder, overwrite=True) as part:
            (part / "half").write_text("")
            raise OSError("the disk is full")

    with pytest.raises(OSError, match="disk"):
        half()
    assert sorted(path.name for path in folder.iterdir()) == [FACTS, "denoiser.onnx"]
    with staged(folder, overwrite=True) as part:
        (part / "whole").write_text("")
    assert [path.name for path in folder.iterdir()] == ["whole"]
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_link_stays_and_what_it_names_is_replaced(tmp_path):
    folder, link = export(tmp_path / "mine"), tmp_path / "link"
    link.symlink_to(folder)
    with staged(link, overwrite=True) as part:
        (part / "whole").write_text("")
    assert link.is_symlink()
    assert [path.name for path in folder.iterdir()] == ["whole"]
