"""Weight files: where VBench keeps them, how they are fetched, and that they are the same files.

A file is looked for where VBench itself puts it, then in the caches of ``torch.hub`` and ``clip``,
then downloaded to VBench's place. Its SHA-256 is checked where the publisher states one; where none
is stated, the first use writes ``<file>.sha256`` beside the file and later uses are checked
against that. Nothing but tensors is read from a file.

Source of places and addresses: VBench 0.1.5, ``vbench/utils.py`` and ``aesthetic_quality.py``.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import urllib.request
import uuid
import warnings
import zipfile
from collections.abc import Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from miga_bench.errors import UserError
from miga_bench.metrics.networks.base import Provenance
from miga_bench.offline import downloads_off

if TYPE_CHECKING:
    from collections.abc import Iterator

Cache = Literal["torch_hub", "clip"]
Weights = Path | str | Mapping[str, Tensor] | None
_PIECE = 1 << 20


@dataclass(frozen=True)
class WeightFile:
    """A published file of weights.

    Attributes:
        network: Whose weights they are, such as ``DINO ViT-B/16``.
        place: Where it lies below VBench's cache.
        url: Where it is published.
        sha256: What the publisher states of its SHA-256: all of it, its beginning, or nothing.
        caches: Other caches it may lie in.
        member: The file's name in the archive at ``url``, if that is a zip archive.
    """

    network: str
    place: str
    url: str
    sha256: str = ""
    caches: tuple[Cache, ...] = ()
    member: str = ""

    @property
    def name(self) -> str:
        """The file's name."""
        return PurePosixPath(self.place).name


@dataclass(frozen=True)
class Loaded:
    """Weights that were read.

    Attributes:
        content: The state dict, or what else of tensors the file holds.
        name: The file's name; ``given`` for weights that came as tensors.
        sha256: Of the file, or of all tensors.
        published: Whether they are the published ones, so far as can be told.
    """

    content: Mapping[str, Any]
    name: str
    sha256: str
    published: bool

    def provenance(
        self, network: str, precision: torch.dtype = torch.float32, package: str = ""
    ) -> Provenance:
        """Return what a network made of them says of itself.

        Args:
            network: Its name.
            precision: What it computes in.
            package: Whose code it is, if it is not ours: another version may give other numbers.
        """
        weights = f"{self.name}; {with_version(package)}" if package else self.name
        return Provenance(network, weights, self.sha256, str(precision).removeprefix("torch."))

    def label(self, network: str, precision: torch.dtype = torch.float32) -> str | None:
        """Return a network's label: None for the published weights in a published precision."""
        if not self.published:
            return f"{network}:own"
        return f"{network}:bfloat16" if precision is torch.bfloat16 else None


def read_weights(weights: Weights, file: WeightFile) -> Loaded:
    """Return weights that were given, or those of the published file.

    Args:
        weights: A state dict; a file; None for the published file, wherever it is.
        file: The published file.

    Raises:
        UserError: The file is missing, damaged, cannot be had, or holds more than tensors.
    """
    if isinstance(weights, Mapping):
        return Loaded(weights, "given", tensors_sha256(weights), published=False)
    if weights is None:
        path = locate(file)
        return Loaded(_read(path, file), path.name, check(path, file), published=True)
    path = Path(weights).expanduser()
    if not path.is_file():
        raise UserError(
            f"{path}: there is no such file; it should hold the weights of {file.network}"
        )
    digest = file_sha256(path)
    same = digest.startswith(file.sha256) if file.sha256 else path.name == file.name
    return Loaded(_read(path, file), path.name, digest, published=same)


def locate(file: WeightFile) -> Path:
    """Return the path of a published file; downloads it if it is nowhere.

    Raises:
        UserError: It is nowhere and cannot be downloaded.
    """
    candidates = places(file)
    for path in candidates:
        if path.is_file():
            return path
    switch = downloads_off()
    if switch:
        raise UserError(_missing(file, candidates, f"downloads are off ({switch})"))
    try:
        return _download(file, candidates[0])
    except (OSError, zipfile.BadZipFile, KeyError) as error:
        reason = f"it could not be downloaded ({error})"
        raise UserError(_missing(file, candidates, reason)) from error


def places(file: WeightFile) -> list[Path]:
    """Return where a file may lie, VBench's own place first."""
    home = Path.home()
    vbench = os.environ.get("VBENCH_CACHE_DIR") or home / ".cache" / "vbench"
    found = [Path(vbench).expanduser() / file.place]
    if "torch_hub" in file.caches:
        found.append(Path(torch.hub.get_dir()) / "checkpoints" / file.name)
    if "clip" in file.caches:
        found.append(home / ".cache" / "clip" / file.name)
    return found


def check(path: Path, file: WeightFile) -> str:
    """Return a file's SHA-256 after comparing it with what is known of it.

    Where the publisher states none, the first use notes it beside the file; so does one that finds the note
    unreadable.

    Raises:
        UserError: It is another one.
    """
    digest = file_sha256(path)
    note = path.with_name(f"{path.name}.sha256")
    known, source = file.sha256, "its publisher's"
    if not known:
        known, source = _noted(note), f"the one in {note.name}"
    if not known:
        # a cache that only others may write to is used all the same
        with suppress(OSError), _in_place_of(note) as part:
            part.write_text(f"{digest}  {path.name}\n", encoding="utf-8")
    elif not digest.startswith(known):
        raise UserError(
            f"{path}: the SHA-256 is {digest[:12]}..., not {source} ({known[:12]}...); "
            f"delete the file and fetch it again from {file.url}"
        )
    return digest


def _noted(note: Path) -> str:
    """Return the SHA-256 that a note holds; nothing where there is no note, or one that was cut off."""
    try:
        found = re.match(r"\s*([0-9a-f]{64})\b", note.read_text(encoding="utf-8").lower())
    except (OSError, UnicodeDecodeError):
        return ""
    return found[1] if found else ""


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """Return a SHA-256 over names, types, shapes and values of tensors, in order of names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def with_version(package: str) -> str:
    """Return the name of an installed package with its version; one that Python only finds has none."""
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return f"{package} of no version"


def fill(module: torch.nn.Module, state: Mapping[str, Tensor], network: str) -> None:
    """Load a state dict into a module.

    Raises:
        UserError: Tensors are missing, too many or of another shape.
    """
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise UserError(
            f"these are no weights of {network} ({reason}): give its published file"
        ) from error
    module.eval().requires_grad_(False)


def _read(path: Path, file: WeightFile) -> Mapping[str, Any]:
    try:
        if zipfile.is_zipfile(path) and _is_torchscript(path):
            with warnings.catch_warnings():
                # the format goes out of use, the published files stay in it
                warnings.simplefilter("ignore", DeprecationWarning)
                return torch.jit.load(path, map_location="cpu").state_dict()
        with _numbers_allowed():
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a reader that is led astray by its input fails in any way
        lines = (str(error) or type(error).__name__).splitlines()
        # torch begins with what to do about it; a line further on has what it met
        met = (line.partition(". Please")[0] for line in lines if "Unsupported" in line)
        reason = next(met, lines[0]).strip()
        raise UserError(
            f"{path}: no tensors of {file.network} can be read from it ({reason}); "
            f"fetch it again from {file.url}"
        ) from error


def _is_torchscript(path: Path) -> bool:
    # CLIP's files are TorchScript archives, which torch.load does not read
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


@contextmanager
def _numbers_allowed() -> Iterator[None]:
    """Let NumPy's numbers pass: checkpoints of trainings hold them beside the tensors."""
    import _codecs

    import numpy as np

    kinds = [type(np.dtype(kind)) for kind in ("float64", "float32", "int64")]
    scalar: Any = np.float64(0).__reduce__()[0]
    # NumPy 1 and 2 write other names into files, and each reads the other's
    scalars = [(scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
    with torch.serialization.safe_globals([*scalars, np.dtype, *kinds, _codecs.encode]):
        yield


def _download(file: WeightFile, target: Path) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    with _in_place_of(target) as part:
        with urllib.request.urlopen(file.url, timeout=30) as answer, part.open("xb") as stream:
            if file.member:
                with zipfile.ZipFile(io.BytesIO(answer.read())) as archive:
                    stream.write(archive.read(file.member))
            else:
                while piece := answer.read(_PIECE):
                    stream.write(piece)
        digest = file_sha256(part) if file.sha256 else ""
        if not digest.startswith(file.sha256):
            raise UserError(
                f"{target}: what {file.url} gives has the SHA-256 {digest[:12]}..., not its publisher's "
                f"({file.sha256[:12]}...), and is not kept; try again, or put the file there"
            )
    return target


@contextmanager
def _in_place_of(target: Path) -> Iterator[Path]:
    """Give a name to write to that becomes the target's in the end: a file under its own name is whole.

    Unlike those of ``tempfile``, the file is readable to whom the umask says: users share the cache.
    """
    part = target.with_name(f"{target.name}.{uuid.uuid4().hex}.part")
    try:
        yield part
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)


def _missing(file: WeightFile, candidates: list[Path], reason: str) -> str:
    return (
        f"the weights of {file.network} ({file.name}) are not in "
        f"{' or '.join(str(path) for path in candidates)}, and {reason}; "
        f"put the file there from {file.url}"
    )
