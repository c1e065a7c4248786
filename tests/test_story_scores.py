"""Stories scored in a run: a judge with weights of its own is looked at early, and loaded once."""

import json
import random

import pytest
import torch
from narratives import parse_narrative, render_narrative
from test_scorers import a_story, item_of, write

from miga_bench.backbones.tiny.judge import ReaderJudge
from miga_bench.errors import UserError
from miga_bench.harness.request import PromptAt
from miga_bench.harness.scorers import StoryScores
from miga_bench.harness.stories import StoryOptions


def test_a_judge_with_weights_is_looked_at_before_a_video_is_made(tmp_path):
    backbone = type("B", (), {"device": "cuda:3"})()
    scorer = StoryScores(judge=str(tmp_path), device="cpu")
    with pytest.raises(UserError, match="cannot load the judge"):
        scorer.use(backbone)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(UserError, match="it is a bert"):
        scorer.use(backbone)
    (tmp_path / "config.json").write_text('{"model_type": "qwen2_5_vl"}')
    scorer.use(backbone)
    assert scorer._judge is None


def test_a_judge_that_cannot_be_loaded_is_read_once_and_not_onto_the_videos_device(
    tmp_path, monkeypatch
):
    (tmp_path / "config.json").write_text('{"model_type": "qwen2_5_vl"}')
    opened = []

    def too_large(model, device):
        opened.append((model, device))
        raise torch.OutOfMemoryError("no room for it")

    monkeypatch.setattr("miga_bench.metrics.narrlv.qwen.QwenJudge", too_large)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    scorer, item = StoryScores(judge=str(tmp_path)), item_of([PromptAt(a_story().prompt)], 16)
    scorer.use(type("B", (), {"device": "cuda:3"})())
    with pytest.raises(torch.OutOfMemoryError):
        scorer.score(tmp_path / "a.mp4", item)
    for _ in range(2):
        with pytest.raises(UserError, match="no room for it") as again:
            scorer.score(tmp_path / "a.mp4", item)
        assert again.value.reported
    assert opened == [(str(tmp_path), "auto")]


def test_another_content_of_the_judges_folder_is_another_judge(tmp_path, monkeypatch):
    """Breaks if a run shows the scores of the model that lay there before, or loads it to tell them apart."""
    monkeypatch.setattr(StoryOptions, "open_judge", lambda self: pytest.fail("loads the judge"))
    (tmp_path / "config.json").write_text('{"model_type": "qwen2_5_vl"}')
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(bytes(2**25))

    def file():
        return StoryScores(judge=str(tmp_path), device="cpu").file

    first = file()
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "fetched").write_text("today")
    assert file() == first
    # a model that was trained on has the same sizes, and a large file is read in pieces
    weights.write_bytes(bytes(2**24) + b"\1" * 2**24)
    second = file()
    assert second != first
    monkeypatch.setattr("miga_bench.metrics.narrlv.qwen.SUFFIX", " Yes or no?")
    assert file() not in (first, second)
    told = StoryScores(judge=str(tmp_path), device="cpu").identity()["judged_by"]
    assert told["dtype"] == "bfloat16"
    assert told["sampling"]["temperature"] == 0.7


def test_other_rules_of_the_reader_judge_anew_and_the_first_do_not(monkeypatch):
    """Breaks if old scores pass as those of new rules; or if all stories of before are scored again."""
    assert "judged_by" not in StoryScores().identity()
    before, provenance = StoryScores().file, ReaderJudge().provenance()
    monkeypatch.setattr("miga_bench.backbones.tiny.judge.HOLD", 9)
    held = StoryScores().file
    monkeypatch.setattr("miga_bench.backbones.tiny.reader.THRESHOLDS", (0.4,))
    assert len({before, held, StoryScores().file}) == 3
    assert ReaderJudge().provenance().keys() - provenance.keys() == {"rules"}


def test_a_device_that_no_judge_uses_is_refused_before_a_video_is_made():
    for wrong in ({}, {"judge": "http://127.0.0.1:9/v1", "judge_model": "m"}):
        with pytest.raises(
            UserError, match=r"device is cuda:99: the judge .* leave the device out"
        ):
            StoryScores(device="cuda:99", **wrong).use(None)
    StoryScores(device="cpu").use(None)


class Mumbling(ReaderJudge):
    """Says neither yes nor no about changes."""

    def __call__(self, frames, question, seed):
        return "hm" if "over time" in question else super().__call__(frames, question, seed)


def test_a_story_with_a_part_missing_has_no_number_of_the_three_but_a_reason(tmp_path):
    story = a_story()
    item = item_of([PromptAt(text, i * 32) for i, text in enumerate(story.segments)], 64)
    true, _ = render_narrative(parse_narrative(story.prompt), random.Random(1), 64)
    scorer = StoryScores()
    scorer._judge = Mumbling()
    found = scorer.score(write(tmp_path / "a.mp4", true), item)
    assert found.scores["narrlv/cov"] == pytest.approx(1)
    assert found.scores["narrlv/coh"] is None
    assert found.scores["narrlv/tna2_t_att"] is None
    assert "is missing: no answer to " in found.reasons["narrlv/tna2_t_att"]
    alone = StoryScores(collapse="cov")
    alone._judge = Mumbling()
    found = alone.score(tmp_path / "a.mp4", item)
    assert found.scores["narrlv/tna2_t_att"] == pytest.approx(1)


def test_a_story_of_which_the_model_was_told_the_beginning_is_scored_as_that_story(tmp_path):
    story = a_story()
    true, _ = render_narrative(parse_narrative(story.prompt), random.Random(1), 64)
    write(tmp_path / "a.mp4", true)
    whole = item_of([PromptAt(story.prompt)], 64)
    begun = whole.with_texts((PromptAt(story.prompt.rpartition(" ")[0]),), [story.prompt])
    scorer = StoryScores()
    scorer.use(None)
    found = scorer.score(tmp_path / "a.mp4", begun)
    assert found == scorer.score(tmp_path / "a.mp4", whole)
    assert found.scores
    assert begun.key != whole.key
    assert not scorer.score(tmp_path / "a.mp4", item_of(begun.prompts, 64)).scores


def test_qualities_of_the_videos_are_a_term_of_their_scores(tmp_path):
    """Breaks if one quality serves the videos of a story in all arms, or a video without one is scored."""
    story = a_story()
    true, _ = render_narrative(parse_narrative(story.prompt), random.Random(1), 64)
    video = write(tmp_path / "a.mp4", true)
    first, second, third = (item_of([PromptAt(story.prompt)], 64 + n) for n in range(3))
    rated = tmp_path / "rated.jsonl"
    lines = [{"item": one.key, "quality": q} for one, q in ((first, 5), (second, 2))]
    rated.write_text("".join(json.dumps(line) + "\n" for line in lines))
    bare, scorer = StoryScores(), StoryScores(quality=str(rated))
    for one in (bare, scorer):
        one.use(None)
    assert "quality" not in bare.identity()
    assert scorer.file != bare.file
    plain = bare.score(video, first).scores["narrlv/cov"]
    found = [scorer.score(video, item).scores["narrlv/cov"] for item in (first, second)]
    assert found == pytest.approx([(plain + 1) / 2, (plain + 0.4) / 2])
    with pytest.raises(UserError, match=f"has no quality of items/{third.key}"):
        scorer.score(video, third)
