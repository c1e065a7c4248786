"""``miga-bench compare``: scored videos of any model, matched and held against each other."""

import json
import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_score_command import moving, write

from miga_bench.cli import main
from miga_bench.errors import UserError
from miga_bench.harness.compare import compare_scores, tables
from miga_bench.metrics.statistics import paired

SUBJECT, MOTION = "subject_consistency[net]", "dynamic_degree[net]"


def document(videos, **changes):
    """A scores file of ``{name: (prompt, scores by label)}``."""
    labels = dict.fromkeys(label for _, scores in videos.values() for label in scores)
    return {
        "suite": "vbench",
        "networks": "vbench",
        "scores": {label: {"mean": 0.5, "networks": {"net": "1"}} for label in labels},
        "videos": [
            {"video": name, "prompt": prompt, "scores": scores, "reason": None}
            for name, (prompt, scores) in videos.items()
        ],
        **changes,
    }


@pytest.fixture
def files(tmp_path):
    """Return a function that writes scores files and compares them."""

    def against(*documents):
        paths = [tmp_path / f"{number}.json" for number in range(len(documents))]
        for path, one in zip(paths, documents, strict=True):
            path.write_text(json.dumps(one))
        return compare_scores(paths)

    return against


def only(found):
    (one,) = found["against"].values()
    return one


def drawn(seed, prompts=8, seeds=2):
    """Videos of several seeds a prompt with random scores."""
    draw = random.Random(seed)
    return {
        f"{k}-{n}.mp4": (f"text {k}", {SUBJECT: draw.random(), MOTION: draw.random()})
        for k in range(prompts)
        for n in range(seeds)
    }


def test_differences_are_those_of_pairs_by_name_with_intervals_over_prompts(files):
    ours, theirs = drawn(1), drawn(2)
    found = only(files(document(ours), document(theirs)))
    assert (found["paired_by"], found["pairs"], found["left_out"]) == ("name", 16, [0, 0])
    assert found["clustered_by"] == "prompt"
    one = found["differences"][SUBJECT]
    left, right = ([scores[SUBJECT] for _, scores in side.values()] for side in (ours, theirs))
    expected = paired(right, left, [prompt for prompt, _ in ours.values()])
    assert one["difference"] == pytest.approx(expected.difference.mean)
    assert (one["low"], one["high"]) == pytest.approx(
        (expected.difference.low, expected.difference.high)
    )
    assert (one["p"], one["wins"], one["prompts"], one["n"]) == (expected.p, expected.wins, 8, 16)
    assert one["other"] - one["first"] == pytest.approx(one["difference"])
    assert one["equal"]["difference"] is not None
    assert found["differences"][MOTION]["equal"] is None, "motion is no quality"


def test_the_sign_is_of_what_comes_later(files):
    low = {f"{k}.mp4": (None, {SUBJECT: 0.5 + k / 100}) for k in range(8)}
    high = {name: (None, {SUBJECT: scores[SUBJECT] + 0.1}) for name, (_, scores) in low.items()}
    low["7.mp4"][1][SUBJECT] -= 1e-3
    found = files(document(low), document(high), document(low | high))["against"]
    verdicts = [one["differences"][SUBJECT]["verdict"] for one in found.values()]
    assert verdicts == ["better", "better"]
    assert only(files(document(high), document(low)))["differences"][SUBJECT]["verdict"] == "worse"


def test_videos_named_otherwise_are_matched_by_prompt_and_seeds_are_averaged(files):
    ours = drawn(1)
    theirs = {f"v{n}.gif": one for n, one in enumerate(drawn(1).values())}
    del theirs["v0.gif"]
    theirs["w.gif"], theirs["x.gif"] = ("text 99", theirs["v1.gif"][1]), (None, theirs["v2.gif"][1])
    found = only(files(document(ours), document(theirs)))
    assert (found["paired_by"], found["pairs"]) == ("prompt", 8)
    assert found["left_out"] == [0, 2]  # of a text of its own, and of one that nobody knows
    one = found["differences"][SUBJECT]
    assert one["difference"] == pytest.approx(
        (ours["0-1.mp4"][1][SUBJECT] - ours["0-0.mp4"][1][SUBJECT]) / 2 / 8
    )


def test_the_same_name_of_another_text_is_no_pair(files):
    """Breaks if 0001.mp4 of one folder is held against 0001.mp4 of another that shows something else."""
    ours = drawn(1, seeds=1)
    names, values = list(ours), list(ours.values())
    theirs = dict(zip(names, values[1:] + values[:1], strict=True))
    found = only(files(document(ours), document(theirs)))
    assert found["paired_by"] == "prompt"
    assert found["differences"][SUBJECT]["difference"] == pytest.approx(0)
    others = {name: (f"other {text}", scores) for name, (text, scores) in ours.items()}
    with pytest.raises(UserError, match=r"no video in common \(0-0 is of another prompt in each\)"):
        files(document(ours), document(others))


def test_endings_are_no_part_of_a_name_unless_they_tell_videos_apart(files):
    plain = {f"{k}.mp4": (None, {SUBJECT: k / 10}) for k in range(4)}
    other = {f"{k}.webm": (None, {SUBJECT: k / 10}) for k in range(5)}
    found = only(files(document(plain), document(other)))
    assert (found["pairs"], found["left_out"]) == (4, [0, 1])
    both = plain | {"0.gif": (None, {SUBJECT: 0.9})}
    assert only(files(document(both), document(both)))["pairs"] == 5


def test_a_video_without_this_score_is_left_out_of_it_alone(files):
    ours, theirs = drawn(1), drawn(2)
    theirs["3-1.mp4"][1][SUBJECT] = None
    theirs["4-0.mp4"] = ("text 4", {SUBJECT: None, MOTION: None})
    found = only(files(document(ours), document(theirs)))
    assert (found["pairs"], found["left_out"]) == (15, [1, 0])
    one = found["differences"][SUBJECT]
    assert (one["n"], found["differences"][MOTION]["n"]) == (14, 15)
    kept = [name for name in ours if name not in ("3-1.mp4", "4-0.mp4")]
    assert one["first"] == pytest.approx(sum(ours[name][1][SUBJECT] for name in kept) / 14)


def test_stories_are_matched_by_their_keys(files):
    def stories(add):
        rows = [
            {"key": f"s_{k}", "fid": 0.2 + add + k / 100, "cov": 0.5, "coh": None} for k in range(8)
        ]
        made = {"variant": "code", "judge": {"kind": "reader"}, "suite": "abc", "votes": 1}
        made |= {"quality": "none"}
        return {
            "suite": "narrlv",
            "narratives": "tiny",
            "scores": {"scene": {"fid": 0.2}},
            "videos": rows,
            "provenance": {**made, "collapse": "fid" if add else "mean"},
        }

    found = only(files(stories(0), stories(0.1)))["differences"]
    assert found["narrlv/fid"]["difference"] == pytest.approx(0.1)
    assert found["narrlv/cov"]["verdict"] == "no difference shown"
    assert found["narrlv/coh"]["verdict"] == "no pairs"
    elsewhere = stories(0)
    elsewhere["narratives"] = "/another/place/tiny"
    elsewhere["provenance"]["judge"] = {"kind": "reader", "url": "http://another"}
    files(stories(0), elsewhere)
    for name, value in (
        ("judge", {"kind": "server"}),
        ("suite", "abd"),
        ("votes", 5),
        ("variant", "paper"),
        ("quality", "all"),
    ):
        other = stories(0)
        other["provenance"][name] = value
        with pytest.raises(UserError, match="not scored alike"):
            files(stories(0), other)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"suite": "vbench-long"}, "suite"),
        ({"networks": "tiny"}, "networks"),
        ({"development": True}, "development: None and True"),
        ({"reading": "reference"}, "reading"),
        ({"scores": {SUBJECT: {"networks": {"net": "2"}}}}, "networks of subject_consistency"),
        ({"scores": {"imaging_quality": {}}}, "no dimension in common"),
    ],
)
def test_what_was_scored_otherwise_is_refused(files, change, what):
    with pytest.raises(UserError, match="not scored alike") as error:
        files(document(drawn(1)), document(drawn(2), **change))
    assert what in str(error.value)


def test_motion_is_compared_at_one_frame_rate_only(files):
    def at(rate, label):
        made = document({f"{k}.mp4": (None, {label: k / 10}) for k in range(8)})
        for video in made["videos"]:
            video |= {"frame_rate": rate, "frames": 10 * rate}
        return made

    with pytest.raises(UserError, match=r"not scored alike \(frame_rate: \[8\] and \[16\]"):
        files(at(8, MOTION), at(16, MOTION))
    found = only(files(at(8, SUBJECT), at(16, SUBJECT)))
    assert found["frames"] == [80, 160]
    assert found["clustered_by"] == "video"
    (shown,) = tables({"first": "a", "against": {"b": found}})
    assert "intervals over videos, of 160 and 80 frames" in shown.title


def test_what_has_nothing_in_common_is_refused(files):
    other = {"else.mp4": (None, {SUBJECT: 0.5})}
    with pytest.raises(UserError, match="no video in common"):
        files(document(drawn(1)), document(other))
    with pytest.raises(UserError, match="no video with a score"):
        files(document(drawn(1)), document({"0-0.mp4": (None, {SUBJECT: None})}))


def test_from_folders_of_videos_to_the_table(tmp_path, capsys):
    for name, speeds in (("ours", (1, 2)), ("theirs", (3, 4))):
        for number, speed in enumerate(speeds):
            write(tmp_path / name / f"{number}.mp4", moving(speed=speed))
        scored = tmp_path / f"{name}.json"
        options = ["--dimension", "temporal_flickering", "--quiet", "-o", str(scored)]
        assert main(["score", str(tmp_path / name), *options]) == 0
    capsys.readouterr()
    both = [str(tmp_path / f"{name}.json") for name in ("ours", "theirs")]
    assert main(["compare", *both]) == 0
    out, err = capsys.readouterr()
    one = only(json.loads(out))["differences"]["temporal_flickering"]
    assert one["difference"] < 0
    assert one["verdict"] == "too few prompts"
    assert "temporal flickering" in err
    assert f"{100 * one['difference']:+.2f}" in err
    wrongs = [both[0]], [both[0], both[0]], [*both, both[0]], [both[0], str(tmp_path)]
    for wrong in (*wrongs, [both[0], str(tmp_path / "none.json")]):
        assert main(["compare", *wrong]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert len(err.splitlines()) == 1


VALUE = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=5,
)
PARTS = st.sampled_from(["suite", "networks", "scores", "videos", "provenance"])


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.dictionaries(PARTS, VALUE, max_size=2), of_a_video=VALUE)
def test_whatever_a_file_holds_ends_in_scores_or_one_line(changes, of_a_video, tmp_path):
    whole = document(drawn(1)) | changes
    if isinstance(whole["videos"], list):
        whole["videos"].append(of_a_video)
    odd, good = tmp_path / "odd.json", tmp_path / "good.json"
    odd.write_text(json.dumps(whole))
    good.write_text(json.dumps(document(drawn(2))))
    for paths in ((odd, good), (good, odd)):
        try:
            json.dumps(compare_scores(paths), allow_nan=False)
        except UserError as error:
            said = str(error)
        else:
            continue
        assert "\n" not in said


def test_videos_numbered_after_their_prompt_are_one_cluster_and_equal_motion_tells_its_pairs(files):
    """Breaks if five videos of a text count as five prompts where nobody gave the prompts."""
    first, other = (
        document({name: (None, scores) for name, (_, scores) in drawn(seed).items()})
        for seed in (1, 2)
    )
    other["videos"][3]["scores"][MOTION] = None
    found = only(files(first, other))
    assert found["clustered_by"] == "name"
    one = found["differences"][SUBJECT]
    assert (one["n"], one["prompts"], one["equal"]["n"]) == (16, 8, 15)
    (shown,) = tables({"first": "a", "against": {"b": found}})
    assert "intervals over prompts, by the names of the videos" in shown.title
    assert any(cell.endswith(", n = 15") for cell in shown.columns[-1].cells)
