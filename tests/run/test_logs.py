"""`pangu logs`: rank logs as programs write them, whole, cut off, rotated, huge and damaged."""

import json
import os
import subprocess
import sys
import threading
import time

import pytest

from pangu_run.cli.main import main
from pangu_run.job_directory import JobDirectory
from pangu_run.report.ascend_errors import explain, table
from pangu_run.report.log_errors import distinct_errors, errors_in, normalized
from pangu_run.report.log_lines import MAX_LINE, follow, tail
from pangu_run.supervisor.logs import last_lines

GLOG = "[ERROR] {}({},7f720d60cb80,python):2026-11-21-12:07:{:02d}.879.003 [{}:{}] Func] {}"
TRACEBACK = """Traceback (most recent call last):
  File "/opt/site-packages/pangu_ms/train/loop.py", line 120, in one_step
    result = self.step(batch)
             ^^^^^^^^^^^^^^^^
  File "/opt/site-packages/mindspore/common/api.py", line 9, in call
    return run()
"""


@pytest.fixture
def job(tmp_path):
    """A job directory with no logs yet."""
    directory = JobDirectory(tmp_path / "job")
    directory.write_job({"id": "x", "world": 2048, "time": time.time()})
    return directory


def put(directory, rank, content, name="output.log"):
    """Write a log of a rank, or of the scheduler."""
    log = directory.logs / (f"rank_{rank}" if isinstance(rank, int) else rank) / name
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_bytes(content if isinstance(content, bytes) else content.encode())
    return log


def found(directory, capsys, *argv):
    """What --errors finds, as JSON."""
    assert main(["logs", str(directory.path), "--errors", "--json", *argv]) == 0
    return json.loads(capsys.readouterr().out)


def test_one_fault_of_many_ranks_is_one_error_and_the_first_cause_comes_first(job, capsys):
    for rank in range(64):
        waits = f"wait socket establish timeout, role[0] rank[{rank}] timeout[120 s]"
        waits = GLOG.format("HCCL", 1000 + rank, rank % 60, "hccl_socket_manager.cc", 816, waits)
        own = (
            TRACEBACK + f"RuntimeError: EI0006: Getting socket times out. Reason: rank {rank}, 0x7f{rank:06x},"
            f" /tmp/rank_{rank}/x\n"
        )
        put(
            job,
            rank,
            f"step 1\n{waits}\n"
            + (own if rank != 17 else TRACEBACK + "ValueError: row 5: token 70000 is outside the vocabulary\n"),
        )
    lost = "The node: 17 is timed out. It may exit with exception, please check this node's log."
    put(job, "scheduler", GLOG.format("DISTRIBUTED", 1, 59, "meta_server_node.cc", 3, lost) + "\n")
    facts = {
        "host": "h",
        "code": 1,
        "step": 3,
        "phase": "step",
        "log": "",
        "words": ["ValueError: row 5: token 70000 is outside the vocabulary"],
    }
    job.write_event("failure", 0, kind="exit", summary="rank 17 failed in phase step", rank=17, **facts)
    job.write_event(
        "failure", 0, rank=2, host="h", code=1, step=3, phase="step", words=["RuntimeError: EI0006"], log=""
    )
    seen = found(job, capsys)
    assert seen["cause"]["rank"] == 17
    cause, socket, node, timeout = seen["errors"]
    assert (cause["cause"], cause["ranks"], cause["count"], cause["explanation"]) == (True, [17], 1, None)
    assert cause["frame"] == "pangu_ms/train/loop.py:120 in one_step" and cause["text"].startswith("ValueError: row 5")
    assert (socket["ranks"], socket["count"], socket["explanation"]["code"]) == (list(range(64)), 64, "no connection")
    assert (node["scheduler"], node["ranks"], node["explanation"]["code"]) == (True, [], "rank lost")
    assert (timeout["count"], timeout["explanation"]["code"]) == (63, "EI0006") and 17 not in timeout["ranks"]
    assert main(["logs", str(job.path), "--errors"]) == 0
    out = capsys.readouterr().out
    assert "rank 17 failed in phase step: ValueError: row 5" in out.splitlines()[0] and "63 x  ranks 0-16,18-63 " in out


def test_errors_are_ordered_by_the_time_in_the_line_else_by_the_files(job, capsys):
    put(job, 0, GLOG.format("ME", 1, 30, "a.py", 1, "second") + "\n")
    put(
        job,
        1,
        GLOG.format("ME", 1, 10, "a.py", 1, "first") + "\n" + GLOG.format("ME", 1, 40, "a.py", 1, "second") + "\n",
    )
    for path in (put(job, 2, "ValueError: oldest file\n"), job.path / "job.json"):
        os.utime(path, (1000, 1000))
    put(job, 3, "ValueError: newest file\n")
    assert [error["text"].split()[-1] for error in found(job, capsys)["errors"]] == ["file", "first", "second", "file"]
    assert [error["count"] for error in found(job, capsys)["errors"]] == [1, 1, 2, 1]


@pytest.mark.parametrize(
    "lines, texts",
    [
        (
            (
                "RuntimeError: \n-------\n- Memory not enough:\n-------\nDevice(id:0) memory isn't enough\n\n- C++ Call"
                " Stack:\n"
            ),
            ["RuntimeError: Memory not enough: Device(id:0) memory isn't enough"],
        ),
        (
            "EZ9999: Inner Error!\n        Aicore kernel execute failed, device_id=0\n",
            ["EZ9999: Inner Error! Aicore kernel execute failed, device_id=0"],
        ),
        ("[PID: 34] 2025-12-04-21:59:08.232.310 Execution_Error_ROCE_CQE(EI0013): An error CQE occurred\n", None),
        (
            "train:  5%|# | 5/100\r" + TRACEBACK + "pangu_ms.core.errors.TrainingDiverged: 5 steps\n",
            ["pangu_ms.core.errors.TrainingDiverged: 5 steps"],
        ),
        (TRACEBACK + "[WARNING] ME(1): from another thread\nKeyError: 1\n", ["KeyError: 1"]),
        (TRACEBACK, ["(a traceback that is cut off)"]),
        (
            TRACEBACK
            + f"ValueError: a\n\nDuring handling of the above exception, ...\n\n{TRACEBACK}KeyError: 'b'\nbye\n",
            ["ValueError: a", "KeyError: 'b'"],
        ),
        ("pangu train: configs/a.yaml: train.step: unknown key; use train.steps\n", None),
        (
            "terminate called after throwing an instance of 'X'\n  what():  x\n",
            ["terminate called after throwing an instance of 'X'"],
        ),
        (
            (
                "no Error here: fine\nError rate 0.1\n[WARNING] ME(1):2026-11-21-12:07:00.1 [a:1] f] x\nE00001"
                " things\nloss 1.0\n"
            ),
            [],
        ),
    ],
)
def test_what_an_error_is(lines, texts):
    assert [error.text for error in errors_in(lines.split("\r")[-1].split("\n"))] == (
        lines.strip("\n").split("\n") if texts is None else texts
    )


def test_cann_logs_rotated_files_and_different_codes(job, capsys):
    plog = "[ERROR] RUNTIME(10,python):2026-11-21-12:07:01.205.229 [engine.cc:13] 9 ProcErr: error code={}\n"
    put(
        job,
        0,
        plog.format(507014) + plog.format(507035).replace("(10,", "(11,"),
        "ascend/debug/plog/plog-10_20261121.log",
    )
    put(job, 0, "fine\n")
    put(job, 0, "OSError: [Errno 28] No space left on device: '/data/rank_0/a'\n", "output.log.2")
    put(job, 1, "OSError: [Errno 28] No space left on device: '/data/rank_1/a'\n", "output.log.1")
    seen = {error["explanation"]["code"]: error["count"] for error in found(job, capsys)["errors"]}
    assert seen == {"507014": 1, "507035": 1, "disk full": 2}


def test_logs_and_failures_of_an_earlier_launch_are_left_out(job, capsys):
    job.write_event("failure", 0, rank=3, code=1, words=["ValueError: old"], kind="exit", summary="rank 3 failed")
    put(job, 0, "new 1\nRuntimeError: new\n")
    for log in (
        put(job, 0, "old\nValueError: old\n", "output.log.1"),
        put(job, 0, "EI0006: old\n", "ascend/plog.log"),
        put(job, 3, "ValueError: old\n"),
    ):
        os.utime(log, (time.time() - 60, time.time() - 60))
    job.write_job({"id": "y", "world": 2048, "time": time.time() - 30})
    seen = found(job, capsys)
    assert seen["cause"] is None and [error["text"] for error in seen["errors"]] == ["RuntimeError: new"]
    assert main(["logs", str(job.path)]) == 0  # of rank 0: that rank 3 failed is long ago
    assert capsys.readouterr().out == "new 1\nRuntimeError: new\n"
    assert main(["logs", str(job.path), "--rank", "3"]) == 2 and "holds nothing" in capsys.readouterr().err


def test_logs_of_this_launch_are_not_left_out_where_clocks_differ(job, capsys):
    """The launcher's clock is an hour ahead of the file system's; the directory was copied, job.json last."""
    log = put(job, 0, "RuntimeError: new\n")
    for ahead, copied in ((3600, 0), (-10, 100)):
        job.write_job({"id": "y", "time": time.time() + ahead})
        os.utime(job.path / "job.json", (log.stat().st_mtime + copied,) * 2)
        assert len(found(job, capsys)["errors"]) == 1


def test_last_words_of_a_rank_are_its_last_lines_as_pangu_logs_shows_them(tmp_path):
    log = tmp_path / "output.log"
    log.write_bytes(
        b"x" * (1 << 20)
        + b"\n"
        + b"".join(b"line %d\n\n" % number for number in range(40))
        + b"\x1b[31mred\x1b[0m\r\n 10%\r 20%\r\nend"
    )
    assert last_lines(log, 4) == ["line 39", "red", " 20%", "end"] == [line for line in tail(log, 6) if line][-4:]
    assert len(last_lines(log)) == 12 and last_lines(tmp_path / "none") == ["(nothing)"]
    log.write_text(
        "before\nFatal Python error: Segmentation fault\n\n" + "".join(f"  File {number}\n" for number in range(40))
    )
    assert last_lines(log, 3) == ["Fatal Python error: Segmentation fault", "  File 0", "  File 1"]
    log.write_text(
        "Fatal Python error: init_import_site: Failed to import the site module\n" + TRACEBACK + "SystemExit: 9\n"
    )
    assert last_lines(log, 2) == ["    return run()", "SystemExit: 9"]
    log.write_text("\n \r\n")
    assert last_lines(log) == ["(nothing)"]


def test_junk_huge_lines_cut_files_and_unreadable_places_are_survived(job, capsys):
    put(job, 0, os.urandom(1 << 20) + b"\nRuntimeError: after the junk\n")
    put(job, 1, b"x" * (3 << 20) + b"\nRuntimeError: " + b"y" * (3 << 20) + b"\nRuntimeError: after the huge line")
    put(job, 2, TRACEBACK.encode()[:-40] + b"\xff\xfe\x00")
    (job.logs / "rank_3" / "output.log").mkdir(parents=True)
    (job.logs / "rank_x").mkdir()
    texts = [error["text"] for error in found(job, capsys, "--lines", "0")["errors"]]
    assert {
        "RuntimeError: after the junk",
        "RuntimeError: after the huge line",
        "(a traceback that is cut off)",
    } <= set(texts)
    assert max(map(len, texts)) <= 600
    assert main(["logs", str(job.path), "--rank", "1", "--lines", "3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert (
        [len(line) < MAX_LINE + 20 for line in lines] == [True] * 3
        and lines[2] == "RuntimeError: after the huge line"
        and lines[0].endswith("[cut]")
    )


def test_memory_does_not_grow_with_the_logs(job):
    for rank in range(4):
        put(job, rank, (f"step {rank} " + "loss 1.234\n") * (1 << 20) + "RuntimeError: last\n")
    program = (
        "import sys\nfrom pangu_run.job_directory import JobDirectory\nfrom pangu_run.report.log_errors import"
        " distinct_errors\nerrors, unread = distinct_errors(JobDirectory.find(sys.argv[1]), None, lambda done, total:"
        " None)\nprint(len(errors), errors[0].count, open('/proc/self/status').read().split('VmHWM:')[1].split()[0])"
    )
    found = subprocess.run(
        [sys.executable, "-c", program, str(job.path)], capture_output=True, text=True, check=True
    ).stdout.split()
    assert found[:2] == ["1", "4"] and int(found[2]) < 60 * 1024  # KiB; the logs have 80 MiB


def test_an_error_at_any_place_of_the_blocks_is_found(job, monkeypatch):
    monkeypatch.setattr("pangu_run.report.log_errors.BLOCK", 512)  # longer than the traceback, as blocks are
    lines = ["fine " * 3] * 80 + [*TRACEBACK.splitlines(), "PeerLost"] + ["fine"] * 400
    for shift in range(0, 512, 7):
        put(job, 0, "." * shift + "\n" + "\n".join(lines) + "\n")
        errors, _ = distinct_errors(job, None, lambda done, total: None)
        assert [(error.text, error.frame) for error in errors] == [
            ("PeerLost", "pangu_ms/train/loop.py:120 in one_step")
        ], shift


def test_last_lines_over_blocks_and_rotated_files(job, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("pangu_run.report.log_lines.BLOCK", 7)
    lines = [f"line {number}" for number in range(30)]
    for number, part in (
        ("output.log.10", lines[:5]),
        ("output.log.2", lines[5:10]),
        ("output.log.1", lines[10:20]),
        ("output.log", lines[20:]),
    ):
        log = put(job, 5, "\n".join(part) + "\n", number)
    for count in (1, 5, 10, 11, 23, 30, 99):
        assert tail(log.with_name("output.log"), count) == lines[-count:], count
    job.write_event("failure", 0, rank=5, code=1, words=[])
    assert main(["logs", str(job.path), "--lines", "2"]) == 0  # no --rank: whose failed first
    assert capsys.readouterr().out == "line 28\nline 29\n"


def test_following_survives_rotation_and_ends_with_the_job(job):
    log, over, seen = put(job, 0, "older\nold\n"), threading.Event(), []
    reader = threading.Thread(target=lambda: [seen.append(line) for line in follow(log, over.is_set, 1)])
    reader.start()
    while not seen:
        time.sleep(0.01)
    expected = ["old"]
    for part in range(4):
        for number in range(100):
            expected.append(f"{part}.{number}")
            with open(log, "a") as file:
                file.write(expected[-1] + "\n")
        if part < 3:
            time.sleep(0.3 if part == 1 else 0.0)
            for number in (2, 1):
                if (old := log.with_name(f"output.log.{number}")).exists():
                    os.replace(old, log.with_name(f"output.log.{number + 1}"))
            os.replace(log, log.with_name("output.log.1"))
    over.set()
    reader.join(5)
    assert not reader.is_alive() and seen == expected


def test_follow_of_a_job_that_has_ended_ends(job, capsys):
    put(job, 0, "a\nb\n")
    job.write_status({"time": time.time(), "attempt": 0, "state": "ended", "exit_code": 0, "ranks": []})
    assert main(["logs", str(job.path), "--rank", "0", "--lines", "1", "--follow"]) == 0
    assert capsys.readouterr().out == "b\n"


@pytest.mark.parametrize(
    "argv, word",
    [
        (["--rank", "2048"], "has ranks 0 to 2047"),
        (["--rank", "-1"], "no such rank"),
        (["--rank", "7"], "holds nothing"),
        (["--lines", "0"], "--lines 0"),
        (["--errors", "--follow"], "has no --errors"),
        (["--follow", "--json"], "has no --json"),
    ],
)
def test_mistakes_are_one_line(job, capsys, argv, word):
    assert main(["logs", str(job.path), *argv]) == 2
    error = capsys.readouterr().err
    assert word in error and error.count("\n") == 1


@pytest.mark.parametrize(
    "text, code, sure",
    [
        ("[HCCL topo.cc] ret[9] call trace: hcclRet -> 9", "HCCL_E_TIMEOUT", True),
        ("errNo[0x000000000500000b] connect", "HCCL_E_TCP_CONNECT", False),
        (
            "rtStreamSynchronize execute failed, reason=[aicore timeout], error code 507014, EZ9999: Inner Error!",
            "507014",
            True,
        ),
        ("EZ9999: Inner Error! something", "EZ9999", True),
        ("E10035: The [--dynamic_batch_size] argument has 1 profiles", "E10035", True),
        ("error_code=507054 HBM", "507054", True),
        ("Total size of the communicator exceeds", "communicator memory", False),
        ("RuntimeError: Topology build timed out., but EI0015", "EI0015", True),
    ],
)
def test_the_most_telling_part_is_explained(text, code, sure):
    assert (explain(text).code, explain(text).sure, "probably" in explain(text).line) == (code, sure, not sure)


def test_numbers_that_are_no_codes_are_not_explained():
    numbers = ("step 507014507 of 107002.5", "loss 1.107002", "pid 1070020", "error at step 107002", "error 0x507014ab")
    for text in (*numbers, "SE00010", "ret[9] of a function", "2026-11-21 10:70:02"):
        assert explain(text) is None, text
    assert normalized("rank_12 at 10.0.0.1:8118 0xffee [0001],[0002],[0003]") == normalized(
        "rank_7 at 10.0.0.25:9 0xab [0009]"
    )
    entries = [*table().codes.values(), *(entry for _, entry in table().messages)]
    assert len(entries) > 80 and all(entry.meaning and entry.fix and entry.source for entry in entries)
