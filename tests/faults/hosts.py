"""Two launchers as on two hosts, on one machine; four ranks without MindSpore."""

from tests.faults.common import free_ports, launch_light

WORLD = 4


class Pair:
    """Launchers `a`, which leads, and `b` of one job."""

    def __init__(self, output, faults=(), **options):
        self.output, self.faults = output, faults
        self.options = {"world": WORLD, "servers": ["a", "b"], "master": ["127.0.0.1", free_ports()]} | options

    def start(self, server, **changes):
        """Start the launcher of a host."""
        setattr(self, server, launch_light(self.output, self.faults, **self.options | {"server": server} | changes))
        return getattr(self, server)

    def both(self):
        """Start both."""
        self.start("a"), self.start("b")
        return self

    def finish(self):
        """Both codes, after nothing is left of either."""
        self.a.finish(), self.b.finish()
        return self.a.code, self.b.code


def computing(pair, step=4):
    """Whether ranks of both hosts compute."""
    status = pair.a.job.status()
    return bool(status and status["ranks"]) and all((row["step"] or 0) >= step for row in status["ranks"])
