"""What `pangu train --output DIR` says of a directory that holds something: the advice works."""

import pytest

from pangu_ms.config.load import dump_config, load_config
from pangu_ms.errors import OutputError
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
    with pytest.raises(OutputError, match="holds a run without a checkpoint; add --resume to begin it again, or name a new --output$"):
        begin(RUN)
    assert begin(RUN, resume=True) is None


@pytest.mark.parametrize(
    "files",
    [{"notes.txt": ""}, RUN | {"notes.txt": ""}, RUN | {"config.yaml": "a: foreign one\n"}, RUN | {"checkpoints/step-00000005/manifest.json": "damaged"}],
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
