"""Memory that runs out in a denoiser call: smaller calls, the same video, one line. About 2 s."""

import json
import warnings

import pytest
import torch
from simple_backbone import SimpleBackbone, SimpleDecoder
from test_generate import SMALL, request

from miga_bench.backbones.memory import free_bytes
from miga_bench.cli import main
from miga_bench.errors import DoesNotFitError, Notice, is_out_of_memory
from miga_bench.harness import generate as page
from miga_bench.harness.generate import generate
from miga_bench.harness.video import Watcher
from miga_bench.media import count_frames, read_video
from miga_bench.sampling.fitting import FittingDenoiser

ERRORS = {
    # torch's own words: nobody has a pebibyte
    "cpu": lambda: torch.empty(1 << 50, dtype=torch.uint8),
    "gpu": lambda: _raise(
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    ),
    "cuda": lambda: _raise(
        RuntimeError("CUDA error: out of memory\nCompile with TORCH_USE_CUDA_DSA")
    ),
    "cublas": lambda: _raise(
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")
    ),
    "cudnn": lambda: _raise(RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED")),
    "cufft": lambda: _raise(RuntimeError("cuFFT error: CUFFT_ALLOC_FAILED")),
    "cusolver": lambda: _raise(RuntimeError("cusolver error: CUSOLVER_STATUS_ALLOC_FAILED")),
    "nccl": lambda: _raise(RuntimeError("Last error:\nCuda failure 2 'out of memory'")),
    "onnx cuda": lambda: _raise(Exception("CUDA failure 2: out of memory ; GPU=0 ; hostname=h")),
    "onnx": lambda: _raise(Exception("Failed to allocate memory for requested buffer of size 9")),
}
# which these also say where something else is wrong
MAYBE = {
    "get": "GET was unable to find an engine to execute this computation",
    "find": "FIND was unable to find an engine to execute this computation",
    "cublas": "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
    "cudnn": "cuDNN error: CUDNN_STATUS_NOT_INITIALIZED",
}


def _raise(error):
    raise error


class TightBackbone(SimpleBackbone):
    """Has memory for so many rows of a denoiser call."""

    def __init__(self, rows, kind="cpu"):
        super().__init__()
        self.rows, self.kind, self.asked = rows, kind, []

    def _denoise(self, latents, timesteps, text):
        self.asked.append(len(latents))
        if len(latents) > self.rows:
            ERRORS[self.kind]()
        return super()._denoise(latents, timesteps, text)


def pixels(path):
    return torch.stack(list(read_video(path))).float()


@pytest.mark.parametrize("kind", ERRORS)
def test_a_batch_that_does_not_fit_is_halved_and_the_video_is_the_same(tmp_path, kind):
    roomy, tight = TightBackbone(99), TightBackbone(2, kind)
    whole = generate(request(tmp_path, lossless=True), backbone=roomy)
    expected = pixels(tmp_path / "out.mp4")
    assert max(roomy.asked) == 8  # four windows with guidance
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        result = generate(request(tmp_path, lossless=True, overwrite=True), backbone=tight)
    assert result.status == "done"
    assert (pixels(tmp_path / "out.mp4") - expected).abs().max() <= 1  # a rounding to 255 may turn
    # what failed is not tried again: 6 rows, then 3, then 2 for all that is left
    assert [rows for rows in tight.asked if rows > 2] == [6, 3]
    lines = [str(one.message) for one in said if issubclass(one.category, Notice)]
    assert len(lines) == 2
    assert "in a denoiser call of 6 rows: the video goes on with 3 per call" in lines[0]
    assert result.record["cost"]["nfe"] == whole.record["cost"]["nfe"]
    tight.asked.clear()  # nor is it in the next video
    generate(request(tmp_path, lossless=True, overwrite=True), backbone=tight)
    assert max(tight.asked) == 2


def test_more_is_tried_again_when_others_may_have_gone():
    """Breaks if a server that was once short of memory stays slow for as long as it runs."""
    latents, levels, text = torch.zeros(8, 4, 3, 2, 2), torch.zeros(8, 3), torch.zeros(8, 1, 1)
    backbone = TightBackbone(3)
    asked = []
    for video in range(20):
        backbone.asked.clear()
        if video == 12:
            backbone.rows = 99
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Notice)
            FittingDenoiser(backbone.denoiser)(latents, levels, text)
        asked.append(max(backbone.asked))
    # what it asks of itself: once all, then what fitted, and in every ninth video twice as much
    assert asked == [8, *[2] * 7, 4, *[2] * 8, 4, 4, 4]


def test_not_even_a_row_fits(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(page, "open_model", lambda *a, **k: TightBackbone(0))
    settings = [part for name, value in SMALL.items() for part in ("--set", f"{name}={value}")]
    files = ["-o", str(tmp_path / "out.mp4"), "--frames", "5", "--quiet"]
    code = main(["generate", "a", *files, *settings])
    out, err = capsys.readouterr()
    last = err.splitlines()[-1]
    assert (code, json.loads(out.splitlines()[-1])["status"]) == (1, "failed")
    assert last.startswith("miga-bench: out of memory on cpu in a denoiser call of a single row")
    assert "choose a smaller --height" in last
    assert last.endswith("nothing was kept")
    assert list(tmp_path.iterdir()) == []


def test_memory_that_runs_out_later_keeps_the_video_so_far(tmp_path):
    backbone = TightBackbone(99)

    class Fuller(Watcher):
        def wrote(self, frames, total):
            if total > 20:
                backbone.rows = 0

    result = generate(request(tmp_path, frames=400), Fuller(), backbone)
    assert result.status == "failed"
    assert isinstance(result.error, DoesNotFitError)
    assert 20 < result.frames == count_frames(tmp_path / "out.mp4") < 400


@pytest.mark.parametrize("kind", ERRORS)
def test_memory_that_runs_out_while_decoding_keeps_the_video_so_far(
    tmp_path, monkeypatch, capsys, kind
):
    class TightDecoder(SimpleDecoder):
        def push(self, latents):
            return ERRORS[kind]() if self.pushed == 3 else super().push(latents)

    backbone = SimpleBackbone()
    backbone.decoder = TightDecoder
    monkeypatch.setattr(page, "open_model", lambda *a, **k: backbone)
    settings = [part for name, value in SMALL.items() for part in ("--set", f"{name}={value}")]
    video = tmp_path / "out.mp4"
    assert main(["generate", "a", "-o", str(video), "--frames", "45", "--quiet", *settings]) == 1
    out, err = capsys.readouterr()
    assert err.startswith("miga-bench: out of memory on cpu while ")
    assert err.endswith(f"; {video} keeps 9 frames\n")
    assert json.loads(out)["status"] == "failed"
    assert count_frames(video) == json.loads((tmp_path / "out.json").read_text())["frames"] == 9
    assert (tmp_path / "out.png").exists()


def test_memory_that_runs_out_for_the_texts_is_one_line(tmp_path, monkeypatch):
    backbone = SimpleBackbone()
    monkeypatch.setattr(backbone, "encode", lambda texts: ERRORS["gpu"]())
    with pytest.raises(DoesNotFitError, match="while encoding the text") as error:
        generate(request(tmp_path), backbone=backbone)
    assert "MIGA_BENCH_CACHE" in str(error.value)
    assert "--height" not in str(error.value), "which no text encoder minds"
    assert list(tmp_path.iterdir()) == []


def test_weights_that_do_not_fit_are_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("miga_bench.backbones.wan.load_wan", lambda *_, **__: ERRORS["gpu"]())
    assert main(["generate", "a red circle", "-o", str(tmp_path / "a.mp4")]) == 1
    said = capsys.readouterr().err
    assert "out of memory while tiny-wan was loaded" in said
    assert said.endswith("by --offload (model.offload)\n")


def test_an_apple_gpu_takes_no_more_than_it_has(monkeypatch):
    """Breaks if a Mac is given eight windows of a large model, whatever its memory."""
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 5 << 30)
    monkeypatch.setattr(torch.mps, "driver_allocated_memory", lambda: 2 << 30)
    assert free_bytes(torch.device("mps")) == 3 << 30
    assert is_out_of_memory(RuntimeError("MPS backend out of memory (MPS allocated: 17.9 GiB)"))


def test_each_process_of_a_team_makes_its_own_rows_fit():
    """One that runs short tells nobody: below the split, its share is made in pieces."""
    backbone = TightBackbone(2)
    share = FittingDenoiser(backbone.denoiser)
    rows = torch.randn(7, 3, 2, 4, 4), torch.full((7, 2), 500.0), torch.zeros(7, 1, 1)
    with pytest.warns(Notice, match="goes on with 2 per call"):
        found = share(*rows)
    assert backbone.asked == [7, 4, 2, 2, 2, 1]
    torch.testing.assert_close(found, TightBackbone(99).denoiser(*rows))


@pytest.mark.parametrize("text", MAYBE.values(), ids=MAYBE)
def test_what_may_be_a_lack_of_memory_is_one_while_there_are_rows_to_leave_out(text):
    """Breaks if a crowded GPU ends a video, or if a library that does not work is taken for a crowded GPU."""

    def denoise(latents, *others):
        if len(latents) > most:
            raise RuntimeError(text)
        return latents

    most, rows = 2, (torch.randn(7, 3, 2, 4, 4), torch.zeros(7, 2), torch.zeros(7, 1, 1))
    with pytest.warns(Notice, match="goes on with 2 per call"):
        assert FittingDenoiser(denoise)(*rows).equal(rows[0])
    most = 0
    with pytest.warns(Notice), pytest.raises(RuntimeError, match=text[:20]):
        FittingDenoiser(denoise)(*rows)


class Sharing:
    def __init__(self, name, held):
        setattr(self, name, held)


@pytest.mark.parametrize("name", ["network", "session", "loaded"])
def test_denoisers_that_share_what_holds_the_memory_share_its_limit(name):
    """Breaks if every reading of a network, a graph or an engine learns anew what does not fit."""
    held = object.__new__(type("Held", (), {}))
    one, other = Sharing(name, held), Sharing(name, held)
    assert FittingDenoiser(one).limits is FittingDenoiser(other).limits
    plain = Sharing(name, 3)  # of another meaning
    assert FittingDenoiser(plain).limits is FittingDenoiser(plain).limits
    assert FittingDenoiser(plain).limits is not FittingDenoiser(one).limits


def test_other_errors_are_no_lack_of_memory():
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    fitting = FittingDenoiser(lambda *inputs: _raise(RuntimeError("of its own")))
    with pytest.raises(RuntimeError, match="of its own"):
        fitting(torch.zeros(2, 3, 2, 4, 4), torch.zeros(2, 2), torch.zeros(2, 1, 1))
    assert fitting.limits.most == {}
