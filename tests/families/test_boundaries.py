"""Code outside of a family's folder asks the registry or a configuration: it neither imports a family, nor compares its
name, nor looks whether an object happens to have an attribute."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import pangu_ms
from pangu_ms.models.registry import FAMILIES

ROOT = Path(pangu_ms.__file__).parent
MAY_NAME_A_FAMILY = (
    "cli/main.py",
    "models/registry.py",
    "research/study/ablation.py",
    "research/study/compare.py",
    "research/study/pi_pro.py",
)
"""The registry, the verb `pangu sigma`, and studies that train variants of PanGu-pi."""
MAY_BE_PROBED = ("os", "sys.flags", "error", "stream", "namespace", "args", "options")
"""What differs by platform, and what a parser of arguments has filled."""


@pytest.fixture(scope="module")
def sources() -> dict[str, ast.Module]:
    """The modules outside of the families' folders by their path."""
    folders = [ROOT / "models" / name for name in FAMILIES]
    paths = [path for path in ROOT.rglob("*.py") if not any(folder in path.parents for folder in folders)]
    return {path.relative_to(ROOT).as_posix(): ast.parse(path.read_text()) for path in paths}


def family_imports(tree: ast.Module) -> Iterator[str]:
    """Modules of families that are imported."""
    folders = tuple(f"{family.package}." for family in FAMILIES.values())
    for node in ast.walk(tree):
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        yield from (name for name in names if f"{name}.".startswith(folders))


def family_names(tree: ast.Module) -> Iterator[str]:
    """Families' names that are compared, or stand in a list, a set or the keys of a dictionary."""
    for node in ast.walk(tree):
        parts = [*node.comparators, node.left] if isinstance(node, ast.Compare) else []
        parts += node.elts if isinstance(node, (ast.List, ast.Tuple, ast.Set)) else []
        parts += node.keys if isinstance(node, ast.Dict) else []
        yield from (part.value for part in parts if isinstance(part, ast.Constant) and part.value in FAMILIES)


def probes(tree: ast.Module) -> Iterator[str]:
    """Calls of hasattr, and of getattr with a default."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            asks = node.func.id == "hasattr" or node.func.id == "getattr" and len(node.args) == 3
            if asks and ast.unparse(node.args[0]) not in MAY_BE_PROBED:
                yield ast.unparse(node)


def test_nothing_outside_of_its_folder_knows_a_family(sources):
    found = {
        path: names
        for path, tree in sources.items()
        if path not in MAY_NAME_A_FAMILY and (names := [*family_imports(tree), *family_names(tree)])
    }
    assert not found and len(sources) > 100


def test_nothing_probes_a_configuration_or_a_model(sources):
    assert not {path: calls for path, tree in sources.items() if (calls := list(probes(tree)))}
