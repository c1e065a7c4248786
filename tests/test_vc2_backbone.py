"""The VideoCrafter2 backbone behind its interface, its text, and how it is found."""

import json
import subprocess
import sys
import warnings
import weakref

import pytest
import torch
from helpers import refusal
from huggingface_hub.errors import LocalEntryNotFoundError
from tokenizers import Tokenizer, models
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import PreTrainedTokenizerFast
from vc2_fixtures import CHANNELS, TEXT_WIDTH, tiny_folder, tiny_text_encoder, tiny_unet
from wan_fixtures import LENGTH

import miga_bench.backbones as table
from miga_bench.backbones import BACKBONES, hub_files, load_backbone, memory, vc2_vae
from miga_bench.backbones.base import LatentShape
from miga_bench.backbones.residence import Residence
from miga_bench.backbones.schedule import ddpm_schedule
from miga_bench.backbones.solvers import DDIM
from miga_bench.backbones.vc2_checkpoint import open_source
from miga_bench.backbones.vc2_denoiser import KEEP_FLOAT32, VideoCrafterDenoiser
from miga_bench.backbones.vc2_text import TEXT_LENGTH, VideoCrafterText
from miga_bench.backbones.videocrafter2 import VideoCrafter2Backbone, VideoCrafterDefaults
from miga_bench.sampling.fitting import FittingDenoiser

SIZE = {"height": 16, "width": 24}


@pytest.fixture
def folder(tmp_path):
    return tiny_folder(tmp_path / "model")


@pytest.fixture
def backbone(folder):
    return load_backbone(folder)


@pytest.fixture
def inputs(backbone):
    latents = torch.randn(1, CHANNELS, 3, 8, 12, generator=torch.Generator().manual_seed(0))
    return latents, torch.full((1, 3), 500.0), backbone.encode(["a red circle"])


def test_what_a_sampler_sees(backbone, folder, inputs):
    """Breaks if the interface's facts are not the model's."""
    assert (backbone.name, backbone.family) == (str(folder), "videocrafter2")
    assert (backbone.window, backbone.frame_rate, backbone.negative_prompt) == (5, 10.0, "")
    assert tuple(backbone.latent_shape) == (CHANNELS, 8, 12)
    assert backbone.device == "cpu"
    assert backbone.can_cut
    assert backbone.encode(["a red circle", ""]).shape == (2, LENGTH, TEXT_WIDTH)
    assert backbone.latents_for(7) == backbone.frames_of(7) == 7
    prediction = backbone.denoiser(*inputs)
    assert prediction.shape == inputs[0].shape
    frames = backbone.decoder().push(prediction[0].transpose(0, 1))
    assert frames.shape == (3, 3, 16, 24)
    assert frames.dtype == torch.float32
    assert 0 <= frames.min() <= frames.max() <= 1
    assert backbone.encoder().push(frames).shape == (3, CHANNELS, 8, 12)
    assert len(backbone.weights_hash) == 64
    assert backbone.default_batch() >= 1


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("backbone.json", {"rescale": False}),
        ("backbone.json", {"eta": 0.5}),
        ("backbone.json", {"fps": 12.0}),
        ("backbone.json", {"window": 4}),
        ("unet/config.json", {"note": "another network"}),
        ("text_encoder/config.json", {"eos_token_id": 1}),
    ],
)
def test_what_else_decides_a_video_has_a_hash(folder, file, change):
    """Breaks if a run goes on with videos of a model whose files say something else now."""
    before = load_backbone(folder)
    hashes = before.weights_hash, before.configuration_hash
    path = folder / file
    known = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**known, **change}))
    after = load_backbone(folder)
    assert after.weights_hash == hashes[0]
    assert after.configuration_hash != hashes[1]
    assert len(after.configuration_hash) == 64


def test_size_and_negative_prompt_are_told_by_every_video(folder):
    """Breaks if a hash tells twice what an item tells, or names that stand for themselves get one."""
    plain = load_backbone(folder)
    other = load_backbone(folder, height=32, width=32, negative_prompt="blurry")
    assert plain.configuration_hash == other.configuration_hash
    assert load_backbone("tiny-videocrafter2", device="cpu").configuration_hash is None


def test_decoding_is_the_autoencoders_and_streams(backbone, monkeypatch):
    """Breaks if latents are not unscaled, or portions and bounds change the frames."""
    latents = torch.randn(5, CHANNELS, 8, 12)
    with torch.no_grad():
        expected = backbone.vae.decode(latents / 0.18215).sample.clamp(-1, 1) / 2 + 0.5
    whole = backbone.decoder().push(latents)
    torch.testing.assert_close(whole, expected)
    decoder = backbone.decoder()
    parts = torch.cat(
        [decoder.push(latents[:1]), decoder.push(latents[1:1]), decoder.push(latents[1:])]
    )
    torch.testing.assert_close(parts, whole)
    monkeypatch.setattr(vc2_vae, "PIXELS_AT_ONCE", 2 * 16 * 24)
    torch.testing.assert_close(backbone.decoder().push(latents), whole)


def test_encoding_is_scaled(backbone):
    """Breaks if latents are not what the denoiser is trained on: the posterior's mean, scaled."""
    frames = torch.rand(2, 3, 16, 24)
    with torch.no_grad():
        expected = backbone.vae.encode(frames * 2 - 1).latent_dist.mean * 0.18215
    torch.testing.assert_close(backbone.encoder().push(frames), expected)


def test_the_schedule_is_the_trained_one_unless_told(backbone):
    """Breaks if the rescale, the grid or the noise of a step are not those asked for."""
    schedule = backbone.schedule(8)
    assert torch.equal(schedule.alpha, ddpm_schedule(8, "even", rescale=True).alpha)
    assert isinstance(backbone.solver(schedule), DDIM)
    readings = [backbone.reading(grid="stock") for _ in range(2)]
    limits = [FittingDenoiser(reading.denoiser).limits for reading in readings]
    assert limits[0] is limits[1], "what did not fit in one video is tried again in the next"
    other = backbone.reading(grid="stock", rescale=False).schedule(8)
    assert torch.equal(other.alpha, ddpm_schedule(8, "stock").alpha)
    assert torch.equal(backbone.schedule(8).alpha, schedule.alpha)
    assert "2 to 1000" in refusal(lambda: backbone.schedule(1))
    assert "2 to 1000" in refusal(lambda: backbone.schedule(1001))


def test_another_reading_shares_the_networks(backbone, inputs):
    """Breaks if a reading loads anything anew, or changes the backbone it was made from."""
    plain = backbone.denoiser(*inputs)
    other = backbone.reading(fps=24.0)
    assert other.denoiser.network is backbone.denoiser.network
    assert other.vae is backbone.vae
    assert torch.equal(other.denoiser(*inputs), backbone.denoiser.network(*inputs, 24.0))
    assert not torch.equal(other.denoiser(*inputs), plain)
    with other.attending(lambda query, key, value, site: value):
        assert torch.equal(backbone.denoiser(*inputs), plain)
    assert backbone.reading() is backbone
    assert backbone.reading(fps=8.0) is backbone
    assert other.reading(rescale=False).defaults.fps == 24.0
    assert "unknown grid 'odd'; there are even, stock" in refusal(
        lambda: backbone.reading(grid="odd")
    )
    assert "above 0" in refusal(lambda: backbone.reading(fps=0.0))


def test_rates_the_network_does_not_know_are_warned_of(backbone, folder):
    """Breaks if a rate out of the trained range goes unnoticed, or one within it is warned of."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        backbone.reading(fps=28.0)
    with pytest.warns(
        UserWarning, match=r"knows frame rates from 4 to 32 and is told fps 60: expect"
    ):
        backbone.reading(fps=60.0)
    side = json.loads((folder / "backbone.json").read_text())
    (folder / "backbone.json").write_text(json.dumps({**side, "fps_range": [4, 8]}))
    with pytest.warns(UserWarning, match="from 4 to 8 and is told fps 16"):
        load_backbone(folder, fps=16.0)


def test_attention_is_changed_in_ours_only(backbone, inputs):
    """Breaks if a method changes a compiled network's attention, which would not be heard."""
    plain = backbone.denoiser(*inputs)
    with backbone.attending(lambda query, key, value, site: torch.zeros_like(value)):
        assert not torch.equal(backbone.denoiser(*inputs), plain)
    assert torch.equal(backbone.denoiser(*inputs), plain)
    backbone.denoiser.network.compile(backend="eager")
    assert "compiled" in refusal(lambda: backbone.attending(None))
    backbone.denoiser = lambda *inputs: inputs[0]
    assert "compiled or exported" in refusal(lambda: backbone.attending(None))
    assert not backbone.can_cut


def test_a_folders_side_file_is_read(folder):
    """Breaks if a model cannot say what it was trained with, or a typo is ignored."""
    side = folder / "backbone.json"
    side.write_text(json.dumps({**SIZE, "fps": 4, "rescale": False, "grid": "stock", "eta": 0.0}))
    backbone = load_backbone(folder)
    assert backbone.window == 16
    assert backbone.denoiser.fps == 4
    assert not backbone.solver(backbone.schedule(4)).stochastic
    assert torch.equal(backbone.schedule(4).alpha, ddpm_schedule(4, "stock").alpha)
    assert load_backbone(folder, fps=8.0, frame_rate=12.0).frame_rate == 12.0
    side.write_text(json.dumps({"flow_shift": 3}))
    assert "unknown flow_shift; there are height" in refusal(lambda: load_backbone(folder))


@pytest.mark.parametrize("size", [(18, 24), (16, 22), (1, 24), (0, 0)])
def test_sizes_that_do_not_fit_name_the_nearest(folder, size):
    """Breaks if a size whose levels do not meet again reaches the network."""
    message = refusal(lambda: load_backbone(folder, height=size[0], width=size[1]))
    assert "both must be multiples of 4" in message
    assert "nearest size is" in message


def test_parts_that_do_not_belong_together(folder):
    """Breaks if a denoiser of other latents or other text is met with a traceback."""
    tiny_unet(in_channels=3, out_channels=3).save_pretrained(folder / "unet")
    assert "autoencoder's latents have 4" in refusal(lambda: load_backbone(folder))
    tiny_unet(cross_attention_dim=32).save_pretrained(folder / "unet")
    message = refusal(lambda: load_backbone(folder).encode(["a"]))
    assert "64 numbers per token, the denoiser reads 32" in message


def test_text_is_padded_with_token_zero_and_kept(backbone):
    """Breaks if padding is another token, is masked, or its rows are cut: the denoiser sees them."""
    ids = backbone.text.tokens("a red circle")
    padded = torch.tensor([ids + [0] * (LENGTH - len(ids))])
    with torch.no_grad():
        expected = tiny_text_encoder()(padded).last_hidden_state
    actual = backbone.encode(["a red circle"])
    torch.testing.assert_close(actual, expected)
    assert (actual.abs().sum(-1) > 0).all()
    both = backbone.encode(["a green square moves left", "a red circle"])
    assert torch.equal(both[1], actual[0])


def test_too_long_a_prompt_and_unknown_words(backbone):
    """Breaks if the end of a prompt is cut off silently, or unknown words are not told."""
    assert f"{LENGTH + 1} tokens but the model reads {LENGTH}" in refusal(
        lambda: backbone.encode(["a " * LENGTH])
    )
    assert backbone.unknown_words(["a red dog, a cat"]) == ["dog", "cat"]


def test_length_is_at_most_clips_and_clip_knows_every_word(tmp_path):
    """Breaks if a tokenizer without a limit makes longer texts, or the end mark passes for unknown."""
    words = Tokenizer(models.WordLevel({"<start>": 0, "<end>": 1, "a": 2}, unk_token="<end>"))
    PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="<start>", eos_token="<end>", unk_token="<end>"
    ).save_pretrained(tmp_path)
    text = VideoCrafterText(tmp_path, tiny_text_encoder, torch.float32, lambda: "it")
    assert text.length == TEXT_LENGTH == 77
    assert text.unknown_words(["a dog"]) == []


def test_offloading_does_not_change_results(folder, inputs, backbone, monkeypatch):
    """Breaks if moving networks changes what they compute, or a reading forgets to move them."""
    moves, bring = [], Residence.bring
    monkeypatch.setattr(
        Residence, "bring", lambda s, p: moves.append(type(p).__name__) or bring(s, p)
    )
    away = Residence(torch.device("cpu"), offload=True)
    defaults = VideoCrafterDefaults(**SIZE)
    offloaded = VideoCrafter2Backbone("it", open_source(folder), away, torch.float32, defaults)
    assert torch.equal(offloaded.encode(["a red circle"]), inputs[2])
    assert not offloaded.text.loaded
    assert torch.equal(offloaded.denoiser(*inputs), backbone.denoiser(*inputs))
    other = offloaded.reading(fps=4.0)
    assert torch.equal(other.denoiser(*inputs), backbone.denoiser.network(*inputs, 4.0))
    latents = inputs[0][0].transpose(0, 1)
    assert torch.equal(offloaded.decoder().push(latents), backbone.decoder().push(latents))
    assert moves == ["NoneType", "VideoCrafterUNet", "VideoCrafterUNet", "AutoencoderKL"]


def test_batch_follows_free_memory(backbone, monkeypatch):
    """Breaks if a batch outgrows a GPU, or is never more than one on a big one."""
    assert backbone.default_batch() == memory.CPU_WINDOWS
    row = backbone.clip_bytes(backbone.window)
    assert backbone.clip_bytes(2 * backbone.window) == 2 * row
    assert backbone.clip_bytes(backbone.window, copies=1000.0) > row
    monkeypatch.setattr(backbone._residence, "device", torch.device("cuda"))
    for free, windows in ((0, 1), (10 * row, 4), (1 << 50, memory.MOST_WINDOWS)):
        monkeypatch.setattr(memory, "free_bytes", lambda device, free=free: free)
        assert backbone.default_batch() == windows


class LiveTensors(TorchDispatchMode):
    """Counts the bytes of all tensors that are alive at once."""

    def __init__(self):
        super().__init__()
        self.known, self.live, self.peak = set(), 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self.known:
                    self.known.add(storage._cdata)
                    self.live += storage.nbytes()
                    self.peak = max(self.peak, self.live)
                    weakref.finalize(storage, self._gone, storage._cdata, storage.nbytes())
        return out

    def _gone(self, key, size):
        self.known.discard(key)
        self.live -= size


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_takes_no_more_memory_than_estimated(backbone, monkeypatch, dtype):
    """Breaks if a GPU's batch is chosen too large, or much too small.

    With eight heads of 8 in a level of 40 channels, the first temporal transformer is 1.6 times as wide
    as its level, as in the published network, and holds the most.
    """
    widths = (40, 80, 160)
    network = tiny_unet(block_out_channels=widths, norm_num_groups=8, layers_per_block=2).to(dtype)
    for name in KEEP_FLOAT32:
        getattr(network, name).float()
    monkeypatch.setattr(backbone, "denoiser", VideoCrafterDenoiser(network))
    monkeypatch.setattr(backbone, "latent_shape", LatentShape(CHANNELS, 16, 24))
    monkeypatch.setattr(backbone, "_dtype", dtype)
    latents, levels = torch.randn(1, CHANNELS, 16, 16, 24), torch.full((1, 16), 500.0)
    text = torch.randn(1, 9, TEXT_WIDTH, dtype=dtype)
    with torch.inference_mode(), LiveTensors() as tensors:
        backbone.denoiser(latents, levels, text)
    assert 1 <= backbone.clip_bytes(16) / tensors.peak < 1.1


def test_the_family_is_told_by_the_files(folder, tmp_path, monkeypatch):
    """Breaks if a checkpoint or a repository is handed to the wrong family."""
    assert load_backbone(str(folder)).family == "videocrafter2"
    for place in (tmp_path / "alone", tmp_path):
        place.mkdir(exist_ok=True)
        (place / "model.ckpt").write_bytes(b"")
    for path in (tmp_path, tmp_path / "alone" / "model.ckpt"):
        assert table._family(path) == "videocrafter2"
    assert table._family(tmp_path / "elsewhere") == "wan"
    assert table._family("adamdad/videocrafterv2_diffusers") == "videocrafter2"
    assert table._family("Wan-AI/Wan2.1-T2V-1.3B-Diffusers") == "wan"


def test_without_a_network_it_says_what_to_fetch(monkeypatch):
    """Breaks if a machine without a network shows a traceback, or no way out."""

    def fail(repository, **options):
        raise LocalEntryNotFoundError("Cannot reach\nthe Hub")

    monkeypatch.setattr(hub_files, "snapshot_download", fail)
    message = refusal(lambda: load_backbone("videocrafter2"))
    assert "hf download VideoCrafter/VideoCrafter2 --local-dir DIR" in message
    assert "research" in BACKBONES["videocrafter2"].summary


def test_a_copy_from_the_hub_is_loaded(folder, monkeypatch):
    """Breaks if the wrong files are fetched, or what was fetched is not found."""
    asked = []

    def fetched(repository, allow_patterns, **options):
        asked.extend([repository, *allow_patterns])
        return str(folder)

    monkeypatch.setattr(hub_files, "snapshot_download", fetched)
    backbone = load_backbone("videocrafter2", **SIZE)
    assert (backbone.name, backbone.family) == ("videocrafter2", "videocrafter2")
    assert asked[0] == "VideoCrafter/VideoCrafter2"
    assert {"model.ckpt", "unet/*", "text_encoder/*"} <= set(asked)


def test_the_command_says_in_one_line_that_a_rate_is_unknown(tmp_path):
    command = [sys.executable, "-m", "miga_bench", "generate", "a red circle", "--frames", "2"]
    command += ["--backbone", str(tiny_folder(tmp_path / "model")), "--method", "short"]
    command += ["--set", "steps=2", "--set", "fps=60", "-o", str(tmp_path / "o.mp4"), "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (line,) = (line for line in done.stderr.splitlines() if "fps" in line)
    assert line.startswith("miga-bench: ")
    assert line.endswith("is told fps 60: expect motion it was not trained on")


def test_a_compiled_network_takes_a_cut_too(tmp_path):
    backbone = load_backbone(tiny_folder(tmp_path / "model"), device="cpu", height=16, width=16)
    channels, height, width = backbone.latent_shape
    inputs = (
        torch.randn(1, channels, 5, height, width),
        torch.rand(1, 5) * 900,
        torch.randn(1, backbone.text.length, backbone.text_width),
    )
    with torch.inference_mode():
        wanted = backbone.denoiser(*inputs, cut=2)
        backbone.denoiser.network.compile(backend="eager")  # the tracer without the compiler
        assert backbone.can_cut
        assert torch.allclose(backbone.denoiser(*inputs, cut=2), wanted, atol=1e-5)
