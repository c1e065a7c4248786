"""Names that become folders' and files'."""

from __future__ import annotations

import re

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")
NAME_RULE = "letters, digits, '.', '_' and '-', a letter or digit first, at most 80"
