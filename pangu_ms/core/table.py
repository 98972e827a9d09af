"""Prints the results of verbs on stdout: one line of JSON for programs, or text and tables for people."""

import json
from collections.abc import Sequence
from typing import Any

from pangu_ms.core.console import show


def print_json(value: Any, ensure_ascii: bool = True) -> None:
    """Print a value as one line of JSON.

    Args:
        value: what `json.dumps` takes.
        ensure_ascii: False leaves the characters of other languages readable.
    """
    print(json.dumps(value, ensure_ascii=ensure_ascii), flush=True)


def print_result(result: Any, text: str, as_json: bool) -> None:
    """Print a verb's result: as JSON if `--json` was given (`as_json`), otherwise `text`, the same result for
    people."""
    if as_json:
        print_json(result)
    else:
        show(text)


def table_lines(
    head: Sequence[str] | None, rows: Sequence[Sequence[object]], align: str, indent: str = ""
) -> list[str]:
    """Rows as lines with aligned columns, two spaces between them.

    Args:
        head: the columns' names; None for a table without them.
        rows: their cells, formatted; as many in each row as there are columns, or fewer.
        align: one character for each column: < aligns left, > aligns right.
        indent: prefix of every line.
    """
    lines = [[str(cell) for cell in row] for row in ([head, *rows] if head is not None else rows)]
    widths = [max((len(line[i]) for line in lines if i < len(line)), default=0) for i in range(len(align))]
    return [indent + "  ".join(f"{c:{a}{w}}" for c, a, w in zip(line, align, widths)).rstrip() for line in lines]
