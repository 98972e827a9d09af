"""Runs checks. A check examines one subject and yields lines; `run_check` also turns an exception or a hang of a check
into a line."""

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from pangu_run.doctor.site import Site

OK, WARN, FAIL = "OK", "WARN", "FAIL"
CHECK_S = 60.0
"""Seconds after which a check counts as hung, for example because of a dead network disk or a name server that does not
answer."""


@dataclass(frozen=True)
class Line:
    """What a check found about one thing."""

    level: str
    """OK, WARN (a job can run) or FAIL (a job will not run, or will compute wrong results)."""
    what: str
    found: str
    fix: str = ""
    """What to do; never empty where the level is not OK."""


Check = Callable[[Site], Iterable[Line]]


def ok(what: str, found: str) -> Line:
    """A line of level OK: there is nothing to do."""
    return Line(OK, what, found)


def warn(what: str, found: str, fix: str) -> Line:
    """A line of level WARN: a job can run, but slower or less safely, or something could not be determined."""
    return Line(WARN, what, found, fix)


def fail(what: str, found: str, fix: str) -> Line:
    """A job will not run, or will compute wrong results."""
    return Line(FAIL, what, found, fix)


def run_check(check: Check, site: Site) -> list[Line]:
    """The lines of a check; an exception or a hang is a line as well."""
    lines: list[Line] = []
    name = check.__name__.replace("_", " ")

    def collect() -> None:
        try:
            for line in check(site):
                lines.append(line)
        except Exception as error:  # on an unusual machine a check may fail in any way; the other checks still run
            lines.append(
                warn(name, f"could not be checked: {type(error).__name__}: {error}", "mend that, or check it by hand")
            )

    # A thread that hangs in the kernel cannot be ended; as a daemon it does not keep the doctor from ending.
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
