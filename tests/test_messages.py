"""Every message that a user may get, listed from the code and held against the house's rules. About 2 s.

A message says what was wrong, then the rule or the remedy: ``WHAT WAS WRONG: WHAT TO DO``. What no machine
can check was read by a person; this keeps the form, and lists the messages: ``python tests/test_messages.py``.
"""

import ast
import re
from pathlib import Path

import pytest

from miga_bench.errors import UserError, in_print

PACKAGE = Path(__file__).parents[1] / "miga_bench"
KINDS = {
    "UserError",
    "FailedError",
    "ArgumentTypeError",
    "NumericalError",
    "DoesNotFitError",
    "TeamError",
    "LostError",
    "TrackingError",
    "JudgeDownError",
    "ExportError",
}


def text_of(node):
    """Return an expression's text with ``{}`` for what is filled in; None if it is built elsewhere."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(v.value if isinstance(v, ast.Constant) else "{}" for v in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        parts = text_of(node.left), text_of(node.right)
        return None if parts == (None, None) else "".join(part or "{}" for part in parts)
    return None


def message_of(call):
    """Return what a call tells a user; None if it is no such call."""
    function = call.func
    if isinstance(function, ast.Name) and function.id in KINDS:
        return call.args[0]
    if isinstance(function, ast.Name) and function.id == "require" and len(call.args) == 2:
        return call.args[1]
    if not isinstance(function, ast.Attribute) or not isinstance(function.value, ast.Name):
        return None
    name = f"{function.value.id}.{function.attr}"
    kinds = [one.id for one in call.args[1:] if isinstance(one, ast.Name)]
    if name in ("parser.error", "argparse.ArgumentTypeError") or (
        name == "warnings.warn" and kinds == ["Notice"]
    ):
        return call.args[0]
    return None


def messages():
    """Yield (place, text) of every message in the package."""
    for path in sorted(PACKAGE.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        named = {
            node.targets[0].id: text_of(node.value)
            for node in ast.walk(tree)
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and node.args:
                message = message_of(node)
                if message is not None:
                    place = f"{path.relative_to(PACKAGE).as_posix()}:{node.lineno}"
                    known = named.get(message.id) if isinstance(message, ast.Name) else None
                    yield place, text_of(message) or known


FOUND = list(messages())
# They name nothing that was given, for there is nothing of which there could be two.
NAMELESS = {
    "the prompt is empty: describe the video in words",
    "no scored videos; score at least one",
    "processes are looked at through /proc, which is not here: use Linux",
    "the provider tensorrt-rtx sees no GPU that it can use: use cpu or cuda",
    "another process of the run is gone: see whether the system killed it for lack of memory; the same command"
    " makes what is missing",
    "another process that makes videos together with this one is gone: the same command makes what is"
    " missing",
}
# What comes first is another message, told on.
TOLD_ON = {
    "{} (on process {} of the {} that made it together)",
    "no option {}{}",  # and the near name
    "generate failed: {}",
}


def names_something(text):
    """Tell whether it has a value, or names an option, a setting, a file or a package."""
    return bool(
        re.search(
            r"\{\}|--[a-z]|[a-z_]+\.[a-z_]+|[a-z]_[a-z]|[A-Z]_[A-Z]|[a-z]=[a-z]|pip install|class_path",
            text,
        )
    )


RULES = {
    "is one line": lambda text: text.isprintable(),
    "is ASCII": str.isascii,
    "has single spaces, and none at its ends": lambda text: (
        "  " not in text and text == text.strip()
    ),
    "begins small, or with a name": lambda text: not re.match(r"[A-Z][a-z]+ ", text),
    "has no full stop or exclamation mark at its end": lambda text: (
        not re.search(r"(?<!\.\.)[.!]$", text)
    ),
    "names what was given or what to give": lambda text: names_something(text) or text in NAMELESS,
    "has two parts, what was wrong and what to do": lambda text: (
        bool(re.search(r"\S[:;] \S", text)) or text in TOLD_ON
    ),
    "is polite without manners": lambda text: (
        not re.search(r"(?i)\b(please|sorry|invalid|illegal|oops|unfortunately)\b", text)
    ),
}


@pytest.mark.parametrize("rule", RULES)
def test_every_message(rule):
    told = [(place, text) for place, text in FOUND if text is not None]
    assert len(told) > 350  # or the list is broken
    assert [f"{place}: {text}" for place, text in told if not RULES[rule](text)] == []


def test_few_messages_are_built_elsewhere():
    elsewhere = [place for place, text in FOUND if text is None]
    assert len(elsewhere) <= 15, elsewhere


def test_what_is_filled_in_stays_on_one_line_and_moves_no_cursor():
    text = str(UserError("no such folder: a\nb\tc\x1b[31m\u2028d\ud800\x07"))
    assert text == r"no such folder: a b c\x1b[31m d\ud800\x07"
    assert text.isprintable()
    assert in_print(text) == text
    assert str(UserError("wo ist \u00fc\u6f22?")) == "wo ist \u00fc\u6f22?"


if __name__ == "__main__":
    for _place, _text in FOUND:
        print(f"{_place} {_text or '(built elsewhere)'}")
