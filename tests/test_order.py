"""Workers of pytest-xdist begin with the longest files."""

from types import SimpleNamespace

from tests.order import LONGEST, TESTS, longest_first


def test_the_longest_files_come_first_then_those_with_the_most_tests():
    names = ["test_a.py", "test_b.py", LONGEST[1], LONGEST[0], "test_b.py", "test_c.py"]
    items = [SimpleNamespace(path=TESTS / name, number=number) for number, name in enumerate(names)]
    longest_first(items)
    assert [item.number for item in items] == [3, 2, 1, 4, 0, 5]


def test_the_list_names_files():
    assert [name for name in LONGEST if not (TESTS / name).is_file()] == []
    assert len(set(LONGEST)) == len(LONGEST)


def test_xdist_does_not_reorder(request):
    assert request.config.option.loadscopereorder is False
