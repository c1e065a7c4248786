"""Judges: a tiny random Qwen2.5-VL in this process and behind real HTTP, and the embedded world's reader."""

import random
import time
import urllib.request
from types import SimpleNamespace

import pytest
import torch
from narratives import parse_narrative, render_narrative
from narrlv_fixtures import FEW, TINY, tiny_qwen
from PIL import Image
from ports import free_port
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from miga_bench.backbones.tiny.grammar import Narrative
from miga_bench.backbones.tiny.judge import ReaderJudge
from miga_bench.errors import JudgeDownError, UserError
from miga_bench.metrics.narrlv.answers import TensorVideo, answers_to, ask, read_answers, slots
from miga_bench.metrics.narrlv.judge import SUFFIX, Sampling, differences
from miga_bench.metrics.narrlv.qwen import QwenJudge, patchify, provenance_by_files, resized
from miga_bench.metrics.narrlv.scorer import score_video
from miga_bench.metrics.narrlv.server import ServerJudge, data_url
from miga_bench.metrics.narrlv.suite import load_suite

SHORT = Sampling(max_new_tokens=6)


def clip(seed=0, frames=10, height=56, width=84):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (frames, 3, height, width), generator=generator, dtype=torch.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_qwen(tmp_path_factory.mktemp("qwen") / "model")


@pytest.fixture(scope="module")
def qwen(folder):
    return QwenJudge(folder, device="cpu", dtype="float32", sampling=SHORT)


@pytest.fixture(scope="module")
def server(folder, tmp_path_factory):
    """`transformers serve` on a free port, in a thread of this process; yields its address."""
    from transformers import dynamic_module_utils
    from transformers.cli.serve import Serve

    port = free_port()
    with pytest.MonkeyPatch.context() as patch:
        # the model's own processor is code, which is copied to where this points
        modules = str(tmp_path_factory.mktemp("modules"))
        patch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", modules)
        served = Serve(
            force_model=str(folder),
            continuous_batching=False,
            attn_implementation=None,
            compile=False,
            quantization=None,
            device="cpu",
            dtype="float32",
            trust_remote_code=True,
            host="127.0.0.1",
            port=port,
            log_level="error",
            non_blocking=True,
        )
        for _ in range(2400):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1).close()
                break
            except OSError:
                time.sleep(0.05)
        yield f"http://127.0.0.1:{port}/v1"
        served.kill_server()


def test_patches_are_those_of_the_models_own_processor():
    frames = clip(frames=1, height=70, width=100)
    theirs = Qwen2VLImageProcessorPil(min_pixels=56 * 56, max_pixels=16384 * 28 * 28)
    made = theirs([frames[0].permute(1, 2, 0).numpy()], return_tensors="pt")
    patches, grid = patchify(frames)
    assert made["image_grid_thw"].tolist() == [list(grid)]
    assert torch.equal(made["pixel_values"], patches)


def test_a_video_is_cut_in_pairs_of_frames():
    frames = clip(frames=3)
    patches, grid = patchify(frames)
    assert grid == (2, 4, 6)
    single, _ = patchify(frames[2:])
    assert torch.equal(patches[24:], single)  # the last frame pairs with itself
    first = patches[:24].view(24, 3, 2, 14, 14)
    assert torch.equal(first[:, :, 1], patchify(frames[1:2])[0].view(24, 3, 2, 14, 14)[:, :, 0])


def test_sizes_are_multiples_with_an_allowed_number_of_pixels():
    assert resized(480, 832, 28) == (476, 840)
    assert resized(10, 10, 28) == (56, 56)
    tall, wide = resized(8000, 8000, 28)
    assert tall % 28 == wide % 28 == 0
    assert tall * wide <= 16384 * 28 * 28


def test_qwen_answers_by_seed_frames_and_question(qwen):
    frames = clip()
    state = torch.random.get_rng_state()
    answers = [qwen(frames, "Is it red?", seed) for seed in range(6)]
    assert len(set(answers)) > 1
    assert answers == [qwen(frames, "Is it red?", seed) for seed in range(6)]
    assert torch.equal(state, torch.random.get_rng_state())
    assert answers != [qwen(clip(1), "Is it red?", seed) for seed in range(6)]
    assert answers != [qwen(frames, "Is it blue?", seed) for seed in range(6)]


def test_qwen_draws_as_it_is_told_and_answers_with_what_it_adds(qwen, monkeypatch):
    """Breaks if the question counts as part of the answer: it has a "no" in it."""
    told = {}

    def generate(input_ids, **options):
        told.update(options)
        said = qwen._tokenizer("Yes", return_tensors="pt")["input_ids"]
        return torch.cat([input_ids, said], dim=1)

    monkeypatch.setattr(qwen.model, "generate", generate)
    assert qwen(clip(), "Is it red?", 0) == "Yes"
    assert {"do_sample": True, **SHORT.as_dict()}.items() <= told.items()


def test_qwen_without_temperature_needs_no_seed(folder):
    judge = QwenJudge(
        folder, device="cpu", dtype="float32", sampling=Sampling(temperature=0, max_new_tokens=4)
    )
    assert judge(clip(), "Is it red?", 1) == judge(clip(), "Is it red?", 2)


def test_qwen_reads_the_message_of_the_original(qwen):
    inputs = qwen.inputs(clip(), "Is it red?")
    text = qwen._tokenizer.decode(inputs["input_ids"][0])
    assert text.startswith(
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
    )
    assert (
        "Is it red? Only answer with yes or no, no additional explanation needed.<|vision_start|>"
        in text
    )
    # 10 frames in pairs, 4 x 6 patches merged 2 x 2
    assert text.count("<|video_pad|>") == 5 * 2 * 3
    assert inputs["second_per_grid_ts"].tolist() == [pytest.approx(0.2)]


def test_the_whole_way_with_qwen(qwen, folder, tmp_path):
    path = tmp_path / "a.jsonl"
    list(ask(FEW, qwen, lambda item: TensorVideo(clip(frames=24)), path, votes=2))
    provenance, answers = read_answers(path)
    assert provenance["judge"]["sampling"]["max_new_tokens"] == 6
    assert provenance["judge"]["model"].startswith("model sha256:")
    by_files = provenance_by_files(folder, SHORT, "float32")
    assert differences(by_files, provenance["judge"]) == ["attention: None is now 'sdpa'"]
    item = FEW.items[0]
    assert score_video(item, answers_to(item, answers, 2)).answers == len(slots(item, 2))


def test_a_model_that_is_none_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"cannot load the judge .* Qwen2\.5-VL") as error:
        QwenJudge(tmp_path, device="cpu")
    assert "\n" not in str(error.value)
    for dtype in ("int", "float64"):
        with pytest.raises(UserError, match=f"dtype is '{dtype}'; it must be one of bfloat16"):
            QwenJudge(tmp_path, dtype=dtype)


def test_the_whole_way_over_http(server, folder, tmp_path):
    path = tmp_path / "a.jsonl"
    judge = ServerJudge(server, str(folder), concurrency=3, sampling=SHORT)
    progress = list(ask(FEW, judge, lambda item: TensorVideo(clip(frames=24)), path, votes=2))
    item = FEW.items[0]
    assert len(progress) == len(slots(item, 2))
    provenance, answers = read_answers(path)
    assert provenance["judge"]["url"] == server
    assert any(answers.values())
    assert score_video(item, answers_to(item, answers, 2)).answers == len(progress)


def test_a_server_sees_the_frames_and_the_seed(server, folder):
    judge = ServerJudge(server, str(folder), sampling=SHORT)
    seen = [[judge(clip(c), "Is it red?", seed) for seed in range(4)] for c in (0, 1)]
    assert seen[0] != seen[1]
    assert len(set(seen[0])) > 1


def test_what_a_server_refuses_is_one_line(server):
    with pytest.raises(UserError, match=r"refuses the request.*pinned") as error:
        ServerJudge(server, "other")(clip(), "Is it red?", 1)
    assert not isinstance(error.value, JudgeDownError)
    assert "\n" not in str(error.value)


def test_a_server_that_is_down_is_one_resumable_stop(tmp_path):
    judge = ServerJudge(f"http://127.0.0.1:{free_port()}/v1", "m", retries=1, concurrency=2)
    with pytest.raises(
        JudgeDownError, match=r"does not answer.*run the same command again"
    ) as error:
        list(ask(FEW, judge, lambda item: TensorVideo(clip()), tmp_path / "a.jsonl"))
    assert "\n" not in str(error.value)
    assert read_answers(tmp_path / "a.jsonl")[1] == {}


def test_how_a_server_is_asked_is_checked():
    with pytest.raises(UserError, match="concurrency 0"):
        ServerJudge("http://127.0.0.1:1", "m", concurrency=0)


def test_a_server_is_asked_as_the_original_asks(monkeypatch):
    judge, asked = ServerJudge("http://127.0.0.1:1/v1", "m"), {}

    def create(**request):
        asked.update(request)
        return SimpleNamespace(choices=[SimpleNamespace(message=SimpleNamespace(content="No."))])

    monkeypatch.setattr(judge._client.chat.completions, "create", create)
    assert judge(clip(frames=2), "Is it red?", 7) == "No."
    system, user = asked.pop("messages")
    assert system == {"role": "system", "content": "You are a helpful assistant."}
    question, *pictures = user["content"]
    assert question["text"] == f"Is it red?{SUFFIX}"
    assert [one["image_url"]["url"] for one in pictures] == [
        data_url(one) for one in clip(frames=2)
    ]
    drawn = {"temperature": 0.7, "top_p": 0.8, "max_tokens": 32}
    penalty = {"repetition_penalty": 1.05}
    assert asked == {"model": "m", "seed": 7, "extra_body": penalty, **drawn}


def told(item, frames_per_atom=32):
    """The true video of a story, and that of its opening alone, equally long."""
    story = parse_narrative(item.prompt)
    total = frames_per_atom * item.tna
    stories = (story, Narrative(story.opening))
    return [render_narrative(s, random.Random(item.key), total)[0] for s in stories]


def scored(item, frames, folder):
    suite = load_suite(TINY)
    one = suite.__class__((item,), (), suite.digest, suite.source)
    path = folder / f"{frames.sum().item()}.jsonl"
    list(ask(one, ReaderJudge(), lambda _: TensorVideo(frames), path, votes=1))
    return score_video(item, answers_to(item, read_answers(path)[1], 1))


@pytest.mark.parametrize("factor", ["scene_attribute", "target_attribute", "target_action"])
@pytest.mark.parametrize(("tna", "number"), [(1, 0), (2, 1), (3, 0), (6, 2)])
def test_the_true_video_scores_one_and_one_without_the_change_loses(factor, tna, number, tmp_path):
    item = load_suite(TINY).select([factor], [tna]).items[number]
    true, still = told(item)
    score = scored(item, true, tmp_path)
    assert (score.fid, score.cov) == (1, 1)
    assert score.coh == (1 if tna > 1 else None)
    if tna > 1:
        score = scored(item, still, tmp_path)
        # motions come back in longer stories, so that the opening may answer for more than itself
        told_by_opening = item.questions[_states(item)].count(item.questions[_states(item)][0])
        assert score.fid == 1
        assert score.cov == pytest.approx(told_by_opening / tna)
        assert score.coh == pytest.approx(told_by_opening / tna / 2)


def _states(item):
    return f"{item.evolutions[0]}_0"


def test_changes_in_the_wrong_order_are_covered_but_not_coherent(tmp_path):
    item = load_suite(TINY).select(["scene_attribute"], [3]).items[0]
    true, _ = told(item)
    score = scored(item, torch.cat([true[:32], true[64:], true[32:64]]), tmp_path)
    assert (score.fid, score.cov) == (1, 1)
    assert score.coh == pytest.approx(0.5)


def test_a_sprite_that_vanishes_and_a_field_that_burns_are_anomalies(tmp_path):
    item = load_suite(TINY).select(["scene_attribute"], [1]).items[0]
    true, _ = told(item)
    burnt = true.clone()
    burnt[16:] = 1.0
    score = scored(item, burnt, tmp_path)
    assert score.categories["Scene Anomaly Detection"] == 0
    assert score.categories["Main Target Anomaly Detection"] == 0
    assert scored(item, true, tmp_path).fid == 1


def test_the_reader_refuses_what_it_cannot_judge():
    judge = ReaderJudge()
    with pytest.raises(UserError, match="is not understood"):
        judge(torch.zeros(1, 3, 64, 64, dtype=torch.uint8), "Is it art?")
    with pytest.raises(UserError, match="the embedded world's are"):
        judge(torch.zeros(1, 3, 32, 32, dtype=torch.uint8), "Does the scene feature a circle?")


def test_a_picture_goes_to_the_server_as_it_is():
    import base64
    import io

    frame = torch.arange(192, dtype=torch.uint8).view(3, 8, 8)
    head, data = data_url(frame).split(",")
    assert head == "data:image/jpeg;base64"
    picture = Image.open(io.BytesIO(base64.b64decode(data)))
    assert picture.size == (8, 8)
    got = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).view(8, 8, 3)
    assert (got.permute(2, 0, 1).float() - frame.float()).abs().mean() < 20
