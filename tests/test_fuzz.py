"""What comes from outside, at random: a good value or one line, and nothing written elsewhere. About 25 s.

Whatever is in a file, a reader of it returns what it promises or raises ``UserError``, whose text is one
line that a terminal shows as it is. The examples are the same every time.
"""

import json
from pathlib import Path

import pytest
import torch
import yaml
from helpers import Code
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from report_runs import RunFolder
from run_workers import SETTINGS
from test_runs import item

from miga_bench.backbones.checkpoint import read_json, read_state, weight_files
from miga_bench.cli import main
from miga_bench.errors import UserError
from miga_bench.export.choice import DenoiserChoice
from miga_bench.export.facts import ExportFacts
from miga_bench.export.sidecar import Sidecar
from miga_bench.harness.arms import ArmPlan, expand
from miga_bench.harness.configurations import read as read_configuration
from miga_bench.harness.generate import kind_of
from miga_bench.harness.locks import NamedLock
from miga_bench.harness.prompt_lists import read_wishes
from miga_bench.harness.request import GenerateRequest, PromptAt
from miga_bench.harness.results import read_results
from miga_bench.harness.runs import Run
from miga_bench.harness.score import _head, _known
from miga_bench.harness.score_request import Plan
from miga_bench.harness.score_sources import find_videos, with_prompts
from miga_bench.harness.seals import sealed
from miga_bench.harness.store import Store
from miga_bench.harness.tracking.uri import tracking_uri
from miga_bench.metrics.narrlv.answers import AnswerFile, read_answers
from miga_bench.metrics.narrlv.quality import read_quality
from miga_bench.metrics.narrlv.suite import load_suite
from miga_bench.sampling import resolve

PLAN = Plan(False, "tiny", ("subject_consistency",))
SUITES = Path(__file__).parents[1] / "miga_bench" / "prompts"
bounded = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
WORDS = """prompt id then negative_prompt frames seeds model data run trainer made_of items name arms
settings method files status video scores reasons series seal key plan item quality kind version vote
provenance question category answer prompts cost timings bytes sha256 weight_map format graph onnx inputs
outputs pid host since ../up /etc/passwd .. 1e400 .nan nan null""".split()  # noqa: SIM905
WORDS += ["a\nb", "\x1b[31m", "\ud800", ""]
texts = st.sampled_from(WORDS) | st.text(max_size=12)
leaves = st.none() | st.booleans() | st.integers(-(10**30), 10**30) | st.floats(width=32) | texts
values = st.recursive(
    leaves,
    lambda part: st.lists(part, max_size=3) | st.dictionaries(texts, part, max_size=4),
    max_leaves=12,
)
YAML_TRAPS = [
    "[" * 100_000,
    "{a: " * 2000,
    "&a [*a]",
    "a: &a\n  b: *a",
    "!!python/object/apply:os.system ['touch /tmp/owned']",
    "!!timestamp x",
    "d: 2001-99-99",
    "!!bool x",
    "!!binary x",
    "? {a: b}\n: c",
    "\x00",
    "a: b: c",
    "<<: 3",
    "--- a\n--- b",
    "%YAML 9.9\n---\na",
    "- " * 500,
    "x: !!float nan.",
    "!!int ''",
    "!!set {a, b}",
    "\n".join(
        ["a0: &a0 [x]"] + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    ),
]


def good_or_one_line(call):
    """Return what a reader returns; None if it refuses, which is one printable line."""
    try:
        return call()
    except UserError as error:
        text = str(error)
        assert text
        assert text.isprintable(), repr(text)
        return None


def changed(document, path, value):
    """Return a document with a value in another place, or without it."""
    copy = json.loads(json.dumps(document))
    part = copy
    for step in path[:-1]:
        part = part[step]
    if value is ...:
        del part[path[-1]]
    else:
        part[path[-1]] = value
    return copy


def paths(document, before=()):
    """Return where every value of a document is."""
    found = []
    steps = document.items() if isinstance(document, dict) else enumerate(document)
    for step, part in steps:
        found.append((*before, step))
        if isinstance(part, dict | list):
            found += paths(part, (*before, step))
    return found


def near(document):
    """Documents that are like a good one but in one place."""
    return st.builds(
        changed, st.just(document), st.sampled_from(paths(document)), values | st.just(...)
    )


def dumped(value):
    return json.dumps(value, ensure_ascii=True)


ENTRY = {"prompt": "a", "id": "x", "then": {"5": "b"}, "negative_prompt": "c", "frames": 9} | {
    "seeds": [0, 1]
}


@bounded
@given(values | near([ENTRY, "text"]))
def test_prompt_lists(entries):
    wishes = good_or_one_line(
        lambda: read_wishes(entries if isinstance(entries, list) else [entries])
    )
    for wish in wishes or ():
        assert Path(wish.id).name == wish.id not in (".", "..")
        assert all(text.text.strip() and text.text.isprintable() for text in wish.prompts)


@bounded
@given(
    st.sampled_from([".txt", ".jsonl", ".json", ".yaml"]),
    st.binary(max_size=40)
    | st.sampled_from(YAML_TRAPS).map(str.encode)
    | values.map(dumped).map(str.encode),
)
def test_prompt_files(tmp_path_factory, kind, content):
    path = scratch(tmp_path_factory) / f"p{kind}"
    path.write_bytes(content)
    good_or_one_line(lambda: read_wishes(str(path)))


@bounded
@given(
    st.sampled_from(YAML_TRAPS)
    | values.map(dumped)
    | st.text(max_size=40).filter(lambda t: is_utf8(t))
)
def test_configurations_as_files(tmp_path_factory, text):
    path = scratch(tmp_path_factory) / "c.yaml"
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    good_or_one_line(lambda: read_configuration(str(path)))
    assert not Path("/tmp/owned").exists()


def is_utf8(text):
    try:
        return bool(text.encode())
    except UnicodeEncodeError:
        return False


CONFIGURATION = {
    "model": {
        "backbone": {"class_path": "run_workers.CountingBackbone"},
        "method": "miga",
        "settings": SETTINGS,
        "arms": {"one": {"settings": {"zigzag": 3}}},
    },
    "data": {"prompts": ["a", {"prompt": "b", "frames": 9}], "seeds": [0], "frames": 9},
    "trainer": {"accelerator": "cpu", "devices": 1},
    "run": {"name": "run", "quiet": True, "about": {"title": "T"}},
    "tracking": {"enabled": False},
}


@settings(bounded, max_examples=25)
@given(near(CONFIGURATION))
def test_configurations_as_commands(tmp_path_factory, document):
    """Through Lightning's parser to the verb that looks and makes nothing."""
    root = scratch(tmp_path_factory)
    run = document.get("run")
    if isinstance(run, dict):
        run["root"] = str(root / "runs")
    path = root / "c.yaml"
    path.write_text(dumped(document))
    said = []
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setattr("miga_bench.cli.say", said.append)
        code = main(["validate", "--config", str(path)])
    assert code in (0, 2), said
    assert all(len(line.splitlines()) == 1 for line in said)
    assert sorted(p.name for p in root.iterdir()) == ["c.yaml"]


@bounded
@given(values, st.none() | values)
def test_arms_and_grids(arms, grid):
    base = ArmPlan("miga", None, {})
    found = good_or_one_line(
        lambda: expand(
            base, arms if isinstance(arms, dict) else None, grid if isinstance(grid, dict) else None
        )
    )
    for name in found or ():
        assert Path(name).name == name not in (".", "..")


@bounded
@given(texts, texts, st.dictionaries(texts | st.sampled_from(list(SETTINGS)), texts, max_size=3))
def test_names_and_settings(method, preset, overrides):
    kind = kind_of("tiny-wan", DenoiserChoice())
    good_or_one_line(lambda: resolve("miga", kind, None, overrides))
    good_or_one_line(lambda: resolve(method, kind, preset, overrides))
    good_or_one_line(lambda: DenoiserChoice.parse(method))


@bounded
@given(texts, texts.filter(lambda name: "\x00" not in name))
def test_requests(tmp_path_factory, prompt, name):
    folder = scratch(tmp_path_factory)
    output = folder / name
    request = GenerateRequest([PromptAt(prompt)], output, frames=9)
    good_or_one_line(request.check)
    assert list(folder.iterdir()) == []


MANIFEST = {
    "format": 1,
    "key": "0" * 16,
    "status": "done",
    "error": None,
    "frames": 9,
    "frame_rate": 8.0,
    "cost": {"nfe": 3, "windows": 2, "passes": {}, "reflection": {}},
    "files": {"video.mp4": {"bytes": 0, "sha256": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4"}},
    "timings": {"started": "x", "seconds": {}, "total_seconds": 1.0, "peak_memory_mib": {}},
}


@bounded
@given(values | near(MANIFEST))
def test_manifests_and_scores(tmp_path_factory, document):
    store = Store(scratch(tmp_path_factory))
    folder = store.folder("k" * 16)
    (folder / "scores").mkdir(parents=True)
    (folder / "video.mp4").touch()
    document = sealed(document) if isinstance(document, dict) else document
    for name in ("manifest.json", "scores/a-1.json"):
        (folder / name).write_text(dumped(document))
    manifest = store.manifest("k" * 16)
    assert manifest is None or set(manifest["files"]) <= {"video.mp4", "sheet.png"} | {
        "passes.jsonl",
        "error.txt",
    }
    damage = store.damage("k" * 16)
    assert (damage is None) == (manifest is not None)
    found = store.scores("k" * 16, "a-1.json", "abc")
    assert found is None or found["video"] == "abc"


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """A good run, and what its run.yaml says."""
    arms = {
        "one": {"method": "miga", "settings": {"steps": 8}},
        "two": {"method": "fifo"} | {"settings": {}},
    }
    writer = RunFolder(tmp_path_factory.mktemp("runs"), "mine", arms, {"p1": "a", "p2": "b"})
    for arm in arms:
        writer.item(arm, "p1", scores={"x": 0.5})
    folder = writer.close()
    return folder, yaml.safe_load((folder / "run.yaml").read_text())


@bounded
@given(st.data())
def test_run_yaml(run_folder, data):
    folder, document = run_folder
    path = folder / "run.yaml"
    content = data.draw(
        near(document).map(dumped) | values.map(dumped) | st.sampled_from(YAML_TRAPS)
    )
    whole = path.read_text()
    path.write_text(content)
    try:
        results = good_or_one_line(lambda: read_results(folder))
        for row in results.rows if results else ():
            assert row.folder.resolve().parent == (folder.parent / "items").resolve()
        run = Run(folder.parent, folder.name)
        good_or_one_line(lambda: run.look(document["made_of"], {"p1-0": item()}))
    finally:
        path.write_text(whole)


DEEP = "[" * 100_000
ROW = {"key": "k", "frames": 9, "scores": {"a": {"value": 1.0}}, "reason": None}
ANSWER = {"item": "i", "category": "c", "question": 0, "vote": 1, "answer": "yes"}
HEAD = _head(PLAN, [], {})
HOLDER = {"pid": 1, "host": "h", "since": "s"}
LINES = near(ROW) | near(ANSWER) | near(HOLDER) | values


@bounded
@given(
    st.lists(LINES.map(dumped) | st.text(max_size=9).filter(is_utf8) | st.just(DEEP), max_size=4)
)
def test_journals_locks_and_answers(tmp_path_factory, lines):
    folder = scratch(tmp_path_factory)
    head = dumped(HEAD)
    path = folder / "scores.jsonl"
    path.write_text("".join(line + "\n" for line in [head, *lines]), encoding="utf-8")
    good_or_one_line(lambda: dict(_known(path, HEAD)))
    good_or_one_line(lambda: read_answers(path))
    header = dumped({"kind": "narrlv-answers", "version": 1, "provenance": {"a": 1}})
    path.write_text("".join(line + "\n" for line in [header, *lines]), encoding="utf-8")
    good_or_one_line(lambda: read_answers(path))
    good_or_one_line(lambda: AnswerFile(path, {"a": 1}).close())
    lock = NamedLock(folder / "lock")
    lock.acquire()
    (folder / "lock").write_text("\n".join(lines), encoding="utf-8")
    holder = NamedLock(folder / "lock").holder()
    assert holder is not None
    lock.release()


@bounded
@given(st.data())
def test_suites(tmp_path_factory, story, data):
    folder = scratch(tmp_path_factory)
    path = folder / "any_target_action_tna_2.json"
    path.write_text(dumped(data.draw(values | near(story))))
    suite = good_or_one_line(lambda: load_suite(path))
    for one in suite.items if suite else ():
        assert one.video(folder).resolve().parent.parent == folder.resolve()
    rated = folder / "q.jsonl"
    rated.write_text(dumped(data.draw(values)))
    if suite:
        good_or_one_line(lambda: read_quality(rated, suite))


@pytest.fixture(scope="module")
def story():
    (path,) = SUITES.rglob("natural_target_action_tna_2.json")
    whole = json.loads(path.read_text())
    group, entries = next(iter(whole.items()))
    return {group: entries[:1]}


@bounded
@given(values, st.lists(texts.filter(lambda n: "\x00" not in n and "/" not in n), max_size=2))
def test_prompts_of_videos_and_names_of_files(tmp_path_factory, document, names):
    folder = scratch(tmp_path_factory)
    for name in names:
        try:
            (folder / f"{name}.mp4").write_bytes(b"no video")
        except (OSError, UnicodeEncodeError):
            continue  # the file system takes no such name
    good_or_one_line(lambda: find_videos([folder]))
    path = folder / "p.json"
    path.write_text(dumped(document))
    good_or_one_line(lambda: with_prompts([], path))


@bounded
@given(values | near({"weight_map": {"a": "b.safetensors"}}), st.binary(max_size=64))
def test_weights(tmp_path_factory, document, content):
    folder = scratch(tmp_path_factory)
    index = folder / "m.safetensors.index.json"
    index.write_text(dumped(document))
    good_or_one_line(lambda: read_json(index))
    for path in good_or_one_line(lambda: weight_files(folder, "m")) or ():
        assert path.parent == folder
    for name in ("w.safetensors", "w.bin", "w.pt"):
        (folder / name).write_bytes(content)
        good_or_one_line(lambda name=name: read_state([folder / name]))


SIDECAR = {
    "format": 1,
    "graph": "denoiser",
    "onnx": "denoiser.onnx",
    "external_data": ["denoiser.bin"],
    "backbone": {"name": "a", "family": "wan", "weights_hash": "b"},
    "precision": "fp32",
    "opset": 18,
    "inputs": {"latents": {"dtype": "float32", "shape": ["batch", 3], "min": [1, 3]}},
    "outputs": {"out": {"dtype": "float32", "shape": ["batch", 3]}},
    "operators": {"Add": 3},
    "sha256": {"denoiser.onnx": "c", "denoiser.bin": "d"},
    "code": {},
    "parity": [],
    "tolerance": 1e-4,
}


@bounded
@given(values | near(SIDECAR))
def test_sidecars_of_exports(tmp_path_factory, document):
    folder = scratch(tmp_path_factory)
    (folder / "denoiser.json").write_text(dumped(document))
    (folder / "export.json").write_text(dumped(document))
    sidecar = good_or_one_line(lambda: Sidecar.read(folder, "denoiser"))
    if sidecar is not None:
        good_or_one_line(sidecar.check)
        assert sidecar.path.parent == folder
    good_or_one_line(lambda: ExportFacts.read(folder))


@bounded
@given(texts | st.builds("http://{}:{}/{}".format, texts, texts, texts))
def test_tracking_uris(text):
    good_or_one_line(lambda: tracking_uri(text, Path("/tmp")))


@pytest.mark.parametrize("name", ["w.bin", "w.pt", "w.ckpt", "w.safetensors"])
def test_code_in_weights_is_never_run(tmp_path, name):
    for content in (
        Code(tmp_path / "owned"),
        {"a": torch.zeros(1), "b": Code(tmp_path / "owned")},
    ):
        for zipped in (True, False):
            torch.save(content, tmp_path / name, _use_new_zipfile_serialization=zipped)
            assert good_or_one_line(lambda: read_state([tmp_path / name])) is None
    assert not (tmp_path / "owned").exists()


COUNT = iter(range(10**6))


def scratch(factory):
    folder = factory.getbasetemp() / f"fuzz-{next(COUNT)}"
    folder.mkdir()
    return folder
