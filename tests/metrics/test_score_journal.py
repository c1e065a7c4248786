"""What a stopped ``miga-bench score`` left: only what was made just so is gone on with."""

import json
from dataclasses import asdict, replace

import pytest
from test_score_command import moving, request, write

import miga_bench.harness.score
from miga_bench.errors import UserError
from miga_bench.harness.provenance import versions
from miga_bench.harness.score import score
from miga_bench.metrics.networks.tiny import tiny_encoder


@pytest.fixture
def folder(tmp_path):
    for speed in (1, 3):
        write(tmp_path / "videos" / f"{speed}.mp4", moving(speed=speed))
    return tmp_path / "videos"


def test_another_scorings_journal_is_not_mixed_in(folder):
    journal = folder.parent / "scores.jsonl"
    journal.write_text('{"plan": {"long": true}}\n')
    with pytest.raises(UserError, match="another scoring"):
        score(request(folder))
    plan = asdict(request(folder).plan)
    journal.write_text(json.dumps({"plan": plan, "version": "9.1"}) + "\n")
    with pytest.raises(
        UserError, match=r"was begun by miga-bench 9\.1, this is .*: finish it with"
    ):
        score(request(folder))
    assert journal.exists()


OTHERS = {
    "weights": r"networks.subject_consistency.encoder.sha256 '[0-9a-f]+\.\.\. -> 'other'",
    "opencv": r"networks.dynamic_degree.\w+.weights 'none; OpenCV \S+' -> 'none; OpenCV 1'",
    "pyav": r"decoder 'PyAV \S+, all frames, RGB' -> 'PyAV 1, all frames, RGB'",
    "torch": r"versions.torch '\S+' -> '1'",
}


@pytest.mark.parametrize("changed", OTHERS)
def test_a_stopped_command_is_not_finished_with_other_networks(folder, monkeypatch, changed):
    """Breaks if values of two networks stand in one document, which names the second."""
    asked = request(folder, dimensions=["subject_consistency", "dynamic_degree"])

    def stop(done, total, name):
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score(asked, stop)
    kept = asked.journal.read_bytes()
    with monkeypatch.context() as other:
        if changed == "weights":
            encoder = tiny_encoder()
            another = replace(encoder.provenance, sha256="other")
            other.setattr(encoder, "provenance", another)
        elif changed == "opencv":
            other.setattr("miga_bench.metrics.networks.flow.version", lambda package: "1")
        elif changed == "pyav":
            other.setattr(miga_bench.harness.score, "version", lambda package: "1")
        else:
            told = {**versions(), "torch": "1"}
            other.setattr(miga_bench.harness.score, "versions", lambda: told)
        with pytest.raises(
            UserError, match=rf"other networks or packages \({OTHERS[changed]}\): finish"
        ):
            score(asked)
    assert asked.journal.read_bytes() == kept
    assert not asked.output.exists()
    resumed = score(asked)
    assert resumed["versions"] == versions()
    assert not asked.journal.exists()
