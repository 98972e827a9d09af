"""The table of formats in docs/checkpoints.md names exactly those that the code has."""

import re
from pathlib import Path

import pytest

from pangu_ms.checkpoint import gguf_export
from pangu_ms.config import load_config
from pangu_ms.core.errors import CheckpointError
from pangu_ms.models.registry import FAMILIES

pytestmark = pytest.mark.fast
PAGE = Path(__file__).parents[2] / "docs/checkpoints.md"


def written_for_llama_cpp(family):
    plain = ["model.siaf_terms=1", "model.aug_shortcut_branches=0"] if family == "pi" else []
    try:
        return bool(FAMILIES[family].gguf(load_config(f"{family}/tiny", plain).model))
    except CheckpointError:
        return False


def test_the_table_names_the_formats_of_the_code():
    lines = [line for line in PAGE.read_text("utf-8").splitlines() if line.startswith("|")]
    head = next(i for i, line in enumerate(lines) if re.match(r"\| format \| from \| to \| families \|", line))
    told = {}
    for line in lines[head + 2 :]:
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) != 6:
            break
        assert cells[5], "every row says how it is tested"
        told[cells[0].strip("`")] = (cells[1], cells[2], set(cells[3].split(", ")))
    known = {}
    for family, parts in FAMILIES.items():
        for format in parts.formats:
            known.setdefault(format, ("yes", "yes", set()))[2].add(family)
    known[gguf_export.NAME] = ("no", "yes", {family for family in FAMILIES if written_for_llama_cpp(family)})
    assert told == known
