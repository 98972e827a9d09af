"""Checks of the versions of Python, MindSpore, MindFormers, CANN, driver and firmware, and of their compatibility. None
of the packages is imported."""

import importlib.metadata
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pangu_run.doctor import npu
from pangu_run.doctor.check import Line, fail, ok, warn
from pangu_run.doctor.site import Site


@dataclass(frozen=True)
class Release:
    """A release of MindSpore and the versions that belong to it.

    Source: MindFormers r1.9.0, Installation Guidelines, "Confirming Version Matching Relationship" (mindspore.cn);
    `cann_accepted`: AscendEnvChecker in mindspore/run_check/_check_version.py of that MindSpore.
    """

    mindspore: str
    mindformers: str
    cann: str
    cann_accepted: tuple[str, ...]
    driver: str


RELEASES = (
    Release("2.9", "1.9", "9.0", ("8.2", "8.3", "8.5", "9.0"), "26.0"),
    Release("2.7.2", "1.8", "8.5", ("8.5",), "25.5"),
)
"""The releases that setup.py allows: mindspore >=2.7.2,<2.10,!=2.8.*; mindformers >=1.8,<2."""
PYTHONS = ((3, 10), (3, 12))
CANN_HOMES = ("/usr/local/Ascend/ascend-toolkit/latest", "/usr/local/Ascend/cann", "/usr/local/Ascend/latest")
CANN_FILES = (
    "{home}/x86_64-linux/ascend_toolkit_install.info",
    "{home}/aarch64-linux/ascend_toolkit_install.info",
    "{home}/compiler/version.info",
)
DRIVER, FIRMWARE = "/usr/local/Ascend/driver/version.info", "/usr/local/Ascend/firmware/version.info"
GUIDE = "see the table at mindspore.cn/mindformers (installation)"


def installed(package: str) -> str | None:
    """Version of an installed Python package."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def directory_of(package: str) -> Path | None:
    """Directory of the installed Python package of that name, found without importing it."""
    try:
        return Path(str(importlib.metadata.distribution(package).locate_file(package))).resolve()
    except importlib.metadata.PackageNotFoundError:
        return None


def release_of(mindspore: str | None) -> Release | None:
    """The release of a MindSpore version; None if this project does not support it."""
    # With a dot at the end: 2.9 stands for 2.9.1, not for 2.90.
    return next((r for r in RELEASES if mindspore and (mindspore + ".").startswith(r.mindspore + ".")), None)


def cann_home(site: Site) -> str | None:
    """Directory where CANN is installed; None if it is not found."""
    named = [
        site.environment[name] for name in ("ASCEND_HOME_PATH", "ASCEND_TOOLKIT_HOME") if site.environment.get(name)
    ]
    return next((home for home in (*named, *CANN_HOMES) if site.path(home).is_dir()), None)


def cann_version(site: Site) -> str | None:
    """Version of CANN, such as 8.5.0 or 8.3.RC1."""
    home = cann_home(site) or ""
    for file in CANN_FILES:
        if found := npu.value(site.read(file.format(home=home)) or "", "version"):
            return found
    # Of the form [VERSION OF THE COMPONENT:VERSION OF CANN]
    running = npu.value(site.read(f"{home}/version.cfg") or "", "toolkit_running_version") or ""
    return running.strip("[]").rpartition(":")[2] or None


def driver_version(site: Site) -> str | None:
    """Version of the driver package; in older files, which lack it, the version of the driver itself."""
    text = site.read(DRIVER) or ""
    return npu.value(text, "package_version") or npu.value(text, "Version")


def all_versions(site: Site) -> dict[str, str | None]:
    """The versions that are compared between the hosts of a job."""
    firmware = npu.value(site.read(FIRMWARE) or "", "Version")
    own = {
        "python": ".".join(map(str, sys.version_info[:3])),
        "mindspore": installed("mindspore"),
        "mindformers": installed("mindformers"),
    }
    return {**own, "cann": cann_version(site), "driver": driver_version(site), "firmware": firmware}


def _numbers(version: str, count: int) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version)[:count])


def python(site: Site) -> Iterator[Line]:
    """Version of the Python interpreter."""
    found, (first, last) = sys.version_info[:3], PYTHONS
    words = ".".join(map(str, found))
    if first <= found[:2] <= last:
        yield ok("Python", words)
    else:
        yield fail(
            "Python",
            f"{words}; needs {first[0]}.{first[1]} to {last[0]}.{last[1]}",
            "make an environment with Python 3.11",
        )


def mindspore(site: Site) -> Iterator[Line]:
    """MindSpore, and the packages that must be compatible with it."""
    version = installed("mindspore")
    release = release_of(version)
    if version is None:
        yield fail("MindSpore", "not installed", "pip install mindspore==2.9.0")
    elif release is None:
        yield fail(
            "MindSpore",
            f"{version}; needs {' or '.join(r.mindspore for r in RELEASES)}",
            "pip install mindspore==2.9.0",
        )
    else:
        yield ok("MindSpore", version)
    formers = installed("mindformers")
    wanted = (release or RELEASES[0]).mindformers
    if formers is None:
        yield warn(
            "MindFormers",
            "not installed; its Trainer and registration cannot be used",
            f"pip install mindformers=={wanted}.0",
        )
    elif not (formers + ".").startswith(wanted + "."):
        yield warn(
            "MindFormers",
            f"{formers} with MindSpore {version}",
            f"pip install mindformers=={wanted}.0, which pins its MindSpore; {GUIDE}",
        )
    else:
        yield ok("MindFormers", formers)
    safetensors = installed("safetensors")
    if safetensors is None or _numbers(safetensors, 2) >= (0, 8):
        rule = "0.8.0 writes wrong values for non-contiguous arrays" if safetensors else "checkpoints need it"
        yield fail("safetensors", f"{safetensors or 'not installed'}; {rule}", 'pip install "safetensors>=0.4.5,<0.8"')
    else:
        yield ok("safetensors", safetensors)


def cann(site: Site) -> Iterator[Line]:
    """Compatibility of CANN with MindSpore."""
    version, release = cann_version(site), release_of(installed("mindspore"))
    if version is None and site.device == "cpu":
        yield ok("CANN", "not installed; a CPU needs none")
    elif version is None:
        home = cann_home(site)
        found = f"{home} says no version" if home else "not installed"
        yield fail("CANN", found, f"install CANN {(release or RELEASES[0]).cann} and `source .../set_env.sh`; {GUIDE}")
    elif release is None:
        yield warn("CANN", f"{version}; no known MindSpore to fit", f"install MindSpore first; {GUIDE}")
    elif (short := ".".join(map(str, _numbers(version, 2)))) == release.cann:
        yield ok("CANN", f"{version}, released with MindSpore {release.mindspore}")
    elif short in release.cann_accepted:
        found = f"{version}; MindSpore {release.mindspore} accepts it, but was released with {release.cann}"
        yield warn("CANN", found, f"install CANN {release.cann} unless this pair is known to work; {GUIDE}")
    else:
        yield fail(
            "CANN",
            f"{version}; MindSpore {release.mindspore} takes {', '.join(release.cann_accepted)}",
            f"install CANN {release.cann}; {GUIDE}",
        )


def driver_and_firmware(site: Site) -> Iterator[Line]:
    """Compatibility of the driver with the MindSpore release, and of the firmware with the versions that the driver
    accepts."""
    if site.device == "cpu":
        return
    driver, release = driver_version(site), release_of(installed("mindspore"))
    if driver is None:
        yield fail(
            "driver",
            f"no version in {DRIVER}",
            "install Ascend's driver; in a container mount /usr/local/Ascend/driver",
        )
    elif release and _numbers(driver, 2) < _numbers(release.driver, 2):
        # Newer drivers support older CANN versions; the source of the table does not say which newer ones older drivers
        # support.
        found = f"{driver}, older than {release.driver}, which was released with MindSpore {release.mindspore}"
        yield warn(
            "driver",
            found,
            f"install driver {release.driver} or newer, or ask Ascend's compatibility assistant; {GUIDE}",
        )
    else:
        yield ok("driver", driver)
    firmware = npu.value(site.read(FIRMWARE) or "", "Version")
    span = re.findall(r"[\d.]+", npu.value(site.read(DRIVER) or "", "compatible_version_fw") or "")
    if firmware is None:
        yield warn(
            "firmware",
            f"no version in {FIRMWARE}",
            "`npu-smi info -t board -i 0` shows it; containers do not see it, look on the host",
        )
    elif len(span) == 2 and not _numbers(span[0], 3) <= _numbers(firmware, 3) <= _numbers(span[1], 3):
        yield fail(
            "firmware",
            f"{firmware}; driver {driver} takes {span[0]} to {span[1]}",
            "install the firmware of the driver's release, then reboot",
        )
    else:
        yield ok("firmware", firmware)


CHECKS = (python, mindspore, cann, driver_and_firmware)
