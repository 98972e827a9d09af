"""Environment variables that say where a process stands in a cluster: a launcher sets them for its ranks, and a shell
may have some left over."""

import os

CLUSTER_VARIABLES = {
    "MS_ROLE",
    "MS_SCHED_HOST",
    "MS_SCHED_PORT",
    "MS_TOPO_TIMEOUT",
    "MS_WORKER_NUM",
    "MS_SERVER_NUM",
    "MS_LOCAL_WORKER",
}
CLUSTER_VARIABLES |= {
    "MS_NODE_ID",
    "MS_NODE_RANK",
    "MS_SIMULATION_LEVEL",
    "RANK_TABLE_FILE",
    "MINDSPORE_HCCL_CONFIG_PATH",
}
CLUSTER_VARIABLES |= {"RANK_ID", "RANK_SIZE", "DEVICE_ID", "ASCEND_DEVICE_ID", "OMPI_COMMAND"}
MPI = "OMPI_COMM_WORLD_"
"""What another launcher or the user's shell may have set, and a rank would take for its own place.
Source: mindspore/parallel/cluster/process_entity/_api.py (msrun), mindspore/communication; Ascend Operator's and
ModelArts' pods."""


def inherited() -> dict[str, str]:
    """This process's environment without what says where a process stands in a cluster."""
    return {
        name: value for name, value in os.environ.items() if name not in CLUSTER_VARIABLES and not name.startswith(MPI)
    }


def unset_command() -> str:
    """What takes the place in a cluster that this process was given, by a launcher or a forgotten line in a shell, out
    of the shell; "" where there is none.

    A device number is left: a user may have chosen it.
    """
    names = sorted(
        name
        for name in os.environ
        if name in CLUSTER_VARIABLES - {"DEVICE_ID", "ASCEND_DEVICE_ID"} or name.startswith(MPI)
    )
    return " ".join(["unset", *names]) if names else ""
