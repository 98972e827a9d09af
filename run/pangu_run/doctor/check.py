"""A check looks at one thing and says lines; no check raises, and none goes on for ever."""

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from pangu_run.doctor.site import Site

OK, WARN, FAIL = "OK", "WARN", "FAIL"
CHECK_S = 60.0
"""A check that takes longer hangs: a dead network disk, a name server that does not answer."""


@dataclass(frozen=True)
class Line:
    """What a check found about one thing."""

    level: str
    """OK, WARN (a job can run) or FAIL (it will not, or not rightly)."""
    what: str
    found: str
    fix: str = ""
    """What to do; never empty where the level is not OK."""


Check = Callable[[Site], Iterable[Line]]


def ok(what: str, found: str) -> Line:
    """Nothing to do."""
    return Line(OK, what, found)


def warn(what: str, found: str, fix: str) -> Line:
    """A job can run, with less speed, safety or knowledge."""
    return Line(WARN, what, found, fix)


def fail(what: str, found: str, fix: str) -> Line:
    """A job will not run, or not rightly."""
    return Line(FAIL, what, found, fix)


def run_check(check: Check, site: Site) -> list[Line]:
    """The lines of a check; what it raises, or that it hangs, is a line as well."""
    lines: list[Line] = []
    name = check.__name__.replace("_", " ")

    def collect() -> None:
        try:
            for line in check(site):
                lines.append(line)
        except Exception as error:  # whatever a strange machine does to one check, the others are run
            lines.append(
                warn(name, f"could not be checked: {type(error).__name__}: {error}", "mend that, or check it by hand")
            )

    worker = threading.Thread(target=collect, daemon=True)
    worker.start()
    worker.join(CHECK_S)
    if worker.is_alive():
        return [
            *lines,
            fail(
                name,
                f"no answer in {CHECK_S:g} s",
                "look for a disk or a name server that does not answer: `df`, `getent hosts NAME`",
            ),
        ]
    return lines
