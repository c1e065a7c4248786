"""``--denoiser``: what runs the denoiser, as users write it. Nothing heavy is imported."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from miga_bench.errors import UserError, close_names, did_you_mean

KINDS = ("torch", "compile", "onnx", "tensorrt")
PROVIDERS = ("cpu", "cuda", "tensorrt", "tensorrt-rtx")
FORMS = "torch, compile, onnx:FOLDER, onnx+PROVIDER:FOLDER or tensorrt:FOLDER"


@dataclass(frozen=True)
class DenoiserChoice:
    """What runs the denoiser.

    Attributes:
        kind: ``torch``, ``compile``, ``onnx`` or ``tensorrt``.
        folder: Of the export; for ``tensorrt`` it may be an engine in it.
        provider: ONNX Runtime's, None for the device's own.
    """

    kind: str = "torch"
    folder: Path | None = None
    provider: str | None = None

    @classmethod
    def parse(cls, text: str) -> DenoiserChoice:
        """Read ``torch``, ``compile``, ``onnx:FOLDER``, ``onnx+PROVIDER:FOLDER`` or ``tensorrt:FOLDER``.

        Raises:
            UserError: It is none of these, or the folder is not there.
        """
        head, colon, where = text.partition(":")
        kind, plus, provider = head.partition("+")
        if kind not in KINDS:
            hint = did_you_mean(close_names(kind, KINDS))
            raise UserError(f"unknown denoiser {text!r}: {hint}it must be {FORMS}")
        if kind in ("torch", "compile"):
            if colon or plus:
                raise UserError(f"denoiser {text!r}: {kind} stands alone; it must be {FORMS}")
            return cls(kind)
        if plus and (kind != "onnx" or provider not in PROVIDERS):
            raise UserError(
                f"denoiser {text!r}: ONNX Runtime's providers are {', '.join(PROVIDERS)}, as in"
                " onnx+cuda:FOLDER"
            )
        if not where:
            raise UserError(f"denoiser {text!r} names no folder: write {kind}:FOLDER")
        folder = Path(where).expanduser()
        if not folder.exists():
            raise UserError(
                f"denoiser {text!r}: there is no folder {folder}; make it by miga-bench export onnx"
            )
        return cls(kind, folder, provider or None)

    @property
    def root(self) -> Path | None:
        """The export's folder; an engine lies in ``engines`` in it."""
        if self.folder is None or self.folder.is_dir():
            return self.folder
        return self.folder.parent.parent

    @property
    def exported(self) -> bool:
        """Whether the backbone comes from an export."""
        return self.folder is not None
