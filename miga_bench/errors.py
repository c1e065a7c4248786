"""What reaches a user as a single line."""

import difflib
import errno
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager


def close_names(name: str, known: Iterable[str], most: int = 2, cutoff: float = 0.6) -> list[str]:
    """Return the names that somebody may have meant, the nearest first; case does not count.

    Args:
        name: As typed.
        known: Names that there are.
        most: So many at most.
        cutoff: How alike they are at least, 0..1.
    """
    plain = {other.lower(): other for other in known}
    return [plain[one] for one in difflib.get_close_matches(name.lower(), plain, most, cutoff)]


def did_you_mean(names: Sequence[str]) -> str:
    """Return the question of that name, with a space behind it; nothing without names."""
    return f"did you mean {' or '.join(names)}? " if names else ""


def counted(number: int, thing: str) -> str:
    """Return a number of things, such as ``1 frame`` or ``2 frames``."""
    return f"{number} {thing}{'' if number == 1 else 's'}"


def near(name: str, known: Iterable[str], cutoff: float = 0.6, word: str = "known:") -> str:
    """Return the end of an error line: similar names, and all known ones.

    Args:
        name: As typed.
        known: Names that there are.
        cutoff: How alike similar ones are at least, 0..1.
        word: Stands before all known ones.
    """
    known = sorted(known)
    return f"{did_you_mean(close_names(name, known, cutoff=cutoff))}{word} {', '.join(known)}"


class UserError(ValueError):
    """Wrong input: what was wrong, the rule, what to do; the command line exits with code 2.

    Whatever names and answers from outside are in the text, it is one line, and a terminal shows it as it is.

    Attributes:
        reported: Whether the error was already shown to the user, by this process or by another one of the run.
    """

    reported = False

    def __init__(self, text: str) -> None:
        super().__init__(in_print(text))


@contextmanager
def placed(where: str) -> Iterator[None]:
    """Say where in what was given a ``UserError`` of the block is: ``where: ...``; empty is nowhere else."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{where}: {error}" if where else str(error)) from None


def in_print(text: str) -> str:
    """Return the text on one line: white space as it is, what cannot be printed by its code."""
    shown = (c if c.isprintable() else " " if c.isspace() else ascii(c)[1:-1] for c in text)
    return "".join(shown).strip()


class FailedError(RuntimeError):
    """Work that failed; the command line says so in one line and exits with code 1.

    Attributes:
        reported: Of a process that is one of several: another one tells the user.
    """

    reported = False


class NumericalError(FailedError):
    """A network returned NaN or infinity."""


class NotFiniteError(NumericalError, ValueError):
    """Frames hold NaN or infinity, which no picture can show."""


class DoesNotFitError(FailedError):
    """Memory ran out at the smallest piece of work."""


class TeamError(FailedError):
    """The processes that make something together fell apart."""


class LostError(TeamError):
    """One of them is gone, and what they have begun cannot be gone on with."""


class JudgeDownError(FailedError):
    """A judge cannot be reached; the same command goes on."""


class TrackingError(FailedError):
    """MLflow refused, or could not be reached."""


class ExportError(FailedError):
    """A graph is not what it was exported from, or no engine could be made."""


class Notice(UserWarning):
    """Worth knowing, but no reason to stop; the command line shows it as one line."""


def told(error: BaseException) -> str:
    """Return what an error says, with its kind where that is no sentence, as of a KeyError."""
    plain = isinstance(error, (UserError, FailedError, OSError, RuntimeError))
    return str(error) if plain and str(error) else f"{type(error).__name__}: {error}"


def plainly(main: Callable[[], int | None]) -> int:
    """Run a module's ``main`` and return its exit code; what goes wrong is one line, but with ``--debug``."""
    debug = "--debug" in sys.argv
    sys.argv = [argument for argument in sys.argv if argument != "--debug"]
    try:
        return main() or 0
    except Exception as error:
        if debug:
            raise
        ours = isinstance(error, (UserError, FailedError))
        text = str(error) if ours else f"{type(error).__name__}: {error}"
        print(in_print(text), file=sys.stderr)
        return 2 if isinstance(error, UserError) else 1


# What allocators say that have no exception of their own: torch's on a CPU, ONNX Runtime's, CUDA's libraries.
_NO_MEMORY = (
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
    "Cannot allocate memory",  # the system's ENOMEM, of files that are mapped, too
    "MPS backend out of memory",
    "Failed to allocate memory for requested buffer",
    "CUDA error: out of memory",
    "CUDA failure 2: out of memory",  # ONNX Runtime
    "Cuda failure 2 'out of memory'",  # NCCL
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUFFT_ALLOC_FAILED",
    "CUSOLVER_STATUS_ALLOC_FAILED",
)
# What CUDA's libraries say where memory is short for their workspace, and also where something else is wrong.
_MAYBE_NO_MEMORY = (
    "was unable to find an engine to execute this computation",
    "CUBLAS_STATUS_NOT_INITIALIZED",
    "CUDNN_STATUS_NOT_INITIALIZED",
)


def is_out_of_memory(error: BaseException, maybe: bool = False) -> bool:
    """Tell whether an error says that memory ran out, on whatever device.

    Args:
        error: Any.
        maybe: Whether one that may also say something else counts: where less work can be tried.
    """
    # torch's by its name: this file is read where torch is not
    torchs = any(kind.__name__ == "OutOfMemoryError" for kind in type(error).__mro__)
    if torchs or isinstance(error, MemoryError):
        return True
    return any(sign in str(error) for sign in _NO_MEMORY + _MAYBE_NO_MEMORY * maybe)


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
# What CUDA says of errors that stay until the process ends; after others the next call may do well.
_LOST = (
    "illegal memory access",
    "device-side assert",
    "unspecified launch failure",
    "launch timed out",
    "misaligned address",
    "illegal instruction",
    "hardware stack error",
    "invalid program counter",
    "global/shared address space",
    "uncorrectable",  # ECC, NVLink
    "busy or unavailable",
)


def disk_is_full(error: Exception) -> bool:
    """Tell whether an error says that nothing can be written any more."""
    return isinstance(error, OSError) and error.errno in _FULL


def gpu_is_lost(error: Exception) -> bool:
    """Tell whether an error, of torch or ONNX Runtime, leaves this process a GPU that always fails."""
    text = str(error)
    return "CUDA" in text and any(sign in text for sign in _LOST)
