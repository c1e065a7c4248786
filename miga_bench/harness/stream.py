"""A video as frames that the caller takes one after the other, for programs that serve videos."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from contextlib import suppress
from types import TracebackType

import torch
from torch import Tensor

from miga_bench.backbones.base import Backbone
from miga_bench.errors import UserError
from miga_bench.harness.generate import opened
from miga_bench.harness.request import GenerateRequest, PromptAt, check_prompts
from miga_bench.harness.video import EndedError, Heard, Stopwatch, Video, Watcher
from miga_bench.media import to_uint8
from miga_bench.sampling.live_prompts import LivePrompts


class FrameStream:
    """A video in the making: every step gives the next frames, uint8 ``[N, 3, H, W]`` on the CPU.

    Nothing is written, no signal is taken over, and nothing happens between two steps: who reads slowly is
    waited for. To end early, close it (``with`` does), and its memory is free. Any thread may read, one at a
    time, and any may close it.

    Args:
        request: What to make; its files are not looked at.
        backbone: A loaded one; None loads the request's. Streams may share one: they take turns.
        watcher: Hears about progress; what it raises ends the stream and is raised.

    Raises:
        UserError: Wrong input; nothing was made.
        DoesNotFitError: Memory does not suffice for the texts; in a step, for denoising.
        NumericalError: In a step: the denoiser returned a value that is not finite.
    """

    @torch.inference_mode()
    def __init__(
        self,
        request: GenerateRequest,
        backbone: Backbone | None = None,
        watcher: Watcher | None = None,
    ) -> None:
        request.check_wishes()
        self._watcher = watcher or Watcher()
        self._video = opened(request, backbone, Stopwatch())
        self._video.plan(self._watcher)
        self._prompts = self._video.live_prompts()
        self.frame_rate = self._video.backbone.frame_rate
        self._over = threading.Event()
        # of the video alone: a stream that nobody holds any more is gone at once
        self._frames = _made(self._video, self._prompts, self._watcher, self._over.is_set)

    def then(self, text: str) -> int:
        """Change the prompt of what is not begun yet.

        Args:
            text: The prompt from there on.

        Returns:
            The first video frame that it is for. The video is the one that the same change, known beforehand,
            would give.

        Raises:
            UserError: The text is none that the model takes, or the method makes all frames at once.
        """
        check_prompts([PromptAt(text)], None)
        video = self._video
        if video.sampler.at_once or video.sampler.one_clip:
            raise UserError(
                f"{video.sampler.name} makes all frames at once, and its prompt cannot change: use fifo,"
                " scaling-noise or miga"
            )
        with torch.inference_mode():
            start = self._prompts.then(video.encoded([text], self._watcher))
        return video.backbone.frames_of(start)

    def close(self) -> None:
        """End it; a further step finds no frames.

        A step that another thread is in ends with the pass it is in, and finds none either.
        """
        self._over.set()
        with suppress(ValueError):  # it runs: whoever runs it closes it
            self._frames.close()

    def __iter__(self) -> FrameStream:
        """Return itself."""
        return self

    def __next__(self) -> Tensor:
        """Return the next frames."""
        frames = None
        # not across steps: it is the thread's, and the thread is the caller's
        with suppress(EndedError), torch.inference_mode():
            frames = next(self._frames)
        if frames is None or self._over.is_set():
            self.close()  # by another thread it could not be
            raise StopIteration
        return frames.clone()  # a tensor like any other: those of inference mode cannot be changed

    def __enter__(self) -> FrameStream:
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End it."""
        self.close()


def _made(
    video: Video, prompts: LivePrompts, watcher: Watcher, ended: Callable[[], bool]
) -> Generator[Tensor]:
    decode = video.decoding()
    for number, latent in enumerate(video.latents(Heard(watcher, ended))):
        prompts.forget_before(number + 1)
        frames = to_uint8(decode(latent)).cpu()
        if len(frames):
            yield frames
