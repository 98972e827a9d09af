"""What is written down of a job: no secrets, whole files, and nothing of the launch before."""

import json
import os
import sys

import pytest

from pangu_run.job import record
from pangu_run.job.record import MASK, environment
from pangu_run.job_directory import JobDirectory


@pytest.fixture
def directory(tmp_path):
    """A job directory that one launch has written to."""
    made = JobDirectory(tmp_path / "job")
    made.write_job({"id": "first", "time": 1.0, "config": "train:\n  steps: 3\n", "rank_table": {"version": "1.0"}})
    return made


def test_secrets_are_not_written_down():
    words = (
        "GITHUB_TOKEN MY_PASSWORD OBS_SECRET_ACCESS_KEY MYSQL_PWD PGPASSFILE REGISTRY_AUTH KEY API_KEY_2 OPENAI_APIKEY"
        " OBS_AK hw_sk SK_2 AWS_CREDENTIALS"
    )
    secret = [f"SLURM_{name}" for name in words.split()] + ["PANGU_JOB_SECRET"]
    public = {
        "HOME": "/h",
        "RANK_ID": "3",
        "MS_SKIP_TASK": "1",
        "MS_TASKS": "2",
        "LANG": "C",
        "LD_LIBRARY_PATH": "/l",
        "PYTHONPATH": "/p",
        "ASCEND_HOME_PATH": "/a",
    }
    assert environment({**public, **dict.fromkeys(secret, "x")}) == {**public, **dict.fromkeys(secret, MASK)}


def test_variables_that_are_somebody_elses_are_not_written_down():
    assert (
        environment(
            dict.fromkeys(
                [*"MYSQL_PWD HISTFILE GIT_ASKPASS COMPANY_DB DBUS_ADDRESS LS_COLORS WEBHOOK PS1 MSG PATHS".split()], "x"
            )
        )
        == {}
    )


def test_the_record_of_a_launch_is_its_owners_alone(directory):
    mode = os.umask(0)
    try:
        (directory.path / "job.json").chmod(0o644)  # as a launcher before this one left it
        directory.write_job({"id": "second"})
    finally:
        os.umask(mode)
    assert (directory.path / "job.json").stat().st_mode & 0o777 == 0o600


def test_passwords_in_addresses_are_not_written_down(monkeypatch):
    given = {
        "http_proxy": "http://user:pa@ss@proxy:3128/a",
        "MA_INDEX": "https://u:p@a/simple https://token@b/simple",
        "MA_L": "a@b",
        "MA_T": "http://h/x@y",
    }
    shown = {
        "http_proxy": "http://***@proxy:3128/a",
        "MA_INDEX": "https://***@a/simple https://***@b/simple",
        "MA_L": "a@b",
        "MA_T": "http://h/x@y",
    }
    assert environment(given) == shown
    monkeypatch.setattr(sys, "argv", ["pangu", "launch", "--data", "s3://ak:sk@bucket/records"])
    assert record.description("x")["command"][-1] == "s3://***@bucket/records"


def test_bytes_that_are_no_text_do_not_hinder_a_launch(directory, monkeypatch):
    monkeypatch.setitem(os.environb, b"PANGU_NO_TEXT", b"caf\xe9")
    monkeypatch.setattr(sys, "argv", ["pangu", os.fsdecode(b"caf\xe9")])
    directory.write_job(record.description("x"))
    assert directory.job()["environment"]["PANGU_NO_TEXT"] == directory.job()["command"][1] == "caf?"


def test_a_launch_leaves_no_file_of_the_one_before_but_its_history(directory):
    directory.write_status({"time": 1.0, "attempt": 1, "state": "ended", "exit_code": 0, "ranks": []})
    directory.write_event("ended", 1, exit_code=0)
    assert {path.name for path in directory.path.iterdir()} == {
        "job.json",
        "config.yaml",
        "rank_table.json",
        "status.json",
        "events.jsonl",
    }
    JobDirectory(directory.path).write_job({"id": "second", "time": 2.0})
    assert {path.name for path in directory.path.iterdir()} == {"job.json", "events.jsonl"}
    assert (directory.status(), len(directory.events()), directory.events("second")) == (None, 1, [])


def test_status_is_replaced_whole_without_waiting_for_the_disk(directory, monkeypatch):
    flushed = []
    monkeypatch.setattr(os, "fsync", flushed.append)
    before, after = (
        {"time": 1.0, "attempt": 0, "state": "running", "ranks": [{"rank": n, "state": "running"} for n in range(size)]}
        for size in (0, 2048)
    )
    directory.write_status(before)
    with open(directory.path / "status.json") as reader:
        directory.write_status(after)
        assert json.load(reader) == before and directory.status() == after
    assert not flushed and (directory.path / "status.json").stat().st_size < 2048 * 50
    directory.write_job({"id": "x"})
    assert len(flushed) == 2  # the file and its name


def test_each_event_is_read_once_and_when_it_is_whole(directory):
    path = directory.path / "events.jsonl"
    directory.write_event("ready", 1)
    seen = directory.latest_events("first")
    assert seen == directory.events() and [event["event"] for event in seen] == ["ready"]
    path.write_bytes(b"x" * path.stat().st_size)  # what was read is not read again
    row = '{{"event": "step", "id": "first", "time": 1, "attempt": 1, "step": {}}}\n'.format
    many = "".join(map(row, range(7, 99)))
    for part, steps in (
        (row(5)[:15], []),
        (row(5)[15:] + '{"cut by a killed launcher\n', [5]),
        (row(6), [5, 6]),
        (many, range(69, 99)),
    ):
        with open(path, "a") as file:
            file.write(part)
        assert directory.latest_events("first") == seen + [json.loads(row(step)) for step in steps]
    assert directory.latest_events("second") == []
    path.write_text('{"event": "ended", "time": 2, "attempt": 1}\n')  # the directory was removed and made anew
    assert directory.latest_events() == [{"event": "ended", "time": 2, "attempt": 1}]
