"""Tables on stdout, for as long as somebody reads them."""

from __future__ import annotations

import os
import sys
from contextlib import suppress

from rich.console import Console


class Output(Console):
    """rich's console, but it does not end the process with 1 when nobody reads any more.

    Args:
        width: Columns where stdout is no terminal.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        if not self.is_terminal:
            self.width = width

    def on_broken_pipe(self) -> None:
        """Go on in silence: what is left to do may be more than to print."""
        self.quiet = True
        hush()


def hush() -> None:
    """Discard what is still to be printed, or Python would fail on it at its end."""
    with suppress(OSError, ValueError):  # a stdout that is no file
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
