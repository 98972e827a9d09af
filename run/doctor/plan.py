"""The run's configuration: it can be read, and its plan has as many ranks as the rank table."""

import json
import sys
from collections.abc import Iterator

from run.doctor.check import Line, fail, ok
from run.doctor.site import Site
from run.program import MODULE

DESCRIBE_S = 50.0


def configuration(site: Site) -> Iterator[Line]:
    """Ask the program, in a process of its own, for the ranks of --config."""
    if not site.config:
        return
    answer = site.tool(sys.executable, "-m", MODULE, "--placement", "--", *site.config, timeout_s=DESCRIBE_S)
    if answer.problem:
        last = answer.text.strip().rpartition("\n")[2]
        yield fail("configuration", last or answer.problem, "mend it: `pangu config show` shows it resolved, or says the same fault")
        return
    try:
        world = int(json.JSONDecoder().raw_decode(answer.text, max(answer.text.find("{"), 0))[0]["world"])
    except (ValueError, KeyError, TypeError):
        found = f"no description but {answer.text.strip()[:80]!r}"
        yield fail("configuration", found, "see that this host has the same version of the program as the others")
        return
    if site.table and site.table.world != world:
        found = f"{world} ranks; {site.table_path} has {site.table.world}"
        yield fail("configuration", found, "change the section `parallel` (data_parallel first), or take a rank table of that size")
    else:
        yield ok("configuration", f"{world} rank(s)")


CHECKS = (configuration,)
