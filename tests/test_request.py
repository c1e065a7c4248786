"""What Python hands to a request: it is meant, or refused before any work."""

from pathlib import Path

import numpy as np
import pytest
import torch
from simple_backbone import SimpleBackbone
from test_generate import SMALL

from miga_bench.errors import UserError
from miga_bench.harness.generate import generate
from miga_bench.harness.request import GenerateRequest, PromptAt
from miga_bench.harness.stream import FrameStream

TEXT = "a red circle"


@pytest.mark.parametrize("prompts", [TEXT, [TEXT], (TEXT,), PromptAt(TEXT), [PromptAt(TEXT)]])
def test_a_single_prompt_may_be_given_as_it_is(prompts):
    assert GenerateRequest(prompts).prompts == (PromptAt(TEXT),)


def test_a_path_may_be_a_text_and_integers_any_librarys(tmp_path):
    """Breaks if numpy's integers, which arrays of seeds hold, are refused or kept out of the record."""
    wanted = GenerateRequest(
        TEXT,
        str(tmp_path / "out.mp4"),
        frames=np.int64(5),
        seed=torch.tensor(7),
        overrides=SMALL,
    )
    assert wanted.output == Path(tmp_path / "out.mp4")
    assert [type(value) for value in (wanted.frames, wanted.seed)] == [int, int]
    result = generate(wanted, backbone=SimpleBackbone())
    assert (result.status, result.frames, result.record["seed"]) == ("done", 5, 7)
    assert wanted.record.is_file()


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"frames": 5.0}, "frames is 5.0: it must be an integer"),
        ({"frames": "5"}, "frames is '5': it must be an integer"),
        ({"seed": 7.0}, "seed is 7.0: it must be an integer"),
        ({"seed": None}, "seed is None: it must be an integer"),
        ({"height": 64.0}, "height is 64.0: it must be an integer"),
        ({"output": None}, "output is None: it must be a path"),
        ({"prompts": [TEXT, "a blue one"]}, "one of 2 prompts is of type str: of several, say"),
        ({"prompts": [PromptAt(TEXT), ("a", 9)]}, "one of 2 prompts is of type tuple"),
        ({"prompts": None}, "prompts are of type NoneType: give a text"),
        ({"prompts": []}, "the first prompt is missing"),
        ({"prompts": ""}, "the prompt is empty"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_work(changes, rule):
    """Breaks if a wrong type is found where the first latent is decoded, or makes another video."""
    backbone = SimpleBackbone()
    with pytest.raises(UserError, match=rule):
        next(FrameStream(GenerateRequest(**{"prompts": TEXT} | changes), backbone))
    assert backbone.calls == 0


def test_a_prompt_is_a_text_and_an_integer():
    assert type(PromptAt(TEXT, np.int32(9)).frame) is int
    with pytest.raises(UserError, match=r"a prompt's frame is .*: it must be an integer"):
        PromptAt(TEXT, 9.0)
    with pytest.raises(UserError, match="a prompt is of type bytes: it must be a text"):
        PromptAt(TEXT.encode())
