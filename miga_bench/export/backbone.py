"""A backbone made of an export folder: text encoder, denoiser and autoencoder without PyTorch modules.

What the folder is without comes from the weights it was exported from, in PyTorch.

What sampling asks beside that, schedule and solver among it, follows from the folder's facts.
"""

from __future__ import annotations

import copy
import hashlib
import json
import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from miga_bench.backbones.base import Backbone, FrameAttention, LatentShape, StreamingDecoder
from miga_bench.backbones.memory import CPU_WINDOWS
from miga_bench.backbones.prompt_text import clean_prompt
from miga_bench.backbones.schedule import Grid, Schedule, flow_schedule
from miga_bench.backbones.solvers import DDIM, Solver, UniPC
from miga_bench.backbones.vc2_rules import check_answers, schedule_of
from miga_bench.errors import Notice, UserError
from miga_bench.export.choice import DenoiserChoice
from miga_bench.export.facts import ExportFacts
from miga_bench.export.onnx_denoiser import OnnxDenoiser, OnnxImageDecoder, OnnxWanDecoder
from miga_bench.export.onnx_text import OnnxText
from miga_bench.export.providers import gpu_index, runs, trouble
from miga_bench.export.session import Session
from miga_bench.export.sidecar import Sidecar
from miga_bench.export.torch_parts import TorchParts

if TYPE_CHECKING:
    from miga_bench.backbones.encoder_text import EncoderText


class ExportedBackbone(Backbone):
    """A model as ``miga-bench export onnx`` wrote it.

    Attributes:
        facts: What the folder knows of it.
        frame_size: Height and width of the frames.

    Args:
        choice: What runs the denoiser; text encoder and autoencoder are run by ONNX Runtime, or by PyTorch
            where the folder has none.
        device: As torch names it.

    Raises:
        UserError: The folder is not whole, a file is not what its record says, or what runs it is missing.
    """

    denoiser: Any

    def __init__(self, choice: DenoiserChoice, device: str | None = None) -> None:
        folder, root = choice.folder, choice.root
        assert folder is not None
        assert root is not None
        self.facts = facts = ExportFacts.read(root)
        self.name, self.family, self.window = facts.name, facts.family, facts.window
        self.latent_shape = LatentShape(*facts.latent_shape)
        self.frame_rate, self.negative_prompt = facts.frame_rate, facts.negative_prompt
        self.frames_per_latent = facts.frames_per_latent
        self.weights_hash, self.preset = facts.weights_hash, facts.preset
        self._device = _device(choice, device)
        self._answers = dict(facts.defaults or {})
        self._sessions: dict[str, Session] = {}
        main = self._sidecar("denoiser")
        kind = choice.kind + (f"+{choice.provider}" if choice.provider else "")
        self.denoiser_identity = f"{kind}:{main.precision}:{main.identity[:16]}"
        self._parts = self._torch_parts()
        self.frame_size = self._frame_size()
        fps = self._answers.get("fps")
        if choice.kind == "tensorrt":
            from miga_bench.export.tensorrt.runtime import TensorRTDenoiser

            self.denoiser = TensorRTDenoiser.load(folder, self._device, fps=fps)
            self.denoiser.row_flops = facts.operations
        else:
            session = Session(main, self._device, choice.provider)
            self.denoiser = OnnxDenoiser(session, facts, fps)

    def _decoders(self) -> tuple[str, ...]:
        wan = ("vae_decoder_first", "vae_decoder_step")
        return wan if self.family == "wan" else ("vae_decoder",)

    def _torch_parts(self) -> TorchParts | None:
        """Return the parts that the folder is without, None if it has all; read the records of the others."""
        missing = []
        for told, names in (("text encoder", ("text_encoder",)), ("autoencoder", self._decoders())):
            if any((self.facts.folder / f"{name}.json").is_file() for name in names):
                for name in names:
                    self._sidecar(name)
            else:
                missing.append(told)
        self._exported = {
            "text": "text encoder" not in missing,
            "vae": "autoencoder" not in missing,
        }
        aside = [part for part, exported in self._exported.items() if exported]
        place = torch.device(self._device)
        if aside and self._plain_device == "cpu" and place.type == "cuda":
            warnings.warn(
                f"ONNX Runtime cannot use {self._device}: exported parts ({', '.join(aside)}) run on the CPU,"
                f" slowly at real size; {trouble('cuda', gpu_index(place))}; or export --parts denoiser, beside"
                " which the rest runs in PyTorch on the GPU",
                Notice,
                stacklevel=2,
            )
        return TorchParts(self.facts, " and no ".join(missing), self._device) if missing else None

    @cached_property
    def configuration_hash(self) -> str:  # type: ignore[override]
        """SHA-256 over what decides a video beside ``weights_hash`` and the denoiser's graph.

        That is the facts (schedule, rates, window), the tokenizer, and text encoder and autoencoder: as
        graphs, or what they are in PyTorch where the folder is without.
        """
        aside = ("folder", "negative_prompt", "row_bytes")
        facts = {k: v for k, v in asdict(self.facts).items() if k not in aside}
        total = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
        for name in ("text_encoder", *self._decoders()):
            if (self.facts.folder / f"{name}.json").is_file():
                total.update(f"{name} {self._sidecar(name).identity}".encode())
        tokenizer = self.facts.folder / "tokenizer" / "tokenizer.json"
        if tokenizer.is_file():
            total.update(tokenizer.read_bytes())
        elif self._parts is not None:
            total.update(self._parts.source.text_identity.encode())
        return total.hexdigest()

    def _frame_size(self) -> tuple[int, int]:
        if not self._exported["vae"]:
            assert self._parts is not None
            factor = self._parts.pixels
            return factor * self.latent_shape.height, factor * self.latent_shape.width
        *_, height, width = self._sidecar(self._decoders()[-1]).outputs["frames"].shape
        return int(height), int(width)

    def _sidecar(self, graph: str) -> Sidecar:
        """Return the record of a graph of this backbone; another's may lie beside by mistake."""
        sidecar = Sidecar.read(self.facts.folder, graph)
        if sidecar.backbone["weights_hash"] != self.weights_hash:
            raise UserError(
                f"{sidecar.file} is of {sidecar.backbone['name']} with other weights than"
                f" {self.facts.folder}: export the whole folder again"
            )
        return sidecar

    def _session(self, graph: str) -> Session:
        if graph not in self._sessions:
            self._sessions[graph] = Session(self._sidecar(graph), self._plain_device)
        return self._sessions[graph]

    @property
    def _plain_device(self) -> str:
        """Where exported text encoder and autoencoder run: beside the denoiser if ONNX Runtime can."""
        place = torch.device(self._device)
        on_gpu = place.type == "cuda" and runs("cuda", gpu_index(place))
        return self._device if on_gpu else "cpu"

    @cached_property
    def text(self) -> OnnxText | EncoderText:  # type: ignore[override]
        """The text side, loaded when first asked for."""
        if not self._exported["text"]:
            assert self._parts is not None
            text: EncoderText = self._parts.text
            return text
        sidecar = self._sidecar("text_encoder")
        return OnnxText(
            sidecar,
            lambda device: Session(sidecar, device, check=False),
            self.facts.folder / "tokenizer",
            self.facts,
            self._plain_device,
        )

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """Return the prompts' embeddings ``[len(prompts), S, D]``, padded as the family does."""
        return self.text.encode(prompts).to(self._device)

    def check_prompts(self, prompts: Sequence[str]) -> None:
        """Refuse prompts that cannot be encoded; the encoder does not run.

        Raises:
            UserError: One is too long, or the encoder in PyTorch has to run for it and its files are missing.
        """
        text = self.text
        if isinstance(text, OnnxText):
            for prompt in prompts:
                text.tokens(clean_prompt(prompt))
        elif text.needs_encoder(prompts):
            assert self._parts is not None
            self._parts.source.text_files()

    def decoder(self) -> StreamingDecoder:
        """Return a fresh streaming decoder for one video."""
        if not self._exported["vae"]:
            assert self._parts is not None
            decoder: StreamingDecoder = self._parts.decoder()
            return decoder
        if self.family == "wan":
            first, step = (self._session(name) for name in self._decoders())
            return OnnxWanDecoder(first, step)
        return OnnxImageDecoder(self._session("vae_decoder"))

    def schedule(self, steps: int) -> Schedule:
        """Return the family's noise schedule with ``steps`` levels above clean.

        Raises:
            UserError: On VideoCrafter2, the training steps are not enough, or too many.
        """
        if self.facts.flow_shift is not None:
            return flow_schedule(steps, self.facts.flow_shift)
        return schedule_of(self.name, steps, self._answers["grid"], self._answers["rescale"])

    def solver(self, schedule: Schedule) -> Solver:
        """Return the family's per-frame solver on that schedule."""
        if self.family == "wan":
            return UniPC(schedule)
        return DDIM(schedule, self._answers["eta"])

    def reading(
        self,
        grid: Grid | None = None,
        rescale: bool | None = None,
        fps: float | None = None,
    ) -> Backbone:
        """Return this backbone, graphs shared, with other answers; see ``Backbone.reading``."""
        if self.family == "wan":
            return super().reading(grid, rescale, fps)
        answers = {"grid": grid, "rescale": rescale, "fps": fps}
        changed = {**self._answers, **{k: v for k, v in answers.items() if v is not None}}
        if changed == self._answers:
            return self
        check_answers(self.name, changed["grid"], changed["fps"], changed["fps_range"])
        other = copy.copy(self)
        other._answers = changed
        other.denoiser = self.denoiser.telling(changed["fps"])
        return other

    def attending(self, attention: FrameAttention) -> AbstractContextManager[None]:
        """Refuse: what is inside of a graph is out of reach."""
        raise UserError(
            f"{self.name}: the attention of an exported denoiser cannot be changed; use --denoiser"
            " torch, or fifo, scaling-noise or miga"
        )

    def latents_taken(self) -> range | None:
        """Return how many latents a row of a denoiser call may have, None for any number."""
        taken: range | None = self.denoiser.latents_taken()
        return taken

    def default_batch(self) -> int:
        """Return how many windows one denoiser call may hold."""
        if torch.device(self._device).type == "cpu":
            return CPU_WINDOWS
        return max(1, int(self.denoiser.rows_that_fit()) // 2)

    @property
    def device(self) -> str:
        """Where the denoiser takes and gives tensors, as torch names it."""
        return self._device


def _device(choice: DenoiserChoice, device: str | None) -> str:
    """Return where the denoiser runs.

    Raises:
        UserError: The device is not there, or is not what the provider runs on.
    """
    from miga_bench.backbones.residence import pick_device

    on_gpu = choice.kind == "tensorrt" or choice.provider not in (None, "cpu")
    if choice.kind == "onnx" and choice.provider is None and device is None:
        here = torch.cuda.is_available()
        gpu = gpu_index(torch.device("cuda")) if here else 0
        on_gpu = here and runs("cuda", gpu)
        if here and not on_gpu:
            warnings.warn(
                f"ONNX Runtime cannot use the GPU here, and all runs on the CPU: {trouble('cuda', gpu)}, or"
                " leave out --denoiser",
                Notice,
                stacklevel=2,
            )
    place = pick_device(device or ("cuda" if on_gpu and torch.cuda.is_available() else "cpu"))
    if choice.provider == "cpu" and place.type != "cpu":
        raise UserError(f"onnx+cpu runs on the CPU, not on {place}: leave out --device")
    return str(place)
