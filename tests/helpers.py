"""What tests of many files say alike: how a refusal is heard, and what code in a file would leave."""

import os

import pytest

from miga_bench.errors import UserError


def refusal(call):
    """Return the one line that a call refuses by."""
    with pytest.raises(UserError) as error:
        call()
    assert "\n" not in str(error.value)
    return str(error.value)


class Code:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)
