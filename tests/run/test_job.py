"""What a rank is given: its own device, nobody else's, the same cluster as the scheduler, its host's rank table."""

import json
import os

import pytest

from pangu_ms.core.cluster_variables import inherited
from pangu_run.job.job import DeviceAssignment, Job, Limits
from pangu_run.job_directory import JobDirectory
from pangu_run.rank_table import RankTable
from tests.faults.rank_tables import table

ASSIGNMENTS = [DeviceAssignment(0, "a", 0), DeviceAssignment(1, "b", 0)]


@pytest.fixture
def job(tmp_path):
    return lambda **options: Job(
        lambda rank: ["-c", "pass"], ASSIGNMENTS, JobDirectory(tmp_path / "job"), **{"server": "b"} | options
    )


def test_what_another_launcher_left_in_the_environment_is_no_ranks(job, monkeypatch):
    """Each of them sends MindSpore another way: to a table, a simulation, an MPI, the rank of somebody else."""
    left = [
        "MINDSPORE_HCCL_CONFIG_PATH",
        "MS_SIMULATION_LEVEL",
        "MS_NODE_RANK",
        "MS_LOCAL_WORKER",
        "MS_SERVER_NUM",
        "OMPI_COMM_WORLD_RANK",
        "OMPI_COMMAND",
    ]
    for name in (*left, "RANK_ID", "RANK_SIZE", "DEVICE_ID", "MS_ROLE", "MS_TOPO_TIMEOUT", "RANK_TABLE_FILE"):
        monkeypatch.setenv(name, "77")
    monkeypatch.setenv("MS_COMPILER_CACHE_ENABLE", "1")
    variables = job().variables(ASSIGNMENTS[1], ("127.0.0.1", 9000))
    assert not set(left) & variables.keys() and "77" not in variables.values() and "RANK_TABLE_FILE" not in variables
    assert (variables["RANK_ID"], variables["DEVICE_ID"], variables["RANK_SIZE"]) == ("1", "0", "2")
    assert (
        inherited()["MS_COMPILER_CACHE_ENABLE"] == "1"
        and inherited()["PATH"] == os.environ["PATH"]
        and "RANK_ID" not in inherited()
    )


def test_scheduler_and_ranks_wait_equally_long(job):
    common = job(limits=Limits(start_s=90.5)).cluster_variables(("10.0.0.1", 8118))
    assert common == {
        "MS_WORKER_NUM": "2",
        "MS_SCHED_HOST": "10.0.0.1",
        "MS_SCHED_PORT": "8118",
        "MS_TOPO_TIMEOUT": "391",
    }
    variables = job(limits=Limits(start_s=90.5), environment={"MS_TOPO_TIMEOUT": "5"}).variables(
        ASSIGNMENTS[1], ("10.0.0.1", 8118)
    )
    assert common.items() <= variables.items()


def test_last_words_are_not_kept_in_a_buffer_unless_the_user_wants_so(job, monkeypatch):
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    assert job().variables(ASSIGNMENTS[1], None)["PYTHONUNBUFFERED"] == "1"
    monkeypatch.setenv("PYTHONUNBUFFERED", "")
    assert job().variables(ASSIGNMENTS[1], None)["PYTHONUNBUFFERED"] == ""


def test_each_host_writes_the_table_that_its_ranks_read(job, tmp_path):
    wanted = RankTable.of(table(2, 1), "made up")
    for server, name in (("b", "rank_table_b.json"), ("fe80::1/x y", "rank_table_fe80__1_x_y.json")):
        one = job(server=server, rank_table=wanted.as_dict())
        one.write_rank_table()
        assert (
            json.loads((tmp_path / "job" / name).read_text()) == wanted.as_dict()
            and one.rank_table_path == tmp_path / "job" / name
        )
    assert job(server="b").variables(ASSIGNMENTS[1], None)["RANK_TABLE_FILE"] == str(tmp_path / "job/rank_table_b.json")
    job(server="c").write_rank_table()
    assert not (tmp_path / "job/rank_table_c.json").exists()
