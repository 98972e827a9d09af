"""Every registered family, and one that the tests add to the registry from a temporary folder."""

import contextlib
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import pytest
from pydantic.dataclasses import rebuild_dataclass

from pangu_ms.config import RunConfig
from pangu_ms.models.registry import FAMILIES, Family
from tests.eager import eager

ADDED = "plain"
SOURCE = Path(__file__).parent / ADDED
OWN_FIELDS = {
    "sigma": ["domains=[text, code]", "num_experts=4", "slot_of_domain=[0, 1]"],
    "moge": ["num_experts=4", "num_expert_groups=2", "experts_per_token=2"],
}
"""Fields of a family with which it is small and reads the records of the tests, whose domain is code."""
ALIKE = ("pi", "moge", ADDED)
"""Families all of whose layers are alike; the last one of alpha and Sigma is a query layer."""
REGISTRY_LINE = f'registry.FAMILIES["{ADDED}"] = registry.Family("{ADDED}")'


@contextlib.contextmanager
def added_family(directory: Path) -> Iterator[None]:
    """The family in DIRECTORY/plain, known to this process and, by a sitecustomize.py, to those that it starts."""
    (directory / "sitecustomize.py").write_text(f"from pangu_ms.models import registry\n\n{REGISTRY_LINE}\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(directory)
        patch.setenv("PYTHONPATH", f"{directory}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
        patch.setitem(FAMILIES, ADDED, Family(ADDED))
        rebuild_dataclass(RunConfig, force=True)  # the schema of `model:` was made of the families known before
        yield
    rebuild_dataclass(RunConfig, force=True)
    for name in [name for name in sys.modules if name.partition(".")[0] == ADDED]:
        del sys.modules[name]


COSTLY = pytest.mark.parametrize(
    "tiny",
    [name if name == "moge" else pytest.param(name, marks=pytest.mark.slow) for name in (*FAMILIES, ADDED)],
    indirect=True,
)
"""For tests that take seconds: in the default tier one family with experts. It shares its layers with the dense ones;
PanGu-alpha has other tests of the same verbs, and PanGu-Sigma those of tests/infer/test_domains.py."""
EVALUATED = pytest.mark.parametrize(
    "tiny",
    [
        pytest.param(name, marks=pytest.mark.slow if name in ("alpha", "pi", ADDED) else ())
        for name in (*FAMILIES, ADDED)
    ],
    indirect=True,
)
"""In the default tier the families with experts; tests/eval evaluates PanGu-alpha."""


@dataclass(frozen=True)
class Tiny:
    """A family with its smallest configuration."""

    family: str
    config: str
    """As `--config` takes it."""


@pytest.fixture(scope="module", params=[*FAMILIES, ADDED])
def tiny(request, tmp_path_factory):
    """Of each family, one after the other."""
    if request.param != ADDED:
        yield Tiny(request.param, f"{request.param}/tiny")
        return
    directory = tmp_path_factory.mktemp("families")
    shutil.copytree(SOURCE, directory / ADDED, ignore=shutil.ignore_patterns("__pycache__"))
    with added_family(directory):
        yield Tiny(ADDED, str(directory / ADDED / "tiny.yaml"))


@pytest.fixture(scope="module")
def overrides(tiny, tiny_overrides):
    """Overrides that make its configuration as small as the records."""
    return tiny_overrides + [f"model.{field}" for field in OWN_FIELDS.get(tiny.family, [])]


@pytest.fixture(scope="module")
def trained_config(tiny, overrides):
    """The configuration of a run, with one layer if the family's layers are alike: compiling takes time by the node."""
    from pangu_ms.config import load_config

    return load_config(tiny.config, [*overrides, "model.num_layers=1"] if tiny.family in ALIKE else overrides)


@pytest.fixture(scope="module")
def run(tiny, trained_config, records, tmp_path_factory, request, compiled_models):
    """A finished run of twelve steps with checkpoints 9 and 12; alpha's is that of the whole suite."""
    if tiny.family == "alpha":
        return request.getfixturevalue("trained_run")
    from pangu_ms.train.loop import train

    output = tmp_path_factory.mktemp("runs") / tiny.family
    with mock.patch("pangu_ms.train.run.Run.evaluate", return_value=None):  # it compiles; `pangu eval` is tested
        train(trained_config, records, output, progress=False)
    return output


@pytest.fixture(scope="module")
def decoder(run):
    """One sequence of 32 tokens, 8 at a time, for eager mode."""
    from pangu_ms.checkpoint import store
    from pangu_ms.infer.decoder import GraphShape
    from pangu_ms.infer.load import load_decoder

    with eager():  # else its graph would be compiled
        return load_decoder(store.open_checkpoint(run), GraphShape.fitting(32, 1, 32, 8))
