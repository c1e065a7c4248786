"""The Wan backbone behind its interface, and the table of backbones."""

import json
import subprocess
import sys

import pytest
import torch
from helpers import refusal
from huggingface_hub.errors import LocalEntryNotFoundError
from torch import nn
from wan_fixtures import CHANNELS, LENGTH, TEXT_WIDTH, tiny_folder

import miga_bench.backbones as table
from miga_bench.backbones import (
    BACKBONES,
    hub_files,
    load_backbone,
    memory,
    wan,
    wan_checkpoint,
)
from miga_bench.backbones.solvers import UniPC
from miga_bench.backbones.wan import Residence, load_wan
from miga_bench.backbones.wan_denoiser import WanDenoiser
from miga_bench.backbones.wan_vae import WanStreamingDecoder
from miga_bench.sampling.attention import full_attention
from miga_bench.sampling.rewards import FrameSimilarity, make_reward


@pytest.fixture
def folder(tmp_path):
    return tiny_folder(tmp_path / "model")


@pytest.fixture
def backbone(folder):
    return load_backbone(folder)


def test_what_a_sampler_sees(backbone, folder):
    """Breaks if the interface's facts are not the model's."""
    assert (backbone.name, backbone.family) == (str(folder), "wan")
    assert (backbone.window, backbone.frame_rate) == (21, 16.0)
    assert backbone.dtype == "float32"
    assert tuple(backbone.latent_shape) == (CHANNELS, 4, 6)
    assert backbone.device == "cpu"
    text = backbone.encode(["a red circle", ""])
    assert text.shape == (2, LENGTH, TEXT_WIDTH)
    latents = torch.randn(2, *[CHANNELS, 3, 4, 6])
    prediction = backbone.denoiser(latents, torch.full((2, 3), 500.0), text)
    assert prediction.shape == latents.shape
    frames = backbone.decoder().push(prediction[0].transpose(0, 1))
    assert frames.shape == (9, 3, 32, 48)
    assert backbone.encoder().push(frames).shape == (3, CHANNELS, 4, 6)
    assert len(backbone.weights_hash) == 64
    assert backbone.default_batch() >= 1


def test_a_denoiser_put_in_place_of_ours_says_what_fits(backbone):
    """Breaks if an engine, or any function, behind a backbone makes the default batch fail."""
    backbone.denoiser = lambda *_: None
    assert backbone.default_batch() == memory.CPU_WINDOWS
    backbone.denoiser = type("Engine", (), {"rows_that_fit": lambda _: 4})()
    assert backbone.default_batch() == 2


def test_what_else_decides_a_video_has_a_hash(folder):
    """Breaks if a run goes on with videos of a model whose shift or window is another now."""
    hashes = {
        load_backbone(folder, **change).configuration_hash
        for change in ({}, {"flow_shift": 7.0}, {"window": 13}, {"frame_rate": 24.0})
    }
    assert len(hashes) == 4
    assert load_backbone("tiny-wan", device="cpu").configuration_hash is None


@pytest.mark.parametrize(("frames", "latents"), [(1, 1), (2, 2), (5, 2), (6, 3), (81, 21)])
def test_frames_and_latents(backbone, frames, latents):
    """Breaks if a video comes out shorter than asked for, or a latent longer than needed."""
    assert backbone.latents_for(frames) == latents
    assert backbone.frames_of(latents) >= frames
    assert backbone.frames_of(latents - 1) < frames


def test_schedule_follows_the_folders_shift_unless_told(folder):
    """Breaks if the shift a model was trained with, or the one asked for, is ignored."""
    backbone = load_backbone(folder)
    schedule = backbone.schedule(8)
    sigma = 0.999 / 2
    assert schedule.sigma[4].item() == pytest.approx(3 * sigma / (1 + 2 * sigma))
    assert isinstance(backbone.solver(schedule), UniPC)
    assert load_backbone(folder, flow_shift=8.0).flow_shift == 8.0


def test_a_folders_side_file_is_read(folder):
    """Breaks if a model of another size, window or rate cannot say so, or a typo is ignored."""
    side = folder / "backbone.json"
    side.write_text(json.dumps({"height": 16, "width": 32, "window": 5, "frame_rate": 8.0}))
    backbone = load_backbone(folder)
    assert tuple(backbone.latent_shape) == (CHANNELS, 2, 4)
    assert (backbone.window, backbone.frame_rate) == (5, 8.0)
    assert load_backbone(folder, width=16).latent_shape.width == 2
    side.write_text(json.dumps({"windows": 5}))
    assert "unknown windows; there are height" in refusal(lambda: load_backbone(folder))


@pytest.mark.parametrize("size", [(40, 48), (32, 47), (8, 48), (0, 0)])
def test_sizes_that_do_not_fit_name_the_nearest(folder, size):
    """Breaks if a size that tokens cannot cover reaches the network."""
    message = refusal(lambda: load_backbone(folder, height=size[0], width=size[1]))
    assert "multiple of 16" in message
    assert "nearest size is" in message


def test_published_weights_get_the_published_defaults(folder):
    """Breaks if a fine-tuned or distilled model is not sampled with the shift that it was made for."""
    config = folder / "transformer" / "config.json"
    source = wan.find_source(folder)
    config.write_text(json.dumps({**json.loads(config.read_text()), "text_dim": 4096}))
    (folder / "backbone.json").unlink()
    defaults = wan._defaults(source, {"width": None})
    assert (defaults.height, defaults.width, defaults.flow_shift) == (480, 832, 5.0)
    assert len(defaults.negative_prompt) == 137
    scheduler = folder / "scheduler" / "scheduler_config.json"
    scheduler.write_text(scheduler.read_text().replace("3.0", "8.0"))
    assert wan._defaults(source, {}).flow_shift == 8.0


def test_loading_under_inference_mode_leaves_usable_weights(folder):
    """Breaks if a backbone opened inside a sampler's inference mode cannot be used outside it."""
    with torch.inference_mode():
        backbone = load_backbone(folder)
        backbone.encode(["a"])
    assert not any(weight.is_inference() for weight in backbone.denoiser.parameters())
    assert not any(weight.is_inference() for weight in backbone.text._encoder.parameters())


def test_embeddings_are_cached_only_for_big_encoders(folder, monkeypatch, tmp_path):
    """Breaks if tiny models fill the user's cache, or big encoders stay in memory."""
    monkeypatch.setenv("MIGA_BENCH_CACHE", str(tmp_path / "cache"))
    small = load_backbone(folder)
    small.encode(["a red circle"])
    assert not (tmp_path / "cache").exists()
    assert small.text.loaded
    monkeypatch.setattr(wan_checkpoint, "BIG_ENCODER", 1)
    big = load_backbone(folder)
    expected = big.encode(["a red circle"])
    assert not big.text.loaded
    assert big.text.dtype == torch.bfloat16
    assert expected.dtype == torch.float32
    (folder / "text_encoder" / "config.json").unlink()  # whoever loads the encoder now fails
    assert torch.equal(load_backbone(folder).encode(["a red circle"]), expected)


def test_dtypes(folder):
    """Breaks if a type is not applied to the denoiser, or to the autoencoder too."""
    backbone = load_backbone(folder, dtype="bf16")
    transformer = backbone.denoiser.transformer
    assert transformer.blocks[0].attn1.to_q.weight.dtype == torch.bfloat16
    assert transformer.proj_out.weight.dtype == torch.float32
    assert transformer.scale_shift_table.dtype == torch.float32
    assert backbone.vae.quant_conv.weight.dtype == torch.float32
    assert backbone.encode(["a"]).dtype == torch.bfloat16
    assert load_wan(folder, dtype="fp16").text.dtype == torch.bfloat16
    assert "fp32, float32, bf16" in refusal(lambda: load_backbone(folder, dtype="int3"))


def test_devices_that_are_not_there(folder, monkeypatch):
    """Breaks if a wrong device ends in a traceback, after minutes of loading."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert "unknown device" in refusal(lambda: load_backbone(folder, device="gpu"))
    assert "this machine has cpu, cuda:0" in refusal(lambda: load_backbone(folder, device="cuda:1"))


class Part(nn.Linear):
    """Remembers where it was sent; there its weights are copies, as on a device."""

    place = "cpu"

    def __init__(self):
        super().__init__(2, 2)

    def to(self, device):
        if str(device) != "cpu" == self.place:
            for weight in self.parameters():
                weight.data = weight.data.clone()
        self.place = str(device)


def test_offloading_keeps_one_network_on_the_device():
    """Breaks if two networks share the device, or one is used where it is not."""
    residence = Residence(torch.device("cuda"), offload=True)
    parts = [Part(), Part(), Part()]
    for part in parts:
        residence.add(part)
    for current in (0, 1, 1, 0, 2):
        assert residence.bring(parts[current]) == torch.device("cuda")
        assert [part.place for part in parts].count("cuda") == 1
        assert parts[current].place == "cuda"


def test_weights_are_never_copied_back_from_the_device():
    """Breaks if every change of the network that is on the device costs the way back, or loses weights."""
    residence, (part, other) = Residence(torch.device("cuda"), offload=True), (Part(), Part())
    residence.add(part)
    residence.add(other)
    at_home = [weight.data_ptr() for weight in part.parameters()]
    before = [weight.clone() for weight in part.parameters()]
    for _ in range(2):
        residence.bring(part)
        assert all(p.data_ptr() != home for p, home in zip(part.parameters(), at_home, strict=True))
        residence.bring(other)
        assert [weight.data_ptr() for weight in part.parameters()] == at_home
    assert all(torch.equal(p, q) for p, q in zip(part.parameters(), before, strict=True))


def test_without_offloading_nothing_moves():
    """Breaks if networks travel for nothing."""
    residence, part = Residence(torch.device("cuda"), offload=False), Part()
    residence.add(part)
    residence.bring(part)
    assert part.place == "cpu"
    assert residence.home == torch.device("cuda")


def test_offloading_does_not_change_results(folder, monkeypatch):
    """Breaks if the hooks that move networks change what they compute, or are not called."""
    moves = []
    bring = Residence.bring
    monkeypatch.setattr(
        Residence, "bring", lambda s, p: moves.append(type(p).__name__) or bring(s, p)
    )
    source, defaults = wan.find_source(folder), wan.WanDefaults(height=32, width=48)
    away = Residence(torch.device("cpu"), offload=True)
    offloaded = wan.WanBackbone("it", source, away, torch.float32, defaults)
    plain = load_backbone(folder)
    x, t = torch.randn(1, CHANNELS, 3, 4, 6), torch.full((1, 3), 300.0)
    text = plain.encode(["a red circle"])
    moves.clear()
    assert torch.equal(offloaded.encode(["a red circle"]), text)
    assert torch.equal(offloaded.denoiser(x, t, text), plain.denoiser(x, t, text))
    latents = x[0].transpose(0, 1)
    assert torch.equal(offloaded.decoder().push(latents), plain.decoder().push(latents))
    assert moves == ["NoneType", "WanDenoiser", "AutoencoderKLWan"]  # None makes room for text
    # for every video of a run
    monkeypatch.setattr(source, "text_encoder", lambda *_: pytest.fail("read from disk again"))
    assert torch.equal(offloaded.encode(["a red circle"]), text)
    assert moves[3:] == ["UMT5EncoderModel"]


def test_a_candidates_picture_leaves_no_past_behind(folder, monkeypatch):
    """Breaks if ScalingNoise copies a decoder's past, 1.7 GiB, to main memory for every picture it looks at."""
    source, defaults = wan.find_source(folder), wan.WanDefaults(height=32, width=48)
    away = Residence(torch.device("cpu"), offload=True)
    offloaded = wan.WanBackbone("it", source, away, torch.float32, defaults)
    clean, anchor = torch.randn(2, 3, CHANNELS, 4, 6), torch.randn(CHANNELS, 4, 6)
    whole = FrameSimilarity(offloaded.decoder)(clean, anchor)
    left, leave = [], WanStreamingDecoder._leave
    monkeypatch.setattr(
        WanStreamingDecoder, "_leave", lambda s: left.append(s._keep_on) or leave(s)
    )
    assert torch.equal(make_reward("frame", offloaded)(clean, anchor), whole)
    assert left == [None] * 7


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_offloading_on_a_gpu(folder):
    """Breaks if a network is used on the wrong device, or stays on the GPU."""
    plain = load_backbone(folder, device="cuda", dtype="fp32")
    offloaded = load_backbone(folder, device="cuda", dtype="fp32", offload=True)
    text = offloaded.encode(["a red circle"])
    x, t = torch.randn(1, CHANNELS, 3, 4, 6).cuda(), torch.full((1, 3), 300.0).cuda()
    torch.testing.assert_close(offloaded.denoiser(x, t, text), plain.denoiser(x, t, text))
    assert offloaded.vae.quant_conv.weight.device.type == "cpu"
    latents, decoder = x[0].transpose(0, 1), offloaded.decoder()
    frames = torch.cat([decoder.push(latents[:1]), decoder.push(latents[1:])])
    torch.testing.assert_close(frames, plain.decoder().push(latents))
    assert next(offloaded.denoiser.parameters()).device.type == "cpu"


def test_what_files_fill_in_a_container_is_free(tmp_path, monkeypatch):
    """Breaks if a container that has read its weights makes windows one by one."""
    monkeypatch.setattr(memory, "CONTROL_GROUP", tmp_path)
    cpu = torch.device("cpu")
    without = memory.free_bytes(cpu)
    (tmp_path / "memory.max").write_text("5000000\n")
    (tmp_path / "memory.current").write_text("4000000\n")
    (tmp_path / "memory.stat").write_text("anon 900000\ninactive_file 2500000\nslab 9\n")
    assert memory.free_bytes(cpu) == 3500000
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.free_bytes(cpu) > without / 2


def test_free_memory_is_known_outside_linux(tmp_path, monkeypatch):
    """Breaks if on macOS nothing is known to fit or not to."""
    monkeypatch.setattr(memory, "MEMORY", tmp_path / "meminfo")
    monkeypatch.setattr("psutil.virtual_memory", lambda: type("M", (), {"available": 5 << 30}))
    assert memory.free_bytes(torch.device("cpu")) == 5 << 30
    assert memory.free_bytes(torch.device("xpu")) is None


def test_batch_follows_free_memory(backbone, monkeypatch):
    """Breaks if a batch outgrows its device, or is never more than one on a big one."""
    assert backbone.default_batch() == memory.CPU_WINDOWS
    config = backbone.denoiser.transformer.config
    row = memory.window_bytes(21 * 2 * 3, 32, config.ffn_dim, 4)
    assert row == backbone.clip_bytes(backbone.window)
    for free, windows in ((0, 1), (8 * row, 3), (20 * row, 8), (1 << 50, 8), (None, 8)):
        monkeypatch.setattr(memory, "free_bytes", lambda device, free=free: free)
        assert backbone.default_batch() == windows, (
            "on a CPU, too, where more than 8 are never more"
        )
    monkeypatch.undo()
    monkeypatch.setattr(backbone._residence, "device", torch.device("cuda:0"))
    assert backbone.device == "cuda:0"
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 3 * row)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: row)
    for free, windows in ((0, 1), (8 * row, 4), (1 << 50, memory.MOST_WINDOWS)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, free=free: (free, 1 << 50))
        assert backbone.free_bytes() == free + 2 * row
        assert backbone.default_batch() == memory.default_batch(backbone) == windows


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("tiny-wam", "did you mean tiny-wan?"),
        ("wan2.1", "did you mean wan2.1-1.3b?"),
        ("sora", "there are tiny-videocrafter2, tiny-wan, "),
        ("./nowhere", "no such folder: ./nowhere"),
        ("/nowhere/at/all", "no such folder"),
    ],
)
def test_unknown_backbones_name_the_near_ones(name, words):
    """Breaks if a typo ends in a traceback, or in a download."""
    assert words in refusal(lambda: load_backbone(name))


@pytest.mark.parametrize("name", ["wan2.1-1.3b", "someone/else"])
def test_without_a_network_it_says_what_to_fetch(name, monkeypatch):
    """Breaks if a machine without a network shows a traceback, or no way out."""

    def fail(repository, **options):
        raise LocalEntryNotFoundError("Cannot reach\nthe Hub")

    monkeypatch.setattr(hub_files, "snapshot_download", fail)
    message = refusal(lambda: load_backbone(name))
    repository = BACKBONES[name].where if name in BACKBONES else name
    assert f"hf download {repository} --local-dir DIR" in message


def test_hub_copies_are_loaded_and_the_text_encoder_fetched_when_needed(
    folder, monkeypatch, tmp_path
):
    """Breaks if gigabytes of text encoder are fetched though all embeddings are in the cache."""
    asked = []

    def fetched(repository, allow_patterns, **options):
        assert repository == "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"
        asked.extend(pattern for pattern in allow_patterns if "/" in pattern)
        return str(folder)

    monkeypatch.setenv("MIGA_BENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hub_files, "snapshot_download", fetched)
    for count in (1, 1, 2):
        backbone = load_backbone("wan2.1-1.3b", height=32, width=48)
        assert backbone.name == "wan2.1-1.3b"
        backbone.encode(["a red circle"] if count == 1 else ["a green square"])
        assert asked.count("text_encoder/*") == count
        assert "transformer/*" in asked


def test_an_embedded_model_that_is_not_installed(monkeypatch, tmp_path):
    """Breaks if a package without its weights is not told from a wrong name."""
    entry = table.BackboneEntry("wan", tmp_path / "gone", "")
    monkeypatch.setitem(table.BACKBONES, "tiny-wan", entry)
    assert "not installed" in refusal(lambda: load_backbone("tiny-wan"))


def test_a_users_folder_is_no_embedded_model_whatever_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_folder(tmp_path / "tiny-mine")
    presets = {name: load_backbone(name).preset for name in ("tiny-mine", "tiny-wan")}
    assert presets == {"tiny-mine": "paper", "tiny-wan": "tiny"}


def test_listing_backbones_needs_no_torch():
    """Breaks if `miga-bench list backbones` pays seconds for a table of names."""
    code = "import sys, miga_bench.backbones; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_compiled_and_foreign_denoisers_do_not_take_an_attention(backbone):
    """Breaks if an attention is silently left out: a graph was made before, or it is not ours."""

    def refused(denoiser):
        backbone.denoiser = denoiser
        return "load the model uncompiled" in refusal(lambda: backbone.attending(full_attention))

    ours = backbone.denoiser
    assert backbone.is_ours()
    with backbone.attending(full_attention):
        pass
    assert refused(lambda latents, timesteps, text: latents)
    assert not backbone.is_ours()
    assert refused(torch.compile(WanDenoiser(ours.transformer), backend="eager"))
    for part in ("denoiser", "network"):
        compiled = WanDenoiser(ours.transformer)
        (compiled if part == "denoiser" else compiled.network).compile(backend="eager")
        assert refused(compiled)
    replaced = WanDenoiser(ours.transformer)
    replaced.network = torch.compile(replaced.network, backend="eager")
    assert refused(replaced)


def test_a_clips_memory_grows_with_its_length(backbone):
    """Breaks if a long clip is thought to take what a window takes."""
    assert backbone.clip_bytes(42) == 2 * backbone.clip_bytes(21)
    assert backbone.clip_bytes(21, copies=100.0) > backbone.clip_bytes(21)
