"""The four main scores: pieces, order, aggregation, neighbors in a collection, several processes."""

import copy
import math
import multiprocessing
import pickle

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torchmetrics import MetricCollection

from miga_bench.errors import UserError
from miga_bench.metrics import (
    BackgroundConsistency,
    MotionSmoothness,
    OverallScore,
    SubjectConsistency,
    TemporalFlickering,
)
from miga_bench.metrics.functional.consistency import feature_consistency
from miga_bench.metrics.functional.flickering import temporal_flickering
from miga_bench.metrics.functional.smoothness import motion_smoothness
from miga_bench.metrics.networks.amt import padded_midpoint
from miga_bench.metrics.networks.base import FrameEncoder, Interpolator, Provenance


class SmallEncoder(FrameEncoder):
    """A seeded convolution, so that features differ as pictures do."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__(batch=4)
        self.label = f"small{seed}"
        self.provenance = Provenance("convolution", f"seed {seed}", None)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.net = nn.Conv2d(3, 6, 4, 4)
        self.frames_seen = 0

    def embed(self, frames):
        self.frames_seen += len(frames)
        return self.net(frames.float() / 255 - 0.5).flatten(1)


class Average(Interpolator):
    label = "average"
    provenance = Provenance("average", "none", None)

    def midpoint(self, before, after):
        return ((before.int() + after.int()) // 2).byte()


def video(frames=9, seed=0, size=16):
    """A random walk: frames that resemble the ones before."""
    generator = torch.Generator().manual_seed(seed)
    steps = torch.randint(-20, 21, (frames, 3, size, size), generator=generator)
    return (128 + steps.cumsum(0)).clamp(0, 255).byte()


def all_scores(**options):
    encoder = SmallEncoder()
    return [
        SubjectConsistency(encoder, **options),
        BackgroundConsistency(SmallEncoder(1), **options),
        MotionSmoothness(Average(), **options),
        TemporalFlickering(**options),
    ]


def one(score, *videos, **named):
    for clip in videos:
        score.update(clip, **named)
    return score.compute().item()


def test_modules_equal_their_functions():
    clip, encoder = video(), SmallEncoder()
    assert one(SubjectConsistency(encoder), clip) == pytest.approx(
        feature_consistency(encoder(clip)).item(), abs=1e-7
    )
    assert one(TemporalFlickering(), clip) == pytest.approx(temporal_flickering(clip).item())
    expected = motion_smoothness(clip, Average().midpoint).item()
    assert one(MotionSmoothness(Average()), clip) == pytest.approx(expected)


def test_formulas_by_hand():
    features = torch.tensor([[1.0, 0.0], [0.6, 0.8], [-1.0, 0.0]])
    # <f1,f0> = .6 twice; <f2,f1> = -.6 and <f2,f0> = -1 count as nothing
    assert feature_consistency(features).item() == pytest.approx((0.6 + 0.0) / 2)
    frames = torch.tensor([10, 20, 60, 0, 0]).byte().reshape(5, 1, 1, 1).expand(5, 3, 2, 2)
    assert temporal_flickering(frames).item() == pytest.approx(1 - (10 + 40 + 60 + 0) / 4 / 255)
    # midpoints 35 and 30, truncated, against 20 and 0
    assert motion_smoothness(frames, Average().midpoint).item() == pytest.approx(
        1 - (15 + 30) / 2 / 255
    )


@settings(max_examples=25, deadline=None)
@given(st.integers(3, 23), st.lists(st.integers(1, 7), min_size=1, max_size=12), st.integers(0, 99))
def test_pieces_equal_the_whole(frames, sizes, seed):
    clip = video(frames, seed)
    for whole, pieces in zip(all_scores(), all_scores(), strict=True):
        whole.update(clip)
        pieces.begin()
        start = 0
        for size in sizes:
            pieces.extend(clip[start : start + size])
            start += size
        pieces.extend(clip[start:])
        pieces.end()
        # pixels are counted in whole numbers; features go through the network in other batches
        exact = 0 if isinstance(whole, (MotionSmoothness, TemporalFlickering)) else 1e-6
        assert abs(whole.compute() - pieces.compute()) <= exact


def test_memory_does_not_grow_with_the_length():
    scores = all_scores()
    for score in scores:
        score.begin()

    sizes = []
    for k in range(200):
        for score in scores:
            score.extend(video(8, k))
        if k in (99, 199):
            sizes.append([len(pickle.dumps(score)) for score in scores])
    assert all(after <= 1.02 * before for before, after in zip(*sizes, strict=True)), sizes


@pytest.mark.parametrize("name", [0, 1, 2, 3])
def test_a_still_video_scores_one(name):
    still = video(1).expand(7, -1, -1, -1)
    assert one(all_scores()[name], still) == pytest.approx(1, abs=1e-6)


@given(st.permutations(range(5)))
@settings(max_examples=10, deadline=None)
def test_order_of_videos_does_not_matter(order):
    for first, second in zip(all_scores(), all_scores(), strict=True):
        for k in range(5):
            first.update(video(4 + k, k), prompt=str(k % 2))
        for k in order:
            second.update(video(4 + k, k), prompt=str(k % 2))
        assert first.compute() == second.compute()
        assert first.estimate() == second.estimate()


def test_aggregation_rules():
    clips = [video(4, 0), video(12, 1), video(7, 2)]
    values = [one(TemporalFlickering(), clip) for clip in clips]
    pairs = [3, 11, 6]

    def scored(aggregate, ids):
        score = TemporalFlickering(aggregate=aggregate)
        for clip, name in zip(clips, ids, strict=True):
            score.update(clip, video_id=name)
        return score.compute().item()

    apart = ["a", "b", "c"]
    assert scored("video", apart) == pytest.approx(sum(values) / 3)
    weighted = sum(v * n for v, n in zip(values, pairs, strict=True)) / sum(pairs)
    assert scored("frame", apart) == pytest.approx(weighted)
    # two clips of one video: that video counts once
    together = ["a", "a", "b"]
    assert scored("video", together) == pytest.approx(((values[0] + values[1]) / 2 + values[2]) / 2)
    assert scored("clip", together) == pytest.approx(sum(values) / 3)
    assert SubjectConsistency(SmallEncoder()).aggregate == "frame"
    assert TemporalFlickering().aggregate == "video"


def test_interval_is_clustered_by_prompt():
    score = TemporalFlickering()
    for k in range(6):
        score.update(video(5, k), prompt=f"prompt {k // 2}")
    found = score.estimate()
    assert (found.n, found.clusters) == (6, 3)
    assert found.low < score.compute().item() < found.high


def test_a_collection_keeps_its_members_apart():
    # after a still video all states look alike, and a collection merges metrics whose states do
    encoder = SmallEncoder()
    members = [SubjectConsistency(encoder), BackgroundConsistency(encoder), TemporalFlickering()]
    together = MetricCollection({score.name: score for score in members})
    alone = copy.deepcopy(members)
    for clip in (video(1).expand(5, -1, -1, -1), video(9, 3)):
        together.update(clip)
        for score in alone:
            score.update(clip)
    for score in alone:
        assert together.compute()[score.name] == score.compute()


def test_scores_that_share_an_encoder_share_its_pass():
    encoder = SmallEncoder()
    pair = MetricCollection([SubjectConsistency(encoder), BackgroundConsistency(encoder)])
    clip = video(9)
    pair.update(clip)
    assert encoder.frames_seen == 9
    clip += 1  # the same memory, other frames
    pair.update(clip)
    assert encoder.frames_seen == 18


def test_overall_score_is_the_mean_of_the_four():
    overall = OverallScore(SmallEncoder(), SmallEncoder(1), Average())
    clips = [video(6, 1), video(11, 2)]
    for k, clip in enumerate(clips):
        overall.update(clip, prompt=str(k))
    four = [one(score, *clips) for score in all_scores()]
    assert overall.compute().item() == pytest.approx(sum(four) / 4)
    by_video = [OverallScore(SmallEncoder(), SmallEncoder(1), Average()) for _ in clips]
    means = [one(score, clip) for score, clip in zip(by_video, clips, strict=True)]
    assert overall.estimate().mean == pytest.approx(sum(means) / 2)
    assert overall.label == "overall_score[small0,small1,average]"
    overall.reset()
    assert math.isnan(overall.compute())


def test_the_overall_scores_interval_is_clustered_by_prompt():
    overall = OverallScore(SmallEncoder(), SmallEncoder(1), Average())
    for k in range(4):
        overall.update(video(5, k), prompt=f"prompt {k // 2}")
    found = overall.estimate(level=0.8)
    assert (found.n, found.clusters, found.level) == (4, 2, 0.8)


def test_calling_the_overall_score_gives_the_videos_and_keeps_it():
    overall, twice = (OverallScore(SmallEncoder(), SmallEncoder(1), Average()) for _ in range(2))
    clips = [video(6, 1), video(11, 2)]
    found = [overall(clip, prompt="a").item() for clip in clips]
    for clip, value in zip(clips, found, strict=True):
        twice.update(clip, prompt="a")
        alone = OverallScore(SmallEncoder(), SmallEncoder(1), Average())
        assert one(alone, clip) == pytest.approx(value)
    assert overall.compute() == twice.compute()


def test_scores_take_frames_of_inference_mode():
    with torch.inference_mode():
        clip, encoder = video(9), SmallEncoder()
        score = SubjectConsistency(encoder)
        score.update(clip)
        first = score.compute()
        clip += 1  # such frames do not tell that they have changed
        score.reset()
        score.update(clip)
        assert encoder.frames_seen == 18
        assert score.compute() != first


def test_labels_carry_foreign_networks():
    encoder = SmallEncoder()
    assert SubjectConsistency(encoder).label == "subject_consistency[small0]"
    assert TemporalFlickering().label == "temporal_flickering"
    made = SubjectConsistency(encoder).provenance()
    assert made["networks"]["encoder"]["weights"] == "seed 0"


def test_too_short_a_video_leaves_no_trace():
    score = TemporalFlickering()
    score.update(video(5))
    before = score.compute()
    with pytest.raises(UserError, match="1 frame; it must have at least 2"):
        score.update(video(1))
    assert score.compute() == before
    overall = OverallScore(SmallEncoder(), SmallEncoder(1), Average())
    with pytest.raises(UserError, match=r"motion_smoothness.*at least 3"):
        overall.update(video(2))
    assert math.isnan(overall.compute())


class Choosy(Average):
    """Needs sides of 20 pixels, and gives NaN for a dark frame."""

    label = "choosy"
    provenance = Provenance("Choosy-S", "none", None)
    least_side = 20

    def midpoint(self, before, after):
        def network(first, second, half, eval):
            return {"imgt_pred": (first + second) / 2 + (0 * first).log().where(first == 0, 0)}

        assert min(before.shape[-2:]) >= 20
        return padded_midpoint(network, before, after)


@pytest.mark.parametrize(
    ("height", "width", "first", "message"),
    [
        (
            20,
            19,
            9,
            "frames of 19x20 pixels are too small for Choosy-S, they must have 20 at least",
        ),
        (19, 40, 9, "frames of 40x19 pixels are too small"),
        (20, 20, 0, "NaN or infinity came out of its network"),
    ],
)
def test_what_a_network_cannot_judge_has_no_score_and_a_reason(height, width, first, message):
    """Breaks if NaN is cast to black, so that smoothness is 1 less the brightness."""
    clip = torch.full((9, 3, height, width), 9, dtype=torch.uint8)
    clip[6] = first
    score, sound = MotionSmoothness(Choosy()), torch.full((9, 3, 20, 20), 9, dtype=torch.uint8)
    score.update(sound)
    with pytest.raises(UserError, match=f"motion_smoothness.choosy.: {message}") as told:
        score.update(clip)
    assert "\n" not in str(told.value)
    score.begin()
    for piece in clip.split(2):  # other scores of the same pieces go on
        score.extend(piece)
    assert score.refusal() == str(told.value)
    score.drop()
    score.update(sound)
    assert (score.compute(), len(score.per_video())) == (1, 2)
    overall = OverallScore(SmallEncoder(), SmallEncoder(1), Choosy())
    with pytest.raises(UserError, match=message):
        overall.update(clip)
    overall.update(sound)
    assert overall.estimate().n == 1


def test_features_that_are_not_finite_are_no_score():
    encoder = SmallEncoder()
    encoder.net.weight.data[0] = math.nan
    score = SubjectConsistency(encoder)
    with pytest.raises(UserError, match=r"subject_consistency.small0.: NaN or infinity"):
        score.update(video())
    assert math.isnan(score.compute())


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (torch.rand(4, 3, 8, 8), "must be uint8"),
        (torch.zeros(4, 8, 8, 3, dtype=torch.uint8), "must be .T, 3, height, width"),
        ([1, 2], "must be a tensor"),
    ],
)
def test_what_is_no_video_is_refused(frames, message):
    with pytest.raises(UserError, match=message):
        TemporalFlickering().update(frames)


def test_frames_of_another_size_are_refused():
    score = TemporalFlickering()
    score.begin()
    score.extend(video(3, size=16))
    with pytest.raises(UserError, match="a frame of 12x12 pixels follows frames of 16x16"):
        score.extend(video(3, size=12))


def test_unknown_aggregate_is_refused():
    with pytest.raises(UserError, match="must be one of video, frame, clip"):
        TemporalFlickering(aggregate="mean")


def test_copies_and_pickles_score_on():
    score = SubjectConsistency(SmallEncoder())
    score.update(video(5))
    again = pickle.loads(pickle.dumps(score))
    assert again.compute() == score.compute()
    again.update(video(5, 1))
    assert again.compute() != score.compute()


def test_what_a_video_left_can_be_restored():
    score, again = TemporalFlickering(), TemporalFlickering()
    for k in range(3):
        score.update(video(4 + k, k), prompt=str(k), video_id=str(k))
        again.restore(score.terms, prompt=str(k), video_id=str(k))
    assert again.compute() == score.compute()
    assert again.estimate() == score.estimate()


SHARES = [[[0, 1, 2], [3]], [[0, 1, 2, 3], []]]  # the second leaves a rank without videos


def _score_shares(rank, port, queue):
    torch.set_num_threads(1)
    store = dist.TCPStore("127.0.0.1", port, is_master=False)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    for shares in SHARES:
        score = SubjectConsistency(SmallEncoder())
        for k in shares[rank]:
            score.update(video(4 + k, k), prompt=str(k), video_id=str(k))
        overall = OverallScore(SmallEncoder(), SmallEncoder(1), Average())
        for k in shares[rank]:
            overall.update(video(4 + k, k), prompt=str(k), video_id=str(k))
        queue.put((score.compute().item(), score.estimate().low, overall.estimate()))
        dist.barrier()
    dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore:The ``compute`` method", "ignore:.*fork.*:DeprecationWarning")
def test_processes_agree_with_one():
    meeting = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    context = multiprocessing.get_context("fork")  # what is loaded need not be loaded again
    queue = context.Queue()
    workers = [
        context.Process(target=_score_shares, args=(rank, meeting.port, queue), daemon=True)
        for rank in range(2)
    ]
    for worker in workers:
        worker.start()
    found = [queue.get(timeout=300) for _ in range(4)]
    for worker in workers:
        worker.join(60)
    alone = SubjectConsistency(SmallEncoder())
    overall = OverallScore(SmallEncoder(), SmallEncoder(1), Average())
    for k in range(4):
        for score in (alone, overall):
            score.update(video(4 + k, k), prompt=str(k), video_id=str(k))
    assert set(found) == {(alone.compute().item(), alone.estimate().low, overall.estimate())}
