"""The tiny VideoCrafter2-family model: its training data, its training path and its files."""

import argparse
import json
import random
from dataclasses import replace

import pytest
import torch

from miga_bench.backbones import load_backbone
from miga_bench.backbones.tiny import evaluate, train, vc2_models, vc2_text, world
from miga_bench.backbones.tiny.config import PictureVaeConfig, UNetConfig
from miga_bench.backbones.tiny.drift import measure
from miga_bench.backbones.tiny.grammar import Scene, held_out_prompts, parse_caption, random_scene
from miga_bench.backbones.tiny.models import make_tokenizer
from miga_bench.backbones.tiny.vc2_data import FrameLatents, Pictures, compute_latents, load_latents
from miga_bench.cli import main
from miga_bench.sampling import CounterNoise, PromptSchedule, Short, ShortSettings


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """Latents that say where they come from: value = clip number, plus frame / 100."""
    folder = tmp_path_factory.mktemp("latents")
    clips = torch.arange(6.0).view(6, 1, 1, 1, 1) + torch.arange(40).view(1, 1, 40, 1, 1) / 100
    torch.save(clips.expand(6, 2, 40, 8, 8).half(), folder / "latents-0.pt")
    captions = [Scene("circle", "red", motion, "blue").caption for motion in world.HEADING] * 2
    (folder / "captions-0.json").write_text(json.dumps(captions[:6]))
    return folder


def test_clips_run_either_way_and_say_so(stored):
    _, captions, scale = load_latents(stored)
    seen = set()
    for latents, texts, fps in FrameLatents(stored, 0, 40, 2, dropout=0.0):
        assert latents.shape in ((8, 2, 4, 8, 8), (2, 2, 16, 8, 8))
        for clip, text in zip(latents[:, 0, :, 0, 0] / scale, texts, strict=True):
            steps = (clip.diff() * 100).round().int()
            asked = parse_caption(captions[int(clip.min() + 1e-2)]).motion
            told = parse_caption(text).motion
            forward = steps[0] > 0
            back = {"right": "left", "left": "right", "up": "down", "down": "up"}
            assert told == (asked if forward else back[asked])
            assert (steps.abs() == vc2_models.STRIDES[fps]).all()
            seen.add((bool(forward), fps))
    assert len(seen) == 4  # both ways at both rates


def test_clips_all_move_one_way_at_first_and_half_of_them_later(stored):
    clips = FrameLatents(stored, 0, 60, 2, dropout=0.0)
    assert [clips.turned(step) for step in (0, 6, 15, 24, 59)] == [0, 0, 0.25, 0.5, 0.5]
    batches = [[parse_caption(text).motion for text in texts] for _, texts, _ in clips]
    assert {motion for batch in batches[:6] for motion in batch} == {"right", "down"}
    late = [motion in ("left", "up") for batch in batches[24:] for motion in batch]
    assert 0.3 < sum(late) / len(late) < 0.7


def test_the_text_encoder_learns_what_captions_say_and_stays(tmp_path):
    config = replace(UNetConfig(), text_steps=60)
    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    encoder, again = (vc2_models.make_text_encoder(config, len(tokenizer)) for _ in range(2))
    said = [Scene("circle", "red", motion, "blue").caption for motion in ("right", "left")]

    def apart(encoder):
        right, left = vc2_models.encode_text(tokenizer, encoder, said)[:, -1]
        return ((right - left).norm() / right.norm()).item()

    before = apart(encoder)
    vc2_text.teach(encoder, tokenizer, config, 0, tmp_path / "text.pt")
    assert apart(encoder) > 2 * before
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    vc2_text.teach(again, tokenizer, config, 0, tmp_path / "text.pt")
    assert apart(again) == apart(encoder)


def test_dropped_captions_are_empty(stored):
    texts = [t for _, batch, _ in FrameLatents(stored, 0, 20, 2, dropout=1.0) for t in batch]
    assert set(texts) == {""}


def test_pictures_are_repeatable_and_in_range():
    first, again = (next(iter(Pictures(3, 1, 4))) for _ in range(2))
    assert torch.equal(first, again)
    assert first.shape == (4, 3, 64, 64)
    assert -1 <= first.min() < first.max() <= 1


def test_latents_are_of_every_fourth_frame(tmp_path):
    torch.manual_seed(0)
    vae = vc2_models.make_vae(PictureVaeConfig()).eval()
    compute_latents(vae, 5, 1, 3, tmp_path)
    latents, captions, _ = load_latents(tmp_path)
    rng = random.Random("5 frame latents 0")
    scene = parse_caption(captions[0])
    assert random_scene(rng) == scene
    frames = world.render(world.draw_look(scene, rng), 12)[::4]
    with torch.no_grad():
        expected = vae.encode(frames * 2 - 1).latent_dist.mean
    torch.testing.assert_close(latents[0].transpose(0, 1).float(), expected, rtol=0.05, atol=0.05)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    assert main(["train-tiny", "--family", "videocrafter2", "--quick", "--out", str(folder)]) == 0
    return folder


def test_the_training_command_makes_a_folder_that_loads(trained):
    backbone = load_backbone(trained / "weights", device="cpu")
    assert backbone.family == "videocrafter2"
    assert backbone.window == 16
    prompts = PromptSchedule(
        backbone.encode(["a red circle moves right on a blue field"]), backbone.encode([""])
    )
    noise = CounterNoise(0, backbone.latent_shape, "cpu")
    latents = Short(ShortSettings(2, 1.0)).sample(backbone, prompts, noise, 16)
    frames = backbone.decoder().push(latents)
    assert frames.shape == (16, 3, 64, 64)
    assert 0 <= frames.min() <= frames.max() <= 1


def test_a_stopped_training_ends_as_if_it_had_not_been(tmp_path, trained, monkeypatch):
    parser = argparse.ArgumentParser()
    train.add_options(parser)
    command = parser.parse_args(["--family", "videocrafter2", "--quick", "--out", str(tmp_path)])
    whole = torch.load(trained / "denoiser.pt", weights_only=True)
    batches = FrameLatents.__iter__

    def break_off(self):
        for number, batch in enumerate(batches(self)):
            if number == 2:
                raise RuntimeError("pulled the plug")
            yield batch

    with monkeypatch.context() as patch:
        patch.setattr(FrameLatents, "__iter__", break_off)
        with pytest.raises(RuntimeError, match="pulled the plug"):
            train.run(command)
    assert not (tmp_path / "denoiser.pt").exists()
    train.run(command)
    again = torch.load(tmp_path / "denoiser.pt", weights_only=True)
    assert all(torch.equal(again[name], value) for name, value in whole.items())


@pytest.fixture(scope="module")
def shipped():
    return load_backbone("tiny-videocrafter2", device="cpu")


def test_the_shipped_autoencoder_keeps_what_matters(shipped):
    kept = evaluate.reconstruction(shipped, clips=4)
    assert min(kept[name] for name in ("shape", "color", "field", "place")) >= 0.95, kept
    assert kept["psnr"] >= 28


def test_shipped_weights_follow_held_out_captions(shipped):
    prompts = held_out_prompts(5, seed=3)
    asked = [parse_caption(prompt) for prompt in prompts]
    clips = list(evaluate.clips(shipped, prompts, {"steps": "16"}))
    scores = [measure(clip, scene) for clip, scene in zip(clips, asked, strict=True)]
    mean = evaluate.summary(scores)
    assert mean["found"] >= 0.95, mean
    assert mean["asked_color"] >= 0.95, mean
    assert mean["asked_field"] >= 0.95, mean
    assert mean["asked_shape"] >= 0.85, mean
    assert [score.direction for score in scores] == [scene.motion for scene in asked]


def test_the_folder_is_small_and_holds_no_pickles():
    files = [path for path in vc2_models.WEIGHTS.rglob("*") if path.is_file()]
    assert not [path for path in files if path.suffix in (".bin", ".pt", ".ckpt", ".pth")]
    both = [path for path in vc2_models.WEIGHTS.parent.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in both) <= 25e6
