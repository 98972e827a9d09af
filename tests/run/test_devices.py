"""The number by which a process opens a device, of made-up hosts and containers."""

import pytest

from pangu_run.job.devices import parse_devices, visible_numbers


@pytest.mark.parametrize(
    ("devices", "present", "variables", "numbers"),
    [
        ([0, 3, 7], range(8), {}, [0, 3, 7]),  # a whole server
        ([4, 5, 6, 7], (), {}, [4, 5, 6, 7]),  # nothing is known here
        ([4, 5, 6, 7], range(4, 8), {}, [0, 1, 2, 3]),  # a container with the second half
        ([4, 5, 6, 7], range(4), {}, [0, 1, 2, 3]),  # one whose device files are renumbered, too
        ([5, 7], range(4, 8), {}, [1, 3]),
        ([10, 15], range(8, 16), {}, [2, 7]),
        ([4, 5], (), {"ASCEND_VISIBLE_DEVICES": "4,5"}, [0, 1]),
        ([4, 5], (), {"ASCEND_VISIBLE_DEVICES": "Ascend910-4,Ascend910-5"}, [0, 1]),
        ([6, 7], range(8), {"ASCEND_VISIBLE_DEVICES": "all"}, [6, 7]),
        ([4, 5], range(8), {"ASCEND_RT_VISIBLE_DEVICES": "2,3,4,5"}, [2, 3]),  # CANN counts what the variable names
        ([2, 3], range(2, 6), {"ASCEND_RT_VISIBLE_DEVICES": "0,1,2,3"}, [0, 1]),  # which counts what the container has
        ([6, 7], range(4, 8), {"ASCEND_RT_VISIBLE_DEVICES": "2,3"}, [0, 1]),
    ],
)
def test_devices_are_counted_among_those_that_are_shown(tmp_path, devices, present, variables, numbers):
    for name in ("davinci_manager", "davinci_manager_docker", *(f"davinci{number}" for number in present)):
        (tmp_path / name).touch()
    assert visible_numbers(devices, variables, tmp_path) == numbers


def test_forms_of_lists():
    assert parse_devices("0-2,5") == [0, 1, 2, 5] and parse_devices("Ascend910-3") == [3]
    assert [parse_devices(text) for text in ("", "all", "none", "1,", "0;1")] == [[]] * 5
