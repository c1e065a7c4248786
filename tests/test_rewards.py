"""What ScalingNoise scores candidates by: known numbers, and a network that is had early or not at all."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch
from analytic import PROMPTS, AnalyticBackbone

from miga_bench.backbones.base import LatentShape
from miga_bench.errors import UserError
from miga_bench.harness.module import LongVideoModule
from miga_bench.offline import OFFLINE
from miga_bench.sampling import CounterNoise
from miga_bench.sampling.estimate import estimate
from miga_bench.sampling.fifo import Fifo
from miga_bench.sampling.rewards import (
    DinoSimilarity,
    FrameSimilarity,
    LatentSimilarity,
    fetch_dino,
    make_reward,
)
from miga_bench.sampling.scaling_noise import ScalingNoise, ScalingNoiseSettings

NOISE = CounterNoise(0, LatentShape(3, 4, 4))
SMALL = ScalingNoiseSettings(
    steps=12, guidance_scale=3.0, beams=2, candidates=3, greedy=0.8, reward="latent", lag=4
)


def test_reward_is_the_mean_of_cosines_with_the_frame_before_and_the_anchor():
    def vector(degrees):
        angle = torch.deg2rad(torch.tensor(float(degrees)))
        return torch.stack([angle.cos(), angle.sin()])[:, None, None]

    clean = torch.stack([torch.stack([vector(30), vector(60)]), torch.stack([vector(0)] * 2)])
    cos30, cos60 = 0.75**0.5, 0.5
    expected = torch.tensor([((cos30 + cos30) / 2 + (cos30 + cos60) / 2) / 2, 1.0])
    torch.testing.assert_close(LatentSimilarity()(clean, 7 * vector(0)), expected)
    last = LatentSimilarity("last")(clean, vector(0))
    torch.testing.assert_close(last, torch.tensor([cos60, 1.0]))


class CountingDecoder:
    pushes: list = []  # noqa: RUF012

    def push(self, latents):
        self.pushes.append(latents)
        return torch.sigmoid(latents).repeat_interleave(4, 2).repeat_interleave(4, 3)


@pytest.mark.parametrize(("frames", "read"), [("all", 5), ("last", 1)])
def test_only_frames_that_are_read_are_decoded(frames, read):
    CountingDecoder.pushes.clear()
    clean, anchor = NOISE(range(15), "clean").unflatten(0, (3, 5)), NOISE([0], "anchor")[0]
    scores = FrameSimilarity(CountingDecoder, frames)(clean, anchor)
    assert scores.shape == (3,)
    assert len(CountingDecoder.pushes) == 1 + 3 * read, "the anchor once, then what is read"
    assert torch.equal(CountingDecoder.pushes[1][0], clean[0, -read])


def test_dino_reward_with_a_small_network():
    from transformers import ViTConfig, ViTModel

    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        image_size=32,
    )  # fmt: skip
    network = ViTModel(config, add_pooling_layer=False).eval()
    reward = DinoSimilarity(CountingDecoder, network=network, size=48)
    anchor = NOISE([0], "anchor")[0]
    same = anchor.expand(1, 2, 3, 4, 4)
    scores = reward(torch.cat([same, NOISE([1, 2], "other")[None]]), anchor)
    torch.testing.assert_close(scores[0], torch.tensor(1.0))
    assert scores[1] < 0.9999
    assert reward(torch.ones(1, 1, 3, 4, 6), torch.ones(3, 4, 6)).shape == (1,), "not only squares"


def test_dino_sees_pictures_as_it_was_trained_and_its_class_token_is_compared():
    """Breaks if ScalingNoise's reward is not VBench's subject consistency: other colors, or other tokens."""
    seen = []

    class Network:
        device, dtype = torch.device("cpu"), torch.float32

        def __call__(self, pixel_values, interpolate_pos_encoding):
            seen.append(pixel_values)
            tokens = torch.zeros(len(pixel_values), 3, 2)
            tokens[:, 0, 0], tokens[:, 1:, 1] = 1.0, torch.arange(len(pixel_values))[:, None] + 1.0
            return SimpleNamespace(last_hidden_state=tokens)

    reward = DinoSimilarity(CountingDecoder, network=Network(), size=16)
    scores = reward(
        torch.full((1, 2, 3, 4, 4), 50.0), torch.full((3, 4, 4), 50.0)
    )  # white pictures
    white = [(1 - mean) / std for mean, std in ((0.485, 0.229), (0.456, 0.224), (0.406, 0.225))]
    for channel, wanted in enumerate(white):
        torch.testing.assert_close(seen[0][:, channel], torch.full((3, 16, 16), wanted))
    torch.testing.assert_close(scores, torch.ones(1))  # class tokens are alike, the others are not


@pytest.mark.parametrize(("frames", "size"), [("all", (224, 336)), ("last", (224, 224))])
def test_the_released_dino_squashes_its_pictures(frames, size):
    seen = []

    class Network:
        device, dtype = torch.device("cpu"), torch.float32

        def __call__(self, pixel_values, interpolate_pos_encoding):
            seen.append(tuple(pixel_values.shape[-2:]))
            return SimpleNamespace(last_hidden_state=torch.ones(len(pixel_values), 2, 4))

    backbone = SimpleNamespace(picture_decoder=CountingDecoder, device="cpu")
    reward = make_reward("dino", backbone, frames)
    reward.network = Network()
    reward(torch.ones(1, 2, 3, 4, 6), torch.ones(3, 4, 6))
    assert seen == [size]


@pytest.fixture
def asked(monkeypatch):
    """Stand between the tests and the Hub; return what is asked of it."""
    from transformers import ViTModel

    calls = []

    def from_pretrained(name, **options):
        calls.append(options)
        if len(calls) == 1:
            raise RuntimeError("the proxy\nsays no")  # as the Hub's client fails, too: no OSError
        network = SimpleNamespace(eval=lambda: network)
        return network

    fetch_dino.cache_clear()
    monkeypatch.setattr(ViTModel, "from_pretrained", from_pretrained)
    yield calls
    fetch_dino.cache_clear()


@pytest.mark.parametrize("switch", OFFLINE)
def test_a_reward_that_cannot_be_had_is_told_before_any_work(asked, monkeypatch, switch):
    """Breaks if each of hundreds of videos fails after its opening clip, or a plan does not hear of it."""
    for name in OFFLINE:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(switch, "1")
    backbone, called = AnalyticBackbone("wan", window=8), []
    monkeypatch.setattr(backbone, "denoiser", lambda *_, **__: called.append(1))
    sampler = ScalingNoise(dataclasses.replace(SMALL, reward="dino"))
    with pytest.raises(UserError, match=r"\(the proxy\); connect to the Hugging Face Hub once, or"):
        sampler.sample(backbone, PROMPTS, NOISE, 20)
    assert called == []
    assert asked[0]["local_files_only"] is True
    asked.clear()
    with pytest.raises(UserError, match="reward is 'dino'"):
        sampler.prepare()


def test_videos_that_are_there_ask_for_nothing(monkeypatch):
    """Breaks if a finished run wants DINO again, or a run that is not does without."""
    items = {n: SimpleNamespace(key=n) for n in ("fifo/a", "search/a", "search/b")}
    ready = []
    module = LongVideoModule(
        arms={"fifo": {"method": "fifo"}, "search": {"method": "scaling-noise"}}
    )
    sampler = ScalingNoise(dataclasses.replace(SMALL, reward="dino"))
    monkeypatch.setattr(ScalingNoise, "prepare", lambda self: ready.append(self))
    module.samplers = {"fifo": Fifo(None), "search": sampler}
    module._arm_of = {name: name.partition("/")[0] for name in items}
    module.prepare(items.values(), {"search/a", "search/b"}.__contains__)
    assert ready == []
    module.prepare(items.values(), {"search/a"}.__contains__)
    module.prepare(items.values())
    assert ready == [sampler, sampler]


def test_a_reward_that_is_not_asked_is_not_fetched_and_one_that_is_once(asked):
    """Breaks if plain FIFO needs DINO, or every video of a run loads it anew."""
    backbone = AnalyticBackbone("wan", window=8)
    for judge, changes in ((None, {"beams": 1, "candidates": 1}), (LatentSimilarity(), {})):
        sampler = ScalingNoise(dataclasses.replace(SMALL, reward="dino", **changes), judge)
        sampler.prepare()
    estimate(ScalingNoise(dataclasses.replace(SMALL, reward="dino")), backbone, 20)
    assert asked == []
    asked.append("the one that fails")
    for _ in range(2):
        ScalingNoise(dataclasses.replace(SMALL, reward="dino")).prepare()
    assert len(asked) == 2
