"""One video in the making: latents through the method, frames out to wherever they go as they come."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from miga_bench.backbones.base import Backbone
from miga_bench.errors import DoesNotFitError, NumericalError, UserError, is_out_of_memory
from miga_bench.harness.flops import FlopMeter
from miga_bench.harness.provenance import (
    forget_peak_memory,
    hardware,
    peak_memory_mib,
    versions,
)
from miga_bench.harness.request import DEFAULT_FRAMES, GenerateRequest, PromptAt
from miga_bench.harness.stop import StopRequested, StopSignals
from miga_bench.harness.turns import turn
from miga_bench.media import Cell, EvenSample, VideoWriter, contact_sheet, count_frames
from miga_bench.sampling import CounterNoise, estimate_windows
from miga_bench.sampling.base import PassReport, PromptSchedule, Sampler
from miga_bench.sampling.fitting import ran_out_elsewhere
from miga_bench.sampling.live_prompts import LivePrompts

SHEET_FRAMES = 24
SHEET_COLUMNS = 6


class Watcher:
    """What a progress display hears; this one stays silent.

    An exception of a watcher's own ends the video and is raised; what was written is kept, without a record.
    """

    def started(self, windows: int | None, frames: int | None) -> None:
        """The work is known: total windows and frames, None where nobody knows."""

    def noticed(self, line: str) -> None:
        """Something the user should know, though the work goes on."""

    def passed(self, report: PassReport) -> None:
        """A denoising pass ended."""

    def wrote(self, frames: Tensor, total: int) -> None:
        """The next frames, ``[N, 3, H, W]``, went into the file, which now holds ``total``."""


class Stopwatch:
    """One clock whose laps add up to the whole, by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        """Add the time since the last lap to ``name``."""
        now = time.perf_counter()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self._last
        self._last = now


@dataclass
class Tally:
    """What one video took, added up from the passes' reports."""

    windows: int = 0
    nfe: int = 0
    nfe_latents: int = 0
    skipped: int = 0
    search_windows: int = 0
    triggers: int = 0
    accepted: int = 0
    passes: dict[str, int] = field(default_factory=dict)

    def add(self, report: PassReport) -> None:
        """Count one pass."""
        self.windows, self.search_windows = report.windows, report.search_windows
        self.nfe, self.nfe_latents, self.skipped = report.nfe, report.nfe_latents, report.skipped
        self.triggers += report.triggered
        self.accepted += report.accepted
        self.passes[report.stage] = self.passes.get(report.stage, 0) + 1


@dataclass
class GenerateResult:
    """How it ended: ``done``, ``stopped`` or ``failed``, with the record that lies on disk."""

    status: str
    frames: int
    record: dict[str, Any]
    error: Exception | None = None
    signal: int | None = None

    def keep_first(self, error: Exception) -> None:
        """Note a failure, if none is noted yet."""
        if self.error is None:
            # A result may be kept: queue and decoder, which a traceback holds, are not to be. The frame that
            # caught it still runs and cannot be cleared: it is left out.
            trace = error.__traceback__
            traceback.clear_frames(trace)
            if trace is not None and trace.tb_next is not None:
                error.__traceback__ = trace.tb_next
            self.status, self.error = "failed", error
            if self.record:
                self.record = {**self.record, "status": "failed", "error": str(error)}


def never() -> bool:
    """Return that the work is to go on."""
    return False


class EndedError(Exception):
    """The caller asked for the end."""


class Heard(Watcher):
    """A watcher whose own error is told apart from the video's, and who is asked whether to go on.

    Args:
        watcher: Hears all.
        ended: Asked after all that it hears; true raises ``EndedError``.
    """

    def __init__(self, watcher: Watcher, ended: Callable[[], bool]) -> None:
        self._watcher, self._ended = watcher, ended
        self.error: Exception | None = None

    def passed(self, report: PassReport) -> None:
        """Tell of a pass; see ``Watcher``."""
        self._tell(lambda: self._watcher.passed(report))

    def wrote(self, frames: Tensor, total: int) -> None:
        """Tell of frames; see ``Watcher``."""
        self._tell(lambda: self._watcher.wrote(frames, total))

    def _tell(self, say: Callable[[], None]) -> None:
        try:
            say()
            over = self._ended()
        except Exception as error:
            self.error = error
            raise
        if over:
            raise EndedError


class Video:
    """One video: planned, then denoised, decoded and written in one stream.

    Memory does not depend on the length: latents stream into the decoder, frames into the file.

    Args:
        request: What to make; its files, preset and overrides are not looked at.
        backbone: The model, loaded.
        sampler: The method with its settings for this backbone.
        clock: Goes on counting where the caller stopped.
    """

    def __init__(
        self,
        request: GenerateRequest,
        backbone: Backbone,
        sampler: Sampler[Any],
        clock: Stopwatch | None = None,
    ) -> None:
        self.request, self.backbone, self.sampler = request, backbone, sampler
        self._clock = clock or Stopwatch()
        self._tally, self._meter, self._started = Tally(), FlopMeter(), datetime.now(UTC)
        self._prompts: PromptSchedule | None = None
        self._windows: int | None = None
        self.frames = length(request, sampler, backbone)

    @property
    def _latents(self) -> int | None:
        return None if self.frames is None else self.backbone.latents_for(self.frames)

    def plan(self, watcher: Watcher) -> None:
        """Check the settings and encode the prompts.

        Raises:
            UserError: A setting breaks a rule of the method, what it needs besides the backbone cannot be had,
                or a prompt is not what the model takes.
            DoesNotFitError: The text encoder runs out of memory.
        """
        request, backbone = self.request, self.backbone
        forget_peak_memory(backbone.device)
        # a walk of the empty queue also checks the settings, before the text encoder is at work
        starts = prompt_starts(request.prompts, backbone)
        self._windows = estimate_windows(self.sampler, backbone, self._latents, starts)
        self.sampler.prepare()
        self._clock.lap("plan")
        texts = [prompt.text for prompt in request.prompts]
        unwanted = negative_prompt(request.negative_prompt, backbone)
        encoded = self.encoded(texts, watcher, unwanted)
        self._prompts = PromptSchedule(encoded[: len(texts)], encoded[-1:], starts)

    def live_prompts(self) -> LivePrompts:
        """Let prompts be added while the planned video is made, and return what takes them."""
        assert self._prompts is not None, "plan() comes first"
        self._prompts = live = LivePrompts(self._prompts)
        return live

    def encoded(self, texts: Sequence[str], watcher: Watcher, *unseen: str) -> Tensor:
        """Return the embeddings of prompts, ``[texts and unseen, S, D]``.

        Args:
            texts: That the video is to show; words that the model does not know are told.
            watcher: Who hears of them.
            unseen: Further texts, of which nothing is told.

        Raises:
            UserError: A prompt is not what the model takes.
            DoesNotFitError: The text encoder runs out of memory.
        """
        backbone = self.backbone
        try:
            with turn(backbone):
                # in one go: a large encoder is loaded for it and leaves again
                encoded = backbone.encode([*texts, *unseen])
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            raise ran_out_elsewhere(str(backbone.device), texts=True) from None
        unknown = backbone.unknown_words(texts)
        if unknown:
            watcher.noticed(f"{backbone.name} does not know and passes over: {', '.join(unknown)}")
        self._clock.lap("encode text")
        return encoded

    @torch.inference_mode()
    def write(
        self,
        path: Path,
        sheet: Path,
        watcher: Watcher,
        stop: StopSignals,
        ended: Callable[[], bool] = never,
        outdated: Sequence[Path] = (),
    ) -> GenerateResult:
        """Make the planned video and its contact sheet.

        What was written before a stop, a NaN, a full disk or memory is kept and playable.

        Args:
            path: The mp4.
            sheet: The contact sheet, a PNG.
            watcher: Hears about progress.
            stop: The signals that end it, taken over by the caller.
            ended: Asked after every pass whether to stop.
            outdated: Files beside an older video in this path, which go with it and its sheet when the first
                frame comes.

        Returns:
            How it ended.

        Raises:
            StopRequested: Stopped by a signal before the first frame; nothing was written.
        """
        sample = EvenSample(4 * SHEET_FRAMES)
        writer = VideoWriter(
            path,
            self.backbone.frame_rate,
            lossless=self.request.lossless,
            outdated=(sheet, *outdated),
        )
        result = GenerateResult("done", 0, {})
        heard, decode = Heard(watcher, ended), self.decoding()
        watcher.started(self._windows, self.frames)
        try:
            with writer:
                for latent in self.latents(heard):
                    with stop.shielded():  # a stop never lands between decoding and writing
                        decoded = decode(latent)
                        writer.push(decoded)
                        sample.push(decoded)
                        self._clock.lap("write")
                    heard.wrote(decoded, writer.frames_written)
        except EndedError:
            result.status = "stopped"
        except StopRequested as request_to_stop:
            if not writer.frames_written:
                raise
            result.status, result.signal = "stopped", request_to_stop.signal
        except Exception as error:
            if error is heard.error:
                raise
            if isinstance(error, (NumericalError, DoesNotFitError, OSError)):
                result.keep_first(error)
            elif is_out_of_memory(error):
                # not raised from it: that would keep alive what did not fit
                result.keep_first(ran_out_elsewhere(str(self.backbone.device), texts=False))
            else:
                raise
        self._clock.lap("write")
        result.frames = writer.frames_written
        # the video is whole or ended: a stop from now on is for what comes after it
        with stop.held():
            if isinstance(result.error, OSError):
                # a file that could not be opened is an older video, and stays
                result.frames = _frames_on_disk(path) if writer.created else 0
            if result.frames:
                try:
                    self._save_sheet(sheet, sample)
                except OSError as error:
                    result.keep_first(error)
            result.record = self.record(result)
        return result

    @torch.inference_mode()
    def denoise(self) -> None:
        """Make the planned video's latents and drop them: another process decodes and writes them."""
        for _ in self.latents(Watcher()):
            pass

    def decoding(self) -> Callable[[Tensor], Tensor]:
        """Return what turns latents, in order, into the frames they finish, up to those that are wanted."""
        decoder, clock = self.backbone.decoder(), self._clock
        made = 0

        def decode(latent: Tensor) -> Tensor:
            nonlocal made
            with turn(self.backbone):
                decoded = decoder.push(latent[None])
            if self.frames is not None:
                decoded = decoded[: self.frames - made]
            made += len(decoded)
            if decoded.is_cuda:  # or its time would be told as the writer's, which waits for it
                torch.cuda.synchronize(decoded.device)
            clock.lap("decode")
            return decoded

        return decode

    def latents(self, watcher: Watcher) -> Iterator[Tensor]:
        """Yield finished latents in order, as many as the video takes.

        Others may use the backbone between two passes, of which the first latent takes very many.
        """
        assert self._prompts is not None, "plan() comes first"
        clock, backbone, own = self._clock, self.backbone, turn(self.backbone)

        def on_pass(report: PassReport) -> None:
            clock.lap(report.stage)
            self._tally.add(report)
            with self._meter.off(backbone), own.let_go():
                watcher.passed(report)

        noise = CounterNoise(self.request.seed, backbone.latent_shape, backbone.device)
        stream = self.sampler.stream(backbone, self._prompts, noise, self._latents, on_pass)
        made = 0
        while made != self._latents:
            with own, self._meter.on(backbone):
                latent = next(stream, None)
            if latent is None:
                return
            clock.lap("last pass")
            yield latent
            made += 1

    def record(self, result: GenerateResult) -> dict[str, Any]:
        """Return what was made, how, and what it took so far."""
        request, backbone, tally = self.request, self.backbone, self._tally
        seconds = self._clock.seconds
        return {
            "status": result.status,
            "error": None if result.error is None else str(result.error),
            "frames": result.frames,
            "frame_rate": backbone.frame_rate,
            "prompts": [asdict(prompt) for prompt in request.prompts],
            "negative_prompt": negative_prompt(request.negative_prompt, backbone),
            "seed": request.seed,
            "method": request.method,
            "settings": asdict(self.sampler.settings),
            "backbone": {
                "name": backbone.name,
                "family": backbone.family,
                "window": backbone.window,
                "latent_shape": list(backbone.latent_shape),
                "weights_hash": backbone.weights_hash,
                "denoiser": backbone.denoiser_identity,
            },
            "cost": {
                "windows": tally.windows,
                "nfe": tally.nfe,
                "nfe_latents": tally.nfe_latents,
                **({"skipped": tally.skipped} if self.sampler.settings.cache else {}),
                **self._meter.cost(),
                "passes": tally.passes,
                "reflection": {
                    "triggers": tally.triggers,
                    "accepted": tally.accepted,
                    "search_windows": tally.search_windows,
                },
                "seconds": {name: round(value, 3) for name, value in seconds.items()},
                "total_seconds": round(sum(seconds.values()), 3),
                "peak_memory_mib": peak_memory_mib(backbone.device, backbone.denoiser_identity),
            },
            "started": self._started.isoformat(timespec="seconds"),
            "versions": versions(),
            "hardware": hardware(backbone.device),
        }

    def _save_sheet(self, path: Path, sample: EvenSample) -> None:
        rate = self.backbone.frame_rate
        cells = [
            Cell(frame, f"{number / rate:.1f} s") for number, frame in sample.pick(SHEET_FRAMES)
        ]
        rows = [cells[i : i + SHEET_COLUMNS] for i in range(0, len(cells), SHEET_COLUMNS)]
        request = self.request
        words = " / ".join(prompt.text for prompt in request.prompts)
        title = f"{request.method} on {self.backbone.name}, seed {request.seed}: {words}"
        contact_sheet(rows, title=title).save(path)


def length(request: GenerateRequest, sampler: Sampler[Any], backbone: Backbone) -> int | None:
    """Return how many video frames to make; None is endless."""
    if request.endless:
        return None
    default = backbone.frames_of(backbone.window) if sampler.one_clip else DEFAULT_FRAMES
    return request.frames or default


def prompt_starts(
    prompts: Sequence[PromptAt], backbone: Backbone, option: str = "--then"
) -> tuple[int, ...]:
    """Return the latent frame that holds each prompt's first video frame.

    Args:
        prompts: The texts over the video.
        backbone: What makes it.
        option: How the user gave the later ones.

    Raises:
        UserError: Two prompts begin in one latent frame.
    """
    starts = [0] + [backbone.latents_for(p.frame + 1) - 1 for p in prompts[1:]]
    if len(set(starts)) < len(starts):
        raise UserError(
            f"two {option} frames fall into one latent frame: move them apart, by"
            f" {backbone.frames_of(2) - backbone.frames_of(1)} frames or more"
        )
    return tuple(starts)


def negative_prompt(given: str | None, backbone: Backbone) -> str:
    """Return what guidance steers away from: the given text, or the backbone's own."""
    return backbone.negative_prompt if given is None else given


def _frames_on_disk(path: Path) -> int:
    """Return how many frames a failed write left; a file without any is removed."""
    if not path.is_file():  # a pipe would be waited for
        return 0
    frames = count_frames(path)
    if not frames:
        path.unlink()
    return frames
