"""Answers on disk: asked once each, whatever happens in between; and wrong files are refused."""

import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from narrlv_fixtures import NATURAL

from miga_bench.errors import JudgeDownError, UserError
from miga_bench.metrics.narrlv.answers import (
    AnswerFile,
    Slot,
    TensorVideo,
    answers_to,
    ask,
    provenance_of,
    read_answers,
    slots,
)
from miga_bench.metrics.narrlv.judge import Sampling, original_frames
from miga_bench.metrics.narrlv.scorer import score_video
from miga_bench.metrics.narrlv.suite import load_suite

FILE = NATURAL / "natural_target_action_tna_2.json"
SUITE = load_suite(FILE)
TOTAL = sum(len(slots(item)) for item in SUITE.items)


class Oracle:
    """Answers by a hash of what it is asked and shown; breaks down after some answers if told to."""

    def __init__(self, concurrency=1, until=None, mood="calm"):
        self.concurrency = concurrency
        self.until = until
        self.mood = mood
        self.asked = []
        self._lock = threading.Lock()

    def frames(self, total, category):
        return original_frames(total, category)

    def __call__(self, frames, question, seed):
        with self._lock:
            if self.until is not None and len(self.asked) >= self.until:
                raise JudgeDownError("the judge does not answer")
            self.asked.append((question, seed, len(frames)))
        said = f"{question}/{seed}/{frames.sum().item()}".encode()
        return "Yes." if hashlib.blake2b(said).digest()[0] % 2 else "No."

    def provenance(self):
        return {"judge": "oracle", "mood": self.mood}


def video(item):
    """Twenty frames that no other item has."""
    shade = len(item.prompt) % 200
    return TensorVideo(torch.full((20, 3, 8, 8), shade, dtype=torch.uint8))


def test_everything_is_asked_and_scored(tmp_path):
    judge = Oracle()
    progress = list(ask(SUITE, judge, video, tmp_path / "a.jsonl"))
    assert [p.done for p in progress] == list(range(1, TOTAL + 1))
    assert {p.total for p in progress} == {TOTAL}
    # five votes with five seeds; four categories see one frame, the others ten
    assert len(judge.asked) == len(set(judge.asked)) == TOTAL
    shown = {question: count for question, _, count in judge.asked}
    assert shown["Does the scene take place at or in a town park?"] == 1
    assert shown["Is the town park deformed in an unnatural way at any time?"] == 10
    provenance, answers = read_answers(tmp_path / "a.jsonl")
    assert provenance == provenance_of(SUITE, judge)
    for item in SUITE.items:
        given = answers_to(item, answers)
        assert score_video(item, given).answers == len(slots(item))


def test_a_stop_loses_nothing_and_the_next_run_asks_only_the_rest(tmp_path):
    path = tmp_path / "a.jsonl"
    whole = dict(_answers(ask(SUITE, Oracle(), video, tmp_path / "whole.jsonl")))
    for concurrency in (1, 4):
        path.unlink(missing_ok=True)
        broken = Oracle(concurrency, until=23)
        with pytest.raises(JudgeDownError):
            list(ask(SUITE, broken, video, path))
        assert len(read_answers(path)[1]) == 23
        rest = Oracle(concurrency)
        progress = list(ask(SUITE, rest, video, path))
        assert progress[0].done == 24
        assert len(rest.asked) == TOTAL - 23
        assert not set(rest.asked) & set(broken.asked)
        assert read_answers(path)[1] == whole
        assert list(ask(SUITE, Oracle(until=0), None, path)) == []


def _answers(progress):
    return ((p.slot, p.answer) for p in progress)


KILLED = """
import sys, time
sys.path.insert(0, {here!r})
from pathlib import Path
from miga_bench.metrics.narrlv import load_suite, ask

class Slow:
    concurrency = 1
    def frames(self, total, category): return [0]
    def __call__(self, frames, question, seed):
        time.sleep(0.005)
        return f"Yes {{seed}}"
    def provenance(self): return {{"judge": "slow"}}

class Blank:
    def __len__(self): return 1
    def pick(self, indices): return None

for _ in ask(load_suite({suite!r}), Slow(), lambda item: Blank(), {path!r}): pass
"""


def test_a_killed_run_is_gone_on_with(tmp_path):
    path = tmp_path / "a.jsonl"
    code = KILLED.format(here=str(Path(__file__).parent), suite=str(FILE), path=str(path))
    run = subprocess.Popen([sys.executable, "-c", code])
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (path.exists() and path.stat().st_size > 2000):
        time.sleep(0.01)
    os.kill(run.pid, signal.SIGKILL)
    run.wait()
    first = path.read_bytes()
    kept = read_answers(path)[1]
    assert 0 < len(kept) < TOTAL
    path.write_bytes(first[:-7])  # as if the kill had come in the middle of a line
    subprocess.run([sys.executable, "-c", code], check=True)
    provenance, answers = read_answers(path)
    assert len(answers) == TOTAL
    assert path.read_text().count("\n") == TOTAL + 1
    assert {slot: answers[slot] for slot in kept} == kept
    assert provenance["judge"] == {"judge": "slow"}


def test_another_judge_suite_or_seed_is_refused_with_the_difference(tmp_path):
    path = tmp_path / "a.jsonl"
    list(ask(SUITE, Oracle(), video, path))
    before = path.read_bytes()
    with pytest.raises(UserError, match=r"judge\.mood: 'calm' is now 'cross'"):
        list(ask(SUITE, Oracle(mood="cross"), video, path))
    with pytest.raises(UserError, match="votes: 5 is now 3"):
        list(ask(SUITE, Oracle(), video, path, votes=3))
    with pytest.raises(UserError, match="seed: 0 is now 1"):
        list(ask(SUITE, Oracle(), video, path, seed=1))
    with pytest.raises(UserError, match="suite: "):
        list(ask(load_suite(NATURAL), Oracle(), video, path))
    assert path.read_bytes() == before


def test_a_wrong_or_damaged_file_is_refused_untouched(tmp_path):
    path = tmp_path / "a.jsonl"
    for text in ("hello", '{"a": 1}\n', "[1]\n", "hello\nyou", "\n"):
        path.write_text(text)
        with pytest.raises(UserError, match="is not a file of answers"):
            AnswerFile(path, {})
        assert path.read_text() == text
    path.write_text('{"kind": "narrlv-answers", "version": 9, "provenance": {}}\n')
    with pytest.raises(UserError, match="version 9, this reads 1"):
        AnswerFile(path, {})
    path.unlink()
    with AnswerFile(path, {}) as file:
        file.add(Slot("i", "c", 0, 0), "yes")
        file.add(Slot("i", "c", 0, 1), "no\nway")
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], lines[1][:-5], lines[2]]) + "\n")
    with pytest.raises(UserError, match="damaged in line 2"):
        AnswerFile(path, {})
    path.write_text("\n".join([lines[0], lines[1].replace('"yes"', "3")]) + "\n")
    with pytest.raises(UserError, match="damaged in line 2"):
        read_answers(path)
    with pytest.raises(UserError, match="cannot read answers"):
        read_answers(tmp_path / "none")


def test_a_file_that_never_got_its_header_is_begun_anew(tmp_path):
    path = tmp_path / "a.jsonl"
    for begin in ("", '{"kind": "narr', '{"kind": "narrlv-answers", "version": 1, "prov'):
        path.write_text(begin)
        AnswerFile(path, {"x": 1}).close()
        header = json.loads(path.read_text())
        assert header == {"kind": "narrlv-answers", "version": 1, "provenance": {"x": 1}}


def test_two_runs_do_not_write_one_file(tmp_path):
    path = tmp_path / "a.jsonl"
    with (
        AnswerFile(path, {}),
        pytest.raises(UserError, match="being written by another process"),
    ):
        AnswerFile(path, {})
    AnswerFile(path, {}).close()


def test_a_disk_without_locks_is_no_other_process(tmp_path, monkeypatch):
    """Breaks if somebody waits for a process that is not there."""

    def unknown(file, how):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", unknown)
    with pytest.raises(UserError, match=r"takes no lock \(No locks available\), .*another disk"):
        AnswerFile(tmp_path / "a.jsonl", {})


def test_missing_answers_are_named(tmp_path):
    item = SUITE.items[0]
    with pytest.raises(UserError, match=r"answers to .* are missing, first 'Scene Type'"):
        answers_to(item, {})


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"temperature": -1}, "temperature is -1; it must be at least 0"),
        ({"top_p": 0}, "above 0 and at most 1"),
        ({"repetition_penalty": 0}, "above 0"),
        ({"max_new_tokens": 0}, "at least 1"),
    ],
)
def test_sampling_is_checked(values, words):
    with pytest.raises(UserError, match=words):
        Sampling(**values)


def test_wrong_videos_and_votes_are_one_line(tmp_path):
    with pytest.raises(UserError, match="must be"):
        TensorVideo(torch.zeros(3, 8, 8))
    with pytest.raises(UserError, match="at least once"):
        list(ask(SUITE, Oracle(), video, tmp_path / "a.jsonl", votes=0))
    assert not (tmp_path / "a.jsonl").exists()
    floats = TensorVideo(torch.full((2, 3, 4, 4), 0.5))
    assert floats.pick([1, 1]).unique().tolist() == [128]
