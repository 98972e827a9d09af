"""`pangu train` on several processes: what can be executed, what is checked before they start, how they are started. No mindspore import."""

import sys
from pathlib import Path

from pangu_ms import runtime
from pangu_ms.config.schema import RunConfig
from pangu_ms.data.records import RecordSet
from pangu_ms.data.rounds import Order
from pangu_ms.errors import ConfigError
from pangu_ms.parallel.processes import run_ranks
from pangu_ms.train.directory import OWN_LOGS
from pangu_ms.train.resume import starting_point

REHEARSED_ONLY = ("model_parallel", "pipeline_stage", "expert_parallel", "optimizer_shard", "sequence_parallel")


def require_executable(config: RunConfig) -> None:
    """Raise ConfigError unless this program can train with the configuration's degrees on its device.

    The place for another way of execution: a launcher that starts Ascend ranks (each sees its RANK_ID and RANK_SIZE) lifts its rule here.
    """
    parallel, device = config.parallel, config.runtime.device
    for field in REHEARSED_ONLY:
        if (value := getattr(parallel, field)) > 1 or value is True:
            raise ConfigError(f"parallel.{field}={value}: a CPU trains with data_parallel alone; rehearse the plan with `pangu plan rehearse`")
    if device != "CPU" and parallel.world > 1:
        raise ConfigError(f"parallel.data_parallel={parallel.data_parallel}: several ranks train on a CPU alone; found runtime.device={device}; set it to 1")


def needs_ranks(config: RunConfig) -> bool:
    """Whether this process has to start the ranks, not being one of them."""
    return config.parallel.world > 1 and runtime.place()[1] == 1


def train_on_ranks(argv: list[str], config: RunConfig, records: Path | str, output: Path, resume: bool) -> int:
    """Check what can be checked, then run `pangu train` with `argv` on every rank; returns the exit code.

    Raises:
        UserError: the records, the output directory or the checkpoint in it do not fit the configuration.
    """
    train_set = RecordSet.open(records, "train")
    train_set.check(config.model)
    Order.open(config.data.order, train_set)
    starting_point(config, output, resume)
    return run_ranks(lambda rank: [sys.executable, "-m", "pangu_ms", "train", *argv], config.parallel.world, output / OWN_LOGS)
