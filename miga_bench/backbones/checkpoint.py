"""Reading weight files and fitting them to modules, with errors that name the file and the keys.

Nothing here knows a model family. Modules are built without memory on the meta device, compared with
what the files hold, and only then filled.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import pickle
import re
import zipfile
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from miga_bench.errors import UserError, is_out_of_memory, told

BIG_ENCODER = 1 << 30  # bytes on disk from which a text encoder does not stay loaded

T = TypeVar("T")
ModuleT = TypeVar("ModuleT", bound=nn.Module)

_SAMPLE = 1 << 20


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object, or raise a UserError that names the file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is missing: fetch it, or give the folder that has it") from None
    except PermissionError as error:
        raise _closed(path, error) from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as JSON ({error}): fetch it again") from None
    if not isinstance(content, dict):
        raise UserError(
            f"{path} must hold a JSON object, not a {type(content).__name__}: fetch it again"
        )
    return content


def weight_files(folder: Path, stem: str) -> list[Path]:
    """Find the files of one component: ``stem.safetensors``, its shards, or ``stem.bin``.

    Raises:
        UserError: There are none, or shards that the index names are missing.
    """
    for name in (f"{stem}.safetensors", f"{stem}.safetensors.index.json", f"{stem}.bin"):
        path = folder / name
        if not path.exists():
            continue
        if path.suffix != ".json":
            return [path]
        table = read_json(path).get("weight_map")
        named = table.values() if isinstance(table, dict) else ()
        if not all(isinstance(shard, str) and Path(shard).name == shard for shard in named):
            raise UserError(f"{path} names what is no file beside it: fetch it again")
        shards = sorted(set(named))
        lost = [shard for shard in shards if not (folder / shard).exists()]
        if lost or not shards:
            raise UserError(
                f"{path} names files that are missing ({some_of(lost) or 'none at all'}): fetch them"
            )
        return [folder / shard for shard in shards]
    raise UserError(f"no weights in {folder}: {stem}.safetensors is missing (or its shards)")


def read_state(files: Sequence[Path]) -> dict[str, Tensor]:
    """Read the tensors of safetensors files or pickled checkpoints, mapped from disk if possible.

    Raises:
        UserError: A file is missing, damaged, not a table of tensors, or carries code.
    """
    state: dict[str, Tensor] = {}
    for path in files:
        state.update(_read_safetensors(path) if path.suffix == ".safetensors" else _unpickle(path))
    return state


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as opened:
            return {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise UserError(f"{path} is missing: fetch it, or give the folder that has it") from None
    except PermissionError as error:
        raise _closed(path, error) from None
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is truncated or damaged ({error}); fetch it again") from None


def _unpickle(path: Path) -> dict[str, Tensor]:
    return named_tensors(read_pickle(path), str(path))


def read_pickle(path: Path) -> Any:
    """Read what ``torch.save`` wrote, tensors mapped from disk if possible; nothing in it is run.

    Raises:
        UserError: The file is missing, damaged, or carries code.
    """
    damaged = f"{path} is truncated or damaged; fetch it again"
    load = partial(torch.load, path, map_location="cpu", weights_only=True)
    try:
        try:
            return load(mmap=zipfile.is_zipfile(path))
        except RuntimeError as error:
            if "unable to mmap" not in str(error):
                raise
        return load(mmap=False)  # some file systems map nothing
    except FileNotFoundError:
        raise UserError(f"{path} is missing: fetch it, or give the folder that has it") from None
    except PermissionError as error:
        raise _closed(path, error) from None
    except pickle.UnpicklingError as error:
        code = re.search(r"GLOBAL ([\w.]+)", str(error))
        if code is None:
            raise UserError(damaged) from None
        raise UserError(
            f"{path} is refused: it carries code ({code[1]}), not only weights; "
            "use a safetensors file or a checkpoint of plain tensors"
        ) from None
    except Exception as error:  # a reader that is led astray by its input fails in any way
        if is_out_of_memory(error):
            raise
        reason = " ".join(told(error).split())[:160]
        raise UserError(f"{path} is truncated or damaged ({reason}); fetch it again") from None


def _closed(path: Path, error: OSError) -> UserError:
    return UserError(f"{path} cannot be read ({error.strerror}): see who may, and where it lies")


def named_tensors(content: Any, source: str) -> dict[str, Tensor]:
    """Return a table of tensors by name, or raise a UserError if it is something else."""
    if not isinstance(content, Mapping) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items()
    ):
        raise UserError(f"{source} does not hold a table of named tensors: give a file of weights")
    return dict(content)


def construct(kind: Callable[..., T], config: Mapping[str, Any], source: str) -> T:
    """Build a diffusers module on the meta device from its configuration, without a log line.

    Raises:
        UserError: The configuration makes no module.
    """
    known = inspect.signature(kind).parameters
    try:
        with torch.device("meta"):
            return kind(**{key: value for key, value in config.items() if key in known})
    except (TypeError, ValueError, RuntimeError, ZeroDivisionError, IndexError) as error:
        raise UserError(
            f"{source} has an unusable configuration ({_line(error)}): fetch it again"
        ) from None


def fill(
    module: ModuleT,
    state: Mapping[str, Tensor],
    source: str,
    dtype: torch.dtype,
    device: torch.device,
    keep_float32: Collection[str] = (),
    aliases: Collection[str] = (),
) -> ModuleT:
    """Give a module on the meta device its weights, for inference.

    Args:
        module: The empty module; it is filled in place.
        state: Tensors by the module's own key names.
        source: What to call the weights in an error: the file or the folder.
        dtype: Type of the parameters.
        device: Where they go.
        keep_float32: Parts of dotted key names whose parameters stay float32 whatever ``dtype``.
        aliases: Keys that are second names of others: not needed, not minded.

    Raises:
        UserError: Keys are missing, unexpected, or of another shape.
    """
    wanted = {k: v for k, v in module.state_dict().items() if k not in aliases}
    given = {k: v for k, v in state.items() if k not in aliases}
    missing = [key for key in wanted if key not in given]
    unexpected = [key for key in given if key not in wanted]
    shapes = [
        f"{key} is {list(given[key].shape)}, should be {list(wanted[key].shape)}"
        for key in wanted
        if key in given and given[key].shape != wanted[key].shape
    ]
    faults = [
        f"{len(keys)} {what} ({some_of(keys)})"
        for keys, what in (
            (missing, "missing"),
            (unexpected, "unexpected"),
            (shapes, "of another shape"),
        )
        if keys
    ]
    if faults:
        kind = type(module).__name__
        raise UserError(
            f"{source} does not fit {kind}: of its keys are {', '.join(faults)}; is it of another model?"
        )

    def kept(key: str) -> bool:
        return any(part in keep_float32 for part in key.split("."))

    filled = {
        key: tensor.to(device, torch.float32 if kept(key) else dtype, copy=True)
        for key, tensor in given.items()
    }
    module.load_state_dict(filled, assign=True, strict=not aliases)
    return module.eval().requires_grad_(requires_grad=False)


def sha256_of(files: Iterable[Path], root: Path) -> str:
    """Hash whole files and their names relative to ``root``, in name order."""
    total = hashlib.sha256()
    for path in sorted(files):
        with path.open("rb") as opened:
            digest = hashlib.file_digest(opened, "sha256").hexdigest()
        total.update(f"{path.relative_to(root).as_posix()} {digest}\n".encode())
    return total.hexdigest()


def fingerprint_of(files: Iterable[Path], root: Path) -> str:
    """Hash names, sizes, and the first and last MiB of files: quick even for tens of gigabytes."""
    total = hashlib.sha256()
    for path in sorted(files):
        size = path.stat().st_size
        total.update(f"{path.relative_to(root).as_posix()} {size}\n".encode())
        with path.open("rb") as opened:
            total.update(opened.read(_SAMPLE))
            opened.seek(max(0, size - _SAMPLE))
            total.update(opened.read(_SAMPLE))
    return total.hexdigest()


def some_of(names: Sequence[str], limit: int = 3) -> str:
    """Name the first few of many."""
    return ", ".join(names[:limit]) + (", ..." if len(names) > limit else "")


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
