"""The original's judge in this process: Qwen2.5-VL, shown frames as a video of 10 frames a second.

What the original leaves to ``qwen-vl-utils`` and the model's video processor is small and is done here, so
that neither they nor torchvision are needed: frames are resized with Pillow's bicubic filter to
multiples of 28 pixels, normalized as for CLIP and cut into patches of 2 frames x 14 x 14 pixels in the
order in which the vision tower merges them, 2 x 2 (Qwen2.5-VL technical report, arXiv 2502.13923). The
original sends frames through JPEG files first; here they come as they are.
"""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from miga_bench.errors import UserError
from miga_bench.metrics.narrlv.judge import SUFFIX, SYSTEM, Sampling, first_line, original_frames
from miga_bench.metrics.networks import preprocess
from miga_bench.offline import downloads_off

if TYPE_CHECKING:
    from torch import Tensor

RELEASED = "Qwen/Qwen2.5-VL-72B-Instruct"
DTYPE = "bfloat16"
_PRECISIONS = ("bfloat16", "float16", "float32")
_MIN_PIXELS, _MAX_PIXELS = 56 * 56, 16384 * 28 * 28
_FPS = 10.0
_WHOLE, _PIECES, _PIECE = 2**24, 64, 2**14  # bytes of a file that is hashed whole; of others
_TEXT, _VIDEO = 0, 2  # the model's names for what a token stands for


class QwenJudge:
    """Qwen2.5-VL through transformers.

    Args:
        model: A local folder or a name on the Hugging Face Hub; the original's is `RELEASED`.
        sampling: How answers are drawn; what it does not name (top_k) is as the model's folder says.
        device: ``auto`` spreads the model over all GPUs (needs accelerate); or one device.
        dtype: Precision of the weights: ``bfloat16``, ``float16`` or ``float32``.

    Raises:
        UserError: The precision is another, or the model cannot be loaded.
    """

    concurrency = 1

    def __init__(
        self,
        model: str | Path = RELEASED,
        *,
        sampling: Sampling | None = None,
        device: str = "auto",
        dtype: str = DTYPE,
    ) -> None:
        from transformers import AutoTokenizer, Qwen2_5_VLForConditionalGeneration

        self.sampling = sampling or Sampling()
        self.dtype = dtype
        if dtype not in _PRECISIONS:
            raise UserError(f"dtype is {dtype!r}; it must be one of {', '.join(_PRECISIONS)}")
        try:
            here = downloads_off() is not None
            self._tokenizer = AutoTokenizer.from_pretrained(model, local_files_only=here)
            self.model = Qwen2_5_VLForConditionalGeneration.from_pretrained(
                model,
                dtype=getattr(torch, dtype),
                device_map="auto" if device == "auto" else None,
                local_files_only=here,
            ).eval()
        except (OSError, ValueError, ImportError) as error:
            raise _refusal(model, first_line(error)) from None
        if device != "auto":
            self.model.to(device)
        self._identity = _identity(model, self.model.config)
        vision = self.model.config.vision_config
        self._patch, self._merge = vision.patch_size, vision.spatial_merge_size
        self._tubelet = vision.temporal_patch_size

    def frames(self, total: int, category: str) -> list[int]:
        """Return the frames that the original shows."""
        return original_frames(total, category)

    @torch.inference_mode()
    def __call__(self, frames: Tensor, question: str, seed: int) -> str:
        """Answer.

        Args:
            frames: uint8 ``[N, 3, H, W]``.
            question: As the suite has it.
            seed: Of the draw; the global random state is left as it was.
        """
        inputs = self.inputs(frames, question)
        device = self.model.device
        cuda = [device] if device.type == "cuda" else []
        sampling = self.sampling
        drawn: dict[str, Any] = {"do_sample": sampling.temperature > 0}
        if drawn["do_sample"]:
            drawn |= {"temperature": sampling.temperature, "top_p": sampling.top_p}
        with torch.random.fork_rng(cuda):
            torch.manual_seed(seed)
            tokens = self.model.generate(
                **{name: value.to(device) for name, value in inputs.items()},
                **drawn,
                repetition_penalty=sampling.repetition_penalty,
                max_new_tokens=sampling.max_new_tokens,
            )
        new = tokens[0, inputs["input_ids"].shape[1] :]
        return str(self._tokenizer.decode(new, skip_special_tokens=True))

    def inputs(self, frames: Tensor, question: str) -> dict[str, Tensor]:
        """Return what the model reads: tokens ``[1, L]``, patches ``[P, C * 2 * 14 * 14]``, their grid."""
        patches, grid = patchify(frames, self._patch, self._merge, self._tubelet)
        count = math.prod(grid) // self._merge**2
        text = (
            f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n{question}{SUFFIX}"
            f"<|vision_start|>{'<|video_pad|>' * count}<|vision_end|><|im_end|>\n<|im_start|>assistant\n"
        )
        ids = self._tokenizer(text, return_tensors="pt")["input_ids"]
        inputs = {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "pixel_values_videos": patches,
            "video_grid_thw": torch.tensor([grid]),
            "second_per_grid_ts": torch.tensor([self._tubelet / _FPS]),
        }
        # transformers 5.0 finds video tokens by itself; later ones want to be told
        if "mm_token_type_ids" in inspect.signature(self.model.forward).parameters:
            is_video = ids == self.model.config.video_token_id
            inputs["mm_token_type_ids"] = torch.where(is_video, _VIDEO, _TEXT)
        return inputs

    def provenance(self) -> dict[str, Any]:
        """Return model, precision and sampling."""
        generation = self.model.generation_config
        told = _provenance(self._identity, self.sampling, self.dtype)
        return {
            **told,
            "attention": self.model.config._attn_implementation,
            "sampling": {**told["sampling"], "top_k": generation.top_k},
        }


def check_model(model: str | Path, device: str = "auto") -> None:
    """Refuse a judge that could not be loaded, by its configuration; its weights are not looked at.

    Args:
        model: As for ``QwenJudge``.
        device: The same.

    Raises:
        UserError: There is no such model, it is of another kind, or a package is missing.
    """
    kind = _config(model).model_type
    if kind != "qwen2_5_vl":
        raise _refusal(model, f"it is a {kind}")
    if device == "auto" and importlib.util.find_spec("accelerate") is None:
        raise _refusal(model, "device auto needs accelerate")


def provenance_by_files(
    model: str | Path, sampling: Sampling | None = None, dtype: str = DTYPE
) -> dict[str, Any]:
    """Return what a judge's ``provenance`` says, as far as its files tell; it is not loaded.

    Args:
        model: As for ``QwenJudge``.
        sampling: The same.
        dtype: The same.

    Raises:
        UserError: There is no such model.
    """
    return _provenance(_identity(model, _config(model)), sampling or Sampling(), dtype)


def _provenance(identity: str, sampling: Sampling, dtype: str) -> dict[str, Any]:
    return {
        "judge": "qwen2.5-vl",
        "model": identity,
        "dtype": dtype,
        "sampling": sampling.as_dict(),
        "suffix": SUFFIX,
    }


def _config(model: str | Path) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(model, local_files_only=downloads_off() is not None)
    except (OSError, ValueError) as error:
        raise _refusal(model, first_line(error)) from None


def _refusal(model: str | Path, reason: str) -> UserError:
    return UserError(
        f"cannot load the judge {model} ({reason}); give a folder or a Hub name of a Qwen2.5-VL model,"
        " and pip install 'miga-bench[narrlv]'"
    )


def resized(height: int, width: int, factor: int) -> tuple[int, int]:
    """Return the nearest size in multiples of ``factor`` with an allowed number of pixels."""
    tall, wide = (max(1, round(side / factor)) * factor for side in (height, width))
    if tall * wide > _MAX_PIXELS:
        shrink = math.sqrt(height * width / _MAX_PIXELS)
        tall, wide = (max(1, math.floor(s / shrink / factor)) * factor for s in (height, width))
    elif tall * wide < _MIN_PIXELS:
        grow = math.sqrt(_MIN_PIXELS / (height * width))
        tall, wide = (math.ceil(side * grow / factor) * factor for side in (height, width))
    return tall, wide


def patchify(
    frames: Tensor, patch: int = 14, merge: int = 2, tubelet: int = 2
) -> tuple[Tensor, tuple[int, int, int]]:
    """Cut frames into the vision tower's patches.

    Args:
        frames: uint8 ``[N, 3, H, W]``; the last is repeated until ``tubelet`` divides N.
        patch: Side of a patch in pixels.
        merge: Patches per side that become one token.
        tubelet: Frames per patch.

    Returns:
        Float patches ``[T * h * w, 3 * tubelet * patch * patch]`` in the order of merging, and the grid
        (T, h, w) in patches.
    """
    from PIL import Image

    tall, wide = resized(frames.shape[-2], frames.shape[-1], patch * merge)
    pictures = []
    for frame in frames.cpu():
        picture = Image.fromarray(frame.permute(1, 2, 0).contiguous().numpy())
        picture = picture.resize((wide, tall), Image.Resampling.BICUBIC)
        flat = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
        pictures.append(flat.view(tall, wide, 3).permute(2, 0, 1))
    pictures += [pictures[-1]] * (-len(pictures) % tubelet)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in preprocess.CLIP)
    video = (torch.stack(pictures).float() / 255 - mean) / std
    t, h, w = len(video) // tubelet, tall // patch, wide // patch
    split = video.view(t, tubelet, 3, h // merge, merge, patch, w // merge, merge, patch)
    order = split.permute(0, 3, 6, 4, 7, 2, 1, 5, 8)
    return order.reshape(t * h * w, 3 * tubelet * patch * patch), (t, h, w)


def _identity(model: str | Path, config: Any) -> str:
    """The Hub's name and commit, or a folder with a hash of its files, large ones by samples."""
    folder = Path(model)
    if not folder.is_dir():
        return f"{model}@{getattr(config, '_commit_hash', None) or 'unknown'}"
    digest = hashlib.sha256()
    for file in sorted(folder.rglob("*")):
        name = file.relative_to(folder)
        # downloads leave hidden notes of when they were
        if file.is_file() and not any(part.startswith(".") for part in name.parts):
            size = file.stat().st_size
            digest.update(f"{name.as_posix()} {size}\n".encode())
            for piece in _samples(file, size):
                digest.update(piece)
    return f"{folder.name} sha256:{digest.hexdigest()[:16]}"


def _samples(file: Path, size: int) -> Iterator[bytes]:
    """Yield a file; of a large one pieces spread over it, for other weights have the same sizes."""
    with file.open("rb") as opened:
        if size <= _WHOLE:
            yield opened.read()
            return
        for n in range(_PIECES):
            opened.seek(n * (size - _PIECE) // (_PIECES - 1))
            yield opened.read(_PIECE)
