"""An answer server that is slow, wrong or down: nothing that is no answer is kept. About 4 s."""

import json

import openai
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from narrlv_fixtures import FEW

from miga_bench.cli import main
from miga_bench.errors import JudgeDownError, UserError
from miga_bench.harness import score_narrlv
from miga_bench.metrics.narrlv.answers import TensorVideo, ask, read_answers, slots
from miga_bench.metrics.narrlv.server import ServerJudge

# the client's own, whichever generation
httpx = pytest.importorskip("httpx2" if hasattr(openai._base_client, "httpx2") else "httpx")

FRAMES = torch.zeros(1, 3, 28, 28, dtype=torch.uint8)
URL = "http://127.0.0.1:9/v1"


def good(text):
    return {"choices": [{"message": {"role": "assistant", "content": text}}]}


def judge(answer, **options):
    """A judge whose server is a function from a request to a response; nothing is waited for."""
    made = ServerJudge(URL, "m", **({"retries": 1, "concurrency": 1} | options))
    client = httpx.Client(transport=httpx.MockTransport(answer))
    made._client = made._client.with_options(http_client=client)
    return made


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(openai._base_client.SyncAPIClient, "_sleep_for_retry", lambda *a, **k: None)


def raising(error):
    def answer(request):
        raise error

    return answer


WRONG = {
    "a page": lambda r: httpx.Response(200, text="<html>\nHello</html>"),
    "half a json": lambda r: httpx.Response(
        200, text='{"choices": [', headers={"content-type": "application/json"}
    ),
    "nothing": lambda r: httpx.Response(200, json={}),
    "null": lambda r: httpx.Response(200, json=None),
    "no choice": lambda r: httpx.Response(200, json={"choices": []}),
    "no message": lambda r: httpx.Response(200, json={"choices": [{}]}),
    "a list": lambda r: httpx.Response(200, json=good(["yes"])),
    "refused": lambda r: httpx.Response(400, json={"error": {"message": "no\nsuch model"}}),
    "elsewhere": lambda r: httpx.Response(404, text="not\nfound"),
}
DOWN = {
    "slow": raising(httpx.ReadTimeout("timed out")),
    "down": raising(httpx.ConnectError("refused")),
    "dies while it answers": raising(httpx.RemoteProtocolError("peer closed connection")),
    "busy": lambda r: httpx.Response(429, json={"error": {"message": "too many"}}),
    "broken": lambda r: httpx.Response(500, text="oops"),
}


@pytest.mark.parametrize("how", WRONG)
def test_what_is_no_answer_is_not_kept(tmp_path, how):
    path = tmp_path / "a.jsonl"
    with pytest.raises(UserError, match=f"the judge at {URL}") as error:
        list(ask(FEW, judge(WRONG[how]), lambda item: TensorVideo(FRAMES), path))
    assert "\n" not in str(error.value)
    assert "check" in str(error.value)
    assert read_answers(path)[1] == {}


@pytest.mark.parametrize("how", DOWN)
def test_a_server_that_goes_down_is_gone_on_with(tmp_path, how):
    path, asked = tmp_path / "a.jsonl", []

    def failing(request):
        asked.append(json.loads(request.content)["seed"])
        return httpx.Response(200, json=good("Yes")) if len(asked) <= 3 else DOWN[how](request)

    def videos(item):
        return TensorVideo(FRAMES)

    with pytest.raises(
        JudgeDownError, match="answers so far are kept, run the same command"
    ) as error:
        list(ask(FEW, judge(failing), videos, path))
    assert "\n" not in str(error.value)
    assert len(read_answers(path)[1]) == 3
    rest = []

    def well(request):
        rest.append(json.loads(request.content)["seed"])
        return httpx.Response(200, json=good("No"))

    list(ask(FEW, judge(well), videos, path))
    answers = read_answers(path)[1]
    assert len(rest) == len(answers) - 3 == len(slots(FEW.items[0])) - 3
    assert not set(rest) & set(asked[:3])
    assert sorted(answers.values()) == ["No"] * len(rest) + ["Yes"] * 3


def refusing(asked, status, said):
    """A server that takes no ``repetition_penalty``, and says so in these words."""

    def answer(request):
        asked.append(json.loads(request.content))
        if "repetition_penalty" in asked[-1]:
            return httpx.Response(status, json={"detail": said})
        return httpx.Response(200, json=good("Yes"))

    return answer


def test_transformers_serve_is_told_the_penalty_by_its_name(tmp_path):
    """Breaks if its refusal ends the scoring, is met at every question, or changes how a file goes on."""
    path, asked = tmp_path / "a.jsonl", []
    server = refusing(asked, 422, "Unexpected fields in the request: {'repetition_penalty'}")

    def videos(item):
        return TensorVideo(FRAMES)

    list(ask(FEW, judge(server), videos, path))
    assert len(asked) == 1 + len(slots(FEW.items[0]))
    penalties = [one.get("frequency_penalty") for one in asked[1:]]
    assert penalties == pytest.approx([0.05] * len(penalties))
    assert list(ask(FEW, judge(server), videos, path)) == []


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (400, "Unrecognized request argument supplied: repetition_penalty"),
        (422, "Unexpected keys in the request: {'repetition_penalty'}"),  # which adds no 1
        (422, "Unexpected fields in the request: {'seed'}"),
    ],
)
def test_no_other_server_gets_another_penalty(status, said):
    asked = []
    with pytest.raises(UserError, match=r"check .* that the server takes repetition_penalty"):
        judge(refusing(asked, status, said))(FRAMES, "Is it?", 0)
    assert len(asked) == 1


def test_a_server_that_takes_neither_penalty_is_asked_twice():
    asked = []

    def answer(request):
        asked.append(json.loads(request.content))
        (name,) = {"repetition_penalty", "frequency_penalty"} & set(asked[-1])
        return httpx.Response(
            422, json={"detail": f"Unexpected fields in the request: {{'{name}'}}"}
        )

    with pytest.raises(UserError, match=r"check .* that the server takes frequency_penalty"):
        judge(answer)(FRAMES, "Is it?", 0)
    assert len(asked) == 2


def test_an_empty_answer_is_an_answer():
    assert judge(lambda r: httpx.Response(200, json=good("")))(FRAMES, "Is it?", 0) == ""
    assert judge(lambda r: httpx.Response(200, json=good(None)))(FRAMES, "Is it?", 0) == ""


NAMES = st.sampled_from(["choices", "message", "content", "index", "error", "x"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=9),
    lambda part: st.lists(part, max_size=3) | st.dictionaries(NAMES, part, max_size=3),
    max_leaves=8,
)


REPLY = {}
ASKED = judge(lambda r: httpx.Response(REPLY["status"], json=REPLY["document"]), retries=0)


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    JSON | st.builds(lambda part: {"choices": [{"message": part}]}, JSON),
    st.sampled_from([200, 200, 400, 503]),
)
def test_whatever_a_server_answers_is_a_text_or_one_line(document, status):
    REPLY.update(document=document, status=status)
    try:
        assert isinstance(ASKED(FRAMES, "Is it?", 0), str)
    except (UserError, JudgeDownError) as error:
        assert len(str(error).splitlines()) == 1  # noqa: PT017 - either is good


def test_the_command_ends_with_exit_code_1_and_one_line(tmp_path, capsys, monkeypatch):
    def down(*arguments):
        raise JudgeDownError("the judge is down")

    monkeypatch.setattr(score_narrlv, "score_narratives", down)
    videos = tmp_path / "videos"
    videos.mkdir()
    output = ["-o", str(tmp_path / "s.json"), "--judge", URL, "--judge-model", "m"]
    assert main(["score", str(videos), "--suite", "narrlv", *output]) == 1
    assert capsys.readouterr().err == "miga-bench: the judge is down\n"
