"""The launcher that decides: starts attempts, listens to all ranks, finds who fails, hangs or is slow, ends an attempt,
restarts or gives up."""

import asyncio
import contextlib
import itertools
import time
from collections.abc import Sequence
from typing import Any

from pangu_ms.core.console import INTERRUPTED
from pangu_ms.core.errors import LaunchError
from pangu_ms.core.exit_codes import EXIT_HOST, EXIT_PEER_LOST, EXIT_STOPPED
from pangu_run.job.job import Job
from pangu_run.job_directory import ENDED, STOPPING, WAITING
from pangu_run.report.ascend_errors import explain
from pangu_run.supervisor import failure_report as verdict
from pangu_run.supervisor import scheduler, watchdog
from pangu_run.supervisor.event_log import Chronicle
from pangu_run.supervisor.failure_report import Failure
from pangu_run.supervisor.host import Host, words_of
from pangu_run.supervisor.links import Hosts
from pangu_run.supervisor.terminal import Terminal
from pangu_run.supervisor.watchdog import RankState

Message = dict[str, Any]
TICK_S, MAX_BACKOFF_S, STACKS_WAIT_S = 0.1, 300.0, 3.0
SETTLE_S = 1.0
"""After a rank was killed: who else ends in this time may be the cause, or not."""
KILLED_S = 120.0
"""For killed processes to leave their devices before a restart: a driver may hold them for long."""
LAST_WRITES_S = 10.0


class Leader:
    """One job from its first start to its end."""

    def __init__(self, job: Job, terminal: Terminal):
        self.job, self.terminal = job, terminal
        self.messages: asyncio.Queue[Message] = asyncio.Queue()
        self.local = Host(job, terminal, self.messages.put_nowait)
        self.hosts = Hosts(job, self.messages.put_nowait)
        self.attempt, self.states, self.exits = 0, [], []
        self.stacks: dict[int, Message] = {}
        self.signals: list[str] = []
        self.lost: list[str] = []
        self.scheduler_ended: Message | None = None
        self.disk = self.local.disk
        self.chronicle = Chronicle(job, terminal, self.disk)

    async def lead(self) -> int:
        """Run the job; returns its exit code."""
        code, text = EXIT_HOST, "the first host's launcher ended"
        try:
            missing = await self._with_signals(self.hosts.gather(self.chronicle.tell))
            if self.signals:
                code, text = EXIT_STOPPED, ""
                return code
            if missing:
                text = (
                    f"{len(missing)} of {len(self.job.servers)} hosts did not come within {self.job.limits.host_s:.0f}"
                    f" s: {', '.join(missing[:16])}"
                )
                self.chronicle.event(
                    "failure", kind="host", code=code, rank=None, host=missing[0], summary=text, words=[]
                )
                self.chronicle.tell(
                    f"{text}; start `pangu launch` there with the same words, or leave them out of the job"
                )
                return code
            code, text = await self._attempts()
            return code
        except LaunchError as error:
            code, text = 2, str(error)
            raise
        finally:
            self.local.kill()
            self.chronicle.end(code, self.states)
            await self.hosts.close(code, text)
            self.disk.close(LAST_WRITES_S)

    async def _attempts(self) -> tuple[int, str]:
        previous: Failure | None = None
        for self.attempt in itertools.count(1):
            code, failure = await self._one_attempt()
            if failure is None:
                return code, ""
            self.chronicle.event("failure", **failure.event(self.job))
            if text := failure.text():
                explanation = explain("\n".join(failure.words))
                self.chronicle.tell(text + (f"\n  -> {explanation.line}" if explanation else ""))
            reason = self._why_not_again(failure, previous)
            if reason is not None:
                if self.job.max_restarts and reason:
                    self.chronicle.tell(f"no restart: {reason}")
                return failure.code, failure.summary
            previous = failure
            if left := await self._left():
                self.chronicle.tell(
                    f"no restart: {watchdog.ranks_in_words(left)} did not end within {KILLED_S:.0f} s of SIGKILL and"
                    " may still hold devices; look at their hosts"
                )
                return failure.code, failure.summary
            if await self._pause(min(MAX_BACKOFF_S, self.job.limits.backoff_s * 2 ** (self.attempt - 1))):
                return EXIT_STOPPED, ""
        raise AssertionError

    def _why_not_again(self, failure: Failure, previous: Failure | None) -> str | None:
        """Why there is no restart after this failure; None if there is one."""
        if failure.code in verdict.NOT_RESTARTED or self.signals:
            return ""
        if self.lost:
            return "a host was lost; start the job again when it is back"
        if self.attempt > self.job.max_restarts:
            return f"there were {self.job.max_restarts} (--max-restarts)"
        if previous and previous.signature() == failure.signature():
            return f"the same step ({failure.step}) failed the same way twice"
        return None

    async def _pause(self, seconds: float) -> bool:
        """Wait before a restart; True if a signal came."""
        self.chronicle.event("restart", wait_s=seconds, reason="failure")
        self.chronicle.tell(
            f"restart {self.attempt} of {self.job.max_restarts} from the last checkpoint in {seconds:.0f} s; present"
            " logs become output.log.1"
        )
        self.chronicle.state = WAITING
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and not self.signals and not self.lost:
            await self._listen()
        return bool(self.signals)

    async def _left(self) -> list[int]:
        """Ranks that outlive SIGKILL."""
        await self._until_ended(KILLED_S)
        return [state.place.rank for state in self.states if state.runs]

    async def _one_attempt(self) -> tuple[int, Failure | None]:
        """Start all ranks and see them to their end; returns the job's exit code if it need not be told, else the
        failure."""
        now = time.monotonic()
        self.states = [RankState(place, now) for place in self.job.places]
        self.exits, self.stacks, self.scheduler_ended = [], {}, None
        self.chronicle.begin(self.attempt)
        address = (
            await self._with_signals(scheduler.start(self.job, self.disk, self._scheduler_tells))
            if self.job.start == "cluster"
            else None
        )
        if self.signals:
            return EXIT_STOPPED, None
        self._send({"do": "start", "attempt": self.attempt, "resume": self.attempt > 1, "scheduler": address})
        try:
            failure = await self._watch()
            return (failure.code, failure) if failure else (self._code_of_the_end(), None)
        finally:
            await self._end_all()

    async def _with_signals(self, work: Any) -> Any:
        """Await something; give up when a signal comes."""
        task = asyncio.ensure_future(work)
        while not task.done() and not self.signals:
            await self._listen()
        if not task.done():
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            return None
        return task.result()

    async def _watch(self) -> Failure | None:
        """Until every rank has ended, or the attempt has to be ended; None if no rank is at fault."""
        limits, stop_by = self.job.limits, None
        while any(state.runs for state in self.states):
            await self._listen()
            now = time.monotonic()
            if self.lost:
                return verdict.of_host(self.lost[0], self.states)
            if self.scheduler_ended and self.scheduler_ended["code"]:
                return await self._without_scheduler()
            if any(message["code"] not in (0, EXIT_STOPPED) for message in self.exits):
                return await self._failed()
            if self.signals and self._may_end_at_once(stop_by is None):
                return None
            if self.signals and stop_by is None:  # told once: who has saved and is leaving needs no second word
                stop_by = now + limits.stop_s
                self.chronicle.state = STOPPING
                self._send({"do": "signal", "name": self.signals[0]})
            hung = watchdog.hung(self.states, limits, now)
            if not hung and stop_by and now > stop_by:
                hung = watchdog.overdue([state for state in self.states if state.runs])
            if hung:
                return await self._hung(hung, now)
        return None

    def _may_end_at_once(self, first: bool) -> bool:
        """A second Ctrl-C, or nobody has begun: there is nothing to wait for."""
        return self._interrupted_twice() or first and not all(state.ready for state in self.states)

    def _interrupted_twice(self) -> bool:
        return self.signals.count("SIGINT") > 1

    async def _failed(self) -> Failure | None:
        """A rank failed: let the others end by themselves, which shows who came first and who only followed. None if
        that was a signal to all of the job."""
        killed = any(message["code"] < 0 for message in self.exits)
        await self._until_ended(min(SETTLE_S, self.job.limits.grace_s) if killed else self.job.limits.grace_s)
        if self.lost:  # its ranks may have been heard of before
            return verdict.of_host(self.lost[0], self.states)
        exits, left = list(self.exits), [state for state in self.states if state.runs]
        if self.signals and verdict.are_stops(exits) and (killed or not left):
            return None
        if left:
            await self._dump_stacks([state.place.rank for state in left])
        if left and all(message["code"] in (0, EXIT_PEER_LOST, EXIT_STOPPED) for message in exits):
            hung = watchdog.overdue(left)
            return verdict.of_hang(
                self.states, hung, time.monotonic() - min(state.heard for state in hung), [*self.stacks.values()]
            )
        return verdict.of_exit(self.job, self.states, exits)

    async def _without_scheduler(self) -> Failure:
        words = await self.disk.result(lambda: words_of(self.job.directory.logs / "scheduler" / "output.log"))
        await self._until_ended(SETTLE_S)  # what ranks say of it goes to their logs
        return verdict.of_scheduler(self.job, self.scheduler_ended["code"], words)

    def _scheduler_tells(self, message: Message) -> None:
        if message["is"] == "exit":
            self.messages.put_nowait(message | {"is": "scheduler", "attempt": self.attempt})

    async def _hung(self, hung: list[RankState], now: float) -> Failure:
        seconds = now - min(state.heard for state in hung)
        self.chronicle.event("hang", ranks=[state.place.rank for state in hung], phase=hung[0].phase, step=hung[0].step)
        await self._dump_stacks([state.place.rank for state in self.states if state.runs])
        return verdict.of_hang(self.states, hung, seconds, [*self.stacks.values()])

    async def _dump_stacks(self, ranks: Sequence[int]) -> None:
        self._send({"do": "stacks", "ranks": list(ranks)})
        deadline = time.monotonic() + STACKS_WAIT_S
        while len(self.stacks) < len(ranks) and time.monotonic() < deadline:
            await self._listen()

    async def _end_all(self) -> None:
        """SIGTERM, a while, SIGKILL; afterwards nothing of this attempt is left on any host."""
        self.chronicle.state = STOPPING
        if any(state.runs for state in self.states) and not self._interrupted_twice():
            self._send({"do": "signal", "name": "SIGTERM"})
            await self._until_ended(self.job.limits.grace_s)
        self._send({"do": "kill"})
        await self._until_ended(self.job.limits.grace_s)

    async def _until_ended(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while any(state.runs for state in self.states) and time.monotonic() < deadline:
            await self._listen()

    def _code_of_the_end(self) -> int:
        if self._interrupted_twice() and any(state.runs for state in self.states):
            return INTERRUPTED
        codes = [state.exit_code for state in self.states]
        return EXIT_STOPPED if self.signals and any(code != 0 for code in codes) or EXIT_STOPPED in codes else 0

    async def _listen(self) -> None:
        """Take in the messages that are there, or wait for one for TICK_S; the chronicle is kept."""
        with contextlib.suppress(asyncio.TimeoutError):
            self._take(await asyncio.wait_for(self.messages.get(), TICK_S))
        while not self.messages.empty():
            self._take(self.messages.get_nowait())
        self.chronicle.look(self.states)

    def _take(self, message: Message) -> None:
        kind, now = message["is"], time.monotonic()
        if message.get("attempt", self.attempt) != self.attempt:
            return  # of a process that outlived its attempt
        state = self.states[message["rank"]] if kind in ("beat", "exit") else None
        if kind == "beat" and state.runs:
            state.hear(message, now)
            if "saved" in message:
                self.chronicle.event("checkpoint", step=message["saved"])
        elif kind == "exit" and state.runs:
            state.state, state.exit_code = ENDED, message["code"]
            self.exits.append(message)
        elif kind == "stacks":
            self.stacks[message["rank"]] = message
        elif kind == "scheduler":
            self.scheduler_ended = message
        elif kind == "signal":
            self.signals.append(message["name"])
            self.chronicle.event("signal", name=message["name"], host=message.get("host", self.job.server))
        elif kind == "lost" and self.attempt:  # before, it may come again
            self.lost.append(message["host"])
            for state in self.states:
                if state.place.server == message["host"]:
                    state.state = ENDED

    def _send(self, command: Message) -> None:
        self.local.do(command)
        for server in self.job.servers[1:]:
            self.hosts.send(server, command)
