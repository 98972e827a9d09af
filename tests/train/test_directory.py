"""What `pangu train --output DIR` says of a directory that holds something: the advice works."""

import subprocess
import sys

import pytest

from pangu_ms.config.load import dump_config, load_config
from pangu_ms.core.errors import OutputError
from pangu_ms.train.resume import starting_point

CONFIG = load_config("alpha/tiny")
RUN = {"config.yaml": dump_config(CONFIG), "metrics.jsonl": "", "job/job.json": "{}", "data/records": ""}


@pytest.fixture
def begin(tmp_path):
    """Begin a run where these files are."""

    def start(files, resume=False):
        for name, content in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(content)
        return starting_point(CONFIG, tmp_path, resume)

    return start


def test_a_run_that_failed_before_its_first_checkpoint_is_begun_again_by_resume(begin):
    with pytest.raises(
        OutputError, match="holds a run without a checkpoint; add --resume to begin it again, or name a new --output$"
    ):
        begin(RUN)
    assert begin(RUN, resume=True) is None


def test_a_first_checkpoint_that_did_not_fit_on_the_disk_is_no_checkpoint(begin):
    left = RUN | {"checkpoints/.lock": "", "checkpoints/.step-00000003.1a.tmp/model.safetensors": ""}
    with pytest.raises(OutputError, match="holds a run without a checkpoint; add --resume to begin it again"):
        begin(left)


@pytest.mark.parametrize(
    "files",
    [
        {"notes.txt": ""},
        RUN | {"notes.txt": ""},
        RUN | {"config.yaml": "a: foreign one\n"},
        RUN | {"checkpoints/step-00000005/manifest.json": "damaged"},
    ],
    ids=["no run", "a run and more", "another program's", "a damaged checkpoint"],
)
def test_where_resume_would_be_refused_it_is_not_advised(begin, files):
    with pytest.raises(OutputError, match="exists with other content"):
        begin(files)
    with pytest.raises(ValueError):
        begin({}, resume=True)


def test_records_and_a_launchers_job_may_be_there_before_a_run(begin):
    assert begin({"job/job.json": "{}", "data/records": ""}) is None


def test_what_a_killed_first_save_left_does_not_stop_a_resumed_run(begin, tmp_path):
    (tmp_path / "checkpoints/.step-00000005.0123abcd.tmp").mkdir(parents=True)
    assert begin(RUN, resume=True) is None
    (tmp_path / "checkpoints/step-00000005").mkdir()
    with pytest.raises(OutputError, match="no valid checkpoint to resume from: .*step-00000005"):
        begin(RUN, resume=True)


HOLD = """
import sys
from pathlib import Path
from pangu_ms.core.errors import OutputError
from pangu_ms.train.directory import RunLock
lock = RunLock(Path(sys.argv[1]))
for word in sys.stdin:
    if word == "release\\n":
        lock.release()
        print("released", flush=True)
        continue
    try:
        lock.acquire()
        print("holds", flush=True)
    except OutputError as error:
        print(f"refused: {error}", flush=True)
"""


def start_holder(output):
    """A process that acquires the lock of a directory, and releases it, when it is told to."""
    words = [sys.executable, "-c", HOLD, output]
    return subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def answers(processes, word):
    """What each process says to a word; all are told it before any is listened to."""
    for process in processes:
        process.stdin.write(f"{word}\n")
        process.stdin.flush()
    return [process.stdout.readline() for process in processes]


def test_one_of_many_gets_the_lock_of_a_directory_and_its_end_frees_it(tmp_path):
    """The directory is not there; a holder that was killed leaves its file, and one without a run leaves nothing."""
    output = tmp_path / "run"
    processes = [start_holder(output) for _ in range(4)]
    try:
        winner = require_one_winner(output, processes)
        assert answers([winner], "release") == ["released\n"] and not output.exists()
        winner = require_one_winner(output, processes)
        winner.kill()
        winner.communicate()
        assert output.exists()
        require_one_winner(output, [process for process in processes if process is not winner])
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def require_one_winner(output, processes):
    """The one of all processes that gets the lock; the others are told who has it."""
    words = answers(processes, "acquire")
    (winner,) = [process for process, word in zip(processes, words) if word == "holds\n"]
    others = [word for word in words if word != "holds\n"]
    assert len(others) == len(processes) - 1
    assert all(f"{output}: " in word and "trains in it; one at a time" in word for word in others)
    assert any(f"process {winner.pid} on" in word for word in others) or all(
        "another process" in word for word in others
    )
    return winner
