"""The floors of the launch layer: a module imports from its own floor and from those below it, never from above."""

import ast
import importlib
from pathlib import Path

import pangu_run
from pangu_run.cli.main import VERBS

ROOT = Path(pangu_run.__file__).parent
FLOORS = [
    "this_host",
    "job_directory",
    "orphans",
    "program",
    "rank_table",
    "job",
    "report",
    "supervisor",
    "launcher",
    "doctor",
    "manifest",
    "cli",
    "__main__",
]
"""From the ground up; each is a module or a folder of pangu_run."""
STANDS_ON = "pangu_ms.core"
"""What of pangu_ms may be imported. The program that ranks run is asked in a subprocess; see program.py."""
MODULES = sorted(
    path.relative_to(ROOT) for path in ROOT.rglob("*.py") if path.relative_to(ROOT).parts != ("__init__.py",)
)


def floor_of(path):
    return Path(path.parts[0]).stem


def imports(path):
    """Dotted names that a module imports anywhere in it; `from a import b` counts as a.b."""
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_every_module_has_a_floor():
    assert {floor_of(path) for path in MODULES} == set(FLOORS)


def test_imports_run_downwards():
    upwards = []
    for path in MODULES:
        for name in imports(path):
            package, _, inside = name.partition(".")
            above = package == "pangu_run" and FLOORS.index(inside.partition(".")[0]) > FLOORS.index(floor_of(path))
            if above or package == "pangu_ms" and not name.startswith(f"{STANDS_ON}."):
                upwards.append(f"{path} imports {name}")
    assert not upwards


def test_only_cli_parses_arguments():
    """The functions below take plain values, never a Namespace."""
    parsers = ("argparse", "pangu_ms.core.parser")
    assert [
        str(path)
        for path in MODULES
        if floor_of(path) != "cli" and any(name.startswith(parsers) for name in imports(path))
    ] == []


def test_each_verb_has_a_parser_that_is_built_without_parsing():
    for verb, (module, _) in VERBS.items():
        assert importlib.import_module(module).build_parser().prog == f"pangu {verb}"
