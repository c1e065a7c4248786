"""Progress: plain lines in logs, a bar that leaves its numbers room, and what an endless video waits for."""

import io

import pytest
import run_workers
import torch
from rich.console import Console
from run_workers import configuration

from miga_bench.cli import main
from miga_bench.cli_score import _progress
from miga_bench.harness import bars
from miga_bench.harness.bars import PlainLines, hours
from miga_bench.harness.progress import ProgressBar, RunProgress
from miga_bench.harness.scorers import Found
from miga_bench.sampling.base import PassReport

FRAME = torch.zeros(1, 3, 8, 8)


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(PlainLines.__init__, "__defaults__", (clock,))
    return clock


def passed(windows, index=0):
    return PassReport("queue", index, (0, 8), windows, nfe=windows)


def test_a_log_has_a_line_a_minute(clock, capsys):
    with ProgressBar() as bar:
        clock.now += 30
        bar.started(100, 300)
        bar.passed(passed(10))
        assert capsys.readouterr().err == ""
        clock.now += 30
        bar.passed(passed(20))
        bar.wrote(FRAME, 9)
        assert capsys.readouterr().err == (
            "miga-bench: 0/300 frames, 0:01:00 elapsed, about 0:02:00 left\n"
        )
        clock.now += 59
        bar.passed(passed(30))
        assert capsys.readouterr().err == ""
        clock.now += 1
        bar.wrote(FRAME, 33)
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("miga-bench: 33/300 frames, 0:02:00 elapsed, about ")


def test_a_runs_log_counts_videos(clock, capsys):
    with RunProgress([100, 100, 50]) as bar:
        bar.begin(0)
        bar.started(100, 300)
        bar.passed(passed(100))
        bar.end()
        bar.begin(1)
        bar.started(100, 300)
        clock.now += 150
        bar.passed(passed(25))
        assert capsys.readouterr().err == (
            "miga-bench: video 2 of 3, 0/300 frames, 0:02:30 elapsed, about 0:02:30 left\n"
        )


def test_a_video_counts_by_what_it_costs_not_by_its_windows(clock, capsys):
    """Breaks if a method whose few windows hold the whole video is told to be nearly done."""
    with RunProgress([3000, 1000]) as bar:
        bar.begin(0)
        bar.started(30, 300)
        clock.now += 150
        bar.passed(passed(15))
        bar.end()
        bar.begin(1)
        bar.started(100, 300)
        assert capsys.readouterr().err == (
            "miga-bench: video 1 of 2, 0/300 frames, 0:02:30 elapsed, about 0:04:10 left\n"
        )
        clock.now += 75
        bar.passed(passed(50))
        (line,) = capsys.readouterr().err.splitlines()
        assert line.endswith("about 0:00:32 left"), "3500 of 4000 took 225 s"


def test_a_video_that_another_run_made_or_that_failed_early_counts(clock, capsys):
    """Breaks if only videos that were begun count: the number and the time left are off from then on."""
    with RunProgress([100, 100, 50]) as bar:
        for place in range(2):
            bar.begin(place)
            bar.end()
        bar.begin(2)
        clock.now += 60
        bar.started(100, 300)
        clock.now += 200
        bar.passed(passed(50))
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("miga-bench: video 3 of 3, 0/300 frames, 0:04:20 elapsed, about ")


def test_scoring_finished_videos_says_how_far_it_is(clock, capsys, tmp_path, monkeypatch):
    """Breaks if a finished run that gets another metric is silent for as long as that takes."""

    def slow(self, video, item):
        clock.now += 40
        return Found({"bytes": 1.0})

    few = {"data__seeds": [0], "data__limit": 3}
    assert main(["predict", "--config", str(configuration(tmp_path, **few))]) == 0
    monkeypatch.setattr(run_workers.CountingScorer, "score", slow)
    scored = few | {"model__metrics": [{"class_path": "run_workers.CountingScorer"}]}
    config = configuration(tmp_path, **scored, run__quiet=False)
    capsys.readouterr()
    assert main(["predict", "--config", str(config)]) == 0
    assert capsys.readouterr().err.splitlines() == [
        "miga-bench: video 3 of 3, 0:01:20 elapsed, about 0:00:40 left"
    ]


def test_a_process_that_waits_for_others_says_so(clock, capsys, terminal):
    """Breaks if a run looks hung while the slowest process makes its last video."""
    with RunProgress([1]) as log:
        for _ in range(3):
            clock.now += 59
            log.waiting()
    assert capsys.readouterr().err == (
        "miga-bench: waiting for the other processes, 0:01:58 elapsed\n"
    )
    shown = terminal(80)
    with RunProgress([1]) as bar:
        bar.waiting()
        bar.waiting()
    assert shown.getvalue().count("note: waiting for the other processes") == 1


def test_quiet_has_no_lines(clock, capsys):
    with ProgressBar(quiet=True) as bar:
        bar.started(100, 300)
        clock.now += 500
        bar.passed(passed(50))
    with _progress("scoring", True) as progress:
        progress(0, 4, "")
        clock.now += 500
        progress(1, 4, "a.mp4")
    assert capsys.readouterr() == ("", "")


def test_scores_that_go_on_judge_what_is_left_by_what_they_did(clock, capsys):
    with _progress("scoring", False) as progress:
        progress(10, 20, "")
        clock.now += 60
        progress(12, 20, "a.mp4")
    assert capsys.readouterr().err == (
        "miga-bench: scoring, 12 of 20, 0:01:00 elapsed, about 0:04:00 left\n"
    )


def test_hours():
    assert [hours(s) for s in (0, 61.6, 3600 * 30)] == ["0:00:00", "0:01:02", "30:00:00"]


@pytest.fixture
def terminal(monkeypatch):
    """Return a function that makes a terminal of a width, and the text that it was sent."""

    def of(width):
        file = io.StringIO()
        monkeypatch.setattr(
            bars,
            "Console",
            lambda stderr: Console(file=file, force_terminal=True, width=width, color_system=None),
        )
        return file

    return of


@pytest.mark.parametrize("width", [40, 60, 80])
def test_numbers_stay_in_a_narrow_terminal(terminal, width):
    file = terminal(width)
    with ProgressBar() as bar:
        bar.started(100, 300)
        bar.passed(passed(50, 120))
        bar.wrote(FRAME, 150)
    shown = file.getvalue()
    assert "150/300 frames 0:00:00 " in shown
    assert ("\u2501" in shown) is (width >= bars.WIDE)


def test_an_endless_video_says_how_long_its_first_frame_takes(clock, capsys):
    with ProgressBar() as bar:
        bar.started(40, None)
        clock.now += 60
        bar.passed(passed(10))
        assert capsys.readouterr().err.endswith("0 frames, 0:01:00 elapsed, about 0:03:00 left\n")
        bar.wrote(FRAME, 1)
        clock.now += 60
        bar.passed(passed(50))
        assert capsys.readouterr().err == "miga-bench: 1 frames, 0:02:00 elapsed\n"
