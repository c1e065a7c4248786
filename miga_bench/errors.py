"""What reaches a user as a single line."""


class UserError(ValueError):
    """Wrong input: what was wrong, the rule, what to do; the command line exits with code 2.

    Whatever names and answers from outside are in the text, it is one line, and a terminal shows it as it is.
    """

    def __init__(self, text: str) -> None:
        super().__init__(in_print(text))


def in_print(text: str) -> str:
    """Return the text on one line: white space as it is, what cannot be printed by its code."""
    shown = (c if c.isprintable() else " " if c.isspace() else ascii(c)[1:-1] for c in text)
    return "".join(shown).strip()


class NumericalError(RuntimeError):
    """The denoiser returned NaN or infinity; the command line exits with code 1."""


class DoesNotFitError(RuntimeError):
    """Memory ran out at the smallest piece of work; the command line exits with code 1."""


class TeamError(RuntimeError):
    """The processes that make something together fell apart; the command line exits with code 1."""


class LostError(TeamError):
    """One of them is gone, and what they have begun cannot be gone on with."""


class JudgeDownError(RuntimeError):
    """A judge cannot be reached; the command line exits with code 1, and the same command goes on."""


class TrackingError(RuntimeError):
    """MLflow refused, or could not be reached; the command line exits with code 1."""


class ExportError(RuntimeError):
    """A graph is not what it was exported from; the command line exits with code 1."""


class Notice(UserWarning):
    """Worth knowing, but no reason to stop; the command line shows it as one line."""
