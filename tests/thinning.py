"""Which rows of a parametrized test stay in the default tier, where the whole grid is of the slow one.

@pytest.mark.thinned        each value of two parameters, each pair of values of three and more
@pytest.mark.thinned(1)     each value of every parameter
@pytest.mark.thinned(1, of_kernels=True)     and each value with the first backend, whose kernels are ours
"""

import itertools
from collections import defaultdict
from collections.abc import Iterable, Sequence

import pytest

Row = tuple[int, ...]
"""The number of the value of each parameter."""


def kept(rows: Sequence[Row], strength: int | None = None, of_kernels: bool = False) -> set[int]:
    """Positions of rows that together have all combinations of values of any `strength` parameters that all rows have;
    with `of_kernels` also each value beside the first one of the first parameter.

    The choice is greedy and depends on the rows alone; of equals the smaller numbers come first, so that a value that
    a list begins with is combined with most of the others.
    """
    if strength is None:
        strength = max(1, min(2, len(rows[0]) - 1))
    wanted = {number: set(_combinations(row, strength)) for number, row in enumerate(rows)}
    for number, row in enumerate(rows):
        wanted[number] |= {pair for pair in _combinations(row, 2) if of_kernels and pair[0] == (0, 0)}
    missing, chosen = set().union(*wanted.values()), set()
    while missing:
        best = min(wanted, key=lambda number: (-len(wanted[number] & missing), rows[number]))
        chosen.add(best)
        missing -= wanted[best]
    return chosen


def _combinations(row: Row, strength: int) -> Iterable[tuple[tuple[int, int], ...]]:
    return itertools.combinations(list(enumerate(row)), min(strength, len(row)))


def mark_slow(items: list[pytest.Item]) -> None:
    """Mark the rows of thinned tests that are not kept."""
    tests = defaultdict(list)
    for item in items:
        if item.get_closest_marker("thinned") and hasattr(item, "callspec"):
            tests[item.nodeid.partition("[")[0]].append(item)
    for grid in tests.values():
        marker = grid[0].get_closest_marker("thinned")
        stay = kept(rows_of(grid), *marker.args, **marker.kwargs)
        for number, item in enumerate(grid):
            if number not in stay:
                item.add_marker(pytest.mark.slow)


def rows_of(grid: list[pytest.Item]) -> list[Row]:
    """The rows of one test. Parameters that one `parametrize` lists together are one."""
    listed = [_names(marker.args[0]) for marker in grid[0].iter_markers("parametrize")]
    of_fixtures = set(grid[0].callspec.params) - {name for names in listed for name in names}
    axes = [[name] for name in sorted(of_fixtures)] + listed
    return list(zip(*([*_numbers(grid, names)] for names in axes)))


def _names(argument: str | Sequence[str]) -> list[str]:
    names = argument.split(",") if isinstance(argument, str) else argument
    return [name.strip() for name in names]


def _numbers(grid: list[pytest.Item], names: list[str]) -> Iterable[int]:
    """The number of the values that each row has for some parameters. Each list of values is made once, so that the
    same value is the same object, whether it can be compared or not."""
    seen: dict[tuple[int, ...], int] = {}
    for item in grid:
        yield seen.setdefault(tuple(id(item.callspec.params[name]) for name in names), len(seen))
