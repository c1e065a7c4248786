"""The door: verbs, one-line errors, exit codes. Nothing heavy is imported before it is needed.

Exit codes: 0 done, 1 failed, 2 wrong input, 128 + signal when stopped. The last line of stdout of a
verb that makes or measures something is one JSON document.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from typing import Any, NoReturn

from miga_bench import __version__
from miga_bench.cli_common import FAILED, WRONG_INPUT, one_line, read_or_not, say
from miga_bench.errors import FailedError, Notice, UserError, close_names, did_you_mean

# Verbs in the order of the help, each with its module. A module has SUMMARY and EXAMPLES, what its help says;
# add_options(parser); and run(args), which returns the exit code. A verb with FORMATS has modules of that
# kind for these instead. Help reads them all: nothing heavy may be imported at their top.
VERBS = {
    "generate": "miga_bench.cli_generate",
    "predict": "miga_bench.cli_predict",
    "experiment": "miga_bench.cli_experiment",
    "validate": "miga_bench.cli_validate",
    "demo": "miga_bench.cli_demo",
    "score": "miga_bench.cli_score",
    "compare": "miga_bench.cli_compare",
    "report": "miga_bench.cli_report",
    "export": "miga_bench.cli_export",
    "sync": "miga_bench.cli_sync",
    "prune": "miga_bench.cli_prune",
    "list": "miga_bench.cli_list",
    "bench": "miga_bench.cli_bench",
    "train-tiny": "miga_bench.backbones.tiny.train",
}
# verbs whose other options Lightning reads
LIGHTNING = ("predict", "experiment", "validate")
# verbs that keep what they have done when they are stopped, and do the rest when they are given again
GO_ON = ("predict", "experiment", "score", "sync", "train-tiny")

EXAMPLES = """\
examples:
  miga-bench generate "a red circle moves right on a blue field"
  miga-bench generate "a red circle moves right" --then 150:"a blue circle moves right" -o turn.mp4
  miga-bench generate "a green square moves up" --endless        (Ctrl-C ends it)
  miga-bench generate "a cat walks through snow" --backbone wan2.1-1.3b --device cuda
  miga-bench predict --config tiny-wan-miga
  miga-bench validate --config tiny-wan-miga
  miga-bench experiment components
  miga-bench score out.mp4
  miga-bench compare theirs.json mine.json
  miga-bench report runs/tiny-wan-miga
  miga-bench export onnx tiny-wan -o tiny-wan-onnx
  miga-bench generate "a red circle moves right" --denoiser onnx:tiny-wan-onnx
  miga-bench list presets
  miga-bench demo

exit codes: 0 done, 1 failed, 2 wrong input, 130 stopped by Ctrl-C (the video so far is kept)"""


class _Parser(argparse.ArgumentParser):
    """argparse with one-line errors and no guessing of abbreviated options."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        kwargs["allow_abbrev"] = False
        super().__init__(*args, **kwargs)
        # "-5:a text" is a value, if a wrong one, as "-5" is: it is told what is wrong with it
        self._negative_number_matcher = re.compile(r"-\d")

    def error(self, message: str) -> NoReturn:
        self.exit(WRONG_INPUT, f"{self.prog}: {message} (see {self.prog} --help)\n")

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        parsed, unknown = self.parse_known_args(args, namespace)
        if parsed.verb in LIGHTNING:
            parsed.arguments = unknown
        elif unknown:
            instead = getattr(parsed, "instead", {})
            raise UserError(_unknown_argument(unknown[0], parsed.options, instead))
        return parsed


def _unknown_argument(argument: str, options: Sequence[str], instead: Mapping[str, str]) -> str:
    if not argument.startswith("-"):
        return f"unexpected {argument!r}: put a text of several words in quotes, or see --help"
    option = argument.partition("=")[0]
    if option in instead:
        return f"no option {option}: {instead[option]}"
    plain = {known.lstrip("-"): known for known in options}  # the dashes make all options alike
    near = [plain[name] for name in close_names(option.lstrip("-"), plain, most=3)]
    return f"no option {argument}" + (f": {did_you_mean(near)}".rstrip() if near else "")


def _parser(names: Iterable[str] = VERBS) -> _Parser:
    """Return the parser of these verbs."""
    parser = _Parser(
        prog="miga-bench",
        description="Long, consistent videos from short-clip video diffusion models.",
        epilog=EXAMPLES,
    )
    parser.add_argument("--version", action="version", version=f"miga-bench {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for name in names:
        _add(verbs, name, import_module(VERBS[name]))
    return parser


def _add(verbs: Any, name: str, page: Any) -> None:
    """Add a verb, or each format of one that has them, as its module tells."""
    parser = verbs.add_parser(
        name, help=page.SUMMARY, description=page.SUMMARY, epilog=page.EXAMPLES
    )
    if hasattr(page, "FORMATS"):
        formats = parser.add_subparsers(metavar="FORMAT", required=True)
        for form, of_form in page.FORMATS.items():
            _add(formats, form, of_form)
        return
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.set_defaults(run=page.run, options=parser._option_string_actions.keys())
    page.add_options(parser)


def _show_notices_plainly() -> None:
    """Show each of our own notices once, as one line without its place in the code."""
    usual, said = warnings.showwarning, set()

    def show(message: Any, category: Any, *place: Any, **named: Any) -> None:
        if not issubclass(category, Notice):
            usual(message, category, *place, **named)
        elif str(message) not in said:
            said.add(str(message))
            say(one_line(message))

    warnings.showwarning = show


def _find_modules_here() -> None:
    """Let a ``class_path`` name a file of the current folder, behind all else that Python finds."""
    with suppress(OSError):  # of a folder that is gone
        here = os.getcwd()
        if here not in sys.path:
            sys.path.append(here)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb and return the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if os.name == "nt":  # it has none of the locks that keep two processes from writing one file
        say("this is Windows, and miga-bench runs on Linux and macOS: use WSL")
        return WRONG_INPUT
    _show_notices_plainly()
    _find_modules_here()
    verb = ""
    try:
        named = [name for name in arguments[:1] if name in VERBS]  # a verb needs no other's module
        args = _parser(named or VERBS).parse_args(arguments)
        verb = args.verb
        return int(args.run(args))
    except KeyboardInterrupt as stop:
        say("stopped: the same command goes on" if verb in GO_ON else "stopped")
        return 128 + getattr(stop, "signal", 2)
    except Exception as error:
        if "--debug" in arguments:
            raise
        if isinstance(error, (UserError, FailedError)):
            say(one_line(error))
            return WRONG_INPUT if isinstance(error, UserError) else FAILED
        kind = "" if isinstance(error, OSError) else f"{type(error).__name__}: "
        say(f"{kind}{one_line(error)} (--debug shows where)")
        return FAILED
    finally:
        with read_or_not():  # what was printed of help or tables, before Python does at its end
            pass
