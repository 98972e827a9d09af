"""Checks before a run starts, so that a mistake is reported in one line instead of by ranks that fail. No mindspore
import."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pangu_ms.checkpoint import store
from pangu_ms.config.load import dump_config
from pangu_ms.config.schema import RunConfig
from pangu_ms.core import runtime
from pangu_ms.core.cluster_variables import unset_command
from pangu_ms.core.errors import ConfigError
from pangu_ms.data.loader import Loader
from pangu_ms.data.records import RecordSet
from pangu_ms.data.resample import Order
from pangu_ms.models.common.strict import check_names_and_shapes
from pangu_ms.train.resume import require_same_domains, starting_point
from pangu_ms.train.trackers import require_trackers

FOR_ANY_DEVICE = ("num_devices", "data_parallel", "devices_per_server")
"""Fields of the section `parallel` that have a meaning on any device; on a CPU or a single device the others must have
their defaults."""
OWN_CHOICE = ("recursive_programming", "dynamic_programming")


def require_executable(config: RunConfig) -> None:
    """Raise ConfigError unless this process, with the others of its job, can train with the configuration's degrees on
    its device."""
    require_trainable(config)
    if config.runtime.device == "CPU" and not needs_ranks(config):
        runtime.require_replicas(config.parallel.data_parallel)
    elif config.runtime.device != "CPU" and config.parallel.world > 1:
        require_job_of(config)


def require_trainable(config: RunConfig) -> None:
    """Raise ConfigError unless this program can train with the configuration's degrees on its device, once its ranks
    are started.

    On a CPU all ranks are replicas. On Ascend each rank of any plan is a process (untested on hardware).
    """
    parallel, device = config.parallel, config.runtime.device
    if device == "CPU" or parallel.world == 1:
        who = "a CPU trains with data_parallel alone" if device == "CPU" else "one device trains without a plan"
        for field in dataclasses.fields(parallel):
            if field.name not in FOR_ANY_DEVICE and (value := getattr(parallel, field.name)) != field.default:
                raise ConfigError(
                    f"parallel.{field.name}={value}: {who}; rehearse the plan with `pangu plan rehearse`, or `pangu"
                    " launch --smoke` a thinned model"
                )
    elif parallel.search_mode in OWN_CHOICE:
        rule = "lays parameters out by itself, and checkpoints lie as the plan says"
        raise ConfigError(
            f"parallel.search_mode={parallel.search_mode}: {rule}; train with sharding_propagation or none"
        )


def require_shared_records(config: RunConfig, records: str) -> None:
    """Raise ConfigError if ranks that a launcher starts would each prepare records of their own (`records` is
    empty)."""
    if config.runtime.device != "CPU" and config.parallel.world > 1 and not records:
        raise ConfigError(
            "data.records: none; ranks that a launcher starts share records; run `pangu data prepare` first and name"
            " its directory by --data"
        )


def require_job_of(config: RunConfig) -> None:
    """Raise ConfigError unless the job has as many processes as the plan has ranks."""
    world, wanted = runtime.place()[1], config.parallel.world
    if world != wanted:
        left = f"where no launcher set these variables, run `{command}`; " if (command := unset_command()) else ""
        raise ConfigError(
            f"parallel: the plan has {wanted} ranks; this job has {world} process(es) (RANK_SIZE); must be equal;"
            f" {left}start it by `pangu launch`, which starts `pangu train` once for each {config.runtime.device}"
            " device"
        )


def require_startable(
    config: RunConfig,
    output: Path,
    resume: bool = False,
    resume_from: int | None = None,
    init_from: Path | str | None = None,
    trackers: Sequence[str] = (),
) -> None:
    """Check everything except the records that would make the ranks of a job fail at their start. The arguments are
    those of `loop.train`.

    Raises:
        UserError: the output directory, the checkpoint in it or `init_from` do not fit the configuration, or a package
            is missing.
    """
    require_trackers(trackers)
    start = starting_point(config, output, resume, digests=False, resume_from=resume_from)
    if start is None and init_from:
        checkpoint = store.open_checkpoint(Path(init_from), digests=False)
        check_names_and_shapes(str(checkpoint.path), checkpoint.stored("model"), config.model.parameter_shapes())
        require_same_domains(str(checkpoint.path), checkpoint.config().model, config.model)


def require_readable(config: RunConfig, records: Path | str) -> None:
    """Raise DataError unless the records can be read and fit the model, and data.order and the domains fit the records.
    This imports mindspore, which reads the records."""
    train_set = RecordSet.open(records, "train")
    train_set.check(config.model)
    Loader.of(train_set, config, order=Order.open(config.data.order, train_set).rows)


def needs_ranks(config: RunConfig) -> bool:
    """Whether this process has to start the ranks, because it is not one of them."""
    return config.runtime.device == "CPU" and config.parallel.world > 1 and runtime.place()[1] == 1


def describe_run(config: RunConfig) -> dict[str, Any]:
    """Facts about a run that a launcher records: its resolved configuration and its length."""
    tokens = config.global_batch_size * config.model.seq_length
    return {"config": dump_config(config), "total_steps": config.train.steps, "tokens_per_step": tokens}
