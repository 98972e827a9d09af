"""Imports between folders run downwards only, and what needs no MindSpore imports none."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ORDER = (
    "ascend_ops core models config data parallel checkpoint planner infer eval train export serve rehearsal research"
    " mindformers run api cli"
).split()
"""The floors, from the ground up; `run` is run/pangu_run, `api` is pangu_ms/api.py, the others are folders of
pangu_ms."""
MAY_IMPORT = {"ascend_ops": set(), "run": {"core"}}
"""Floors that may import less than everything below them."""
WITHOUT_MINDSPORE = ("core", "config", "planner")
"""Floors of which no module imports mindspore; so does no module of `run` and of the folder `infer/scheduling`."""
MODULES = ["pangu_ms", "pangu_ms.cli.main", "pangu_ms.parallel.plan", "pangu_ms.checkpoint.store"]
OPERATORS = ["ascend_ops", "ascend_ops.cache", "ascend_ops.errors", "ascend_ops.library", "ascend_ops.table"]


def floor(module):
    """The floor of a dotted module name; None for other packages and for the root of ours."""
    parts = module.split(".")
    if parts[0] == "pangu_run":
        return "run"
    name = parts[0] if parts[0] == "ascend_ops" else parts[1] if parts[0] == "pangu_ms" and parts[1:] else None
    return name if name in ORDER else None


def sources():
    """(dotted name, file) of every module but `__main__`: a program on a floor, which calls the command line."""
    for base, package in ((ROOT, "pangu_ms"), (ROOT, "ascend_ops"), (ROOT / "run", "pangu_run")):
        for path in sorted((base / package).rglob("*.py")):
            parts = path.relative_to(base).with_suffix("").parts
            if parts[-1] == "__main__":
                continue
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def imported(path):
    """Dotted names that a file imports anywhere, in functions too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def upwards():
    """(floor, imported floor) -> modules that import upwards."""
    found = {}
    for module, path in sources():
        above = floor(module)
        for name in filter(None, map(floor, imported(path))) if above else ():
            below = MAY_IMPORT.get(above, ORDER[: ORDER.index(above)])
            if name != above and name not in below:
                found.setdefault((above, name), set()).add(module)
    return found


def test_every_folder_has_a_floor():
    folders = {path.name for path in (ROOT / "pangu_ms").iterdir() if (path / "__init__.py").exists()}
    assert folders | {"ascend_ops", "run", "api"} == set(ORDER)


def test_imports_between_folders_run_downwards():
    assert upwards() == {}


BLOCKED = """
import importlib, json, sys, traceback

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "mindspore":
            raise AssertionError("MindSpore is imported")

sys.meta_path.insert(0, Blocked())
failures = {}
for name in json.load(sys.stdin):
    try:
        importlib.import_module(name)
    except BaseException as error:
        failures[name] = traceback.format_exc()
json.dump(failures, sys.stdout)
"""


def test_what_needs_no_mindspore_imports_none():
    names = {name for name, _ in sources() if floor(name) in (*WITHOUT_MINDSPORE, "run")}
    names |= {name for name, _ in sources() if name.startswith("pangu_ms.infer.scheduling")}
    names = {name for name in names if not name.endswith("__main__")}
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED],
        input=json.dumps([*MODULES, *OPERATORS, *sorted(names)]),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert not json.loads(done.stdout)


@pytest.mark.parametrize("package", ["ascend_ops", "pangu_ms"])
def test_public_names_that_are_imported_at_first_use_exist(package):
    module = __import__(package)
    assert all(getattr(module, name) is not None for name in module.__all__) and set(module.__all__) <= {*dir(module)}
