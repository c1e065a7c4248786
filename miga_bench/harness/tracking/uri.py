"""Where MLflow keeps what is logged: the rule for the URI, its default, and how it is shown."""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import urlsplit

from miga_bench.errors import UserError

DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
RULE = (
    "it is http://HOST:PORT, sqlite:///FILE or a database such as postgresql://USER@HOST/NAME"
    " (MLflow no longer keeps runs in plain folders)"
)


def tracking_uri(given: str | None, root: Path) -> str:
    """Return where a run is tracked, independent of the working folder.

    Args:
        given: By the user; None is ``MLFLOW_TRACKING_URI``, and where that is not set the file
            ``mlflow.db`` below root.
        root: The folder above all runs.

    Raises:
        UserError: MLflow cannot keep runs there.
    """
    uri = (given or os.environ.get("MLFLOW_TRACKING_URI") or "").strip()
    if not uri and given is None:
        uri = f"sqlite:///{root.resolve() / 'mlflow.db'}"
    try:
        parts = urlsplit(uri)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise UserError(f"tracking URI {shown(uri)!r}: {error}; {RULE}") from None
    kind = parts.scheme.partition("+")[0]
    if kind in ("http", "https"):
        good = bool(host) and port != 0
    elif kind == "sqlite":
        good = uri.startswith(f"{parts.scheme}:///") and len(parts.path) > 1
    else:
        good = kind in DATABASES and bool(parts.path.strip("/"))
    if not good or (kind != "sqlite" and re.search(r"\s", uri)):
        raise UserError(f"tracking URI {shown(uri)!r}: {RULE}")
    if kind == "sqlite":
        # a URI's path ends before them, or is read without them: another file would be written
        if cut := re.search(r"[#?\t\r\n]", uri):
            raise UserError(
                f"tracking URI {shown(uri)!r}: no file with {cut[0]!r} in its path can be MLflow's; give"
                " sqlite:/// and another one"
            )
        file = Path(parts.path[1:]).expanduser()
        return f"{parts.scheme}:///{file.resolve()}"
    return uri.rstrip("/")


def artifact_folder(uri: str, root: Path) -> str | None:
    """Return where a new experiment keeps its files; None leaves it to the server.

    That is beside the database's file, or below root if the database is none.

    Args:
        uri: As ``tracking_uri`` returns it.
        root: The folder above all runs.
    """
    if urlsplit(uri).scheme in ("http", "https"):
        return None
    # MLflow's own choice for a database is ./mlruns of whoever comes first
    file = sqlite_file(uri)
    return ((root.resolve() if file is None else file.parent) / "mlartifacts").as_uri()


def sqlite_file(uri: str) -> Path | None:
    """Return the database's file; None if it is no file."""
    parts = urlsplit(uri)
    return Path(parts.path[1:]) if parts.scheme.startswith("sqlite") else None


def shown(uri: str) -> str:
    """Return the URI without its password."""
    return re.sub(r"://([^:/@]*):[^/]*@", r"://\1:***@", uri)
