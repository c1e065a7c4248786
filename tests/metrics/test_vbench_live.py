"""Scores beside VBench's own functions in one process: full networks, other clips; ``make test-vbench``."""

import importlib.util

import pytest
import torch
from formula import clip, clip_shapes, dino_shapes, fill, numbers, state

if importlib.util.find_spec("vbench") is None:
    pytest.skip("needs vbench: make test-vbench", allow_module_level=True)

import vbench_original as original

from miga_bench.metrics import (
    BackgroundConsistency,
    MotionSmoothness,
    SubjectConsistency,
    TemporalFlickering,
)
from miga_bench.metrics.dynamic import DynamicDegree
from miga_bench.metrics.functional.dynamics import pair_motion
from miga_bench.metrics.networks import preprocess
from miga_bench.metrics.networks.amt import Amt
from miga_bench.metrics.networks.base import Provenance
from miga_bench.metrics.networks.clip import Clip
from miga_bench.metrics.networks.dino import Dino
from miga_bench.metrics.networks.raft import Raft
from miga_bench.metrics.networks.viclip import VideoTextEncoder
from miga_bench.metrics.overall_consistency import OverallConsistency

pytestmark = pytest.mark.vbench

# frames, height, width, frames per second
SIZES = {"a": (6, 128, 160, 8), "b": (5, 150, 131, 30), "c": (9, 129, 128, 8)}


@pytest.fixture(scope="module")
def videos():
    return {name: clip(name, *size[:3]) for name, size in SIZES.items()}


@pytest.fixture(scope="module")
def paths(videos, tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    return [
        original.write_lossless(folder / f"{name}.mp4", video, SIZES[name][3])
        for name, video in videos.items()
    ]


def ours(score, videos, piece):
    """Feed a score piece by piece; returns the score of all videos and those of each."""
    found = []
    for video in videos.values():
        score.begin()
        for part in video.split(piece):
            score.extend(part)
        found.append(score.end())
    return {"all": score.compute().item(), "videos": found}


def assert_same(found, expected, within):
    assert found["videos"] == pytest.approx(expected["videos"], abs=within, rel=0)
    assert found["all"] == pytest.approx(expected["all"], abs=within, rel=0)


@pytest.mark.parametrize("piece", [3, 100])
def test_temporal_flickering(videos, paths, piece):
    from vbench.temporal_flickering import temporal_flickering

    expected = original.per_video(temporal_flickering(paths))
    # the original averages in float32
    assert_same(ours(TemporalFlickering(), videos, piece), expected, 1e-8)


@pytest.mark.parametrize(("width", "layers"), [(128, 3), (768, 12)])
def test_subject_consistency(videos, paths, width, layers):
    from vbench.subject_consistency import subject_consistency

    try:
        model = original.dino(width, layers)
    except original.NoDinoError as error:
        pytest.skip(str(error))
    expected = original.per_video(subject_consistency(model, paths, "cpu", False))
    score = SubjectConsistency(Dino(weights=state("dino", dino_shapes(width, layers)), batch=4))
    assert_same(ours(score, videos, 5), expected, 1e-6)


@pytest.mark.parametrize(("width", "layers"), [(128, 3), (768, 12)])
def test_background_consistency(videos, paths, width, layers):
    from vbench.background_consistency import background_consistency

    model = original.openai_clip(width=width, layers=layers)
    expected = original.per_video(background_consistency(model, None, paths, "cpu", False))
    score = BackgroundConsistency(Clip(weights=state("clip", clip_shapes(32, width, layers))))
    assert_same(ours(score, videos, 4), expected, 1e-6)


@pytest.mark.parametrize("batch", [1, 2])
def test_motion_smoothness(videos, paths, tmp_path, batch):
    checkpoint = original.amt_checkpoint(tmp_path)
    expected = original.per_video(original.smoothness(paths, checkpoint))
    score = MotionSmoothness(Amt(weights=checkpoint, batch=batch))
    # convolutions of several pairs may round otherwise; a fraction may then be cut off another way
    assert_same(ours(score, videos, 4), expected, 1e-15 if batch == 1 else 1e-6)


def test_clip_in_half_precision_is_the_original_on_a_gpu(videos):
    from clip.model import convert_weights
    from vbench.utils import clip_transform

    model = original.openai_clip()
    convert_weights(model)
    encoder = Clip(weights=state("clip", clip_shapes()), dtype=torch.float16)
    pixels = clip_transform(224)(videos["b"].float())
    expected = torch.nn.functional.normalize(model.encode_image(pixels.half()).float(), dim=-1)
    assert (encoder(videos["b"]) * expected).sum(-1).min() > 1 - 1e-5


def test_dynamic_degree(tmp_path):
    checkpoint = original.raft_checkpoint(tmp_path)
    video = clip("moves", 5, 130, 128)
    path = original.write_lossless(tmp_path / "moves.mp4", video, 16)  # every other frame
    dynamic, motions = original.motion_of(path, checkpoint)
    network = Raft(weights=checkpoint)
    found = [pair_motion(video[i : i + 1], video[i + 2 : i + 3], network.flow) for i in (0, 2)]
    assert torch.cat(found).tolist() == pytest.approx(motions, rel=1e-5)
    score = DynamicDegree(network)
    score.update(video, fps=16)
    assert score.compute().item() == float(dynamic)


class SmallViClip(VideoTextEncoder):
    """A video and text encoder that VBench's own function takes too."""

    label = "small"
    provenance = Provenance("small", "formula", None)

    def __init__(self):
        super().__init__()
        self.project = fill(torch.nn.Linear(8 * 3 * 14 * 14, 16), "viclip")

    def encode_vision(self, video, test):
        pooled = torch.nn.functional.avg_pool2d(video.flatten(0, 1), 16)
        return self.project(pooled.reshape(len(video), -1))

    def encode_text(self, text):
        return torch.from_numpy(numbers(text, 16)).float()[None]

    def embed_video(self, frames):
        pixels = preprocess.normalize(frames.float(), preprocess.CLIP)
        return self.encode_vision(pixels[None], test=True)[0]

    def embed_text(self, text):
        return self.encode_text(text)[0]


def test_overall_consistency(videos, paths):
    from vbench.overall_consistency import overall_consistency

    encoder = SmallViClip()
    prompts = [f"prompt {name}" for name in videos]
    listed = [{"prompt": p, "video_list": [f]} for p, f in zip(prompts, paths, strict=True)]
    expected = original.per_video(overall_consistency(encoder, listed, None, "cpu"))
    score = OverallConsistency(encoder)
    found = []
    for prompt, video in zip(prompts, videos.values(), strict=True):
        score.begin(prompt)
        for part in video.split(4):
            score.extend(part)
        found.append(score.end())
    assert_same({"all": score.compute().item(), "videos": found}, expected, 1e-6)
