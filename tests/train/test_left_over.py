"""Variables that another launcher left in a shell: `pangu train` says which to unset before it does anything, and then
it works."""

import os
import re
import subprocess

import pytest

from pangu_ms.config.load import load_config
from pangu_ms.core.errors import ConfigError
from pangu_ms.train.checks import require_executable

ONE = load_config("alpha/tiny")
TWO = load_config("alpha/tiny", ["parallel.data_parallel=2"])
CASES = {
    "size": (ONE, {"RANK_SIZE": "8"}, "this job has 8 process"),
    "rank": (ONE, {"RANK_ID": "3"}, "RANK_ID=3: RANK_SIZE is not set, and ranks begin at 0"),
    "rank and size": (ONE, {"RANK_ID": "0", "RANK_SIZE": "8"}, "this job has 8 process"),
    "rank too large": (TWO, {"RANK_ID": "2", "RANK_SIZE": "2"}, "RANK_ID=2: RANK_SIZE is 2"),
    "no number": (TWO, {"RANK_SIZE": "eight"}, "RANK_SIZE='eight'"),
    "all of msrun": (
        TWO,
        {"RANK_SIZE": "4", "MS_ROLE": "MS_WORKER", "MS_SCHED_PORT": "8118", "MS_WORKER_NUM": "4", "RANK_ID": "1"},
        "this job has 4 process",
    ),
    "MPI": (
        TWO,
        {"RANK_SIZE": "4", "OMPI_COMM_WORLD_RANK": "1", "RANK_TABLE_FILE": "/gone.json"},
        "this job has 4 process",
    ),
}


@pytest.mark.parametrize(("config", "variables", "says"), CASES.values(), ids=CASES)
def test_the_command_that_is_advised_helps(monkeypatch, config, variables, says):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=re.escape(says)) as error:
        require_executable(config)
    (command,) = re.findall(r"`(unset [^`]*)`", str(error.value))
    left = subprocess.run(
        ["bash", "-c", f"{command}; env -0"], capture_output=True, text=True, check=True
    ).stdout.split("\0")
    left = dict(entry.split("=", 1) for entry in left if entry)
    assert not left.keys() & variables.keys()
    for name in os.environ.keys() - left.keys():
        monkeypatch.delenv(name)
    require_executable(config)


def test_ranks_on_ascend_are_started_by_the_launcher(monkeypatch):
    plan = load_config("alpha/13b_8x32gib")
    with pytest.raises(ConfigError, match="this job has 1 process.*must be equal; start it by `pangu launch`"):
        require_executable(plan)
    monkeypatch.setenv("RANK_SIZE", "4")
    with pytest.raises(ConfigError, match="run `unset RANK_SIZE`; start it by `pangu launch`"):
        require_executable(plan)
    monkeypatch.setenv("RANK_SIZE", "8")
    require_executable(plan)
