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
sys.stdin.readline()
try:
    lock.acquire()
except OutputError as error:
    print(f"refused: {error}", flush=True)
    sys.exit(0)
print("holds", flush=True)
sys.stdin.readline()
lock.release()
"""


def holders(output, number):
    """Processes that all ask for the lock of a directory as soon as all are there, and the first word of each."""
    processes = [
        subprocess.Popen([sys.executable, "-c", HOLD, output], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(number)
    ]
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    return processes, [process.stdout.readline() for process in processes]


@pytest.mark.parametrize("end", ["release", "kill"])
def test_one_of_many_gets_the_lock_of_a_directory_and_its_end_frees_it(tmp_path, end):
    """The directory is not there; a holder that was killed leaves its file, and one without a run leaves nothing."""
    output = tmp_path / "run"
    processes, words = holders(output, 4)
    (winner,) = [process for process, word in zip(processes, words) if word == "holds\n"]
    others = [word for word in words if word != "holds\n"]
    assert len(others) == 3 and all(f"{output}: " in word and "trains in it; one at a time" in word for word in others)
    assert any(f"process {winner.pid} on" in word for word in others) or all(
        "another process" in word for word in others
    )
    if end == "kill":
        winner.kill()
    winner.communicate("\n" if end == "release" else None)
    assert output.exists() == (end == "kill")
    (again,), (word,) = holders(output, 1)
    again.communicate("\n")
    assert word == "holds\n"
    for process in processes:
        process.communicate()
