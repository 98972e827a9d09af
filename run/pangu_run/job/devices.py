"""DEVICE_ID, the number by which a process opens an Ascend device, which may differ from the device's number on the
host.

If a container or a variable shows only some of a host's devices, CANN numbers these from 0, while rank tables keep the
numbers on the host.
Source: CANN 9.0, environment variables, ASCEND_RT_VISIBLE_DEVICES; Ascend Docker Runtime, ASCEND_VISIBLE_DEVICES;
MindCluster's train_start.sh, which exports the index in the rank table as DEVICE_ID.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

DIRECTORY = Path("/dev")


def visible_numbers(devices: Sequence[int], environment: Mapping[str, str], directory: Path = DIRECTORY) -> list[int]:
    """DEVICE_ID for each of this host's devices.

    Args:
        devices: their numbers on the host, as in the rank table.
        environment: ASCEND_VISIBLE_DEVICES says which devices the container has, and ASCEND_RT_VISIBLE_DEVICES which of
            those are visible.
        directory: the directory of the device files davinci0, davinci1, ...
    """
    shown = parse_devices(environment.get("ASCEND_VISIBLE_DEVICES", "")) or sorted(
        int(p.name[7:]) for p in directory.glob("davinci[0-9]*")
    )
    return _among(_among(devices, shown), parse_devices(environment.get("ASCEND_RT_VISIBLE_DEVICES", "")))


def parse_devices(text: str) -> list[int]:
    """The device numbers in a text such as "0,2", "0-3" or "Ascend910-0,Ascend910-1", in their order; an empty list if
    the text has another form."""
    numbers: list[int] = []
    for word in text.split(","):
        match = re.fullmatch(r"(?:[A-Za-z]\w*-)?(\d+)|(\d+)-(\d+)", word.strip(), re.ASCII)
        if match is None:
            return []
        one, low, high = match.groups()
        numbers += [int(one)] if one else range(int(low), int(high) + 1)
    return numbers


def _among(devices: Sequence[int], shown: Sequence[int]) -> list[int]:
    """The position of each device in `shown`.

    If some devices are not in `shown`, the container has renumbered its devices, and the positions are those among the
    given devices. If `shown` is empty, the result is the device numbers themselves.
    """
    order = list(shown) if set(devices) <= set(shown) else sorted(devices)
    return [order.index(device) for device in devices] if shown else list(devices)
