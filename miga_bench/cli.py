"""The door: verbs, one-line errors, exit codes. Nothing heavy is imported before it is needed.

Exit codes: 0 done, 1 failed, 2 wrong input, 128 + signal when stopped. The last line of stdout of a
verb that makes or measures something is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from miga_bench import __version__
from miga_bench.errors import FailedError, Notice, UserError, close_names, did_you_mean, in_print

DONE, FAILED, WRONG_INPUT = 0, 1, 2
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
        if parsed.verb in ("predict", "experiment", "validate"):
            parsed.arguments = unknown
        elif unknown:
            raise UserError(_unknown_argument(unknown[0], parsed.options))
        return parsed


def _unknown_argument(argument: str, options: Sequence[str]) -> str:
    if not argument.startswith("-"):
        return f"unexpected {argument!r}: put a text of several words in quotes, or see --help"
    near = close_names(argument.split("=")[0], options, most=3)
    return f"no option {argument}" + (f": {did_you_mean(near)}".rstrip() if near else "")


def _parser() -> _Parser:
    parser = _Parser(
        prog="miga-bench",
        description="Long, consistent videos from short-clip video diffusion models.",
        epilog=EXAMPLES,
    )
    parser.add_argument("--version", action="version", version=f"miga-bench {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    _add_generate(verbs)
    _add_predict(verbs)
    _add_experiment(verbs)
    _add_validate(verbs)
    _add_demo(verbs)
    _add_score(verbs)
    _add_report(verbs)
    _add_export(verbs)
    _add_sync(verbs)
    _add_list(verbs)
    _add_bench(verbs)
    _add_train_tiny(verbs)
    return parser


def _verb(
    verbs: Any, name: str, run: Callable[[argparse.Namespace], int], text: str, epilog: str = ""
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = verbs.add_parser(
        name, help=text, description=text, epilog=epilog
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.set_defaults(run=run, options=parser._option_string_actions.keys())
    return parser


def _add_generate(verbs: Any) -> None:
    from miga_bench import cli_generate

    parser = _verb(verbs, "generate", _generate, cli_generate.SUMMARY, cli_generate.EXAMPLES)
    cli_generate.add_options(parser)


def _generate(args: argparse.Namespace) -> int:
    from miga_bench.cli_generate import asked

    request = asked(args)
    request.check()  # before torch is imported: wrong input is answered at once
    from miga_bench.harness.generate import generate
    from miga_bench.harness.progress import ProgressBar
    from miga_bench.harness.stop import StopRequested

    try:
        with ProgressBar(quiet=args.quiet) as bar:
            result = generate(request, bar)
    except StopRequested as stop:  # before the first frame
        _say("stopped: nothing was written")
        return 128 + stop.signal
    kept = f"{request.output} keeps {result.frames} frames" if result.frames else "nothing was kept"
    if result.status == "failed":
        _say(f"{_one_line(result.error)}; {kept}")
    elif result.status == "stopped":
        _say(f"stopped: {kept}")
    elif not args.quiet:
        seconds = result.record["cost"]["total_seconds"]
        _say(
            f"{request.output}: {result.frames} frames in {seconds:.0f} s; {request.contact_sheet}"
        )
    _print_json(result.record)
    if args.debug and result.error is not None:
        raise result.error
    return {"done": DONE, "failed": FAILED}.get(result.status, 128 + (result.signal or 2))


def _add_predict(verbs: Any) -> None:
    from miga_bench import cli_predict

    parser = _verb(verbs, "predict", _predict, cli_predict.SUMMARY, cli_predict.EXAMPLES)
    cli_predict.add_options(parser)


def _predict(args: argparse.Namespace) -> int:
    from miga_bench.cli_predict import run

    return _ended(run(args))


def _ended(status: dict[str, Any] | None) -> int:
    """Say how a run ended, and return the exit code."""
    if status is None:  # a rank other than 0, whose word counts
        return DONE
    if status["status"] == "stopped":
        _say(f"stopped: {status['run']} has {status['done']} of {status['items']} videos")
    _print_json(status)
    return {"done": DONE, "failed": FAILED}.get(status["status"], 128 + (status["signal"] or 0))


def _add_experiment(verbs: Any) -> None:
    from miga_bench import cli_experiment

    parser = _verb(
        verbs, "experiment", _experiment, cli_experiment.SUMMARY, cli_experiment.EXAMPLES
    )
    cli_experiment.add_options(parser)


def _experiment(args: argparse.Namespace) -> int:
    from miga_bench.cli_experiment import run

    return _ended(run(args))


def _add_validate(verbs: Any) -> None:
    from miga_bench import cli_validate

    parser = _verb(verbs, "validate", _validate, cli_validate.SUMMARY, cli_validate.EXAMPLES)
    cli_validate.add_options(parser)


def _validate(args: argparse.Namespace) -> int:
    from miga_bench.cli_validate import run

    document = run(args)
    _print_json(document)
    return DONE if document["starts"] else WRONG_INPUT


def _add_demo(verbs: Any) -> None:
    from miga_bench.backbones import EMBEDDED

    parser = _verb(
        verbs,
        "demo",
        _demo,
        "All methods, same prompts and seeds, on an embedded model: a video side by side, a contact"
        " sheet and a table.",
    )
    parser.add_argument(
        "-o", "--output", metavar="FOLDER", type=Path, default=Path("demo"), help="folder (demo)"
    )
    parser.add_argument("--prompts", metavar="N", type=int, default=3, help="how many prompts (3)")
    parser.add_argument("--frames", metavar="N", type=int, default=201, help="frames each (201)")
    parser.add_argument(
        "--arm",
        metavar="NAME",
        action="append",
        default=[],
        dest="arms",
        help="only this column, such as fifo; may be given several times",
    )
    parser.add_argument(
        "--backbone",
        choices=EMBEDDED,
        default="tiny-wan",
        help="which embedded model (tiny-wan)",
    )
    parser.add_argument("--force", action="store_true", help="replace files that exist")


def _demo(args: argparse.Namespace) -> int:
    from miga_bench.harness.demo import demo

    _print_json(demo(args.output, args.prompts, args.frames, args.force, args.backbone, args.arms))
    return DONE


def _add_score(verbs: Any) -> None:
    from miga_bench import cli_score

    cli_score.add_options(_verb(verbs, "score", _score, "Score videos.", cli_score.EXAMPLES))


def _score(args: argparse.Namespace) -> int:
    from miga_bench.cli_score import run

    document, unscored = run(args)
    for reason in unscored:
        _say(reason)
    _print_json(document)
    return FAILED if unscored else DONE


def _add_report(verbs: Any) -> None:
    from miga_bench import cli_report

    parser = _verb(verbs, "report", _report, cli_report.SUMMARY, cli_report.EXAMPLES)
    cli_report.add_options(parser)


def _report(args: argparse.Namespace) -> int:
    from miga_bench.cli_report import run

    _print_json(run(args))
    return DONE


def _add_export(verbs: Any) -> None:
    from miga_bench import cli_export as page

    parser = verbs.add_parser(
        "export", help=page.SUMMARY, description=page.SUMMARY, epilog=page.EXAMPLES
    )
    kinds = parser.add_subparsers(dest="kind", metavar="FORMAT", required=True)
    for name, form in page.FORMATS.items():
        form.add_options(_verb(kinds, name, _export, form.summary, form.examples))


def _export(args: argparse.Namespace) -> int:
    from miga_bench.cli_export import FORMATS

    _print_json(FORMATS[args.kind].run(args))
    return DONE


def _add_sync(verbs: Any) -> None:
    from miga_bench import cli_sync

    cli_sync.add_options(_verb(verbs, "sync", _sync, cli_sync.SUMMARY, cli_sync.EXAMPLES))


def _sync(args: argparse.Namespace) -> int:
    from miga_bench.cli_sync import run

    _print_json(run(args))
    return DONE


def _add_list(verbs: Any) -> None:
    parser = _verb(verbs, "list", _list, "Show the methods, backbones or presets there are.")
    parser.add_argument("what", choices=("methods", "backbones", "presets"))
    parser.add_argument("--markdown", action="store_true", help="methods as README shows them")


def _list(args: argparse.Namespace) -> int:
    if args.markdown and args.what != "methods":
        raise UserError(f"--markdown is for methods, not {args.what}: leave it out")
    from miga_bench.harness.listing import show

    with _read_or_not():
        show(args.what, args.markdown)
    return DONE


def _add_bench(verbs: Any) -> None:
    from miga_bench import cli_bench

    cli_bench.add_options(_verb(verbs, "bench", _bench, cli_bench.SUMMARY, cli_bench.EXAMPLES))


def _bench(args: argparse.Namespace) -> int:
    from miga_bench.cli_bench import run

    _print_json(run(args))
    return DONE


def _add_train_tiny(verbs: Any) -> None:
    from miga_bench.backbones.tiny import train

    train.add_options(_verb(verbs, "train-tiny", _train_tiny, train.SUMMARY, train.EXAMPLES))


def _train_tiny(args: argparse.Namespace) -> int:
    from miga_bench.backbones.tiny.train import run

    run(args)
    return DONE


def _print_json(document: Mapping[str, Any]) -> None:
    with _read_or_not():
        print(json.dumps(document))


@contextmanager
def _read_or_not() -> Iterator[None]:
    """Print, whether or not anybody still reads it: what it tells of is done all the same."""
    try:
        yield
        if sys.stdout is not None:  # a program without one prints nothing
            sys.stdout.flush()
    except BrokenPipeError:
        from miga_bench.harness.output import hush

        hush()


def _one_line(error: BaseException | None) -> str:
    if isinstance(error, OSError) and error.strerror:
        where = "" if error.filename is None else f" ({error.filename})"
        return in_print(f"{error.strerror.lower()}{where}")
    return " ".join(str(error).split())


def _say(text: str) -> None:
    print(f"miga-bench: {text}", file=sys.stderr)


def _show_notices_plainly() -> None:
    """Show each of our own notices once, as one line without its place in the code."""
    usual, said = warnings.showwarning, set()

    def show(message: Any, category: Any, *place: Any, **named: Any) -> None:
        if not issubclass(category, Notice):
            usual(message, category, *place, **named)
        elif str(message) not in said:
            said.add(str(message))
            _say(_one_line(message))

    warnings.showwarning = show


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb and return the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    _show_notices_plainly()
    verb = ""
    try:
        args = _parser().parse_args(arguments)
        verb = args.verb
        return int(args.run(args))
    except KeyboardInterrupt as stop:
        _say("stopped: the same command goes on" if verb in GO_ON else "stopped")
        return 128 + getattr(stop, "signal", 2)
    except Exception as error:
        if "--debug" in arguments:
            raise
        if isinstance(error, (UserError, FailedError)):
            _say(_one_line(error))
            return WRONG_INPUT if isinstance(error, UserError) else FAILED
        kind = "" if isinstance(error, OSError) else f"{type(error).__name__}: "
        _say(f"{kind}{_one_line(error)} (--debug shows where)")
        return FAILED
    finally:
        with _read_or_not():  # what was printed of help or tables, before Python does at its end
            pass
