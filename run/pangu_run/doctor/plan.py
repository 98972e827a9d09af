"""Check of the run's configuration: whether it can be read, and whether its plan has as many ranks as the rank
table."""

from collections.abc import Iterator

from pangu_ms.core.errors import LaunchError
from pangu_run import program
from pangu_run.doctor.check import Line, fail, ok
from pangu_run.doctor.site import Site


def configuration(site: Site) -> Iterator[Line]:
    """Whether --config can be read and needs as many ranks as the rank table has."""
    if not site.config:
        return
    try:
        world = program.placement(site.config).world
    except LaunchError as error:
        yield fail(
            "configuration", str(error), "mend it: `pangu config show` shows it resolved, or says the same fault"
        )
        return
    if site.table and site.table.world != world:
        found = f"{world} ranks; {site.table_path} has {site.table.world}"
        yield fail(
            "configuration",
            found,
            "change the section `parallel` (data_parallel first), or take a rank table of that size",
        )
    else:
        yield ok("configuration", f"{world} rank(s)")


CHECKS = (configuration,)
