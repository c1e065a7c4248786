"""A judge behind HTTP: any server of the OpenAI chat protocol that takes images.

The frames travel as single pictures in data URLs, after the question. The original's judge is shown them as a
video of 10 frames a second, as is ``QwenJudge``; the protocol has no part for that, and answers may be others.
Servers name the repetition penalty differently: vLLM, SGLang and llama.cpp take ``repetition_penalty``;
``transformers serve`` refuses that, takes ``frequency_penalty`` and adds 1 to it, and is known by the words of
its refusal. Its older versions have other words, and do not add 1; elsewhere ``frequency_penalty`` is another
penalty.
"""

from __future__ import annotations

import base64
import io
import os
from typing import TYPE_CHECKING, Any

from miga_bench.errors import JudgeDownError, UserError
from miga_bench.metrics.narrlv.judge import (
    SUFFIX,
    SYSTEM,
    Sampling,
    first_line,
    original_frames,
)

if TYPE_CHECKING:
    from torch import Tensor

_UNKNOWN_TO_TRANSFORMERS = "Unexpected fields in the request: "
_JPEG_QUALITY = 95  # what the original's OpenCV writes by default


class ServerJudge:
    """Asks a server; several questions at once.

    Args:
        url: Base address, ending in ``/v1`` as a rule.
        model: Name of the model there.
        sampling: How answers are drawn.
        concurrency: Questions under way at once.
        timeout: Seconds to wait for one answer.
        retries: How often a failed request is repeated, waiting longer each time (the client's
            exponential backoff). Only what may pass is repeated: no connection, timeouts, too many
            requests, errors of the server.
        api_key: For the server; by default ``$OPENAI_API_KEY``, or none.

    Raises:
        UserError: The openai package is missing, or an argument is out of range.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        sampling: Sampling | None = None,
        concurrency: int = 8,
        timeout: float = 120.0,
        retries: int = 5,
        api_key: str | None = None,
    ) -> None:
        if concurrency < 1 or retries < 0 or timeout <= 0:
            raise UserError(
                f"concurrency {concurrency}, timeout {timeout}, retries {retries}: they must be at "
                "least 1, above 0 and at least 0"
            )
        try:
            import openai
        except ImportError:
            raise UserError(
                "a judge behind HTTP needs openai; pip install 'miga-bench[narrlv]'"
            ) from None
        self.url = url
        self.model = model
        self.sampling = sampling or Sampling()
        self._penalty = {"repetition_penalty": self.sampling.repetition_penalty}
        self.concurrency = concurrency
        key = api_key or os.environ.get("OPENAI_API_KEY") or "none"
        self._client = openai.OpenAI(
            base_url=url, api_key=key, timeout=timeout, max_retries=retries
        )

    def frames(self, total: int, category: str) -> list[int]:
        """Return the frames that the original shows."""
        return original_frames(total, category)

    def __call__(self, frames: Tensor, question: str, seed: int) -> str:
        """Ask the server.

        Args:
            frames: uint8 ``[N, 3, H, W]``.
            question: As the suite has it.
            seed: Handed on; whether equal seeds give equal answers is the server's promise.

        Raises:
            JudgeDownError: No answer after all retries.
            UserError: The server refuses the request, or what it answers is no reply of the protocol.
        """
        import openai

        content: list[dict[str, Any]] = [{"type": "text", "text": question + SUFFIX}]
        content += [
            {"type": "image_url", "image_url": {"url": data_url(frame)}} for frame in frames
        ]
        messages: Any = [
            {"role": "system", "content": SYSTEM},
            {"role": "user", "content": content},
        ]
        try:
            reply = self._send(messages, seed)
        except (
            openai.APIConnectionError,
            openai.RateLimitError,
            openai.InternalServerError,
        ) as error:
            raise JudgeDownError(
                f"the judge at {self.url} does not answer ({first_line(error)}); answers so far are "
                "kept, run the same command again when it is back"
            ) from None
        except openai.APIError as error:
            raise UserError(
                f"the judge at {self.url} refuses the request ({_said(error)}); check the model's "
                f"name {self.model!r}, the key, and that the server takes {', '.join(self._penalty)}"
            ) from None
        except ValueError as error:  # of JSON that is none
            raise self._nonsense(first_line(error)) from None
        return self._answer(reply)

    def _send(self, messages: Any, seed: int) -> Any:
        """Return the server's reply; the first refusal may tell that it calls the penalty otherwise."""
        import openai

        penalty = self._penalty
        try:
            return self._client.chat.completions.create(
                model=self.model,
                messages=messages,
                seed=seed,
                temperature=self.sampling.temperature,
                top_p=self.sampling.top_p,
                max_tokens=self.sampling.max_new_tokens,
                extra_body=penalty,
            )
        except openai.UnprocessableEntityError as error:
            _, _, unknown = error.response.text.partition(_UNKNOWN_TO_TRANSFORMERS)
            if "repetition_penalty" not in penalty or "'repetition_penalty'" not in unknown:
                raise
        self._penalty = {"frequency_penalty": self.sampling.repetition_penalty - 1}
        return self._send(messages, seed)

    def _answer(self, reply: Any) -> str:
        """Return what a reply says; one that says nothing is an answer, too.

        Raises:
            UserError: It is no reply of this protocol, and nothing to keep as an answer.
        """
        try:
            content = reply.choices[0].message.content
        except (AttributeError, IndexError, KeyError, TypeError):
            what = reply if isinstance(reply, str) else "a reply without a message"
            raise self._nonsense(first_line(what)) from None
        if content is not None and not isinstance(content, str):
            raise self._nonsense(f"a message of type {type(content).__name__}")
        return content or ""

    def _nonsense(self, what: str) -> UserError:
        return UserError(
            f"the judge at {self.url} answers what is no chat completion ({what}); check its address,"
            " which ends in /v1 as a rule; answers so far are kept"
        )

    def provenance(self) -> dict[str, Any]:
        """Return address, model and sampling; not what only decides how fast answers come."""
        return {
            "judge": "server",
            "url": self.url,
            "model": self.model,
            "images": f"jpeg {_JPEG_QUALITY}",
            "sampling": self.sampling.as_dict(),
            "suffix": SUFFIX,
        }


def _said(error: Exception) -> str:
    """What the server said; its body tells more than the client's message."""
    reply = getattr(error, "response", None)
    return first_line(error if reply is None else f"{error}: {reply.text}")


def data_url(frame: Tensor) -> str:
    """Return a frame, uint8 ``[3, H, W]``, as a JPEG in a data URL."""
    from PIL import Image

    picture = Image.fromarray(frame.permute(1, 2, 0).contiguous().cpu().numpy())
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=_JPEG_QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
