"""Videos for programs that serve them: frames one after the other, an end at any time, nothing left behind."""

import gc
import threading
import weakref

import pytest
import torch
from simple_backbone import SimpleBackbone, SimpleDecoder
from test_generate import SMALL, request

from miga_bench.backbones import load_backbone
from miga_bench.errors import NumericalError, UserError
from miga_bench.harness.generate import generate
from miga_bench.harness.request import GenerateRequest, PromptAt
from miga_bench.harness.stream import FrameStream
from miga_bench.harness.video import Watcher
from miga_bench.media import count_frames, read_video

PROMPT = [PromptAt("a red circle")]
SETTINGS = {"miga": SMALL}
PARTS = ("Pipeline", "Reflection", "WindowDenoiser", "_Video")


def wish(**changes):
    return GenerateRequest(**{"prompts": PROMPT, "frames": 45, "overrides": SMALL} | changes)


def frames_of(stream):
    return torch.cat(list(stream))


def watched(**arguments):
    """Return a backbone, and weak references to the decoders that it makes."""
    alive = []

    class Decoder(SimpleDecoder):
        def __init__(self):
            super().__init__()
            alive.append(weakref.ref(self))

    backbone = SimpleBackbone(**arguments)
    backbone.decoder = Decoder
    return backbone, alive


@pytest.mark.parametrize("method", ["miga", "fifo", "scaling-noise", "short"])
def test_the_frames_are_those_of_the_file(tmp_path, method):
    changes = {"method": method, "overrides": SETTINGS.get(method, {"steps": "16"}), "frames": 15}
    generate(request(tmp_path, lossless=True, **changes), backbone=SimpleBackbone())
    whole = frames_of(FrameStream(wish(**changes), SimpleBackbone()))
    assert (whole.dtype, whole.shape[0]) == (torch.uint8, 15)
    assert torch.equal(whole, torch.stack(list(read_video(tmp_path / "out.mp4"))))


def test_nothing_is_written_and_the_end_may_come_at_any_time(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    backbone = SimpleBackbone()
    with FrameStream(wish(frames=None, endless=True), backbone) as stream:
        assert sum(len(frames) for frames, _ in zip(stream, range(20), strict=False)) > 40
    calls = backbone.calls
    assert list(stream) == []
    assert backbone.calls == calls
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("closed", [True, False])
def test_an_ended_stream_keeps_nothing_even_before_garbage_is_collected(closed):
    """Breaks if a served video's queue waits on the GPU for Python's cyclic collector."""
    backbone, alive = watched()
    gc.disable()
    try:
        stream = FrameStream(wish(endless=True, frames=None), backbone)
        next(stream)
        alive += [weakref.ref(x) for x in gc.get_objects() if type(x).__name__ in PARTS]
        assert {type(one()).__name__ for one in alive} == {"Decoder", *PARTS}
        if closed:
            stream.close()
        else:
            del stream
        assert {one() for one in alive} == {None}
    finally:
        gc.enable()


def test_a_failed_result_holds_no_video(tmp_path):
    """Breaks if an error's traceback keeps a queue and a decoder for as long as the result is kept."""
    backbone, alive = watched(poison_at=300)
    gc.disable()
    try:
        result = generate(request(tmp_path, frames=None, endless=True), backbone=backbone)
        assert isinstance(result.error, NumericalError)
        assert [one() for one in alive] == [None]
    finally:
        gc.enable()


def test_frames_are_tensors_like_any_other_and_the_thread_stays_as_it_was():
    stream = FrameStream(wish(), SimpleBackbone())
    assert not torch.is_inference_mode_enabled()
    first = next(stream)
    assert not torch.is_inference_mode_enabled()
    assert not first.is_inference()
    first += 1
    got = []
    other = threading.Thread(target=lambda: got.extend(stream))  # another thread may go on
    other.start()
    other.join()
    again = FrameStream(wish(), SimpleBackbone())
    next(again)
    assert torch.equal(torch.cat(got), frames_of(again))


def test_two_streams_may_share_a_backbone():
    backbone = load_backbone("tiny-wan", device="cpu")
    alone = [frames_of(FrameStream(wish(seed=seed, frames=25), backbone)) for seed in (0, 1)]
    streams = [FrameStream(wish(seed=seed, frames=25), backbone) for seed in (0, 1)]
    got = [[], []]
    threads = [
        threading.Thread(target=lambda k=k: got[k].extend(streams[k])) for k in range(len(streams))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for mine, expected in zip(got, alone, strict=True):
        assert torch.equal(torch.cat(mine), expected)


def test_a_backbone_that_compares_itself_makes_videos_too():
    """Breaks if a user's dataclass, which has no hash, cannot be a backbone."""

    class Comparing(SimpleBackbone):
        def __eq__(self, other):
            return self is other

        __hash__ = None

    whole = frames_of(FrameStream(wish(), Comparing()))
    assert torch.equal(whole, frames_of(FrameStream(wish(), SimpleBackbone())))


@pytest.mark.parametrize(
    ("method", "more"), [("miga", {}), ("miga", {"guidance_reach": "anchor"}), ("fifo", {})]
)
def test_a_prompt_that_comes_late_gives_the_video_of_one_that_was_known(method, more):
    """Breaks if a live change touches a frame that was begun under the prompt before."""
    overrides = SMALL | more if method == "miga" else {"steps": "16"}
    live = FrameStream(wish(method=method, overrides=overrides, frames=401), SimpleBackbone())
    parts, starts = [], []
    for number, frames in enumerate(live):
        parts.append(frames)
        if number in (1, 6):
            starts.append(live.then("a blue square moves" + " left" * number))
    assert 5 < starts[0] < starts[1] < 401
    texts = ["a blue square moves left", "a blue square moves" + " left" * 6]
    known = [*PROMPT, *(PromptAt(t, s) for t, s in zip(texts, starts, strict=True))]
    whole = frames_of(
        FrameStream(
            wish(method=method, overrides=overrides, frames=401, prompts=known), SimpleBackbone()
        )
    )
    assert torch.equal(torch.cat(parts), whole)
    plain = frames_of(
        FrameStream(wish(method=method, overrides=overrides, frames=401), SimpleBackbone())
    )
    assert not torch.equal(plain, whole)
    assert torch.equal(plain[:5], whole[:5])


@pytest.mark.parametrize("method", ["short"])
def test_a_prompt_cannot_change_where_all_frames_are_made_at_once(method):
    stream = FrameStream(wish(method=method, overrides={}, frames=9), SimpleBackbone())
    with pytest.raises(UserError, match="its prompt cannot change: use fifo"):
        stream.then("a blue square")


def test_wrong_wishes_are_refused_before_work():
    backbone = SimpleBackbone()
    for changes, rule in (
        ({"prompts": [PromptAt(" ")]}, "the prompt is empty"),
        ({"frames": 0}, "at least 1 frame"),
        ({"overrides": {"steps": "1"}}, "steps"),
        ({"height": 64, "offload": True}, "height, offload cannot be asked of tiny-simple, which"),
    ):
        with pytest.raises(UserError, match=rule):
            FrameStream(wish(**changes), backbone)
    stream = FrameStream(wish(), backbone)
    with pytest.raises(UserError, match="the prompt is empty"):
        stream.then("")
    assert backbone.calls == 0


def test_what_a_watcher_raises_ends_the_stream():
    class Gone(Watcher):
        def passed(self, report):
            raise BrokenPipeError("the client left")

    stream = FrameStream(wish(), SimpleBackbone(), Gone())
    with pytest.raises(BrokenPipeError):
        next(stream)
    assert list(stream) == []


def test_a_thread_ends_a_video_that_another_makes(tmp_path):
    """Breaks if a client that leaves cannot be heard outside the main thread."""
    over, made = threading.Event(), threading.Event()

    class Show(Watcher):
        def wrote(self, frames, total):
            if total > 40:
                made.set()

    results = []
    wanted = request(tmp_path, frames=None, endless=True)
    maker = threading.Thread(
        target=lambda: results.append(generate(wanted, Show(), SimpleBackbone(), over.is_set))
    )
    maker.start()
    assert made.wait(60)
    over.set()
    maker.join(60)
    (result,) = results
    assert (result.status, result.signal, result.error) == ("stopped", None, None)
    assert result.frames == count_frames(tmp_path / "out.mp4") > 40
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.json", "out.mp4", "out.png"]


def test_an_end_before_the_first_frame_is_a_result_too(tmp_path):
    result = generate(request(tmp_path), backbone=SimpleBackbone(), ended=lambda: True)
    assert (result.status, result.frames) == ("stopped", 0)
    assert list(tmp_path.iterdir()) == []


def test_a_watchers_own_error_is_raised_and_not_told_as_the_videos(tmp_path):
    class Gone(Watcher):
        def wrote(self, frames, total):
            if total > 20:
                raise BrokenPipeError("the client left")

    with pytest.raises(BrokenPipeError):
        generate(request(tmp_path), Gone(), SimpleBackbone())
    assert count_frames(tmp_path / "out.mp4") > 20
