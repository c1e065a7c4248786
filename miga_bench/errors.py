"""What reaches a user as a single line."""


class UserError(ValueError):
    """Wrong input: what was wrong, the rule, what to do; the command line exits with code 2."""


class NumericalError(RuntimeError):
    """The denoiser returned NaN or infinity; the command line exits with code 1."""


class DoesNotFitError(RuntimeError):
    """Memory ran out at the smallest piece of work; the command line exits with code 1."""


class TeamError(RuntimeError):
    """The processes that make something together fell apart; the command line exits with code 1."""


class LostError(TeamError):
    """One of them is gone, and what they have begun cannot be gone on with."""


class TrackingError(RuntimeError):
    """MLflow refused, or could not be reached; the command line exits with code 1."""


class ExportError(RuntimeError):
    """A graph is not what it was exported from; the command line exits with code 1."""


class Notice(UserWarning):
    """Worth knowing, but no reason to stop; the command line shows it as one line."""
