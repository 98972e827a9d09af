"""A thinned grid keeps every value, or every pair of values, and loses no row: what it leaves out is slow."""

import itertools
import re
from pathlib import Path

import pytest

from tests.thinning import kept


@pytest.mark.parametrize(
    ("sizes", "strength", "most"), [((2, 6), None, 6), ((2, 4, 3), None, 13), ((2, 3, 4, 2), 2, 16), ((2, 5, 5), 1, 5)]
)
def test_all_combinations_of_some_parameters_are_kept(sizes, strength, most):
    rows = list(itertools.product(*map(range, sizes)))
    chosen = [rows[number] for number in kept(rows, strength)]
    together = strength or min(2, len(sizes) - 1)
    for axes in itertools.combinations(range(len(sizes)), together):
        found = {tuple(row[axis] for axis in axes) for row in chosen}
        assert found == set(itertools.product(*(range(sizes[axis]) for axis in axes)))
    assert max(sizes) <= len(chosen) <= most


def test_all_values_stay_beside_the_first_backend():
    rows = list(itertools.product(range(2), range(4), range(3)))
    chosen = [rows[number] for number in kept(rows, 1, of_kernels=True)]
    first, others = ([row for row in chosen if (row[0] == 0) == one] for one in (True, False))
    assert {row[1] for row in first} == {*range(4)} and {row[2] for row in first} == {*range(3)}
    assert (len(first), len(others)) == (4, 1)


def test_one_parameter_keeps_all_rows():
    assert kept([(0,), (1,), (2,)]) == {0, 1, 2}


def test_a_grid_that_has_holes():
    assert kept([(0, 0), (1, 1), (0, 1)]) == {0, 1}


@pytest.fixture(params=["first", "second"])
def backend(request):
    return request.param


@pytest.mark.thinned
@pytest.mark.parametrize(("size", "words"), [(1, ["a"]), (2, ["a"]), (2, ["b"])])
def test_a_grid(backend, size, words):
    """The grid that the next test looks at; its first row and two others run."""


@pytest.mark.parametrize("size", [1, 2])
def test_another_grid(backend, size):
    """All rows of it run."""


def test_what_is_not_kept_is_slow_and_other_tests_stay_as_they_are(request):
    option = request.config.option
    if option.markexpr != "not slow" or option.keyword or any("::" in word for word in request.config.args):
        pytest.skip("other rows are asked for")
    collected = [item.name for item in request.session.items if "grid[" in item.name]
    assert [name for name in collected if name.startswith("test_a_grid")] == [
        "test_a_grid[first-1-words0]",
        "test_a_grid[first-2-words2]",
        "test_a_grid[second-2-words1]",
    ]
    assert sum(name.startswith("test_another") for name in collected) == 4


def test_no_test_module_imports_another():
    """What two of them need stands in a module of its own, fixtures in a conftest."""
    imports = re.compile(r"^\s*(?:from tests\.(?:\w+\.)*test_|from tests[\w.]* import .*\btest_)", re.M)
    modules = Path(__file__).parent.rglob("*.py")
    assert [str(path) for path in modules if imports.search(path.read_text())] == []
