"""What jsonargparse says of options and configurations, as one line with the rule and the near name."""

from __future__ import annotations

import re
from argparse import ArgumentError, ArgumentParser
from collections.abc import Iterable

from miga_bench.errors import close_names, did_you_mean

KINDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "a text",
    "list": "a list like [a, b]",
    "dict": "a mapping",
    "NoneType": "null",
}


def one_line(error: ArgumentError, parser: ArgumentParser) -> str:
    """Return the message without its list of attempts.

    Args:
        error: What jsonargparse raised.
        parser: Knows the names that there are.
    """
    text = str(error)
    dests = (action.dest for action in parser._actions if action.option_strings)
    known = [key for key in dests if not key.endswith(".help")]
    every = "" if parser.prog.endswith("experiment") else "-all"
    help_of = f"(see {parser.prog} --help{every})"
    if match := re.search(r"unrecognized arguments: (\S+)", text):
        option = match[1].partition("=")[0]
        if not option.startswith("-"):
            return f"unexpected {option!r}: values stand behind options, as in --data.frames 81 {help_of}"
        near = [f"--{key}" for key in _near(option.lstrip("-"), known)]
        return f"no option {option}: {_hint(near)}{help_of}"
    owner = re.match(r'Parser key "(.*?)"', text)
    given = re.search(r"Given value: (.*)|Got value: (.*)", text)
    value = (given[1] or given[2]) if given else ""
    why = re.search(r"Errors:\s*- (.*?)\n\s*(?:- Expected|Given)", text, re.DOTALL)
    if owner and why and value.startswith(("[", "{")):  # what is wrong is within the value
        return f"{owner[1]} cannot be {value}: {' '.join(why[1].split())} {help_of}"
    if match := re.search(r"(?:Group '(.*?)' does not accept o|O)ption '(.*?)'", text):
        key = ".".join(part for part in match.groups() if part)
        return f"no setting {key}: {_hint(_near(key, known))}{help_of}"
    rule = _rule(text)
    text = re.split(r"\n\s*(?:Does not validate|Subtypes|Errors):?|Expected an? <class", text)[
        0
    ].strip()
    text = re.sub(r'^Parser key "(.*?)":\s*', r"\1: ", " ".join(text.split()) + " ").strip()
    if given:
        # what stands between are attempts of several lines
        text = f"{text.partition(': ')[0].rstrip(':')} cannot be {value}{rule}"
    return f"{text} {help_of}"


def _near(key: str, known: Iterable[str]) -> list[str]:
    """Return what somebody may have meant: the same name in another place, or one like it."""
    known = list(known)
    last = key.rpartition(".")[2]
    same = [other for other in known if other.rpartition(".")[2] == last]
    if found := same[:2] or close_names(key, known, cutoff=0.7):
        return found
    ends = {other.rpartition(".")[2]: other for other in reversed(known)}
    return [ends[end] for end in close_names(last, ends, cutoff=0.7)]


def _hint(near: list[str]) -> str:
    return did_you_mean(near) or "check its name "


def _rule(text: str) -> str:
    """Return what a value may be, where that can be said in words."""
    told = re.search(r"Subtypes: (.*)", text) or re.search(r"Expected an? (<class '.*?'>)", text)
    names = re.findall(r"<class '([\w.]+)'>|\b(list|dict)\[", told[1]) if told else []
    kinds = dict.fromkeys(one or other for one, other in names)
    if not kinds or not kinds.keys() <= KINDS.keys():
        return ""
    rule = f": it must be {' or '.join(KINDS[kind] for kind in kinds)}"
    return rule.replace("[a, b]", "[0, 1]") if told and "list[int]" in told[1] else rule
