"""Dynamic degree, overall consistency and marks of frames: rules, pieces and refusals."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from formula import clip

from miga_bench.errors import NumericalError, UserError
from miga_bench.metrics.dynamic import DynamicDegree
from miga_bench.metrics.frame_quality import ImagingQuality
from miga_bench.metrics.functional.agreement import middle_frames
from miga_bench.metrics.functional.dynamics import (
    dynamic_degree,
    is_dynamic,
    pair_motion,
    stride,
    threshold,
)
from miga_bench.metrics.networks.base import FlowEstimator, Provenance
from miga_bench.metrics.networks.judges import FrameJudge
from miga_bench.metrics.networks.viclip import VideoTextEncoder
from miga_bench.metrics.overall_consistency import OverallConsistency


class Brightness(FlowEstimator):
    """Moves as far as the brightness of the first pixel changes."""

    label = "brightness"
    provenance = Provenance("brightness", "none", None)

    def flow(self, first, second):
        length = (second[:, :1].float() - first[:, :1].float()).abs()
        return torch.cat([length, torch.zeros_like(length)], dim=1)


def flashes(frames, flashing, side=64):
    """A video in which the first pairs change by 2 of 255, which is above 1.5 at this size."""
    levels = torch.zeros(frames)
    levels[1 : flashing + 1] = 2.0 * (torch.arange(flashing) % 2 == 0)
    return levels.byte().reshape(-1, 1, 1, 1).expand(-1, 3, side, side).contiguous()


@pytest.mark.parametrize(
    ("frames", "moving", "expected"),
    [(16, 4, True), (16, 3, False), (10, 2, True), (10, 1, False), (2, 0, True), (1, 0, False)],
)
def test_a_quarter_of_the_frames_must_move(frames, moving, expected):
    # 10 / 4 is rounded to the even 2; of 2 frames none need move: the original's rule
    assert is_dynamic(moving, frames) is expected


def test_what_counts_as_motion_grows_with_the_shorter_side():
    """Breaks if a video's dynamic degree is not VBench's: 6 pixels where the shorter side has 256."""
    assert threshold(256, 512) == threshold(512, 256) == 6.0
    assert threshold(480, 832) == threshold(832, 480) == 11.25


def test_a_pairs_motion_is_that_of_its_fastest_twentieth():
    """Breaks if other vectors than the longest 5 % count, or frames are padded otherwise."""
    seen = []

    def flow(first, second):
        seen.extend([first, second])
        across = torch.arange(16.0 * 24).reshape(1, 16, 24)
        return torch.cat([0.6 * across, 0.8 * across])[None]

    generator = torch.Generator().manual_seed(0)
    pair = torch.randint(0, 255, (2, 1, 3, 13, 21), dtype=torch.uint8, generator=generator)
    # 19 of 384 vectors: those of lengths 365 to 383
    assert pair_motion(pair[0], pair[1], flow).item() == pytest.approx(374.0)
    for given, padded in zip(pair, seen, strict=True):
        assert padded.shape == (1, 3, 16, 24)
        assert torch.equal(padded[:, :, 1:14, 1:22], given)
        assert torch.equal(padded[:, :, 0, 1:22], given[:, :, 0])  # edges are repeated


def test_eight_frames_a_second_are_looked_at():
    assert [stride(fps) for fps in (1, 8, 12, 16, 20, 24, 30, 60)] == [1, 1, 2, 2, 2, 3, 4, 8]


@pytest.mark.parametrize("fps", [8, 24])
@pytest.mark.parametrize("piece", [1, 4, 5, 100])
def test_dynamic_degree_does_not_depend_on_pieces(fps, piece):
    for flashing in (0, 3, 4, 9, 12):
        video = flashes(17, flashing)
        score = DynamicDegree(Brightness())
        score.begin(fps=fps)
        for part in video.split(piece):
            score.extend(part)
        assert score.end() == dynamic_degree(video, fps, Brightness().flow).item()
    assert dynamic_degree(flashes(17, 3), 8, Brightness().flow) == 1
    assert dynamic_degree(flashes(17, 2), 8, Brightness().flow) == 0


def test_dynamic_degree_keeps_one_frame_of_a_piece():
    score = DynamicDegree(Brightness())
    score.begin(fps=8)
    score.extend(flashes(16, 3))
    assert score._newest.untyped_storage().nbytes() == score._newest.nbytes


def test_dynamic_degree_of_videos_is_the_share_that_moves():
    score = DynamicDegree(Brightness())
    for flashing in (0, 8, 8, 8):
        score.update(flashes(16, flashing), fps=8)
    assert score.compute() == 0.75
    assert score.label == "dynamic_degree[brightness]"


def test_dynamic_degree_with_the_embedded_flow():
    score = DynamicDegree()
    still = clip("still", 1, 64, 64).expand(8, -1, -1, -1)
    score.update(still, fps=8)
    assert score.compute() == 0
    score.update(torch.stack([still[0].roll(3 * t, -1) for t in range(8)]), fps=8)
    assert score.compute() == 0.5


class Lost(Brightness):
    """Gives NaN at one pixel."""

    def flow(self, first, second):
        flow = super().flow(first, second)
        flow[..., -1, -1] = float("nan")
        return flow


def test_motion_that_is_not_finite_is_not_taken_for_none():
    """Breaks if a network that gave NaN makes a video that stands still."""
    with pytest.raises(NumericalError):
        dynamic_degree(flashes(16, 8), 8, Lost().flow)
    score = DynamicDegree(Lost())
    with pytest.raises(UserError, match=r"dynamic_degree.brightness.: NaN or infinity"):
        score.update(flashes(16, 8), fps=8)
    assert score.per_video() == {}


@pytest.mark.parametrize("fps", [None, 0, -8, float("nan"), float("inf")])
def test_dynamic_degree_wants_a_rate(fps):
    score = DynamicDegree(Brightness())
    with pytest.raises(UserError, match=r"fps is .*must be above 0"):
        score.update(flashes(16, 3), fps=fps)


def test_middle_frames_are_those_of_equal_stretches():
    for frames in range(1, 400):
        stretches = min(8, frames)
        edges = np.linspace(0, frames, stretches + 1).astype(int)
        middles = [(a + b - 1) // 2 for a, b in pairwise(edges)]
        assert middle_frames(frames) == middles + middles[-1:] * (8 - stretches)


class Seen(VideoTextEncoder):
    """Notes what it is shown."""

    label = "seen"
    provenance = Provenance("seen", "none", None)

    def embed_video(self, frames):
        self.frames = frames
        return torch.tensor([1.0, 0.0])

    def embed_text(self, text):
        return torch.tensor([3.0, 4.0]) if text == "a text" else torch.tensor([-1.0, 0.0])


def test_overall_consistency_sees_the_middle_frames_whatever_the_pieces():
    video = clip("long", 37, 40, 56)
    seen = []
    for piece in (1, 8, 37):
        encoder = Seen()
        score = OverallConsistency(encoder)
        score.begin("a text")
        for part in video.split(piece):
            score.extend(part)
        assert score.end() == pytest.approx(0.6)
        seen.append(encoder.frames)
    assert seen[0].shape == (8, 3, 224, 224)
    assert torch.equal(seen[0], seen[1])
    assert torch.equal(seen[0], seen[2])
    other = OverallConsistency(encoder)
    other.update(video[middle_frames(37)], prompt="another")
    assert torch.equal(encoder.frames, seen[0])
    assert other.compute() == -1


def test_overall_consistency_shows_frames_where_it_is_wherever_they_were():
    score = OverallConsistency(Seen()).to("meta")
    score.update(clip("short", 3, 32, 32), prompt="a text")
    assert score.encoder.frames.device.type == score.device.type == "meta"


def test_overall_consistency_wants_a_prompt_and_closes_its_file():
    score = OverallConsistency(Seen())
    with pytest.raises(UserError, match="there is no prompt"):
        score.update(clip("short", 3, 32, 32))
    score.begin("a text")
    score.extend(clip("short", 3, 32, 32))
    waiting = score._waiting
    score.drop()
    assert waiting.closed


class Mean(FrameJudge):
    """Marks frames by their mean."""

    label = "mean"
    provenance = Provenance("mean", "none", None)

    def marks(self, frames):
        return frames.float().mean((1, 2, 3)) / 255


def test_quality_of_a_video_is_the_mean_mark_of_its_frames():
    video = clip("marks", 7, 32, 48)
    score = ImagingQuality(Mean())
    score.begin()
    for part in video.split(3):
        score.extend(part)
    assert score.end() == pytest.approx(video.double().mean().item() / 255, abs=1e-6)
    score.update(video[:1])
    assert score.label == "imaging_quality[mean]"
