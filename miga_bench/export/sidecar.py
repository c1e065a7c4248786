"""What lies beside a graph: what it is of, what it takes, what it was measured to give.

Every graph ``G.onnx`` of an export folder has a ``G.json``. Whoever loads or builds from a graph asks here
first: the files are held against their hashes, so that a truncated, mixed or foreign folder is one
line and never a wrong video. Nothing heavy is imported.

    sidecar = Sidecar.read(folder, "denoiser")     # UserError if it is missing, damaged or of another format
    sidecar.check()                                # UserError if a file is missing or is not the hashed one
    sidecar.inputs["latents"].at(batch=2, frames=21)            -> [2, 12, 21, 8, 8]
    sidecar.inputs["latents"].min, .opt, .max                   -> the profile, one list of sizes each
    sidecar.path, sidecar.identity                              -> the ONNX file, what it is as one hash
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from miga_bench.errors import UserError

FORMAT = 1
PRECISIONS = ("fp32", "fp16", "bf16")


@dataclass(frozen=True)
class Port:
    """One input or output of a graph.

    Attributes:
        dtype: As torch names it: ``float32``, ``int64``.
        shape: Sizes; a name (``batch``) or a multiple of one (``16*frames``) where it is free.
        min: Smallest sizes that an engine is to take; empty on outputs.
        opt: Sizes that it is tuned for; empty on outputs.
        max: Largest sizes; empty on outputs.
    """

    dtype: str
    shape: list[int | str]
    min: list[int] = field(default_factory=list)
    opt: list[int] = field(default_factory=list)
    max: list[int] = field(default_factory=list)

    @classmethod
    def input(
        cls,
        dtype: str,
        shape: Iterable[int | str],
        least: Mapping[str, int],
        usual: Mapping[str, int],
        most: Mapping[str, int],
    ) -> Port:
        """Return an input whose profile follows from the sizes of its free dimensions."""
        port = cls(dtype, list(shape))
        return cls(dtype, port.shape, port.at(**least), port.at(**usual), port.at(**most))

    def at(self, **sizes: int) -> list[int]:
        """Return the shape where the free dimensions have these sizes."""
        return [size if isinstance(size, int) else _evaluate(size, sizes) for size in self.shape]

    def plain(self) -> dict[str, Any]:
        """Return it as it stands in the file."""
        return {key: value for key, value in asdict(self).items() if value != []}


def _evaluate(size: str, sizes: Mapping[str, int]) -> int:
    """Return the size of a dimension such as ``frames`` or ``16*frames``."""
    return math.prod(int(f) if f.isdigit() else sizes[f] for f in size.split("*"))


@dataclass(frozen=True)
class Sidecar:
    """The content of a ``G.json``.

    Attributes:
        folder: Where it lies; not in the file.
        graph: ``denoiser``, ``text_encoder``, ``vae_decoder_first``, ``vae_decoder_step`` or ``vae_decoder``.
        onnx: Name of the ONNX file.
        external_data: Names of the files that hold its weights; none if it holds them itself.
        backbone: ``name``, ``family`` and ``weights_hash`` of what was exported.
        precision: ``fp32``, ``fp16`` or ``bf16``: what most is computed in, and the weights are if ``stored``
            does not say otherwise.
        opset: Version of ONNX's operators.
        inputs: By name, in the graph's order.
        outputs: By name, in the graph's order.
        operators: How many nodes there are of each kind.
        sha256: Hash of each file.
        code: ``miga_bench``, ``torch``, ``onnx`` versions and ``source``, a hash of what exported it.
        parity: Of each tried shape the largest difference from PyTorch over the largest value.
        tolerance: What they had to stay within.
        parity_reason: Why there is no parity, where there is none.
        lora: Name and hash of the merged LoRA, if there is one.
        stored: Type of the weights that the graph itself casts to its precision, where it does.
        probe: Name of the file with the input and answer that engines are held against, see ``probe.py``.
        unprobed: Why there is none, where there is none.
    """

    folder: Path
    graph: str
    onnx: str
    external_data: list[str]
    backbone: dict[str, Any]
    precision: str
    opset: int
    inputs: dict[str, Port]
    outputs: dict[str, Port]
    operators: dict[str, int]
    sha256: dict[str, str]
    code: dict[str, str]
    parity: list[dict[str, Any]]
    tolerance: float
    parity_reason: str | None = None
    lora: dict[str, str] | None = None
    stored: str | None = None
    probe: str | None = None
    unprobed: str | None = None

    @property
    def path(self) -> Path:
        """The ONNX file; give libraries this path and not its bytes, which may be without the weights."""
        return self.folder / self.onnx

    @property
    def file(self) -> Path:
        """The sidecar's own file."""
        return self.folder / f"{self.graph}.json"

    @cached_property
    def identity(self) -> str:
        """One hash of graph and weights; a file that only tests them does not make them others."""
        files = {name: self.sha256[name] for name in (self.onnx, *self.external_data)}
        return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()

    def write(self) -> Path:
        """Write it beside its graph; return the file."""
        own = ("folder", "identity")
        content: dict[str, Any] = {
            key: value for key, value in vars(self).items() if key not in own and value is not None
        }
        for key in ("inputs", "outputs"):
            content[key] = {name: port.plain() for name, port in content[key].items()}
        text = json.dumps({"format": FORMAT, **content}, indent=2)
        self.file.write_text(f"{text}\n", encoding="utf-8")
        return self.file

    @classmethod
    def read(cls, folder: Path, graph: str) -> Sidecar:
        """Read the sidecar of a graph.

        Raises:
            UserError: The folder or the file is missing, or it is not a sidecar of that graph.
        """
        again = "export it again by miga-bench export onnx"
        if not folder.is_dir():
            raise UserError(f"{folder} is no folder: give one that miga-bench export onnx wrote")
        path = folder / f"{graph}.json"
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise UserError(f"{folder} holds no exported {graph}: {path.name} is missing") from None
        except (OSError, ValueError, RecursionError) as error:
            raise UserError(f"{path} cannot be read ({error}): {again}") from None
        if not isinstance(content, dict) or content.pop("format", None) != FORMAT:
            raise UserError(f"{path} is not an export's record of format {FORMAT}: {again}")
        try:
            for key in ("inputs", "outputs"):
                content[key] = {name: Port(**port) for name, port in content[key].items()}
            sidecar = cls(folder, **content)
            sidecar._check_names()
        except (TypeError, KeyError, AttributeError, ValueError) as error:
            raise UserError(f"{path} is not an export's record ({error}): {again}") from error
        if sidecar.graph != graph:
            raise UserError(f"{path} is the record of a {sidecar.graph}, not of a {graph}: {again}")
        return sidecar

    def _check_names(self) -> None:
        """Let no file lie elsewhere, and none be without a hash.

        Raises:
            ValueError: One does, or is.
        """
        files = [self.onnx, *self.external_data, *([self.probe] if self.probe else [])]
        for name in {*files, *self.sha256}:
            if not isinstance(name, str) or not name or Path(name).name != name:
                raise ValueError(f"{name!r} is no file beside it")
        if not {*files} <= {*self.sha256}:
            raise ValueError("a file without a hash")

    def check(self) -> None:
        """Hold all files against their hashes.

        Raises:
            UserError: One is missing, truncated, another, or may not be read.
        """
        for name, wanted in self.sha256.items():
            path = self.folder / name
            if not path.is_file():
                parts = {self.onnx: "graph of", self.probe: "test of"}
                part = parts.get(name, "weights of")
                raise UserError(
                    f"{path} is missing: it holds the {part} {self.onnx}; copy the whole folder, or"
                    " export it again"
                )
            try:
                found = sha256(path)
            except OSError as error:
                raise UserError(
                    f"{path} cannot be read ({(error.strerror or str(error)).lower()}): let this user read it"
                ) from None
            if found != wanted:
                raise UserError(
                    f"{path} is not the file that {self.file.name} describes: it is truncated, or"
                    " of another export; export it again"
                )


def sha256(path: Path) -> str:
    """Return the hash of a file's content."""
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
