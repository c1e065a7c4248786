"""What an engine is of and for, and which engines may be loaded. TensorRT is not imported.

Engines of an export lie in its folder ``engines``, each with a record. An engine is code for one
kind of GPU, by one version of one library, of one ONNX file: a record that says otherwise keeps it from being
loaded. Since a damaged or foreign engine can do anything to the process, so does a hash that differs.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from miga_bench.errors import UserError
from miga_bench.export.sidecar import Sidecar, sha256
from miga_bench.export.tensorrt.profiles import Profile, fingerprint

FORMAT = 1
FOLDER = "engines"
VOUCH = "TensorRTDenoiser.load(PATH, trusted=True)"


@dataclass(frozen=True)
class Manifest:
    """The record of an engine, ``NAME.json`` beside ``NAME.engine``.

    Attributes:
        graph: Which graph of the export, ``denoiser``.
        onnx: ``Sidecar.identity``: one hash of graph and weights.
        backbone: What was exported, as in the sidecar.
        precision: Of the ONNX file; strongly typed networks keep it.
        library: ``tensorrt`` or ``tensorrt_rtx``.
        version: Of the library.
        compute_capability: Of the GPUs it is for, ``8.9``.
        profiles: Least, usual and largest shapes of every input.
        builder_level: How long the library searched, 0 to 5.
        weight_streaming: Whether weights may stay in main memory.
        refittable: Whether it can take other weights.
        device: Name of the GPU it was built on, where the library measures on it.
        device_bytes: Memory of that GPU.
        build_seconds: Time the build took.
        built: When, in UTC.
        code: Version of miga-bench.
        bytes: Size of the engine.
        sha256: Hash of the engine.
        parity: Its largest difference from PyTorch over the largest value, where it was measured.
        parity_reason: Why it was not.
    """

    graph: str
    onnx: str
    backbone: dict[str, Any]
    precision: str
    library: str
    version: str
    compute_capability: str
    profiles: list[dict[str, Any]]
    builder_level: int
    weight_streaming: bool
    refittable: bool
    device: str = ""
    device_bytes: int = 0
    build_seconds: float = 0.0
    built: str = ""
    code: str = ""
    bytes: int = 0
    sha256: str = ""
    parity: float | None = None
    parity_reason: str | None = None

    @property
    def name(self) -> str:
        """The engine's file name: equal names are equal builds."""
        profiles = fingerprint([Profile.from_plain(profile) for profile in self.profiles])
        parts = [
            self.graph,
            f"{self.library}-{self.version}",
            "sm" + self.compute_capability.replace(".", ""),
            self.precision,
            f"profile-{profiles[:8]}",
            f"onnx-{self.onnx[:8]}",
            f"level-{self.builder_level}",
        ]
        parts += model_slug(self.device)
        parts += ["streaming"] if self.weight_streaming else []
        parts += ["refittable"] if self.refittable else []
        return ".".join(parts) + ".engine"

    @classmethod
    def read(cls, engine: Path) -> Manifest:
        """Read the record of an engine.

        Raises:
            UserError: There is none, or it is no such record.
        """
        path = engine.with_suffix(".json")
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content.pop("format") != FORMAT:
                raise ValueError(f"its format is not {FORMAT}")
            return cls(**content)
        except FileNotFoundError:
            raise UserError(f"{engine} has no record: {path.name} is missing") from None
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise UserError(
                f"{path} is not the record of an engine ({error}): build it again with --force"
            ) from error

    def elsewhere(self, device: str, memory: int) -> str | None:
        """Say that it was built on another model of GPU than ``device`` of ``memory`` bytes, if it was.

        Such an engine may run: kernels and their scratch memory were chosen for the other model.
        """
        if self.device in ("", device) and self.device_bytes <= memory:
            return None
        sizes = [f"{size / 2**30:.0f} GiB" for size in (self.device_bytes, memory)]
        return (
            f"was built on {self.device} ({sizes[0]}), this is {device or 'another'} ({sizes[1]})"
        )

    def is_of(self, engine: Path) -> bool:
        """Return whether a file is, byte for byte, the engine that this record is of."""
        with suppress(OSError):
            return engine.stat().st_size == self.bytes and sha256(engine) == self.sha256
        return False

    def write(self, folder: Path, engine: Any) -> Path:
        """Write the engine and this record; return the engine's file.

        Nothing half written is left, whatever happens: both are whole before either has its name.

        Args:
            folder: Where to; is made.
            engine: Its bytes, or what has a buffer.
        """
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / self.name
        # of one killed build the next of the same name makes use; of two at once neither is loaded
        parts = [folder / f".{path.stem}{ending}.part" for ending in (".engine", ".json")]
        record = {"format": FORMAT, **asdict(self)}
        try:
            for part, content in zip(
                parts, (engine, (json.dumps(record, indent=2) + "\n").encode()), strict=True
            ):
                with part.open("wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
            parts[0].replace(path)
            parts[1].replace(path.with_suffix(".json"))
        finally:
            for part in parts:
                part.unlink(missing_ok=True)
        return path


def model_slug(device: str) -> list[str]:
    """Return the part of a file's name that tells a model of GPU, none where it does not matter."""
    return [re.sub(r"[^A-Za-z0-9]+", "-", device).strip("-")] if device else []


def find(
    where: Path,
    installed: Mapping[str, str],
    capability: str,
    trusted: bool = False,
    device: str = "",
) -> tuple[Path, Manifest | None]:
    """Return the engine to load, and its record; an engine that the user vouches for may have none.

    Args:
        where: An export folder, of whose engines the last built that fits is taken, or one engine.
        installed: Versions of the libraries that are there, by name.
        capability: Of the GPU.
        trusted: Whether the user vouches for ``where``, one engine: it may then lie anywhere, and
            have another hash than its record says or no record at all.
        device: Name of the GPU; engines that were built on its model go first.

    Raises:
        UserError: There is none, or it is stale, foreign, damaged or not to be trusted.
    """
    if where.is_dir():
        sidecar = Sidecar.read(where, "denoiser")
        path, manifest = _newest(sidecar, installed, capability, device)
        _refuse_changed(path, manifest)
        return path, manifest
    if not where.is_file():
        raise UserError(f"{where} is missing: give an export folder, or one of its engines")
    if trusted:
        if not where.with_suffix(".json").is_file():
            return where, None
        manifest = Manifest.read(where)
        reason = _foreign(manifest, installed, capability)
        if reason:
            raise UserError(f"{where} {reason}; build one for it: miga-bench export tensorrt DIR")
        return where, manifest
    export = where.absolute().parent.parent
    if where.absolute().parent.name != FOLDER or not (export / "denoiser.json").is_file():
        raise UserError(
            f"{where} does not lie in the folder {FOLDER} of an export, and an engine can run any "
            f"code: give the export folder, or vouch for it by {VOUCH}"
        )
    manifest = Manifest.read(where)
    reason = _reason(manifest, Sidecar.read(export, "denoiser"), installed, capability)
    if reason:
        raise UserError(f"{where} {reason}; build one: miga-bench export tensorrt {export}")
    _refuse_changed(where, manifest)
    return where, manifest


def _newest(
    sidecar: Sidecar, installed: Mapping[str, str], capability: str, device: str
) -> tuple[Path, Manifest]:
    build = f"build one: miga-bench export tensorrt {sidecar.folder}"
    engines, unreadable = [], None
    for path in sorted((sidecar.folder / FOLDER).glob("*.engine")):
        try:
            engines.append((path, Manifest.read(path)))
        except UserError as error:
            unreadable = error
    if not engines:
        raise unreadable or UserError(f"{sidecar.folder} has no engine; {build}")
    engines.sort(key=lambda engine: (engine[1].device in ("", device), engine[1].built))
    for path, manifest in reversed(engines):
        if not _reason(manifest, sidecar, installed, capability):
            return path, manifest
    path, manifest = engines[-1]
    others = f", nor does one of {len(engines) - 1} others fit" if len(engines) > 1 else ""
    reason = _reason(manifest, sidecar, installed, capability)
    raise UserError(f"{path} {reason}{others}; {build}")


def _reason(
    manifest: Manifest, sidecar: Sidecar, installed: Mapping[str, str], capability: str
) -> str | None:
    """Say why an engine is not the one to load."""
    if manifest.onnx != sidecar.identity:
        return (
            f"is stale: it was built of another ONNX file (hash {manifest.onnx[:8]}) than "
            f"{sidecar.path} is now (hash {sidecar.identity[:8]})"
        )
    return _foreign(manifest, installed, capability)


def _foreign(manifest: Manifest, installed: Mapping[str, str], capability: str) -> str | None:
    wanted = f"{manifest.library} {manifest.version} for compute capability"
    if installed.get(manifest.library) != manifest.version:
        here = " and ".join(f"{name} {version}" for name, version in installed.items())
        return (
            f"was built by {manifest.library} {manifest.version}: here is {here or 'no TensorRT'}"
        )
    if manifest.compute_capability != capability:
        return f"was built by {wanted} {manifest.compute_capability}: this GPU has {capability}"
    return None


def _refuse_changed(engine: Path, manifest: Manifest) -> None:
    if not manifest.is_of(engine):
        raise UserError(
            f"{engine} is not the file that its record describes, and an engine can run any code: "
            f"build it again with --force, or vouch for it by {VOUCH}"
        )
