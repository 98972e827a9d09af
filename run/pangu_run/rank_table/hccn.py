"""Addresses of this host's devices, from hccn.conf or from hccn_tool."""

import re
import shutil
import subprocess
from pathlib import Path

from pangu_ms.core import small_json
from pangu_ms.core.errors import RankTableError

HCCN_CONF = "/etc/hccn.conf"
HCCN_TOOL = "hccn_tool"
DRIVER_TOOL = "/usr/local/Ascend/driver/tools/hccn_tool"
"""Path where the driver installs hccn_tool, which is not always in PATH."""
TIMEOUT_S = 20.0
MAX_BYTES = 1 << 24
"""Maximum size of a file with a line for each host or device; a larger file is probably the wrong one."""
_LINE = re.compile(r"\s*address_([0-9]+)\s*=\s*(\S+)\s*")
_ANSWER = re.compile(r"ipaddr\s*:\s*(\S+)")


def device_addresses(device_ids: list[int], hccn_conf: str = HCCN_CONF, hccn_tool: str = HCCN_TOOL) -> list[str]:
    """Address of each device of this host, from hccn.conf or else from hccn_tool.

    Raises:
        RankTableError: a device's address is not known.
    """
    known = read_conf(hccn_conf) if Path(hccn_conf).is_file() else {}
    tool = shutil.which(hccn_tool) or (shutil.which(DRIVER_TOOL) if hccn_tool == HCCN_TOOL else None)
    if tool:
        # Each question starts a process, so the tool is asked only for what the file does not have.
        known |= {device: ip for device in device_ids if device not in known and (ip := ask_tool(tool, device))}
    if lacking := [str(device) for device in device_ids if device not in known]:
        sources = (
            f"{hccn_conf} ({'read' if Path(hccn_conf).is_file() else 'not there'}) and {hccn_tool}"
            f" ({'asked' if tool else 'not there'})"
        )
        raise RankTableError(
            f"{sources}: no address of device {', '.join(lacking)}; each device needs one; give all by --device-ips, or"
            " fewer --devices"
        )
    return [known[device] for device in device_ids]


def read_conf(path: str) -> dict[int, str]:
    """Address of each device in a hccn.conf: lines `address_N=ip`.

    Raises:
        RankTableError: a device has two addresses.
    """
    known: dict[int, str] = {}
    for line in read_lines(Path(path)):
        if not (match := _LINE.fullmatch(line)):
            continue
        device, ip = int(match.group(1)), match.group(2)
        if known.setdefault(device, ip) != ip:
            raise RankTableError(
                f"{path}: device {device} has {known[device]} and {ip}; a device has one address; remove the wrong line"
            )
    return known


def read_lines(path: Path) -> list[str]:
    """Lines of a small file.

    Raises:
        RankTableError: the file cannot be read, or is too large to be the right one.
    """
    try:
        return small_json.read_bytes(path, MAX_BYTES).decode("utf-8", "replace").splitlines()
    except ValueError as error:
        raise RankTableError(f"{path}: cannot be read ({error}); name the right file") from None


def ask_tool(tool: str, device: int) -> str | None:
    """The address that `hccn_tool -i N -ip -g` prints; None if the command fails."""
    try:
        done = subprocess.run(
            [tool, "-i", str(device), "-ip", "-g"], capture_output=True, text=True, errors="replace", timeout=TIMEOUT_S
        )
    except subprocess.TimeoutExpired:
        return None
    match = _ANSWER.search(done.stdout)
    return match.group(1) if match and done.returncode == 0 else None
