"""ModelArts' boot file under a stand-in for pangu."""

import pytest

from tests.run.manifest.tools import LAUNCH, WORDS, calls, execute, written


@pytest.fixture
def modelarts(capsys, tools):
    """Execute the boot file, as a node does."""
    (tools / "boot.sh").write_text(written(capsys, "modelarts", *WORDS, "--env", "EXTRA=1"))
    node = {"MA_NUM_HOSTS": "2", "RANK_TABLE_FILE": str(tools / "table.json"), "MS_ROLE": "MS_SCHED"}
    return lambda **variables: execute(tools, ["bash", str(tools / "boot.sh")], **(node | variables))


def test_modelarts_takes_the_rank_table_else_the_host_names(modelarts, tools):
    hosts = {"VC_WORKER_HOSTS": "w0.j,w1.j", "VC_TASK_INDEX": "1"}
    process, heard = modelarts(CODE="75", **hosts)
    assert (
        calls(heard) == [["launch", "--hosts", "w0.j,w1.j", "--server-id", "w1.j", *LAUNCH]]
        and process.returncode == 75
    )
    assert (heard[0]["role"], heard[0]["extra"]) == (None, "1")
    (tools / "table.json").write_text("{}")
    process, heard = modelarts(**hosts)
    table = str(tools / "table.json")
    assert calls(heard) == [
        ["ranktable", "wait", table, "--timeout", "1800"],
        ["launch", "--rank-table", table, *LAUNCH],
    ]


def test_modelarts_starts_once_and_says_what_is_wrong(modelarts):
    second_device = modelarts(ASCEND_DEVICE_ID="1", VC_WORKER_HOSTS="a,b")
    assert second_device[0].returncode == 0 and second_device[1] == []
    for variables, words in (
        ({"MA_NUM_HOSTS": "3", "VC_WORKER_HOSTS": "a,b,c"}, "MA_NUM_HOSTS=3"),
        ({}, "no such rank table"),
    ):
        process, heard = modelarts(**variables)
        assert process.returncode == 2 and words in process.err and heard == []
