"""One video: prompt in, latents through the method, frames out to the file as they come."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch

from miga_bench.backbones import entry_of
from miga_bench.backbones.base import Backbone
from miga_bench.errors import UserError
from miga_bench.export.choice import DenoiserChoice
from miga_bench.export.facts import ExportFacts
from miga_bench.export.opening import open_model
from miga_bench.harness.files import write_json
from miga_bench.harness.request import GenerateRequest, check_prompts
from miga_bench.harness.stop import StopSignals
from miga_bench.harness.video import GenerateResult, Stopwatch, Video, Watcher, length, never
from miga_bench.sampling import resolve
from miga_bench.sampling.base import Sampler
from miga_bench.sampling.presets import ModelKind, method_class


def kind_of(backbone: str, denoiser: DenoiserChoice) -> ModelKind:
    """Return what is known of a model before it is loaded.

    Raises:
        UserError: There is no such backbone, or its export cannot be read.
    """
    root = denoiser.root
    return entry_of(backbone) if root is None else ExportFacts.read(root)


def open_backbone(request: GenerateRequest) -> Backbone:
    """Load the backbone a request names, once its other names are known to be good.

    Raises:
        UserError: The backbone's family has no such method, preset or setting, or it cannot be loaded.
    """
    denoiser = (
        DenoiserChoice() if request.denoiser is None else DenoiserChoice.parse(request.denoiser)
    )
    kind = kind_of(request.backbone, denoiser)
    resolve(request.method, kind, request.preset, request.overrides)
    return open_model(
        request.backbone,
        denoiser,
        device=request.device,
        dtype=request.dtype,
        offload=request.offload,
        height=request.height,
        width=request.width,
    )


@torch.inference_mode()
def generate(
    request: GenerateRequest,
    watcher: Watcher | None = None,
    backbone: Backbone | None = None,
    ended: Callable[[], bool] | None = None,
) -> GenerateResult:
    """Make one video, its contact sheet and its record.

    Memory does not depend on the length: latents stream into the decoder, frames into the file.

    Args:
        request: What to make.
        watcher: Hears about progress.
        backbone: An already loaded backbone to use instead of the request's name.
        ended: Asked after every pass whether to stop, for example ``threading.Event().is_set``; Ctrl-C and
            SIGTERM are then left to the caller. None takes them over meanwhile, in the main thread.

    Returns:
        How it ended. What was written before a stop, a NaN, a full disk or memory is kept and playable.

    Raises:
        UserError: Wrong input; nothing was written.
        DoesNotFitError: Memory does not suffice for the texts; nothing was written.
        StopRequested: Stopped by a signal before the first frame; nothing was written.
        Exception: Any other is a fault of a library's, of the machine (``errors.gpu_is_lost`` tells of a GPU
            that this process cannot use again) or of the watcher; what was written is kept, without a record.
    """
    request.check()
    watcher = watcher or Watcher()
    clock = Stopwatch()
    stop = StopSignals()
    with nullcontext() if ended else stop:
        video = opened(request, backbone, clock)
        video.plan(watcher)
        result = video.write(
            request.output,
            request.contact_sheet,
            watcher,
            stop,
            ended or never,
            outdated=(request.record,),
        )
        with stop.held():
            backbone = video.backbone
            result.record = {
                **result.record,
                "video": str(request.output),
                "contact_sheet": str(request.contact_sheet),
                "preset": request.preset or backbone.preset,
                "dtype": backbone.dtype,
                "offload": request.offload,
                "lossless": request.lossless,
            }
            if result.frames:
                try:
                    write_json(request.record, result.record)
                except OSError as error:
                    result.keep_first(error)
        if result.signal is None:  # one that came while sheet and record were written
            result.signal = stop.waiting
    return result


def opened(request: GenerateRequest, backbone: Backbone | None, clock: Stopwatch) -> Video:
    """Return the video of a request, its model loaded and its settings resolved.

    Args:
        request: What to make.
        backbone: An already loaded one; None loads the request's.
        clock: Counts loading.

    Raises:
        UserError: A name, a setting or the time of a prompt is wrong, the model cannot be loaded, or more is
            asked of a loaded one than it can change.
    """
    if backbone is not None:
        _check_loaded(request, backbone)
    backbone = backbone or open_backbone(request)
    settings = resolve(request.method, backbone, request.preset, request.overrides)
    sampler = method_class(request.method)(settings)
    # again, now that the method's own length is known
    check_prompts(request.prompts, length(request, sampler, backbone))
    if request.leaves_denoiser_open:
        backbone = _faster(request, backbone, sampler)
    clock.lap("load")
    return Video(request, backbone, sampler, clock)


def _check_loaded(request: GenerateRequest, backbone: Backbone) -> None:
    """Refuse what only loading decides.

    Raises:
        UserError: It is asked for, and the backbone is loaded.
    """
    wishes = {name: getattr(request, name) for name in ("device", "dtype", "height", "width")}
    asked = [name for name, value in wishes.items() if value is not None]
    asked += ["offload"] if request.offload else []
    asked += ["denoiser"] if request.denoiser not in (None, "torch") else []
    if asked:
        raise UserError(
            f"{', '.join(asked)} cannot be asked of {backbone.name}, which is loaded: give it to load_backbone,"
            " and leave it out of the request"
        )


def _faster(request: GenerateRequest, backbone: Backbone, sampler: Sampler[Any]) -> Backbone:
    """Return the backbone, run by whatever finishes the video sooner."""
    from miga_bench.harness.automatic_export import faster

    frames = length(request, sampler, backbone)
    return faster(backbone, sampler, None if frames is None else backbone.latents_for(frames))
