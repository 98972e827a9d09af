"""CPU seconds of each test, its children included, the costliest first: a measure that a busy machine does not change.

pytest -p tests.cpu_seconds -n 3 --dist loadfile

Setup, call and teardown are apart, as in --durations. A child counts where it is waited for.
"""

import resource
from collections import Counter

import pytest

SHOWN = 30
totals: Counter[str] = Counter()


def cpu_seconds() -> float:
    """Of this process and the children that it has waited for."""
    usages = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    """Each report gets what was used since the one before it: attributes travel from workers of pytest-xdist."""
    outcome = yield
    now = cpu_seconds()
    outcome.get_result().cpu_seconds = now - item.session.stash.get(BEFORE, now)
    item.session.stash[BEFORE] = now


BEFORE = pytest.StashKey[float]()


def pytest_collection_finish(session):
    """What collecting took is not of the first test."""
    session.stash[BEFORE] = cpu_seconds()


def pytest_runtest_logreport(report):
    """In the process that reports."""
    # A worker that died reports for its test, without a measurement.
    totals[f"{report.when:<8} {report.nodeid}"] += getattr(report, "cpu_seconds", 0.0)


def pytest_terminal_summary(terminalreporter):
    """The sum, the costliest tests, the costliest files."""
    terminalreporter.section(f"{sum(totals.values()):.0f} CPU seconds in tests; the costliest")
    files: Counter[str] = Counter()
    for name, seconds in totals.items():
        files[name.split()[1].partition("::")[0]] += seconds
    for name, seconds in (*totals.most_common(SHOWN), *files.most_common(SHOWN)):
        terminalreporter.write_line(f"{seconds:7.2f}s {name}")
