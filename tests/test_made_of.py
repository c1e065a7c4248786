"""What decides the videos of a run: every change of it is told, and none of what does not count."""

import pytest
from mlflow_stores import make_run

from miga_bench.errors import UserError
from miga_bench.harness import ranks
from miga_bench.harness.items import Item
from miga_bench.harness.made_of import made_of
from miga_bench.harness.prompt_lists import Wish
from miga_bench.harness.request import PromptAt
from miga_bench.harness.results import read_results
from miga_bench.harness.runs import Run


def item(prompts, wanted, frames=21):
    common = {"backbone": "b", "weights_hash": None, "precision": "32-true", "method": "short"}
    own = {"settings": {}, "negative_prompt": "", "seed": 0, "height": 8, "width": 8}
    return Item(**common, **own, prompts=prompts, frames=frames).with_texts(prompts, wanted)


@pytest.mark.parametrize("later", ["a square", "a star"])
def test_a_short_clip_of_a_text_that_changes_is_known_by_all_of_it(later):
    """Breaks if a run of short clips goes on with prompts that say something else now."""
    texts = (PromptAt("a circle"), PromptAt(later, 25))
    wish = Wish("p001", texts)
    clip = item(texts[:1], ["a circle", later])
    found = made_of([wish], [0], {"short/p001-0": clip}, {clip.key: "short"})
    assert found["prompts"]["p001"]["then"] == {25: later}
    assert found["arms"] == {"short": {"method": "short", "settings": {}, "code_hash": None}}


def test_a_story_told_at_once_is_held_as_the_arms_were_told_it():
    parts, whole = (PromptAt("a"), PromptAt("b", 40)), (PromptAt("a and b"),)
    wish = Wish("p001", parts, at_once=whole)
    for told, then in ((parts, {40: "b"}), (whole, {}), ((PromptAt("a"),), {})):
        if (
            len(told) == 1 and told != whole
        ):  # of one atom, which its suite words otherwise as a whole
            wish = Wish("p001", told, at_once=whole)
        one = item(told, [prompt.text for prompt in told], 81)
        found = made_of([wish], [0], {"p001-0": one}, {one.key: ""})["prompts"]["p001"]
        assert (found["prompt"], found["then"], found["frames"]) == (told[0].text, then, 81)


def test_processes_that_would_make_other_videos_are_refused(monkeypatch):
    """Breaks if ranks of two kinds of GPU, or of two versions of the weights, wait for each other's videos."""
    monkeypatch.setattr(ranks, "on_every_rank", lambda trainer, work: work())
    for first in (["k1", "k2"], ["k1", "k3"]):
        monkeypatch.setattr(ranks, "agree", lambda trainer, decide, first=first: first)
        if first == ["k1", "k2"]:
            ranks.same_everywhere(None, ["k1", "k2"])
        else:
            with pytest.raises(UserError, match="would make different videos from process 0"):
                ranks.same_everywhere(None, ["k1", "k2"])


def test_a_run_of_another_version_is_not_read(tmp_path):
    folder = make_run(tmp_path)
    path = folder / "run.yaml"
    path.write_text(path.read_text().replace("format: 1", "format: 2"))
    why = r"its format is '2', of miga-bench '0\.1\.0'; this version reads 1\)"
    with pytest.raises(UserError, match=rf"run\.yaml cannot be read \(ValueError: {why}"):
        read_results(folder)
    with pytest.raises(UserError, match=rf"run\.yaml cannot be read \({why}.* another run\.name"):
        Run(tmp_path, folder.name).look({}, {})
