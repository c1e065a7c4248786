"""The repository itself: links, license, verbs, who imports whom, and what importing costs."""

import ast
import itertools
import os
import re
import subprocess
import sys
import textwrap
import tomllib
from graphlib import TopologicalSorter
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from analytic import AnalyticBackbone

from miga_bench.harness.listing import meanings
from miga_bench.sampling import METHODS, ShortSettings, estimate_windows, resolve
from miga_bench.sampling.presets import settings_class

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("name", ["metrics", "export", "prompts"])
def test_top_level_folders_are_links_into_the_package(name):
    link = ROOT / name
    assert link.is_symlink()
    assert os.readlink(link) == f"miga_bench/{name}"
    assert (link / "__init__.py").exists()


def test_import_loads_nothing_heavy():
    code = (
        "import sys, miga_bench\n"
        "assert miga_bench.__version__\n"
        "print([m for m in ('torch', 'lightning', 'numpy', 'diffusers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_run_is_told_to_mlflow_without_what_made_it():
    """Breaks if reading a run's folder loads a model's packages, beside the process that makes videos."""
    code = (
        "import sys, miga_bench.harness.tracking.log\n"
        "heavy = 'torch', 'lightning', 'diffusers', 'transformers', 'onnxruntime', 'av'\n"
        "print([m for m in heavy if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# CONTRIBUTING's rule of who may import whom, by the start of the module's name. Everybody may import
# errors.py and offline.py.
MAY_IMPORT = {
    "media": (),
    "prompts": (),
    "metrics": (),
    "backbones": (),
    "sampling": (
        "backbones.base",
        "backbones.fused_attention",
        "backbones.schedule",
        "backbones.solvers",
    ),
    "export": ("backbones",),
    "harness": ("sampling", "metrics", "export", "backbones", "prompts", "media"),
}
COMMANDS = {f"backbones.tiny.{name}" for name in ("encoder", "evaluate", "score_checks")}


def imports(path):
    """Name what a module of ours imports of ours, wherever in it, without the package's own name."""
    names = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path} imports relatively"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return {name.removeprefix("miga_bench.") for name in names if name.startswith("miga_bench.")}


def test_nobody_imports_back_up():
    package, wrong = ROOT / "miga_bench", []
    for path in package.rglob("*.py"):
        importer = ".".join(path.relative_to(package).with_suffix("").parts)
        room = importer.split(".")[0]
        allowed = (room, "errors", "offline", "__version__", *MAY_IMPORT.get(room, ()))
        for name in imports(path):
            inside = any(f"{name}.".startswith(f"{start}.") for start in allowed)
            free = importer in COMMANDS or room not in MAY_IMPORT
            command = any(f"{name}.".startswith(f"{command}.") for command in COMMANDS)
            if command or not (inside or free):
                wrong.append(f"{importer} imports {name}")
    assert not wrong


def test_imports_go_in_no_circle():
    """The table of backbones is left out: it imports a family when it loads one, and families look names up."""
    package = ROOT / "miga_bench"
    paths = {
        ".".join(path.relative_to(package).with_suffix("").parts).removesuffix(".__init__"): path
        for path in package.rglob("*.py")
    }
    table = paths.keys() - {"backbones"}
    graph = {
        name: {one if one in paths else one.rpartition(".")[0] for one in imports(paths[name])}
        & (table - {name})
        for name in table
    }
    TopologicalSorter(graph).prepare()  # raises a CycleError that names the circle


# What only comparisons with others' code import; each says itself how it is installed.
ASKED_FOR = {"clip", "dreamsim", "vbench"}


def test_what_is_imported_is_declared():
    """An undeclared package is there only as long as another one needs it."""
    stated = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = itertools.chain(stated["dependencies"], *stated["optional-dependencies"].values())
    declared = {re.match(r"[\w-]+", one)[0].lower().replace("_", "-") for one in wanted}
    found = set()
    for path in (ROOT / "miga_bench").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                found.add(node.module.split(".")[0])
    homes = packages_distributions()
    undeclared = {
        name
        for name in found - sys.stdlib_module_names - ASKED_FOR - {"miga_bench"}
        if not declared & {home.lower().replace("_", "-") for home in homes.get(name, [name])}
    }
    assert not undeclared


def test_what_is_asked_for_is_read_without_what_keeps_it():
    harness = ROOT / "miga_bench" / "harness"
    for name in ("arms", "prompt_lists", "request", "names"):
        for imported in imports(harness / f"{name}.py"):
            assert not imported.startswith(
                ("harness.runs", "harness.store", "harness.making", "harness.scor")
            )


def test_no_family_stands_in_anothers_files():
    """Breaks if a third family would have to import what is named after the first."""
    folder, wrong = ROOT / "miga_bench" / "backbones", []
    families = {"wan": "wan", "vc2": "videocrafter2", "videocrafter2": "videocrafter2"}
    shared = {"loaded", "encoder_text", "prompt_text", "hub_files", "checkpoint", "residence"}
    for path in folder.glob("*.py"):
        own = families.get(path.stem.split("_")[0])
        if own or path.stem in shared:
            for name in imports(path):
                start = name.removeprefix("backbones.").split(".")[0].split("_")[0]
                if families.get(start, own) != own:
                    wrong.append(f"{path.stem} imports {name}")
    assert not wrong


def test_a_run_is_a_folder_of_items_and_nothing_else():
    """Breaks if the vocabulary's word stands for slots in the algorithms again."""
    for path in (ROOT / "miga_bench" / "sampling").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            named = (
                getattr(node, "id", None),
                getattr(node, "arg", None),
                getattr(node, "name", None),
            )
            assert not {"run", "runs"} & set(named), f"{path.name}:{node.lineno}"


def test_version_is_stated_once():
    import miga_bench

    pyproject = (ROOT / "pyproject.toml").read_text()
    stated = re.search(r'^version = "(.*)"', pyproject, re.M)
    assert stated is None or stated[1] == miga_bench.__version__


def test_license_is_apache_2():
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text
    assert "Version 2.0, January 2004" in text
    assert "END OF TERMS AND CONDITIONS" in text


def test_make_help_names_every_verb():
    done = subprocess.run(["make", "-s"], cwd=ROOT, capture_output=True, text=True, check=True)
    for verb in (
        "setup",
        "demo",
        "test",
        "lint",
        "type",
        "bench",
        "bench-gpu",
        "train-tiny",
        "clean",
    ):
        assert re.search(rf"make {verb} .*\w", done.stdout)


def test_the_pythons_are_told_alike():
    """Breaks if make takes a Python that pip refuses, or is told of one nowhere."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    versions = [c.rpartition(":: ")[2] for c in project["classifiers"] if ":: Python ::" in c]
    first, last = versions[0], versions[-1]
    after = f"3.{int(last.removeprefix('3.')) + 1}"
    assert project["requires-python"] == f">={first},<{after}"
    check = f"not {tuple(map(int, first.split('.')))} <= sys.version_info < "
    assert check + f"{tuple(map(int, after.split('.')))}" in (ROOT / "Makefile").read_text()
    for name in ("README.md", "CONTRIBUTING.md", "Makefile"):
        assert f"Python {first} to {last}" in (ROOT / name).read_text()


def test_make_says_when_python_is_too_old(tmp_path):
    old = tmp_path / "python3"
    old.write_text("#!/bin/sh\nexit 1\n")  # what the version check of an old Python returns
    old.chmod(0o755)
    command = ["make", "-s", "setup", f"PY={old}", f"VENV={tmp_path / 'venv'}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "miga-bench needs Python 3.11 to 3.14" in done.stderr
    assert not (tmp_path / "venv").exists()


def test_continuous_integration_runs_make_test():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert "make test" in script.read_text()
    subprocess.run(["bash", "-n", str(script)], check=True)


def test_readme_shows_the_table_of_methods():
    command = [sys.executable, "-m", "miga_bench", "list", "methods", "--markdown"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() in (ROOT / "README.md").read_text()


@pytest.mark.parametrize(("column", "family"), [(0, "wan"), (1, "videocrafter2")])
def test_readme_says_how_many_windows_come_before_the_first_frame(column, family):
    """Breaks if a video waits for more than what its first frame depends on."""
    backbone = AnalyticBackbone(family)
    found = [
        estimate_windows(METHODS[name](resolve(name, backbone, "paper", more)), backbone, None)
        for name, more in (("fifo", {}), ("miga", {}), ("fifo", {"growth": "true"}))
    ]
    rows = [line.split("|")[1:] for line in (ROOT / "README.md").read_text().splitlines()]
    told = [
        row[1 + column]
        for row in rows
        if row and re.search("endless video: `fifo`, `miga`|`fifo` with `growth=true`", row[0])
    ]
    assert [int(n.replace(",", "")) for cell in told for n in cell.split(", ")] == found


def test_modules_stay_small():
    long = {
        str(path.relative_to(ROOT)): lines
        for path in (ROOT / "miga_bench").rglob("*.py")
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > 500
    }
    assert not long


def test_every_data_file_is_packaged():
    """A wheel holds what its patterns name: a file that none names is missed by users only."""
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    named = {
        file
        for package, globs in patterns["package-data"].items()
        for glob in globs
        for file in (ROOT / package.replace(".", "/")).glob(glob)
    }
    kept = subprocess.run(
        ["git", "ls-files", "miga_bench"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    data = {ROOT / name for name in kept.stdout.splitlines() if not name.endswith(".py")}
    assert not sorted(str(file) for file in data - named)


def test_readmes_python_runs(tmp_path, monkeypatch, capsys):
    """Breaks if the example of README's "From Python" names what is not there any more."""
    section = (ROOT / "README.md").read_text().split("### From Python\n\n")[1]
    lines = itertools.takewhile(
        lambda line: not line or line.startswith("    "), section.splitlines()
    )
    code = textwrap.dedent("\n".join(lines))
    for shown, quick in (
        ("frames=161)", 'frames=1, method="short", overrides={"steps": "2"})'),
        ('METHODS["miga"](resolve("miga", backbone))', 'METHODS["short"](ShortSettings(2, 1.0))'),
        (" 41)", " 1)"),
        ("endless=True)", 'endless=True, method="fifo", overrides={"steps": "21"})'),
        ("== 5", "== 1"),
        ("== 40", "== 3"),
    ):
        assert shown in code
        code = code.replace(shown, quick)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {"ShortSettings": ShortSettings})
    assert (tmp_path / "made.mp4").is_file()
    assert "done None" in capsys.readouterr().out


@pytest.mark.parametrize("method", METHODS)
def test_list_says_what_every_setting_is(method):
    told = meanings(settings_class(METHODS[method]))
    assert {"steps", "batch", "cache"} <= set(told)
    assert all(values and meaning for values, meaning in told.values())
