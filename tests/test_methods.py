"""Every method on every family: presets resolve, samplers run, a network is left as it was found."""

import dataclasses

import pytest
import torch
from vc2_fixtures import tiny_folder

from miga_bench.backbones import load_backbone
from miga_bench.errors import UserError
from miga_bench.sampling import (
    METHODS,
    PRESETS,
    CounterNoise,
    PromptSchedule,
    estimate_windows,
    resolve,
)
from miga_bench.sampling.cards import CARDS, tables
from miga_bench.sampling.denoise import WindowDenoiser

FEW = {
    "short": {},
    "fifo": {},
    "scaling-noise": {"beams": 2, "candidates": 2, "reward": "latent"},
    "freelong": {},
    "freepca": {"stride": 2},
    "miga": {
        "zigzag": 1,
        "guidance_frames": 2,
        "stride": 2,
        "stage2_steps": 2,
        "renoise": 2,
        "reflection": "off",
    },
}


@pytest.fixture(scope="module")
def videocrafter2(tmp_path_factory):
    folder = tiny_folder(tmp_path_factory.mktemp("vc2") / "model")
    return load_backbone(folder, device="cpu", window=4)


@pytest.fixture(scope="module")
def wan():
    return load_backbone("tiny-wan", device="cpu", window=4)


def make(backbone, method, length, **changes):
    settings = resolve(
        method, backbone, "paper", {"steps": 8, "guidance_scale": 2.0, **FEW[method], **changes}
    )
    words = ["a red circle moves right on a blue field", ""]
    prompts = PromptSchedule(backbone.encode(words[:1]), backbone.encode(words[1:]))
    noise = CounterNoise(5, backbone.latent_shape)
    return METHODS[method](settings).sample(backbone, prompts, noise, length)


@pytest.mark.parametrize(
    ("method", "change"),
    [
        ("miga", {"reflection": "contineous"}),
        ("miga", {"guidance_reach": "chunk"}),
        ("freelong", {"blend": "low_pass"}),
        ("scaling-noise", {"proposal": "noises"}),
    ],
)
def test_a_word_that_is_no_choice_is_refused_in_settings_made_by_hand(wan, method, change):
    """Breaks if a misspelled word is silently the last of the choices."""
    settings = dataclasses.replace(resolve(method, wan, overrides=FEW[method]), **change)
    ((name, word),) = change.items()
    with pytest.raises(UserError, match=f"{name} is '{word}': it must be one of"):
        estimate_windows(METHODS[method](settings), wan, 8)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", ["wan", "videocrafter2"])
def test_every_method_runs_on_every_family(method, family, request):
    backbone = request.getfixturevalue(family)
    length = 4 if method == "short" else 9
    once = make(backbone, method, length)
    assert once.shape == (length, *backbone.latent_shape)
    assert once.isfinite().all()
    assert torch.equal(make(backbone, method, length), once)


@pytest.mark.parametrize("family", ["wan", "videocrafter2"])
def test_methods_leave_the_network_as_they_found_it(family, request):
    backbone = request.getfixturevalue(family)
    denoiser, before = backbone.denoiser, make(backbone, "fifo", 2)
    for method in ("freelong", "freepca", "scaling-noise"):
        make(backbone, method, 6)
    assert backbone.denoiser is denoiser
    assert torch.equal(make(backbone, "fifo", 2), before)


@pytest.mark.parametrize("method", [name for name in METHODS if not METHODS[name].endless])
def test_what_is_not_endless_says_so(method, wan):
    settings = resolve(method, wan, "paper", FEW[method])
    prompts = PromptSchedule(wan.encode(["a red circle"]), wan.encode([""]))
    stream = METHODS[method](settings).stream(wan, prompts, CounterNoise(0, wan.latent_shape))
    with pytest.raises(UserError) as refused:
        next(stream)
    assert "\n" not in str(refused.value)
    assert method in str(refused.value)


def test_the_cards_are_those_of_the_methods():
    assert list(CARDS) == list(METHODS)
    facts = {name: (length, memory) for name, _, length, memory in tables()[0][1:]}
    assert facts == {
        "short": ("one window", "one window"),
        "fifo": ("endless", "constant"),
        "scaling-noise": ("endless", "constant"),
        "freelong": ("fixed", "grows with the length"),
        "freepca": ("fixed", "grows with the length"),
        "miga": ("endless", "constant"),
    }
    for name, (length, _) in facts.items():
        assert METHODS[name].endless == (length == "endless")
    for table in tables():
        assert [row[0] for row in table[1:]] == list(METHODS)


@pytest.mark.parametrize(
    ("preset", "family"), [(p, f) for p, table in PRESETS.items() for f in table]
)
def test_every_preset_is_complete(preset, family, request):
    """Breaks if a preset names a setting that is not there, or leaves out one without a default."""
    backbone = request.getfixturevalue(family)
    for method in PRESETS[preset][family]:
        assert resolve(method, backbone, preset).steps >= 2


def test_the_re_noise_pass_is_the_releases_and_no_papers(wan, videocrafter2):
    """With it MIGA takes 1.16 times FIFO's windows on VideoCrafter2; the paper's seconds are 1.01 times."""
    for backbone in (wan, videocrafter2):
        assert resolve("miga", backbone, "paper").renoise == 0
        assert resolve("miga", backbone, "release").renoise == 10
        assert resolve("miga", backbone, "tiny").renoise == 5


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [("grid", "stock", "stock"), ("rescale", "no", False), ("fps", "28", 28.0)],
)
def test_settings_left_to_the_backbone_can_be_given_as_text(name, text, value, videocrafter2):
    assert getattr(resolve("fifo", videocrafter2, "paper"), name) is None
    assert getattr(resolve("fifo", videocrafter2, "paper", {name: text}), name) == value
    with pytest.raises(UserError, match=name):
        resolve("fifo", videocrafter2, "paper", {name: "perhaps"})


@pytest.mark.parametrize(("name", "value"), [("grid", "stock"), ("rescale", True), ("fps", 8.0)])
def test_settings_of_the_other_family_are_refused(name, value, wan):
    with pytest.raises(UserError, match=rf"{name} is .*VideoCrafter2"):
        make(wan, "fifo", 2, **{name: value})


def test_guidance_frames_can_be_cut_off_where_there_are_convolutions(wan, videocrafter2):
    joined, cut = (make(videocrafter2, "miga", 8, guidance_cut=value) for value in (False, True))
    assert not torch.equal(joined, cut)
    without = {"guidance_frames": 0}
    plain = make(videocrafter2, "miga", 8, **without)
    assert torch.equal(make(videocrafter2, "miga", 8, guidance_cut=True, **without), plain)
    with pytest.raises(UserError, match="guidance_cut works only with VideoCrafter2"):
        make(wan, "miga", 8, guidance_cut=True)


def test_progress_knows_cut_guidance_frames(videocrafter2):
    few = {"steps": 8, **FEW["miga"]}
    settings = [
        resolve("miga", videocrafter2, "paper", {**few, "guidance_cut": cut})
        for cut in (False, True)
    ]
    joined, cut = (estimate_windows(METHODS["miga"](s), videocrafter2, 9) for s in settings)
    assert joined == cut > 0


@pytest.mark.parametrize("method", ["freelong", "freepca"])
def test_progress_knows_how_much_there_is_to_do(method, videocrafter2):
    settings = resolve(method, videocrafter2, "paper", {"steps": 8, **FEW[method]})
    assert estimate_windows(METHODS[method](settings), videocrafter2, 9) == 8


@pytest.mark.parametrize("method", ["fifo", "scaling-noise", "miga"])
def test_the_release_seeds_its_unscaled_queue_with_a_rescaled_clip(
    method, videocrafter2, monkeypatch
):
    """Breaks if the opening clip is sampled as the queue is, without the rescale."""
    made, denoise_clip = [], WindowDenoiser.denoise_clip

    def watch(denoiser, *args):
        made.append(denoise_clip(denoiser, *args))
        schedules.append(denoiser.solver.schedule)
        return made[-1]

    monkeypatch.setattr(WindowDenoiser, "denoise_clip", watch)
    schedules = []
    few = {"steps": 8, "guidance_scale": 2.0, **FEW[method]}
    words = ["a red circle moves right on a blue field", ""]
    prompts = PromptSchedule(videocrafter2.encode(words[:1]), videocrafter2.encode(words[1:]))
    for name, changes in (
        (method, {}),
        (method, {"released": False}),
        ("short", {"grid": None, "rescale": None, "fps": None}),
        ("short", {"grid": None, "rescale": False, "fps": None}),
    ):
        more = {**(few if name == method else {"steps": 8, "guidance_scale": 2.0}), **changes}
        chosen = dataclasses.replace(resolve(name, videocrafter2, "release"), **more)
        noise = CounterNoise(5, videocrafter2.latent_shape)
        METHODS[name](chosen).sample(videocrafter2, prompts, noise, 4)
    released, unscaled, rescaled_clip, plain_clip = made
    assert torch.equal(released, rescaled_clip)
    assert torch.equal(unscaled, plain_clip)
    assert not torch.equal(released, unscaled)
    assert torch.equal(schedules[0].alpha, schedules[1].alpha), "the queue is as it was"
