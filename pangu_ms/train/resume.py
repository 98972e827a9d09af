"""Decides where a run begins: anew in its directory, or at the newest checkpoint if that belongs to the same run. No
mindspore import."""

import shlex
from pathlib import Path

from pangu_ms.checkpoint import store
from pangu_ms.config.load import config_to_dict
from pangu_ms.config.schema import RunConfig
from pangu_ms.core.errors import ConfigError, OutputError
from pangu_ms.models.common.config import ModelConfig
from pangu_ms.train import branch, global_batch
from pangu_ms.train.directory import require_own
from pangu_ms.train.schedule import decay_end

# Fields that a resumed run may change; any other change would make it another run. An order file may move, but its
# content must stay the same.
FREE_TO_CHANGE = (
    "train.steps",
    "train.log_every",
    "train.eval_every",
    "train.eval_batches",
    "train.eval_tasks",
    "train.eval_tasks_every",
    "train.eval_tasks_items",
    "train.eval_tasks_data",
    "train.save_every",
    "train.keep_checkpoints",
    "data.order",
)
FREE_SECTIONS = ("runtime", "guard", "tokenizer", "offload")  # none of them changes a number
FREE_WITH_BATCH = (
    "parallel",
    "train.batch_size",
    "train.accumulation_steps",
)  # as long as the global batch stays: then each step reads the rows that it would have read
OF_THE_SCHEDULE = ("optimizer.decay_steps",)  # may change within limits: see _require_same_rates


def require_same_domains(where: str, old: ModelConfig, new: ModelConfig) -> None:
    """Check that weights come to the domains that they were trained for: a model knows its domains by their numbers, so
    that other names in the same order rename them, and the same names in another order would exchange their experts.

    Args:
        where: the checkpoint, for messages.
        old: the model of the checkpoint.
        new: the model that gets its weights.

    Raises:
        ConfigError: a domain has another number, other experts or another slot than in the checkpoint.
    """
    if not new.domains or len(old.domains) != len(new.domains):
        return  # that the shapes differ is told elsewhere
    for index, name in enumerate(new.domains):
        if name != old.domains[index] and name in old.domains:
            raise ConfigError(
                f"{where}: model.domains=[{', '.join(new.domains)}]: domain {name} would get the experts of"
                f" {old.domains[index]}; the checkpoint's order is [{', '.join(old.domains)}]; keep it"
            )
        if new.members_of([index]) != old.members_of([index]):
            raise ConfigError(
                f"{where}: domain {name} would have other experts or another slot than in the checkpoint; keep its"
                " model.group_of_domain, model.group_sizes and model.slot_of_domain"
            )


def starting_point(
    config: RunConfig, output: Path, resume: bool, digests: bool = True, resume_from: int | None = None
) -> store.Checkpoint | None:
    """The checkpoint in `output` from which a run continues; None if it starts anew. `resume_from` is the step at which
    a branch starts, see branch.py.

    Without `digests` only file sizes are checked. That is enough before ranks start, since one of them then computes
    the digests.

    Raises:
        OutputError: the directory has other content, or holds a run and `resume` is off, or has no valid checkpoint, or
            no checkpoint of step `resume_from`.
        ConfigError: the checkpoint is of another run.
    """
    if resume_from is not None:
        start, branches = branch.starting_point(config, output / "checkpoints", resume_from, digests)
        require_same_run(start.config(), config, str(start.path), start.step, branch.MAY_CHANGE if branches else ())
        _require_steps_left(start, config, at_least=start.step + branches)
        return start
    checkpoint, passed_over = store.latest_valid(output / "checkpoints", digests)
    # A first save that was killed leaves no step directory, so that the run then begins anew.
    if resume and checkpoint is None and store.step_directories(output / "checkpoints"):
        raise OutputError(f"{output / 'checkpoints'}: no valid checkpoint to resume from: {'; '.join(passed_over)}")
    if checkpoint and not resume:
        raise OutputError(
            f"{output}: holds a run at step {checkpoint.step}; add --resume to go on with it, or name a new --output"
        )
    if checkpoint:
        require_same_run(checkpoint.config(), config, str(checkpoint.path), checkpoint.step)
        _require_steps_left(checkpoint, config, at_least=checkpoint.step)
    else:
        require_own(output, resume)
    return checkpoint


def _require_steps_left(checkpoint: store.Checkpoint, wanted: RunConfig, at_least: int) -> None:
    """Raise ConfigError for a run that would be shortened, or a branch without a step to train, for which checkpoints
    would be archived."""
    if wanted.train.steps < at_least:
        found = f"{checkpoint.path}: is of step {checkpoint.step}, and train.steps={wanted.train.steps}"
        raise ConfigError(
            f"{found}; a run that goes on from there has {at_least} steps or more; add train.steps={at_least} or more"
        )


def require_same_run(
    stored: RunConfig, wanted: RunConfig, where: str, step: int | None = None, also_free: tuple[str, ...] = ()
) -> None:
    """Raise ConfigError if a checkpoint's configuration differs from the wanted one in fields that a resumed run may
    not change.

    Args:
        where: the checkpoint.
        step: step of the checkpoint; None for a step after the warm-up.
        also_free: further fields that may change.
    """
    _require_same_rates(stored, wanted, where, step)
    old, new = config_to_dict(stored), config_to_dict(wanted)
    free = FREE_TO_CHANGE + FREE_SECTIONS + FREE_WITH_BATCH + OF_THE_SCHEDULE + also_free
    if global_batch.samples_per_domain(stored) == global_batch.samples_per_domain(wanted):
        free += ("data.samples_per_domain",)  # it changes with the number of replicas
    changed = [
        f"{section}.{key}={new[section].get(key)!r} (was {old[section].get(key)!r})"
        for section in new
        if section not in free
        for key in new[section]
        if new[section][key] != old[section].get(key) and f"{section}.{key}" not in free
    ]
    if changed:
        can_branch = all(change.partition("=")[0] in branch.MAY_CHANGE for change in changed)
        other = (
            "add --resume-from STEP, the number of a checkpoint, to branch the run there"
            if can_branch
            else "start in a new --output"
        )
        raise ConfigError(
            f"{where}: was trained with another configuration: {', '.join(changed)}; resume with the old values, which"
            f" {where}/config.yaml has, or {other}"
        )
    _require_same_global_batch(stored, wanted, where)


def _require_same_rates(stored: RunConfig, wanted: RunConfig, where: str, step: int | None) -> None:
    """Raise ConfigError if the wanted configuration would have given other learning rates to the steps that are done.
    During the warm-up any decay is allowed, since none has begun."""
    was, now = decay_end(stored), decay_end(wanted)
    if was is None or now in (was, None) or step is not None and step <= wanted.optimizer.warmup_steps:
        return
    raise ConfigError(
        f"{where}: the decay of the learning rate would end at step {now} (train.steps or optimizer.decay_steps), it"
        f" was to end at {was}: that would change its rates; add optimizer.decay_steps={was}, which keeps it whatever"
        f" train.steps is (from there on the rate is min_lr), or start a new run with --init-from {where}"
    )


def _require_same_global_batch(stored: RunConfig, wanted: RunConfig, where: str) -> None:
    size, train, parallel = stored.global_batch_size, wanted.train, wanted.parallel
    if wanted.global_batch_size == size:
        return
    found = (
        f"train.batch_size={train.batch_size} * parallel.data_parallel={parallel.data_parallel} is a global batch of"
        f" {wanted.global_batch_size} sequences"
    )
    keeping = global_batch.overrides_for(wanted, size)
    if keeping is None:
        others = (
            f"`pangu plan search --config {shlex.quote(f'{where}/config.yaml')} --devices {parallel.world}"
            f" --global-batch {size}` finds plans that can"
        )
        advice = f"this plan cannot ({global_batch.why_not(wanted, size)}); {others}"
    else:
        advice = f"add {' '.join(keeping)}"
    raise ConfigError(f"{where}: {found}; must stay {size}, or the run would read other samples; {advice}")
