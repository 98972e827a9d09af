"""Parsers for the output of Ascend's tools. The formats are taken from public documentation and recorded outputs; none
was tested on hardware here."""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Device:
    """One chip as `npu-smi info` shows it."""

    device_id: int
    name: str
    health: str
    used_mib: int
    total_mib: int
    npu: int
    """Number of the card; a card of 910_93 has two chips."""


@dataclass(frozen=True)
class Process:
    """A process that uses a device."""

    npu: int
    pid: int
    name: str
    used_mib: int


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")] if line.lstrip().startswith("|") else []


def devices(text: str) -> list[Device]:
    """Chips of `npu-smi info`: two rows each, (NPU, name | health | power ...) and (chip [, device] | bus | use, memory
    ...)."""
    found, head = [], None
    for cells in map(_cells, text.splitlines()):
        if len(cells) != 3:
            continue
        numbers = re.findall(r"\d+", cells[0])
        pairs = re.findall(r"(\d+)\s*/\s*(\d+)", cells[2])
        # A number and a name with a letter: the first row of a chip. Numbers only: its second row.
        if re.fullmatch(r"\d+\s+(?=\S*[A-Za-z])\S+", cells[0]):
            head = (int(numbers[0]), cells[0].split()[1], cells[1])
        elif head and re.fullmatch(r"\d+(\s+\d+)?", cells[0]) and pairs:
            # The largest memory is HBM, or DDR on chips without HBM.
            used, total = max(((int(used), int(total)) for used, total in pairs), key=lambda pair: pair[1])
            found.append(
                Device(int(numbers[1]) if len(numbers) > 1 else head[0], head[1], head[2], used, total, head[0])
            )
    return found


def processes(text: str) -> list[Process]:
    """Processes of `npu-smi info`: rows (NPU, chip | pid | name | memory in MB)."""
    found = []
    for cells in map(_cells, text.splitlines()):
        if len(cells) == 4 and cells[1].isdigit() and cells[3].isdigit():
            found.append(Process(int(cells[0].split()[0]), int(cells[1]), cells[2], int(cells[3])))
    return found


def topology(text: str) -> tuple[dict[int, dict[int, str]], dict[int, str]]:
    """`npu-smi info -t topo`: how each pair of devices is linked (HCCS, PIX, PHB, SYS, ...) and each device's near
    cores ("0-23")."""
    links: dict[int, dict[int, str]] = {}
    cores: dict[int, str] = {}
    columns: list[int] = []
    for words in (line.split() for line in text.splitlines()):
        labels = [int(word[3:]) for word in words if re.fullmatch(r"NPU\d+", word)]
        if len(labels) > 1 or (labels and not columns):
            columns = labels
        elif labels and words[0].startswith("NPU") and len(words) > len(columns):
            links[labels[0]] = {
                column: kind for column, kind in zip(columns, words[1:], strict=False) if column != labels[0]
            }
            if re.fullmatch(r"[\d,-]+", words[-1]):
                cores[labels[0]] = words[-1]
    return links, cores


def value(text: str, key: str) -> str | None:
    """The value of a line `key: value` or `key=value`, as hccn_tool and version files have them."""
    match = re.search(rf"^\s*{re.escape(key)}\s*[:=]\s*(.*?)\s*$", text, re.MULTILINE | re.IGNORECASE)
    return match[1] if match else None
