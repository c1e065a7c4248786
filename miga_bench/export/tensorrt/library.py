"""The one place that imports TensorRT: ``tensorrt`` 10.15 to 11, or ``tensorrt_rtx``.

Code elsewhere asks what a library can, never which it is: the two share their Python interface.
"""

from __future__ import annotations

import importlib
import re
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Any

from miga_bench.errors import UserError

NAMES = ("tensorrt", "tensorrt_rtx")

# Attention came to the parser of tensorrt with 10.14, RMSNormalization with 10.15
_SUPPORTED = {
    "tensorrt": ((10, 15), (12,), "10.15 to 11"),
    "tensorrt_rtx": ((1, 4), (2,), "1.4 up to 2"),
}
_INSTALL = (
    'pip install "miga-bench[tensorrt]" or, to build on any machine, "miga-bench[tensorrt-rtx]"'
)


@dataclass(frozen=True)
class Library:
    """An imported library.

    Attributes:
        name: ``tensorrt`` or ``tensorrt_rtx``.
        version: As it states it.
        module: The module itself.
        logger: Its logger, which keeps what went wrong; one for all that it makes.
    """

    name: str
    version: str
    module: Any
    logger: Any

    @property
    def targets(self) -> tuple[str, ...]:
        """Compute capabilities that it builds for on any machine; none if only for the GPU it runs on."""
        if self.name == "tensorrt":
            return ()
        names = (re.fullmatch(r"SM(\d+)(\d)", n) for n in self.module.ComputeCapability.__members__)
        return tuple(f"{found[1]}.{found[2]}" for found in names if found)

    def target(self, capability: str) -> Any:
        """Return its constant for one of ``targets``."""
        return getattr(self.module.ComputeCapability, "SM" + capability.replace(".", ""))

    def failure(self) -> str:
        """Return its last complaint as one line, or its last warning; forget all of them."""
        complaints, warned = self.logger.complaints, self.logger.warned
        self.logger.complaints, self.logger.warned = [], ""
        said = complaints[-1] if complaints else warned
        return " ".join(said.split()) or "it gave no reason"

    def made(self, kind: str, *given: Any) -> Any:
        """Return one of its objects that need the driver: ``Builder``, ``Runtime`` or ``Refitter``.

        Args:
            kind: Which.
            *given: What its constructor takes before the logger.

        Raises:
            UserError: It makes none, as where the driver is older than its CUDA; pybind11 says no more then
                than that a factory function returned nullptr.
        """
        self.failure()
        try:
            return getattr(self.module, kind)(*given, self.logger)
        except TypeError:
            warned = " ".join(self.logger.warned.split())
            reason = self.failure()
            reason += f"; {warned}" if warned and warned != reason else ""
            plain = self.name.replace("_", "-")
            raise UserError(
                f"{self.name} {self.version} makes no {kind} with {_driver()} ({reason}): update the driver,"
                f" or for one of CUDA 12 pip uninstall {plain}-cu13, {plain}-cu13-libs and"
                f" {plain}-cu13-bindings, then pip install {plain}-cu12"
            ) from None


def load(name: str | None = None) -> Library:
    """Return a library.

    Args:
        name: Which one; None takes ``tensorrt`` where it is installed, else ``tensorrt_rtx``.

    Raises:
        UserError: It is not installed, does not load, or has an unsupported version.
    """
    if name is not None and name not in NAMES:
        raise UserError(f"there is no library {name!r}: use {' or '.join(NAMES)}")
    broken = []
    for candidate in (name,) if name else NAMES:
        try:
            return _imported(candidate)
        except ModuleNotFoundError:
            continue
        except (ImportError, OSError) as error:
            broken.append(f"{candidate} is installed but does not load: {error}")
    if broken:
        raise UserError(f"{'; '.join(broken)}; install it again: {_INSTALL}")
    if name:
        extra = name.replace("_", "-")
        raise UserError(f'{name} is not installed: pip install "miga-bench[{extra}]"')
    raise UserError(f"TensorRT is not installed: {_INSTALL}")


def installed() -> dict[str, Library]:
    """Return all libraries that are there, by name.

    Raises:
        UserError: There is none.
    """
    libraries = {}
    for name in NAMES:
        with suppress(UserError):
            libraries[name] = load(name)
    return libraries or {(only := load()).name: only}


@cache
def _imported(name: str) -> Library:
    module = importlib.import_module(name)
    version = str(module.__version__)
    least, below, words = _SUPPORTED[name]
    numbers = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
    if not least <= numbers < below:
        extra = name.replace("_", "-")
        raise UserError(
            f'{name} {version} is not supported, {words} are: pip install -U "miga-bench[{extra}]"'
        )
    return Library(name, version, module, _logger(module))


def _logger(trt: Any) -> Any:
    class Logger(trt.ILogger):
        """Keeps errors, and the last warning, for the message that a user reads; says nothing itself."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.complaints: list[str] = []
            self.warned = ""

        def log(self, severity: Any, message: str) -> None:
            """Keep what it says; called from C++, where an exception would end the process."""
            with suppress(Exception):
                if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                    self.complaints = [*self.complaints[-9:], message]
                elif severity == trt.ILogger.WARNING:
                    self.warned = message

    return Logger()


def _driver() -> str:
    """Return what NVIDIA's driver calls itself, as a user reads it."""
    try:
        pynvml = importlib.import_module("pynvml")
        pynvml.nvmlInit()
        return f"the driver {pynvml.nvmlSystemGetDriverVersion()}"
    except Exception:  # neither the package nor the driver need be there
        return "the driver here"


def gpu_model(device: str = "cuda") -> tuple[str, int]:
    """Return a GPU's name and bytes of memory; nothing and 0 where there is none."""
    import torch

    if not torch.cuda.is_available():
        return "", 0
    found = torch.cuda.get_device_properties(device)
    return str(found.name), int(found.total_memory)


def gpu(device: str = "cuda") -> str | None:
    """Return the compute capability of a GPU, such as ``8.9``; None where there is none."""
    import torch

    if not torch.cuda.is_available():
        return None
    return "{}.{}".format(*torch.cuda.get_device_capability(device))
