"""What may block is done in the background: in order, within bounds, whatever goes wrong in it."""

import asyncio
import errno
import threading
import time

from pangu_run.job.job import DeviceAssignment, Job
from pangu_run.job_directory import JobDirectory
from pangu_run.supervisor import background, host
from pangu_run.supervisor.background import BackgroundWorker
from pangu_run.supervisor.event_log import EventLog
from pangu_run.supervisor.leader import Leader
from pangu_run.supervisor.terminal import Terminal
from tests.faults.common import wait_for


def test_nobody_waits_for_what_blocks_and_all_is_done_in_order():
    worker, gate, done = BackgroundWorker("test"), threading.Event(), []
    began = time.monotonic()
    worker.submit(gate.wait)
    for number in range(1000):
        worker.submit(lambda number=number: done.append(number), size=1)
    assert time.monotonic() - began < 5 and not done
    gate.set()
    worker.close(30)
    assert done == list(range(1000))


def test_what_waits_is_bounded_and_an_end_does_not_wait_for_ever(monkeypatch):
    monkeypatch.setattr(background, "MAX_QUEUED_BYTES", 10)
    worker, gate, done = BackgroundWorker("test"), threading.Event(), []
    worker.submit(gate.wait)
    assert [worker.submit(lambda: done.append(1), size=4) for _ in range(4)] == [True, True, False, False]
    assert worker.submit(lambda: done.append(2))  # what has no size is never dropped
    worker.close(0.1)
    gate.set()
    worker.close(30)
    assert done == [1, 1, 2]


def test_an_error_is_shown_and_the_next_is_done(capfd):
    worker, done = BackgroundWorker("test"), []
    worker.submit(lambda: 1 / 0)
    worker.submit(lambda: done.append(1))
    worker.close(30)
    assert done == [1] and "ZeroDivisionError" in capfd.readouterr().err


def test_answers_come_to_the_event_loop():
    async def main():
        answers: asyncio.Queue = asyncio.Queue()
        BackgroundWorker("test").submit_with_callback(threading.get_ident, answers.put_nowait)
        return await asyncio.wait_for(answers.get(), 30)

    assert asyncio.run(main()) != threading.get_ident()


def test_logs_that_come_slowly_do_not_hold_up_the_event_loop(tmp_path, monkeypatch):
    """Stacks that a host is asked for, and the scheduler's last words: from a disk that takes a second."""
    monkeypatch.setattr(host, "last_lines", lambda *_: time.sleep(1.0) or ["words"])
    monkeypatch.setattr(host, "STACKS_S", 0.0)
    rank = type("Rank", (), {"number": 0, "stacks": tmp_path / "x", "dump_stacks": lambda self: None})()

    async def main():
        leader = Leader(
            Job(lambda rank: [], [DeviceAssignment(0, "a", 0)], JobDirectory(tmp_path), "a"), Terminal(None)
        )
        latest, longest, done = (
            time.monotonic(),
            0.0,
            asyncio.gather(leader.agent._send_stacks(1, [rank]), leader._on_lost_scheduler(5)),
        )
        while not done.done():
            await asyncio.sleep(0.01)
            longest, latest = max(longest, time.monotonic() - latest), time.monotonic()
        assert done.result()[1].lines == ("words",) and leader.messages.get_nowait()["lines"] == ["words"]
        return longest

    assert asyncio.run(main()) < 0.7


def test_a_disk_that_cannot_be_written_for_a_while_leaves_no_status_behind(tmp_path, monkeypatch, capfd):
    """Whatever the error, such as a process without file descriptors: the next second's status is written again, and no
    traceback is shown."""
    job = Job(lambda rank: [], [DeviceAssignment(0, "a", 0)], JobDirectory(tmp_path), "a")
    disk, terminal = BackgroundWorker("disk"), Terminal(None)
    event_log = EventLog(job, terminal, disk)
    write, broken = (
        JobDirectory.write_status,
        [
            OSError(errno.EMFILE, "Too many open files"),
            OSError(errno.EIO, "Input/output error"),
        ],
    )
    monkeypatch.setattr(
        JobDirectory, "write_status", lambda self, status: fails(broken.pop()) if broken else write(self, status)
    )

    def fails(error):
        raise error

    for _ in range(3):
        event_log._updated = 0.0
        event_log.update([])
        wait_for(lambda: not event_log._writing_status)
    disk.close(30.0)
    terminal.close()
    assert job.directory.status()["state"] == "starting" and "Traceback" not in capfd.readouterr().err
