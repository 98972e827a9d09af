"""The input of the checks: this host's files, tools and environment variables, and the job as the options describe
it."""

import contextlib
import functools
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from pangu_ms.core.errors import RankTableError

if TYPE_CHECKING:
    from pangu_run.rank_table import RankTable, Server

TOOL_S = 10.0
"""Seconds that a tool may take."""
TOOL_DIRECTORIES = ("/usr/local/sbin", "/usr/local/bin", "/usr/local/Ascend/driver/tools")
"""Directories outside PATH where Ascend's installers put npu-smi and hccn_tool."""
TRACES = ("/dev/davinci_manager", "/usr/local/Ascend/driver/version.info")
_MOST_BYTES = 1 << 20


@dataclass(frozen=True)
class Answer:
    """The output of a tool."""

    text: str
    problem: str | None = None
    """Why the output cannot be used: tool not found, non-zero exit code, or timeout."""
    missing: bool = False
    """Whether the tool is not installed."""


@dataclass(frozen=True, eq=False)
class Site:
    """One host, and the job that it is to run."""

    environment: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    root: Path = Path("/")
    """The root directory; tests put the files of a simulated host into another directory."""
    wanted_device: str | None = None
    """cpu or ascend; None to detect it."""
    table: "RankTable | None" = None
    table_path: str | None = None
    table_fault: str | None = None
    """Why the rank table at `table_path` could not be read."""
    hosts: tuple[str, ...] = ()
    """Hosts of a job without a rank table; the first one leads."""
    master_address: str | None = None
    """Address of the first host; None for its name in the table or among the hosts."""
    server_id: str | None = None
    output: Path | None = None
    config: tuple[str, ...] = ()
    """--config X and overrides."""
    master_port: int = 8118
    _answers: dict[tuple[str, ...], Answer] = field(default_factory=dict, init=False)

    def path(self, absolute: str) -> Path:
        """A file of this host."""
        return self.root / absolute.lstrip("/")

    def read(self, absolute: str) -> str | None:
        """Text of a file of this host; None if it does not exist or cannot be read."""
        try:
            return self.path(absolute).read_text(encoding="utf-8", errors="replace")
        except OSError:
            return None

    def tool(self, name: str, *arguments: str, timeout_s: float | None = None) -> Answer:
        """The output of a tool of this host, which may take `timeout_s` seconds (default: TOOL_S). Each command is run
        only once."""
        if (command := (name, *arguments)) not in self._answers:
            self._answers[command] = self._run(name, *arguments, timeout_s=timeout_s or TOOL_S)
        return self._answers[command]

    def _run(self, name: str, *arguments: str, timeout_s: float) -> Answer:
        directories = [
            *self.environment.get("PATH", "").split(os.pathsep),
            *(str(self.path(p)) for p in TOOL_DIRECTORIES),
        ]
        path = shutil.which(name, path=os.pathsep.join(filter(None, directories)))
        if path is None:
            return Answer("", f"{name} is not installed", missing=True)
        try:
            return _run([path, *arguments], dict(self.environment), timeout_s)
        except OSError as error:
            return Answer("", f"`{' '.join([name, *arguments])}`: {error.strerror}")

    @functools.cached_property
    def device(self) -> str:
        """cpu or ascend."""
        there = any(self.path(trace).exists() for trace in TRACES) or not self.tool("npu-smi", "info").missing
        return self.wanted_device or ("ascend" if there else "cpu")

    @functools.cached_property
    def roster(self) -> "RankTable | None":
        """The servers of the job: the rank table, or a table of `hosts` without devices; None if neither is given."""
        from pangu_run.rank_table import RankTable, Server

        return self.table or (
            RankTable(tuple(Server(host, (), (host,)) for host in self.hosts)) if self.hosts else None
        )

    @functools.cached_property
    def server(self) -> "Server | None":
        """This host among the servers of the job; None if it is not one of them."""
        try:
            return self.roster.servers[self.roster.this_server(self.server_id)] if self.roster else None
        except RankTableError:
            return None

    @property
    def num_servers(self) -> int:
        """Number of servers of the job."""
        return len(self.roster.servers) if self.roster else 1

    @property
    def num_processes(self) -> int:
        """Number of ranks that this host will have, if the rank table says so."""
        return len(self.server.devices) or 1 if self.server else 1


def _run(command: list[str], environment: dict[str, str], timeout_s: float) -> Answer:
    name = " ".join([Path(command[0]).name, *command[1:]])
    with tempfile.TemporaryFile() as output:  # not a pipe, since a hanging grandchild would hold it open
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,  # killpg below then ends its children, too
        )
        try:
            code = process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(1.0)  # with a timeout: the process may hang inside a driver, where signals have no effect
            return Answer("", f"`{name}` gave no answer in {timeout_s:g} s")
        output.seek(0)
        text = output.read(_MOST_BYTES).decode(errors="replace")
    last = next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "no word")
    return Answer(text, f"`{name}` ended with exit code {code}: {last}" if code else None)


def spans(numbers: Iterable[int]) -> str:
    """Numbers as intervals, such as 0-3,5."""
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def numbers(text: str) -> set[int]:
    """The numbers in a text made by `spans`."""
    pairs = [part.split("-") for part in text.strip().split(",") if part.strip()]
    return {number for pair in pairs for number in range(int(pair[0]), int(pair[-1]) + 1)}
