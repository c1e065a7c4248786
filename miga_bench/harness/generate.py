"""One video: prompt in, latents through the method, frames out to the file as they come."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from miga_bench.backbones import load_backbone
from miga_bench.backbones.base import Backbone
from miga_bench.errors import NumericalError, UserError
from miga_bench.harness.provenance import hardware, peak_memory_mib, versions, write_json
from miga_bench.harness.request import DEFAULT_FRAMES, GenerateRequest
from miga_bench.harness.stop import StopRequested, StopSignals
from miga_bench.media import Cell, EvenSample, VideoWriter, contact_sheet, count_frames
from miga_bench.sampling import METHODS, PRESETS, CounterNoise, Short, estimate_windows, resolve
from miga_bench.sampling.base import PassReport, PromptSchedule, Sampler
from miga_bench.sampling.presets import default_preset, describe

SHEET_FRAMES = 24
SHEET_COLUMNS = 6


class Watcher:
    """What a progress display hears; this one stays silent."""

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
    latents: int = 0
    search_windows: int = 0
    triggers: int = 0
    accepted: int = 0
    passes: dict[str, int] = field(default_factory=dict)

    def add(self, report: PassReport) -> None:
        """Count one pass."""
        self.windows, self.search_windows = report.windows, report.search_windows
        self.latents = report.latents
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


def open_backbone(request: GenerateRequest) -> Backbone:
    """Load the backbone a request names, once its other names are known to be good for some family.

    Raises:
        UserError: No family has such a method, preset or setting, or the backbone cannot be loaded.
    """
    errors = []
    families = sorted({family for table in PRESETS.values() for family in table})
    for family in families:
        probe: Any = SimpleNamespace(name=request.backbone, family=family)
        try:
            resolve(request.method, probe, request.preset, request.overrides)
        except UserError as error:
            errors.append(error)
    if len(errors) == len(families):
        raise errors[-1]
    return load_backbone(
        request.backbone,
        device=request.device,
        dtype=request.dtype,
        offload=request.offload,
        height=request.height,
        width=request.width,
    )


@torch.inference_mode()
def generate(
    request: GenerateRequest, watcher: Watcher | None = None, backbone: Backbone | None = None
) -> GenerateResult:
    """Make one video, its contact sheet and its record.

    Memory does not depend on the length: latents stream into the decoder, frames into the file.

    Args:
        request: What to make.
        watcher: Hears about progress.
        backbone: An already loaded backbone to use instead of the request's name.

    Returns:
        How it ended. What was written before a stop, a full disk or a NaN is kept and playable.

    Raises:
        UserError: Wrong input; nothing was written.
        StopRequested: Stopped before the first frame; nothing was written.
    """
    request.check()
    watcher = watcher or Watcher()
    clock, tally, started = Stopwatch(), Tally(), datetime.now(UTC)
    with StopSignals() as stop:
        backbone = backbone or open_backbone(request)
        clock.lap("load")
        settings = resolve(request.method, backbone, request.preset, request.overrides)
        sampler = METHODS[request.method](settings)
        frames = _length(request, sampler, backbone)
        latents = None if frames is None else backbone.latents_for(frames)
        # a walk of the empty queue also checks the settings, before the text encoder is at work
        windows = estimate_windows(sampler, backbone, latents or backbone.window)
        clock.lap("plan")
        prompts = _schedule(request, backbone)
        unknown = backbone.unknown_words([prompt.text for prompt in request.prompts])
        if unknown:
            watcher.noticed(f"{backbone.name} does not know and passes over: {', '.join(unknown)}")
        clock.lap("encode text")

        def on_pass(report: PassReport) -> None:
            clock.lap(report.stage)
            tally.add(report)
            watcher.passed(report)

        noise = CounterNoise(request.seed, backbone.latent_shape, backbone.device)
        stream = sampler.stream(backbone, prompts, noise, latents, on_pass)
        watcher.started(windows if latents else None, frames)
        sample = EvenSample(4 * SHEET_FRAMES)
        writer = VideoWriter(request.output, backbone.frame_rate, lossless=request.lossless)
        result = GenerateResult("done", 0, {})
        try:
            with writer:
                for decoded in _decoded(stream, backbone, frames, stop, clock):
                    writer.push(decoded)
                    sample.push(decoded)
                    clock.lap("write")
                    watcher.wrote(decoded, writer.frames_written)
        except StopRequested as request_to_stop:
            if not writer.frames_written:
                raise
            result.status, result.signal = "stopped", request_to_stop.signal
        except (NumericalError, OSError) as error:
            result.status, result.error = "failed", error
        clock.lap("write")
        result.frames = writer.frames_written
        with suppress(StopRequested), stop.shielded():
            if isinstance(result.error, OSError):
                result.frames = _frames_on_disk(request.output)
            result.record = _record(request, backbone, sampler, result, tally, clock, started)
            if result.frames:
                _write_beside(request, sample, backbone, result)
    return result


def _decoded(
    stream: Iterator[Tensor],
    backbone: Backbone,
    frames: int | None,
    stop: StopSignals,
    clock: Stopwatch,
) -> Iterator[Tensor]:
    """Yield decoded frames as latents finish; a stop never lands between decoding and writing."""
    decoder = backbone.decoder()
    made = 0
    for latent in stream:
        clock.lap("last pass")
        with stop.shielded():
            decoded = decoder.push(latent[None])
            if frames is not None:
                decoded = decoded[: frames - made]
            made += len(decoded)
            clock.lap("decode")
            yield decoded
        if frames is not None and made >= frames:
            return


def _length(request: GenerateRequest, sampler: Sampler[Any], backbone: Backbone) -> int | None:
    """Return how many video frames to make; None is endless."""
    if request.endless:
        return None
    short = isinstance(sampler, Short)
    default = backbone.frames_of(backbone.window) if short else DEFAULT_FRAMES
    return request.frames or default


def _schedule(request: GenerateRequest, backbone: Backbone) -> PromptSchedule:
    """Encode the prompts and turn video frames into the latents that hold them."""
    starts = [0] + [backbone.latents_for(p.frame + 1) - 1 for p in request.prompts[1:]]
    if len(set(starts)) < len(starts):
        raise UserError(
            "two --then frames fall into one latent frame: move them apart, by"
            f" {backbone.frames_of(2) - backbone.frames_of(1)} frames or more"
        )
    return PromptSchedule(
        backbone.encode([p.text for p in request.prompts]),
        backbone.encode([_negative_prompt(request, backbone)]),
        tuple(starts),
    )


def _negative_prompt(request: GenerateRequest, backbone: Backbone) -> str:
    if request.negative_prompt is not None:
        return request.negative_prompt
    default: str = getattr(backbone, "negative_prompt", "")
    return default


def _record(
    request: GenerateRequest,
    backbone: Backbone,
    sampler: Sampler[Any],
    result: GenerateResult,
    tally: Tally,
    clock: Stopwatch,
    started: datetime,
) -> dict[str, Any]:
    settings = describe(sampler.settings)
    guided = settings.get("guidance_scale", 1.0) != 1.0
    return {
        "status": result.status,
        "error": None if result.error is None else str(result.error),
        "video": str(request.output),
        "contact_sheet": str(request.contact_sheet),
        "frames": result.frames,
        "frame_rate": backbone.frame_rate,
        "prompts": [asdict(prompt) for prompt in request.prompts],
        "negative_prompt": _negative_prompt(request, backbone),
        "seed": request.seed,
        "method": request.method,
        "preset": request.preset or default_preset(backbone),
        "settings": settings,
        "backbone": {
            "name": backbone.name,
            "family": backbone.family,
            "window": backbone.window,
            "latent_shape": list(backbone.latent_shape),
            "weights_hash": getattr(backbone, "weights_hash", None),
        },
        "cost": {
            "windows": tally.windows,
            "nfe": tally.windows * (2 if guided else 1),
            "nfe_latents": tally.latents * (2 if guided else 1),
            "passes": tally.passes,
            "reflection": {
                "triggers": tally.triggers,
                "accepted": tally.accepted,
                "search_windows": tally.search_windows,
            },
            "seconds": {name: round(value, 3) for name, value in clock.seconds.items()},
            "total_seconds": round(sum(clock.seconds.values()), 3),
            "peak_memory_mib": peak_memory_mib(backbone.device),
        },
        "started": started.isoformat(timespec="seconds"),
        "versions": versions(),
        "hardware": hardware(backbone.device),
    }


def _write_beside(
    request: GenerateRequest, sample: EvenSample, backbone: Backbone, result: GenerateResult
) -> None:
    """Write contact sheet and record; on a full disk as far as it goes."""
    try:
        _save_sheet(request, sample, backbone.frame_rate)
        write_json(request.record, result.record)
    except OSError as error:
        if result.error is None:
            result.status, result.error = "failed", error


def _frames_on_disk(path: Path) -> int:
    """Return how many frames a failed write left; a file without any is removed."""
    frames = count_frames(path)
    if not frames and path.is_file():
        path.unlink()
    return frames


def _save_sheet(request: GenerateRequest, sample: EvenSample, frame_rate: float) -> None:
    cells = [
        Cell(frame, f"{number / frame_rate:.1f} s") for number, frame in sample.pick(SHEET_FRAMES)
    ]
    rows = [cells[i : i + SHEET_COLUMNS] for i in range(0, len(cells), SHEET_COLUMNS)]
    words = " / ".join(prompt.text for prompt in request.prompts)
    title = f"{request.method} on {request.backbone}, seed {request.seed}: {words}"
    contact_sheet(rows, title=title).save(request.contact_sheet)
