"""Scores beside the videos: what is scored when, by whom, and what a run says of it afterwards."""

import json
import os
import pickle
import random
import shutil
import weakref
from pathlib import Path

import pytest
import torch
from narratives import parse_narrative, render_narrative
from run_workers import SETTINGS, configuration

from miga_bench.backbones.tiny import world
from miga_bench.backbones.tiny.drift import DriftMeter, measure, over_time
from miga_bench.backbones.tiny.grammar import parse_caption
from miga_bench.backbones.tiny.judge import ReaderJudge
from miga_bench.cli import main
from miga_bench.errors import JudgeDownError, UserError
from miga_bench.harness.items import Item
from miga_bench.harness.predict import predict
from miga_bench.harness.request import PromptAt
from miga_bench.harness.results import read_results
from miga_bench.harness.scorers import Found, ItemScorer, StoryScores, SuiteScores, WorldScores
from miga_bench.media import VideoWriter, count_frames, read_video
from miga_bench.metrics.narrlv import load_suite
from miga_bench.metrics.narrlv.answers import slots
from miga_bench.prompts import STORIES

scored = []


class Counting(ItemScorer):
    """Scores by the number of frames, and keeps book of whom it has scored; may refuse a text."""

    name = "counting"

    def __init__(self, version: int = 1, refuses: str = ""):
        self.version, self.refuses = version, refuses

    def identity(self):
        return {"scorer": self.name, "version": self.version}

    def score(self, video: Path, item: Item):
        if self.refuses and self.refuses in item.prompts[0].text:
            raise RuntimeError("cannot\nsee it")
        scored.append((self.version, item.key))
        frames = count_frames(video)
        return Found(
            {"count": float(frames), "none": None},
            {"none": "nobody asked"},
            {"count": [[0, frames - 1, 1.0]]},
        )


def counting(**arguments):
    return {"class_path": "test_scorers.Counting", "init_args": arguments}


@pytest.fixture
def run(tmp_path, capsys):
    """Return a function that makes the run of two arms and two prompts, and returns code, status, lines."""
    scored.clear()

    def make(name="run", metrics=(), **changes):
        changes = {
            "model__metrics": list(metrics),
            "model__arms": {
                "short": {"method": "short", "settings": {"steps": 2}},
                "wide": {"settings": {"zigzag": 3}},
            },
            "data__seeds": [0],
            "data__limit": 2,
            "data__frames": 33,
        } | changes
        changes = {place: value for place, value in changes.items() if value is not None}
        code = main(["predict", "--config", str(configuration(tmp_path, name, **changes))])
        out, err = capsys.readouterr()
        return code, json.loads(out.splitlines()[-1]), err

    return make


def times(root):
    return {path: path.stat().st_mtime_ns for path in (root / "items").glob("*/*.*")}


def test_scores_lie_beside_the_videos_and_the_same_command_does_nothing(run, tmp_path):
    code, status, _ = run(metrics=[counting()])
    assert (code, status["status"], status["done"], status["unscored"]) == (0, "done", 4, [])
    videos = tmp_path / "run" / "videos"
    links = sorted(str(link.relative_to(videos)) for link in videos.glob("*/*.mp4"))
    assert links == ["short/p001-0.mp4", "short/p002-0.mp4", "wide/p001-0.mp4", "wide/p002-0.mp4"]
    for link in videos.glob("*/*.mp4"):
        (scores,) = (link.resolve().parent / "scores").iterdir()
        document = json.loads(scores.read_text())
        assert scores.name == Counting().file
        assert document["scores"]["count"] == count_frames(link)
        assert document["scorer"] == {"scorer": "counting", "version": 1}
    before, scored[:] = times(tmp_path), []
    assert run(metrics=[counting()])[0] == 0
    assert (times(tmp_path), scored) == (before, [])


def test_another_scorer_scores_without_making_videos_anew(run, tmp_path):
    run(metrics=[counting()])
    before = times(tmp_path)
    assert run(metrics=[counting(), counting(version=2)])[0] == 0
    assert times(tmp_path) == before
    assert [version for version, _ in scored] == [1] * 4 + [2] * 4
    (folder, *_) = (tmp_path / "items").glob("*/scores")
    assert {path.name for path in folder.iterdir()} == {Counting().file, Counting(2).file}


def test_a_scorer_that_raises_is_noted_and_tried_again_and_the_others_score(run, tmp_path):
    bad = counting(refuses="so so so", version=3)
    code, status, err = run(metrics=[bad, counting()], data__limit=4, run__quiet=False)
    assert (code, status["status"], status["done"]) == (1, "failed", 8)
    assert status["unscored"] == ["short/p004-0", "wide/p004-0"]
    assert "wide/p004-0 is not scored: cannot see it" in " ".join(err.split())
    assert sum(version == 1 for version, _ in scored) == 8
    before, scored[:] = times(tmp_path), []
    code, status, _ = run(metrics=[counting(version=3), counting()], data__limit=4)
    assert (code, status["status"], status["unscored"]) == (0, "done", [])
    assert [version for version, _ in scored] == [3, 3]
    assert times(tmp_path) == before


def test_a_video_replaced_by_another_file_is_scored_anew(run, tmp_path):
    run(metrics=[counting()])
    (folder, *_) = (tmp_path / "items").glob("*/scores")
    item = folder.parent
    scores = folder / Counting().file
    document = json.loads(scores.read_text())
    scores.write_text(json.dumps({**document, "video": "0" * 64, "scores": {"count": 0.0}}))
    rows = read_results(tmp_path / "run").rows
    assert [dict(row.scores) for row in rows if row.key == item.name] == [{}]
    scored.clear()
    run(metrics=[counting()])
    assert scored == [(1, item.name)]
    # a file of another size is no longer the item's, and is made and scored again
    shutil.copy(next((tmp_path / "items").glob("*/sheet.png")), item / "video.mp4")
    scored.clear()
    run(metrics=[counting()])
    assert scored == [(1, item.name)]
    assert json.loads(scores.read_text()) == document


def test_an_arm_shared_by_two_runs_is_made_and_scored_once(run, tmp_path):
    run(metrics=[counting()])
    before, scored[:] = times(tmp_path), []
    arms = {"other": {"settings": {"zigzag": 3}}, "more": {"settings": {"zigzag": 4}}}
    code, status, _ = run("second", [counting()], model__arms=arms)
    assert (code, status["done"], len(scored)) == (0, 4, 2)
    assert {path: times(tmp_path)[path] for path in before} == before
    one, two = (read_results(tmp_path / name) for name in ("run", "second"))
    assert [row.key for row in one.of("wide")] == [row.key for row in two.of("other")]


def test_a_run_without_arms_shares_with_one_that_has_them(run, tmp_path):
    run(metrics=[counting()])
    scored.clear()
    settings_ = {**SETTINGS, "zigzag": 3}
    run("plain", [counting()], model__arms=None, model__settings=settings_)
    assert scored == []
    results = read_results(tmp_path / "plain")
    assert (list(results.arms), dict(results.arms["miga"].changed)) == (["miga"], {})
    assert [row.scores["count"] for row in results.rows] == [33.0, 33.0]


def test_results_tell_all_of_it(run, tmp_path):
    about = {"title": "T", "baseline": "short"}
    arms = {"short": {"method": "short", "settings": {"steps": 2}}}
    code, status, _ = run(
        metrics=[counting()],
        model__arms=arms,
        model__grid={"zigzag": [2, 3], "stride": [3]},
        model__backbone={
            "class_path": "run_workers.CountingBackbone",
            "init_args": {"poison": "a circle so red"},
        },
        data__prompts=[
            {"prompt": "a circle red", "then": {5: "a square red"}, "seeds": [-1, 7]},
            "a circle so red",
        ],
        run__about=about,
    )
    assert (code, len(status["failed"])) == (1, 3)
    (missing,) = {key for key in yaml_items(tmp_path) if key == "stride-3.zigzag-3/p001-7"}
    shutil.rmtree(tmp_path / "items" / yaml_items(tmp_path)[missing])
    results = read_results(tmp_path / "run")
    assert (results.name, dict(results.about)["title"]) == ("run", "T")
    assert {
        name: dict(arm.changed)["zigzag"] for name, arm in results.arms.items() if "-" in name
    } == {
        "stride-3.zigzag-2": 2,
        "stride-3.zigzag-3": 3,
    }
    assert results.arms["short"].changed["method"] == "short"
    assert "stride" not in results.arms["short"].settings, "so it is not the same in all arms"
    assert "stride" in results.arms["stride-3.zigzag-2"].changed
    (short,) = (row for row in results.of("short") if row.pair == ("p001", -1))
    assert (short.status, short.frames, short.scores["count"]) == ("done", 21, 21.0)
    assert short.prompt == "a circle red / a square red"
    assert (short.scores["none"], short.reasons["none"]) == (None, "nobody asked")
    assert short.series["count"] == [[0, 20, 1.0]]
    assert {"nfe", "seconds", "total_seconds", "peak_memory_mib"} <= set(short.cost)
    (failed,) = (row for row in results.of("short") if row.prompt_id == "p002")
    assert (failed.status, failed.error, dict(failed.scores)) == ("failed", "poisoned", {})
    gone = [row.pair for row in results.rows if row.status == "missing"]
    assert gone == [("p001", 7)]


def yaml_items(root):
    import yaml

    return yaml.safe_load((root / "run" / "run.yaml").read_text())["items"]


@pytest.mark.parametrize("then", [5, 25])
def test_a_short_clip_beside_longer_arms_is_cut_to_its_clip(then, run, tmp_path):
    *_, err = run(data__prompts=[{"prompt": "a circle", "then": {then: "a square"}}])
    assert err.count("p001 changes within the clip that short makes") == (then == 5)
    results = read_results(tmp_path / "run")
    assert [(row.arm, row.frames) for row in results.rows] == [("short", 21), ("wide", 33)]
    spec = json.loads((results.of("short")[0].folder / "manifest.json").read_text())["spec"]
    assert [prompt["text"] for prompt in spec["prompts"]] == ["a circle"]
    assert spec["uncut"] == ["a circle", "a square"]  # what it is scored by


def test_short_clips_of_prompts_that_begin_alike_are_videos_of_their_own(run, tmp_path):
    """Breaks if a run of stories beside an arm short is refused, as two of its clips were the same."""
    prompts = [
        {"prompt": "a circle", "then": {25: text}} for text in ("a square", "a star", "a cross")
    ]
    prompts[0]["then"] = {5: "a square"}
    prompts[1]["then"] = {5: "a star"}
    *_, err = run(data__prompts=prompts, data__limit=None)
    assert err.count("prompts p001 and 1 more change within the clip") == 1
    results = read_results(tmp_path / "run")
    assert [row.status for row in results.of("short")] == ["done"] * 3
    texts = json.loads((tmp_path / "run" / "prompts.json").read_text())
    assert texts["short/p002-0.mp4"] == ["a circle", "a star"]


@pytest.mark.parametrize(
    ("make", "rule"),
    [
        (lambda: SuiteScores("tinny"), "unknown suite 'tinny'"),
        (lambda: SuiteScores(dimensions=["motion"]), "unknown dimension 'motion'"),
        (lambda: SuiteScores(networks="vbench"), "suite tiny is the embedded networks"),
        (lambda: SuiteScores(dimensions=["imaging_quality"]), "has no embedded network"),
        (lambda: StoryScores("nowhere"), "no narrative suite at nowhere"),
        (lambda: StoryScores(variant="cod"), "variant is 'cod'; it must be one of code, paper"),
        (lambda: StoryScores(collapse="max"), "collapse is 'max'; it must be one of"),
        (lambda: StoryScores(judge="http://localhost/v1"), "go together"),
        (lambda: StoryScores("natural"), "the reader judges stories of the embedded world"),
        (lambda: StoryScores(votes=0), "votes is 0"),
        (lambda: StoryScores(quality="nowhere"), "cannot read qualities from nowhere"),
        (lambda: StoryScores(quality="a", variant="paper"), "the variant paper has no term for it"),
        (lambda: StoryScores(votes=6), "votes is 6: .* NarrLV counts 5 answers at most"),
        (
            lambda: StoryScores(str(STORIES["natural"])),
            "the reader judges stories of the embedded world",
        ),
    ],
)
def test_scorers_refuse_what_they_cannot_do(make, rule):
    with pytest.raises(UserError, match=rule):
        make()


def a_story(tna=2, factor="target_attribute"):
    return load_suite(STORIES["tiny"]).select([factor], [tna]).items[0]


def item_of(prompts, frames):
    values = dict.fromkeys(("backbone", "precision", "method", "negative_prompt"), "")
    return Item(
        **values, weights_hash=None, settings={}, prompts=tuple(prompts), seed=0, frames=frames,
        height=64, width=64, lossless=True,
    )  # fmt: skip


def write(path, frames):
    with VideoWriter(path, 16, lossless=True) as writer:
        writer.push(frames)
    return path


def test_a_true_video_of_a_story_scores_one_and_a_still_video_less(tmp_path):
    story, frames = a_story(), 64
    parts = [PromptAt(text, i * 32) for i, text in enumerate(story.segments)]
    item, scorer = item_of(parts, frames), StoryScores()
    true, _ = render_narrative(parse_narrative(story.prompt), random.Random(1), frames)
    found = scorer.score(write(tmp_path / "true.mp4", true), item)
    still = scorer.score(write(tmp_path / "still.mp4", true[:1].repeat(frames, 1, 1, 1)), item)
    assert set(found.scores) == {"narrlv/fid", "narrlv/cov", "narrlv/coh", "narrlv/tna2_t_att"}
    assert found.scores["narrlv/fid"] == pytest.approx(1)
    assert found.scores["narrlv/cov"] == pytest.approx(1)
    assert still.scores["narrlv/cov"] < 0.8
    assert still.scores["narrlv/tna2_t_att"] < found.scores["narrlv/tna2_t_att"]
    # told in one sentence it is the same story; another text has no scores
    whole = scorer.score(tmp_path / "true.mp4", item_of([PromptAt(story.prompt)], frames))
    assert whole == found
    assert scorer.score(tmp_path / "true.mp4", item_of([PromptAt("a dog")], frames)) == Found()


class PaidJudge(ReaderJudge):
    """Answers so many questions, then goes down."""

    def __init__(self, paid):
        super().__init__()
        self.paid, self.asked = paid, 0

    def __call__(self, frames, question, seed):
        if self.asked == self.paid:
            raise JudgeDownError("the judge is down; answers so far are kept")
        self.asked += 1
        return super().__call__(frames, question, seed)


def test_answers_of_a_judge_that_goes_down_are_not_asked_for_again(tmp_path):
    story = a_story()
    item = item_of([PromptAt(story.prompt)], 16)
    true, _ = render_narrative(parse_narrative(story.prompt), random.Random(1), 16)
    video, kept = write(tmp_path / "video.mp4", true), tmp_path / "scores"
    scorer = StoryScores()
    expected = scorer.score(video, item)
    scorer.scored(video)
    assert list(kept.iterdir()) == []
    scorer._judge = down = PaidJudge(3)
    with pytest.raises(JudgeDownError):
        scorer.score(video, item)
    (answers,) = kept.iterdir()
    scorer._judge = rest = PaidJudge(99)
    assert scorer.score(video, item) == expected
    assert down.asked + rest.asked == len(slots(story, 1)) > 3
    # it is kept until the scores are on disk, and is not of another video, nor used when it is damaged
    scorer._judge = PaidJudge(0)
    assert scorer.score(video, item) == expected
    answers.write_text("nonsense")
    with pytest.raises(JudgeDownError):
        scorer.score(video, item)
    write(video, true[:1].repeat(16, 1, 1, 1))
    with pytest.raises(JudgeDownError):
        scorer.score(video, item)
    assert len(list(kept.iterdir())) == 2
    scorer.scored(video)
    assert list(kept.iterdir()) == []


class Lacking(Counting):
    """Says once that it lacks something."""

    name = "lacking"
    said = False

    def score(self, video, item):
        error = UserError("its judge is not there: fetch it")
        error.reported, self.said = self.said, True
        raise error


def test_what_the_user_was_told_is_not_said_again(run):
    code, status, err = run(
        metrics=[{"class_path": "test_scorers.Lacking"}], model__arms=None, run__quiet=False
    )
    assert (code, status["done"], len(status["unscored"])) == (1, 2, 2)
    assert err.count("its judge is not there") == 1


def test_world_scores_are_the_drift_measures(tmp_path):
    caption = "a red circle moves right on a blue field"
    look = world.draw_look(parse_caption(caption), random.Random(0))
    video = write(tmp_path / "a.mp4", world.render(look, 40))
    scorer = WorldScores()
    scorer._opening = 21
    found = scorer.score(video, item_of([PromptAt(caption)], 40))
    frames = torch.stack([frame.float() / 255 for frame in read_video(video)])
    expected = measure(frames, parse_caption(caption), 21).as_dict()
    shared = {name for name in expected if f"world/{name}" in found.scores}
    assert set(expected) - shared == {"frames", "direction"}
    assert all(found.scores[f"world/{name}"] == expected[name] for name in shared)
    assert found.series == {f"world/{n}": b for n, b in over_time(frames, 21).items()}
    own = scorer.score(video, item_of([PromptAt("my own words")], 40))
    assert own.scores["world/asked_color"] is None
    assert own.reasons["world/asked_color"] == "nothing to measure"
    write(tmp_path / "b.mp4", torch.zeros(3, 3, 16, 16))
    with pytest.raises(UserError, match="reads the embedded models' 64x64 frames, not 16x16"):
        scorer.score(tmp_path / "b.mp4", item_of([PromptAt("a")], 3))


def test_world_scores_hold_a_few_numbers_of_a_frame(tmp_path, monkeypatch):
    look = world.draw_look(
        parse_caption("a red circle moves right on a blue field"), random.Random(0)
    )
    video = write(tmp_path / "a.mp4", world.render(look, 96).repeat(4, 1, 1, 1))
    extend, pieces, sizes = DriftMeter.extend, [], []

    def watched(self, frames):
        extend(self, frames)
        pieces.append(weakref.ref(frames))
        assert sum(piece() is not None for piece in pieces) <= 3
        sizes.append(len(pickle.dumps(self)))

    monkeypatch.setattr(DriftMeter, "extend", watched)
    scorer = WorldScores()
    scorer._opening = 33
    scorer.score(video, item_of([PromptAt("a red circle moves right")], 384))
    assert len(pieces) == 12
    assert sizes[-1] - sizes[1] < 10 * 32 * 300  # bytes; of a picture it would be 49152


def test_suite_scores_are_those_of_the_command(tmp_path):
    scene = parse_caption("a red circle moves right on a blue field")
    video = write(tmp_path / "a.mp4", world.render(world.draw_look(scene, random.Random(0)), 24))
    assert main(["score", str(video), "-o", str(tmp_path / "scores.json")]) == 0
    (row,) = json.loads((tmp_path / "scores.json").read_text())["videos"]
    scorer = SuiteScores()
    scorer.use(type("B", (), {"device": "cpu"})())
    found = scorer.score(video, item_of([PromptAt("a red circle")], 24))
    assert found.scores == row["scores"]
    assert {label.partition("[")[0] for label in found.series} == set(row["series"])
    # motion smoothness has evidence for every other frame; its curve covers the video all the same
    assert {bins[-1][1] for bins in found.series.values()} == {row["frames"] - 1}


def test_clip_to_clip_networks_are_there_before_a_video_and_are_recorded(tmp_path, monkeypatch):
    only = ["background_consistency", "temporal_flickering"]
    backbone = type("B", (), {"device": "cpu"})()
    scorer = SuiteScores("vbench-long", only, networks="tiny")
    scorer.use(backbone)
    networks = scorer.identity()["networks"]
    assert networks["background_consistency"]["fast"]["weights"] == "tiny_encoder.safetensors"
    assert networks["temporal_flickering"] == {}
    video = write(tmp_path / "a.mp4", torch.rand(4, 3, 16, 16))
    told = ["--suite", "vbench-long", "--networks", "tiny", "-o", str(tmp_path / "scores.json")]
    only_these = [part for name in only for part in ("--dimension", name)]
    assert main(["score", str(video), *told, *only_these]) == 0
    scores = json.loads((tmp_path / "scores.json").read_text())["scores"]
    assert [found["networks"] for found in scores.values()] == list(networks.values())
    without = SuiteScores("vbench-long", only, networks="tiny", development=False)
    without.use(backbone)
    assert "fast" not in without.identity()["networks"]["background_consistency"]

    def lacks(*_):
        raise UserError("DreamSim is not there: fetch it")

    monkeypatch.setattr("miga_bench.harness.score.fast_encoders", lacks)
    with pytest.raises(UserError, match="DreamSim is not there"):
        scorer.use(backbone)
    without.use(backbone)


@pytest.mark.parametrize("suite", ["tiny", "vbench-long"])
def test_suite_scores_wait_for_no_other_rank(tmp_path, suite):
    scorer = SuiteScores(suite, ["temporal_flickering"], networks="tiny")
    scorer.use(type("B", (), {"device": "cpu"})())
    for one in scorer._scores:
        one.distributed_available_fn = lambda: pytest.fail("asks what the other ranks have")
    video = write(tmp_path / "a.mp4", torch.rand(4, 3, 16, 16))
    found = scorer.score(video, item_of([PromptAt("a")], 4))
    assert found.scores["temporal_flickering"] > 0


def test_all_scorers_on_the_embedded_model(tmp_path):
    config = configuration(
        tmp_path,
        model__backbone="tiny-wan",
        model__settings={**SETTINGS, "zigzag": 7, "guidance_frames": 7, "guidance_scale": 1},
        model__arms={"short": {"method": "short", "settings": {"steps": 2}}, "miga": None},
        model__metrics=[{"class_path": n} for n in ("SuiteScores", "WorldScores", "StoryScores")],
        model__lossless=True,
        data__prompts="narrlv:tiny",
        data__tna=[2],
        data__prompt_ids=["tiny_target_action_tna_2-1-0"],
        data__frames=85,
        data__seeds=[0],
    )
    assert predict(["--config", str(config)])["status"] == "done"
    results = read_results(tmp_path / "run")
    assert [row.frames for row in results.rows] == [85, 81]  # miga, then short
    for row in results.rows:
        kinds = {label.partition("/")[0] for label in row.scores}
        assert "world" in kinds
        # the short clip was told the first text alone, and is asked about the story that it should tell
        assert "narrlv/tna2_t_act" in row.scores
        assert any(label.endswith("[tiny]") for label in row.scores)
        assert all((value is None) == (label in row.reasons) for label, value in row.scores.items())
        assert len(os.listdir(row.folder / "scores")) == 3
