"""NarrLV suites: ours are sound, odd ones are noted, wrong ones are refused, the release is fetched whole."""

import functools
import hashlib
import http.server
import json
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from narratives import parse_narrative
from narrlv_fixtures import NATURAL, TINY

from miga_bench.backbones.tiny.grammar import parse_caption
from miga_bench.backbones.tiny.suite import write_suite
from miga_bench.errors import UserError
from miga_bench.metrics.narrlv.judge import original_frames, seed_of
from miga_bench.metrics.narrlv.quality import read_quality
from miga_bench.metrics.narrlv.release import COMMIT, FILES, fetch_release, release_folder
from miga_bench.metrics.narrlv.suite import FACTORS, FIDELITY, Suite, load_suite
from miga_bench.offline import OFFLINE

NAME = "natural_target_action_tna_2.json"


def changed(tmp_path, change, name=NAME):
    """A copy of one of our files with its first item changed."""
    content = json.loads((NATURAL / NAME).read_text())
    change(content["1"][0])
    path = tmp_path / name
    path.write_text(json.dumps(content))
    return path


def test_our_suites_are_regular():
    tiny, natural = load_suite(TINY), load_suite(NATURAL)
    cells = {(item.factor, item.tna) for item in tiny.items}
    assert cells == {(factor, tna) for factor in FACTORS for tna in range(1, 7)}
    cells = [(item.factor, item.tna) for item in natural.items]
    assert {cell: cells.count(cell) for cell in cells} == {
        (factor, tna): 3 for factor in FACTORS for tna in (2, 3, 4)
    }
    for suite in (tiny, natural):
        assert suite.notes == ()
        keys = [item.key for item in suite.items]
        assert len(set(keys)) == len(keys)
        for item in suite.items:
            assert set(FIDELITY) - set(item.questions) <= {"Initial Scene Attributes"}
            # four motions come back in stories of more states; nothing else is asked twice
            repeats = suite is tiny and item.factor == "target_action"
            assert repeats or all(len(set(qs)) == len(qs) for qs in item.questions.values())


def test_the_tiny_suite_is_what_its_command_writes(tmp_path):
    written = write_suite(tmp_path)
    assert {path.name for path in written} == {path.name for path in TINY.glob("*.json")}
    assert len(written) == 18
    for path in written:
        assert path.read_bytes() == (TINY / path.name).read_bytes(), path.name


def test_the_tiny_suite_speaks_the_embedded_worlds_language():
    for item in load_suite(TINY).items:
        story = parse_narrative(item.prompt)
        assert story.opening.held_out
        assert [scene.caption for scene in story.scenes] == list(item.segments)
        assert all(parse_caption(text) for text in item.segments)
        assert {event.factor for event in story.events} <= {item.factor}


def test_a_single_file_and_a_selection():
    one = load_suite(NATURAL / NAME)
    assert [item.name for item in one.items] == [
        "1_0_A brown dog sits on ",
        "2_0_A young woman reads ",
        "3_0_A skater glides stra",
    ]
    assert one.items[0].video(Path("v")) == Path("v", NAME[:-5], "1_0_A brown dog sits on .mp4")
    whole = load_suite(NATURAL)
    some = whole.select(factors=["target_action"], tnas=[2, 3])
    assert len(some.items) == 6
    assert some.digest == whole.digest != one.digest
    with pytest.raises(UserError, match="no items of factors any with TNA 6"):
        whole.select(tnas=[6])


def test_what_the_release_has_of_odd_items_is_noted(tmp_path):
    def fenced(item):
        item["prompt_gen"] = f"```\n{item['prompt_gen']}\n```"
        item["auto_gen_question"]["Main Target Category"] = []
        item["auto_gen_question"]["Main Target Action Evolution_0"].append("Is there a third?")

    suite = load_suite(changed(tmp_path, fenced))
    assert suite.items[0].prompt.startswith("A brown dog")
    assert suite.items[0].name == "1_0_A brown dog sits on "
    assert [note.split("item 1[0]: ")[1][:24] for note in suite.notes] == [
        "the prompt is in a code ",
        "'Main Target Category' h",
        "3 questions of 'Main Tar",
    ]


def test_a_name_from_a_file_is_no_path(tmp_path):
    path = changed(tmp_path, lambda item: item.update(prompt_gen="../../etc/passwd\n: a dog"))
    name = load_suite(path).items[0].name
    assert name == "1_0_.._.._etc_passwd__ a"
    assert Path(name).name == name
    content = json.loads(path.read_text())
    path.write_text(json.dumps({"../1": content["1"]}))
    with pytest.raises(UserError, match=r"class '\.\./1' must be"):
        load_suite(path)


QUESTIONS = "auto_gen_question"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda i: i.pop("prompt_gen"), "'prompt_gen' must be a text; it is missing or null"),
        (lambda i: i.update(prompt_gen=7), "must be a text"),
        (lambda i: i["prompt_gen_list_extract"].pop(), "has 1 segments"),
        (lambda i: i.update(auto_gen_question=[]), "must be an object; it is an empty list"),
        (lambda i: i[QUESTIONS].update(Mood=["Is it sad?"]), "category 'Mood' is unknown"),
        (lambda i: i[QUESTIONS].update({"Scene Type": "Is it?"}), "must be a list of texts"),
        (lambda i: i[QUESTIONS].update({"Scene Type": [None]}), "must be a list of texts"),
        (lambda i: i[QUESTIONS].pop("Main Target Action Evolution_0"), "needs the category"),
        (lambda i: i[QUESTIONS].pop("Main Target Action Evolution_1"), "TNA 2 has transitions"),
        (lambda i: i[QUESTIONS]["Main Target Action Evolution_0"].pop(), "each transition needs"),
    ],
)
def test_a_wrong_item_is_one_line_that_names_it(tmp_path, change, words):
    path = changed(tmp_path, change)
    with pytest.raises(UserError, match=words) as error:
        load_suite(path)
    assert NAME in str(error.value)
    assert "item 1[0]" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_wrong_file_or_folder_is_one_line(tmp_path):
    with pytest.raises(UserError, match="no narrative suite at"):
        load_suite(tmp_path / "none")
    with pytest.raises(UserError, match="must end in FACTOR_tna_N"):
        load_suite(tmp_path)
    path = tmp_path / "a_target_action_tna_2.json"
    for text, words in (
        ("{", "not JSON"),
        ("[]", "an empty list"),
        ('{"1": []}', "no items"),
        ('{"1": 3}', "list"),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=words):
            load_suite(path)
    (tmp_path / "b_target_action_tna_2.json").write_text("{}")
    with pytest.raises(UserError, match="keep one suite per folder"):
        load_suite(tmp_path)
    (tmp_path / "b_target_action_tna_2.json").unlink()
    path.write_bytes((NATURAL / NAME).read_bytes())
    (tmp_path / "notes.json").write_text("{}")
    assert load_suite(tmp_path).notes == ("notes.json: not the name of a suite file; left out",)


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    """One of our files behind real HTTP."""
    for switch in OFFLINE:
        monkeypatch.delenv(switch, raising=False)
    root = tmp_path / "mirror"
    root.mkdir()
    (root / NAME).write_bytes((NATURAL / NAME).read_bytes())
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(root))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield root, f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def test_the_release_is_fetched_once_and_checked(tmp_path, mirror):
    root, url = mirror
    files = {NAME: hashlib.sha256((root / NAME).read_bytes()).hexdigest()}
    folder = fetch_release(tmp_path / "cache", url, files)
    assert len(load_suite(folder).items) == 3
    (root / NAME).unlink()
    assert fetch_release(folder, url, files) == folder
    (folder / NAME).write_text("{}")
    with pytest.raises(UserError, match=r"is not the released file.*delete it"):
        fetch_release(folder, url, files)
    (root / NAME).write_text("{}")
    with pytest.raises(UserError, match="is not the released file"):
        fetch_release(tmp_path / "other", url, files)
    assert list((tmp_path / "other").iterdir()) == []
    with pytest.raises(UserError, match=r"cannot fetch NarrLV's missing\.json.*git clone"):
        fetch_release(tmp_path / "other", url, {"missing.json": ""})


@pytest.mark.parametrize("switch", OFFLINE)
def test_the_release_is_not_fetched_where_downloads_are_off(tmp_path, mirror, monkeypatch, switch):
    root, url = mirror
    files = {NAME: hashlib.sha256((root / NAME).read_bytes()).hexdigest()}
    there = fetch_release(tmp_path / "there", url, files)
    monkeypatch.setenv(switch, "1")
    assert fetch_release(there, url, files) == there
    with pytest.raises(UserError) as refusal:
        fetch_release(tmp_path / "new", url, files)
    told = str(refusal.value)
    assert f"downloads are off ({switch}); put the file there from {url}/{NAME}" in told
    assert f"{NAME} is not in {tmp_path / 'new'}" in told
    assert not (tmp_path / "new").exists()


def test_the_release_lies_in_the_cache(tmp_path, monkeypatch):
    place = Path("narrlv") / COMMIT[:12]
    monkeypatch.setenv("MIGA_BENCH_CACHE", str(tmp_path / "cache"))
    assert release_folder() == tmp_path / "cache" / place
    monkeypatch.delenv("MIGA_BENCH_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert release_folder() == tmp_path / ".cache" / "miga-bench" / place


def test_the_release_is_eighteen_files():
    assert len(FILES) == 18
    assert all(len(sha) == 64 for sha in FILES.values())
    cells = {f"prompt_suit_v4_{factor}_tna_{tna}.json" for factor in FACTORS for tna in range(1, 7)}
    assert set(FILES) == cells


def test_the_original_sees_the_first_or_ten_frames():
    assert original_frames(161, "Scene Type") == [0]
    evenly = [0, 17, 35, 53, 71, 88, 106, 124, 142, 160]
    assert original_frames(161, "Scene Anomaly Detection") == evenly
    assert original_frames(1, "Scene Anomaly Detection") == [0] * 10


def test_every_answer_has_its_own_seed():
    seeds = {
        seed_of(s, k, c, q, v)
        for s in (0, 1)
        for k in "ab"
        for c in "cd"
        for q in (0, 1)
        for v in (0, 1)
    }
    assert len(seeds) == 32
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert seed_of(0, "a", "c", 0, 0) == seed_of(0, "a", "c", 0, 0)


def test_qualities_are_read_in_each_form(tmp_path):
    suite = load_suite(NATURAL / NAME)
    first, second, _ = suite.items
    path = tmp_path / "q.json"
    path.write_text(json.dumps({first.key: 4.5, second.name: {"qalign_res": {"answer": [2.0]}}}))
    assert read_quality(path, suite) == {first.key: 4.5, second.key: 2.0}
    path.write_text(
        f'{{"item": "{first.key}", "quality": 3}}\n{{"item": "{second.key}", "quality": 1}}\n'
    )
    assert read_quality(path, suite) == {first.key: 3, second.key: 1}
    for text, words in (
        ('{"x": 3}', "no item of"),
        (json.dumps({first.key: 0.7}), "1 to 5"),
        (json.dumps({first.key: "good"}), "1 to 5"),
        ('{"item": "x"}\nnonsense', "line 1"),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=words):
            read_quality(path, suite)
    with pytest.raises(UserError, match="cannot read"):
        read_quality(tmp_path / "none", suite)


def test_a_quality_of_a_name_that_two_items_share_is_refused(tmp_path):
    """Breaks if it goes to one of them."""
    first = load_suite(NATURAL / NAME).items[0]
    suite = Suite((first, replace(first, part="other")), (), "", "here")
    path = tmp_path / "q.json"
    path.write_text(json.dumps({first.key: 4}))
    assert read_quality(path, suite) == {first.key: 4}
    path.write_text(json.dumps({first.name: 4}))
    with pytest.raises(UserError, match="no item of here"):
        read_quality(path, suite)


def test_loading_a_suite_needs_no_torch():
    code = "import sys, miga_bench.metrics.narrlv; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
