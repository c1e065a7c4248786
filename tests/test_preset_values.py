"""The presets hold the papers' numbers and the released codes'; every table made by them stands on these."""

import pytest

from miga_bench.sampling.preset_values import PRESETS

# MIGA's appendix on its settings, and the release's configurations where the paper says nothing
PAPER = {
    "wan": {
        "steps": 54,
        "zigzag": 7,
        "guidance_frames": 4,
        "stage2_steps": 10,
        "stride": 10,
        "guidance_scale": 5.0,
        "reflection_threshold": 0.01,
        "reflection_level": 54 - 10,  # ten steps done
        "reference_chunks": 2,
        "candidates": 3,
        "renoise": 0,
    },
    "videocrafter2": {
        "steps": 64,
        "zigzag": 4,
        "guidance_frames": 6,
        "stage2_steps": 10 - 1,  # latents leave stage 1 at index 9
        "stride": 8,
        "guidance_scale": 12.0,
        "reflection_threshold": 0.01,
        "reflection_level": 50 + 1,  # index 50 of 0 to 63
        "reference_chunks": 3,
        "candidates": 5,
        "renoise": 0,
    },
}
RELEASED = {
    "wan": {**PAPER["wan"], "renoise": 10, "released": True, "reflection": "growth"},
    "videocrafter2": {
        **PAPER["videocrafter2"],
        "guidance_frames": 4,
        "reflection_threshold": 0.001,  # the function's default: the configuration's is not passed on
        "reflection": "off",
        "renoise": 10,
        "released": True,
        "rescale": False,
    },
}


@pytest.mark.parametrize("family", PAPER)
def test_miga_has_the_papers_and_the_releases_numbers(family):
    """Breaks if a table that is told to be the paper's method is made by another."""
    for preset, wanted in (("paper", PAPER), ("release", RELEASED)):
        values = PRESETS[preset][family]["miga"]
        assert {name: values[name] for name in wanted[family]} == wanted[family]
    assert PRESETS["paper"][family]["miga"]["reflection"] == "continuous"
    assert PRESETS["paper"][family]["miga"]["guidance_reach"] == "chunks"


@pytest.mark.parametrize("family", PAPER)
def test_the_peers_have_their_papers_numbers(family):
    """Breaks if a peer is held against MIGA with settings that its authors did not use."""
    methods = PRESETS["paper"][family]
    steps, scale = PAPER[family]["steps"], PAPER[family]["guidance_scale"]
    for method in ("fifo", "scaling-noise"):
        assert (methods[method]["steps"], methods[method]["guidance_scale"]) == (steps, scale)
    search = {"beams": 3, "candidates": 5, "greedy": 0.8, "reward": "dino", "lookahead": True}
    assert {name: methods["scaling-noise"][name] for name in search} == search
    assert methods["freepca"]["stride"] == {"wan": 5, "videocrafter2": 4}[family]


def test_stock_methods_of_videocrafter2_sample_as_its_authors_do():
    """Breaks if FreeLong and FreePCA leave VideoCrafter's own sampling, or the queues take it up."""
    for method in ("freelong", "freepca"):
        values = PRESETS["paper"]["videocrafter2"][method]
        assert (values["steps"], values["grid"], values["rescale"], values["fps"]) == (
            50,
            "stock",
            True,
            28.0,
        )
    for method in ("fifo", "scaling-noise", "miga"):
        assert PRESETS["release"]["videocrafter2"][method]["rescale"] is False
