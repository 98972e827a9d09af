"""The leader, the launcher that makes the decisions: it starts attempts, watches the ranks of all hosts for failures,
hangs and slowness, ends attempts, and restarts the job or gives up."""

import asyncio
import contextlib
import itertools
import time
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

from pangu_ms.core.console import INTERRUPTED
from pangu_ms.core.errors import LaunchError
from pangu_ms.core.exit_codes import EXIT_HOST, EXIT_PEER_LOST, EXIT_STOPPED
from pangu_run.job.job import Job
from pangu_run.job_directory import ENDED, STOPPING, WAITING
from pangu_run.report.ascend_errors import explain
from pangu_run.supervisor import scheduler, watchdog
from pangu_run.supervisor.event_log import EventLog
from pangu_run.supervisor.failure_report import (
    NOT_RESTARTED,
    FailureReport,
    are_stops,
    report_exit,
    report_hang,
    report_lost_host,
    report_scheduler_exit,
)
from pangu_run.supervisor.host import HostAgent, log_ending
from pangu_run.supervisor.links import HostLinks
from pangu_run.supervisor.messages import Message
from pangu_run.supervisor.terminal import Terminal
from pangu_run.supervisor.watchdog import RankState

TICK_S, MAX_BACKOFF_S = 0.1, 300.0
"""Seconds that the leader waits for a message before it checks the time limits again; longest pause before a
restart."""
STACKS_WAIT_S = 3.0
"""Seconds that the leader waits for the stacks of all ranks; each host takes host.STACKS_S of them."""
SETTLE_S = 1.0
"""Seconds that the leader watches the other ranks after a rank was killed: a rank that ends in this time may be the
cause."""
KILLED_S = 120.0
"""Seconds that the leader waits for killed processes before a restart: a driver may keep them, and their devices, for
long."""
CLOSE_S = 10.0
"""Seconds that the launcher waits for its last writes to disk."""

T = TypeVar("T")


class Leader:
    """One job from its first start to its end."""

    def __init__(self, job: Job, terminal: Terminal):
        self.job, self.terminal = job, terminal
        self.messages: asyncio.Queue[Message] = asyncio.Queue()
        # The leader's own ranks are run by an agent, too, as those of every other host.
        self.agent = HostAgent(job, terminal, self.messages.put_nowait)
        self.links = HostLinks(job, self.messages.put_nowait)
        self.attempt = 0
        self.states: list[RankState] = []
        """States of all ranks, in order of ranks."""
        self.exits: list[Message] = []
        """Messages "exit" of this attempt, in order of arrival."""
        self.stacks: dict[int, Message] = {}
        """Messages "stacks" of this attempt, by rank."""
        self.signals: list[str] = []
        """Names of the stop signals that launchers of the job have received."""
        self.lost_hosts: list[str] = []
        self.scheduler_ended: Message | None = None
        self.disk = self.agent.disk
        self.event_log = EventLog(job, terminal, self.disk)

    async def lead(self) -> int:
        """Run the job; returns its exit code."""
        # What the other hosts are told if an unforeseen error ends this function.
        code, text = EXIT_HOST, "the first host's launcher ended"
        try:
            # Before the first attempt no rank runs, so a signal can end the job at once.
            missing = await self._unless_signalled(self.links.wait_for_hosts(self.event_log.print_line))
            if self.signals:
                code, text = EXIT_STOPPED, ""
                return code
            if missing:
                text = (
                    f"{len(missing)} of {len(self.job.servers)} hosts did not come within {self.job.limits.host_s:.0f}"
                    f" s: {', '.join(missing[:16])}"
                )
                self.event_log.record(
                    "failure", kind="host", code=code, rank=None, host=missing[0], summary=text, words=[]
                )
                self.event_log.print_line(
                    f"{text}; start `pangu launch` there with the same words, or leave them out of the job"
                )
                return code
            code, text = await self._attempts()
            return code
        except LaunchError as error:
            code, text = 2, str(error)
            raise
        finally:
            self.agent.kill()
            self.event_log.end_job(code, self.states)
            await self.links.close(code, text)
            self.disk.close(CLOSE_S)  # last: it writes the events of the lines above

    async def _attempts(self) -> tuple[int, str]:
        previous: FailureReport | None = None
        for self.attempt in itertools.count(1):
            code, failure = await self._run_attempt()
            if failure is None:
                return code, ""
            self.event_log.record("failure", **failure.event(self.job))
            if text := failure.text():
                explanation = explain("\n".join(failure.lines))
                self.event_log.print_line(text + (f"\n  -> {explanation.line}" if explanation else ""))
            reason = self._why_no_restart(failure, previous)
            if reason is not None:
                if self.job.max_restarts and reason:
                    self.event_log.print_line(f"no restart: {reason}")
                return failure.code, failure.summary
            previous = failure
            if left := await self._unkillable():
                self.event_log.print_line(
                    f"no restart: {watchdog.format_ranks(left)} did not end within {KILLED_S:.0f} s of SIGKILL and"
                    " may still hold devices; look at their hosts"
                )
                return failure.code, failure.summary
            if await self._pause(min(MAX_BACKOFF_S, self.job.limits.backoff_s * 2 ** (self.attempt - 1))):
                return EXIT_STOPPED, ""
        raise AssertionError("itertools.count never ends")

    def _why_no_restart(self, failure: FailureReport, previous: FailureReport | None) -> str | None:
        """The reason why the job is not restarted after this failure, empty if no explanation is needed; None if it is
        restarted."""
        if failure.code in NOT_RESTARTED or self.signals:
            return ""
        if self.lost_hosts:
            return "a host was lost; start the job again when it is back"
        if self.attempt > self.job.max_restarts:
            return f"there were {self.job.max_restarts} (--max-restarts)"
        if previous and previous.signature() == failure.signature():
            return f"the same step ({failure.step}) failed the same way twice"
        return None

    async def _pause(self, seconds: float) -> bool:
        """Wait before a restart; True if a signal came."""
        self.event_log.record("restart", wait_s=seconds, reason="failure")
        self.event_log.print_line(
            f"restart {self.attempt} of {self.job.max_restarts} from the last checkpoint in {seconds:.0f} s; present"
            " logs become output.log.1"
        )
        self.event_log.state = WAITING
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and not self.signals and not self.lost_hosts:
            await self._process_messages()
        return bool(self.signals)

    async def _unkillable(self) -> list[int]:
        """Ranks that are still alive KILLED_S after SIGKILL."""
        await self._until_ended(KILLED_S)
        return [state.assignment.rank for state in self.states if state.runs]

    async def _run_attempt(self) -> tuple[int, FailureReport | None]:
        """Start all ranks and watch them until they have ended; returns the job's exit code, and the failure if there
        was one."""
        now = time.monotonic()
        self.states = [RankState(assignment, now) for assignment in self.job.assignments]
        self.exits, self.stacks, self.scheduler_ended = [], {}, None
        self.event_log.begin_attempt(self.attempt)
        address = None
        if self.job.start == "cluster":
            address = await self._unless_signalled(scheduler.start(self.job, self.disk, self._on_scheduler_exit))
        if self.signals:
            return EXIT_STOPPED, None
        self._send({"do": "start", "attempt": self.attempt, "resume": self.attempt > 1, "scheduler": address})
        try:
            failure = await self._watch()
            return (failure.code, failure) if failure else (self._exit_code(), None)
        finally:
            await self._end_all()

    async def _unless_signalled(self, work: Coroutine[Any, Any, T]) -> T | None:
        """The result of a coroutine; if a stop signal comes first, the coroutine is cancelled and the result is
        None."""
        task = asyncio.ensure_future(work)
        while not task.done() and not self.signals:
            await self._process_messages()
        if not task.done():
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            return None
        return task.result()

    async def _watch(self) -> FailureReport | None:
        """Watch the ranks until all have ended or the attempt must be ended; returns the failure, None if nothing
        failed."""
        limits = self.job.limits
        stop_by: float | None = None  # the time by which all ranks must have ended after a stop signal
        while any(state.runs for state in self.states):
            await self._process_messages()
            now = time.monotonic()
            # Causes before consequences: without its host or the scheduler a rank fails, too.
            if self.lost_hosts:
                return report_lost_host(self.lost_hosts[0], self.states)
            if self.scheduler_ended and self.scheduler_ended["code"]:
                return await self._on_lost_scheduler(self.scheduler_ended["code"])
            if any(message["code"] not in (0, EXIT_STOPPED) for message in self.exits):
                return await self._on_failed_rank()
            if self.signals and self._may_end_at_once(stop_by is None):
                return None
            if self.signals and stop_by is None:
                # Only the first signal is passed on: a second one would disturb a rank that has saved and is ending.
                stop_by = now + limits.stop_s
                self.event_log.state = STOPPING
                self._send({"do": "signal", "name": self.signals[0]})
            hung = watchdog.hung(self.states, limits, now)
            # A rank that has not ended in time after the signal counts as hung.
            if not hung and stop_by and now > stop_by:
                hung = watchdog.overdue([state for state in self.states if state.runs])
            if hung:
                return await self._on_hung_ranks(hung, now)
        return None

    def _may_end_at_once(self, first: bool) -> bool:
        """Whether ranks can be ended without time to save: after a second Ctrl-C, or at the first signal if not all
        programs have started."""
        return self._interrupted_twice() or first and not all(state.ready for state in self.states)

    def _interrupted_twice(self) -> bool:
        return self.signals.count("SIGINT") > 1

    async def _on_failed_rank(self) -> FailureReport | None:
        """Wait for the other ranks to end by themselves, which shows which failure came first and which ones only
        followed.

        Returns:
            None if the ranks were ended by a stop signal that all processes of the job received.
        """
        killed = any(message["code"] < 0 for message in self.exits)
        await self._until_ended(min(SETTLE_S, self.job.limits.grace_s) if killed else self.job.limits.grace_s)
        if self.lost_hosts:  # the exits of its ranks may have come before the loss of the connection
            return report_lost_host(self.lost_hosts[0], self.states)
        exits, left = list(self.exits), [state for state in self.states if state.runs]
        if self.signals and are_stops(exits) and (killed or not left):
            return None
        if left:
            await self._dump_stacks([state.assignment.rank for state in left])
        # Those that have ended only followed another rank, so the cause is among those that still run.
        if left and all(message["code"] in (0, EXIT_PEER_LOST, EXIT_STOPPED) for message in exits):
            hung = watchdog.overdue(left)
            return self._report_hang(hung, _silence(hung, time.monotonic()))
        return report_exit(self.job, self.states, exits)

    async def _on_lost_scheduler(self, code: int) -> FailureReport:
        lines = await self.disk.run(lambda: log_ending(self.job.directory.logs / "scheduler" / "output.log"))
        await self._until_ended(SETTLE_S)  # meanwhile ranks that notice the loss write it to their logs
        return report_scheduler_exit(self.job, code, lines)

    def _on_scheduler_exit(self, message: Message) -> None:
        self.messages.put_nowait(message | {"is": "scheduler", "attempt": self.attempt})

    async def _on_hung_ranks(self, hung: list[RankState], now: float) -> FailureReport:
        seconds, ranks = _silence(hung, now), [state.assignment.rank for state in hung]
        self.event_log.record("hang", ranks=ranks, phase=hung[0].phase, step=hung[0].step)
        await self._dump_stacks([state.assignment.rank for state in self.states if state.runs])
        return self._report_hang(hung, seconds)

    def _report_hang(self, hung: list[RankState], seconds: float) -> FailureReport:
        return report_hang(self.states, hung, seconds, [*self.stacks.values()])

    async def _dump_stacks(self, ranks: Sequence[int]) -> None:
        self._send({"do": "stacks", "ranks": list(ranks)})
        deadline = time.monotonic() + STACKS_WAIT_S
        while len(self.stacks) < len(ranks) and time.monotonic() < deadline:
            await self._process_messages()

    async def _end_all(self) -> None:
        """Send SIGTERM, wait, send SIGKILL; afterwards no process of this attempt is left on any host."""
        self.event_log.state = STOPPING
        if any(state.runs for state in self.states) and not self._interrupted_twice():
            self._send({"do": "signal", "name": "SIGTERM"})
            await self._until_ended(self.job.limits.grace_s)
        self._send({"do": "kill"})
        await self._until_ended(self.job.limits.grace_s)

    async def _until_ended(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while any(state.runs for state in self.states) and time.monotonic() < deadline:
            await self._process_messages()

    def _exit_code(self) -> int:
        if self._interrupted_twice() and any(state.runs for state in self.states):
            return INTERRUPTED
        codes = [state.exit_code for state in self.states]
        return EXIT_STOPPED if self.signals and any(code != 0 for code in codes) or EXIT_STOPPED in codes else 0

    async def _process_messages(self) -> None:
        """Handle the messages that have come, or wait up to TICK_S for one; then update the status."""
        with contextlib.suppress(asyncio.TimeoutError):
            self._handle(await asyncio.wait_for(self.messages.get(), TICK_S))
        while not self.messages.empty():
            self._handle(self.messages.get_nowait())
        self.event_log.update(self.states)

    def _handle(self, message: Message) -> None:
        kind = message["is"]
        if message.get("attempt", self.attempt) != self.attempt:
            return  # from a process that outlived its attempt
        if kind in ("beat", "exit"):
            self._handle_rank(self.states[message["rank"]], message)
        elif kind == "stacks":
            self.stacks[message["rank"]] = message
        elif kind == "scheduler":
            self.scheduler_ended = message
        elif kind == "signal":
            self.signals.append(message["name"])
            self.event_log.record("signal", name=message["name"], host=message.get("host", self.job.server))
        elif kind == "lost" and self.attempt:  # before the first attempt the host may connect again
            self.lost_hosts.append(message["host"])
            for state in self.states:
                if state.assignment.server == message["host"]:
                    state.state = ENDED

    def _handle_rank(self, state: RankState, message: Message) -> None:
        if not state.runs:
            return  # from a lost host, or a heartbeat that arrived after the exit
        if message["is"] == "exit":
            state.state, state.exit_code = ENDED, message["code"]
            self.exits.append(message)
            return
        state.update(message, time.monotonic())
        if "saved" in message:
            self.event_log.record("checkpoint", step=message["saved"])

    def _send(self, command: Message) -> None:
        self.agent.execute(command)
        for server in self.job.servers[1:]:
            self.links.send(server, command)


def _silence(states: Sequence[RankState], now: float) -> float:
    """The longest time in seconds since a heartbeat of one of these ranks."""
    return now - min(state.last_heard for state in states)
