"""The tiny Wan-family model: its training path, its files, and what the shipped weights can do."""

import json
import multiprocessing
import random
import time

import pytest
import torch
from narratives import random_narrative, schedule
from tiny_wan import TinyWan

from miga_bench.backbones import load_backbone
from miga_bench.backbones.tiny import evaluate, fit, models, world
from miga_bench.backbones.tiny.config import TrainConfig, VaeConfig, quick
from miga_bench.backbones.tiny.drift import measure
from miga_bench.backbones.tiny.grammar import held_out_prompts, parse_caption
from miga_bench.backbones.tiny.muon import orthogonal
from miga_bench.backbones.tiny.tasks import DenoiserTask, VaeTask
from miga_bench.backbones.tiny.vae_clip import decode_clip, encode_clip, use_whole_clips
from miga_bench.cli import main


@pytest.fixture(scope="module")
def shipped():
    return TinyWan()


@torch.no_grad()
def test_whole_clips_equal_piecewise():
    torch.manual_seed(0)
    vae = models.make_vae(VaeConfig()).eval()
    frames = torch.rand(1, 3, 13, 32, 32) * 2 - 1
    latents = vae.encode(frames).latent_dist.mean
    decoded = vae.decode(latents).sample
    use_whole_clips(vae)
    whole, _ = encode_clip(vae, frames)
    torch.testing.assert_close(whole, latents, rtol=1e-4, atol=1e-5)
    again = decode_clip(vae, whole).clamp(-1, 1)
    torch.testing.assert_close(again, decoded, rtol=1e-4, atol=1e-5)
    # The module's own methods still work piece by piece.
    torch.testing.assert_close(vae.decode(latents).sample, decoded)


def test_tokens_are_words():
    tokenizer = models.make_tokenizer()
    rng = random.Random(0)
    for _ in range(100):
        story = random_narrative(rng, 2)
        for _, caption in schedule(story):
            tokens = tokenizer(caption).input_ids
            assert tokenizer.unk_token_id not in tokens
            assert tokens[-1] == tokenizer.eos_token_id
            assert len(tokens) == len(caption.split()) + 1 <= models.TEXT_LENGTH
    assert tokenizer.pad_token_id == 0
    assert tokenizer("dog").input_ids[0] == tokenizer.unk_token_id


@torch.no_grad()
def test_text_past_the_caption_is_zero(shipped):
    captions = ["a red circle moves right on a blue field", ""]
    text = models.encode_text(shipped.tokenizer, shipped.text_encoder, captions)
    assert text.shape == (2, models.TEXT_LENGTH, shipped.transformer.config.text_dim)
    assert text[0, :10].abs().sum(1).min() > 0
    assert text[0, 10:].abs().max() == 0
    assert text[1, 1:].abs().max() == 0


@torch.no_grad()
def test_a_caption_does_not_depend_on_its_batch(shipped):
    short, long = (
        "a red star moves up on a cyan field",
        "a small dotted red star moves up on a cyan striped field",
    )
    alone = models.encode_text(shipped.tokenizer, shipped.text_encoder, [short])
    both = models.encode_text(shipped.tokenizer, shipped.text_encoder, [long, short])
    torch.testing.assert_close(alone[0], both[1])


def test_the_folder_is_laid_out_as_public_wan():
    index = json.loads((models.WEIGHTS / "model_index.json").read_text())
    assert index["_class_name"] == "WanPipeline"
    for part in ("transformer", "vae", "text_encoder", "tokenizer", "scheduler"):
        assert (models.WEIGHTS / part).is_dir()
        assert part in index
    files = [path for path in models.WEIGHTS.rglob("*") if path.is_file()]
    assert not [path for path in files if path.suffix in (".bin", ".pt", ".ckpt", ".pth")]
    assert sum(path.stat().st_size for path in files) <= 12e6


def test_the_autoencoder_keeps_what_matters():
    kept = evaluate.reconstruction(load_backbone("tiny-wan", device="cpu"), clips=3)
    assert min(kept[name] for name in ("shape", "color", "field", "place")) >= 0.95, kept
    assert kept["psnr"] >= 24


def test_latents_are_normalized(shipped):
    rng = random.Random(5)
    config = shipped.vae.config
    latents = []
    for prompt in held_out_prompts(2, seed=5):
        frames = world.render(world.draw_look(parse_caption(prompt), rng))
        with torch.no_grad():
            latents.append(
                shipped.vae.encode(frames.transpose(0, 1)[None] * 2 - 1).latent_dist.mean
            )
    mean = torch.tensor(config.latents_mean).view(1, -1, 1, 1, 1)
    std = torch.tensor(config.latents_std).view(1, -1, 1, 1, 1)
    normal = (torch.cat(latents) - mean) / std
    assert abs(normal.mean()) < 0.3
    assert 0.7 < normal.std() < 1.3


def test_shipped_weights_follow_held_out_captions(shipped):
    prompts = held_out_prompts(6, seed=3)
    clips = shipped.sample(prompts, steps=12)
    scores = [
        measure(shipped.decode(clip[None])[0], parse_caption(prompt))
        for clip, prompt in zip(clips, prompts, strict=True)
    ]
    mean = evaluate.summary(scores)
    assert mean["found"] >= 0.9, mean
    assert mean["asked_color"] >= 0.9, mean
    assert mean["asked_field"] >= 0.95, mean
    assert mean["asked_shape"] >= 0.75, mean
    assert mean["asked_motion"] >= 0.75, mean


def test_training_moves_the_average():
    config = quick(TrainConfig())
    task = VaeTask(config)
    before = [p.clone() for p in task.average.parameters()]
    with torch.no_grad():
        for p in task.net.parameters():
            p.add_(1.0)
    task.move_average(1)
    assert all((a != b).all() for a, b in zip(task.average.parameters(), before, strict=True))
    assert not any(p.requires_grad for p in task.average.parameters())
    parameters = list(DenoiserTask(config).net.parameters())
    optimizer = DenoiserTask(config).configure_optimizers()["optimizer"]
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(parameters)


def test_muons_updates_are_near_orthogonal():
    torch.manual_seed(0)
    for shape in ((8, 40), (40, 8)):
        values = torch.linalg.svdvals(orthogonal(torch.randn(shape)))
        assert 0.5 < values.min() <= values.max() < 1.4


def test_the_training_command_makes_a_folder_that_loads(tmp_path, monkeypatch):
    # Compiling takes longer than everything else here and changes no result.
    monkeypatch.setattr(torch, "compile", lambda module, **_: module)
    assert main(["train-tiny", "--quick", "--out", str(tmp_path)]) == 0
    model = TinyWan(tmp_path / "weights")
    clip = model.sample(["a red circle moves right on a blue field"], steps=1, latents=2)
    frames = model.decode(clip)
    assert frames.shape == (1, 5, 3, 64, 64)
    assert frames.isfinite().all()


def a_share_of_training(part):
    if part == 0:
        raise ValueError("made on purpose")
    time.sleep(3600)


def test_a_failed_share_of_training_ends_the_others(monkeypatch):
    context = multiprocessing.get_context("fork")  # what is loaded need not be loaded again
    monkeypatch.setattr(fit, "get_context", lambda _: context)
    with pytest.raises(RuntimeError, match="message is above"):
        fit.in_processes(2, a_share_of_training)
    assert not multiprocessing.active_children()
