"""Where a run begins: anew in its directory, or at its newest checkpoint if that is of the same run. No mindspore import."""

from pathlib import Path

from pangu_ms.checkpoint import store
from pangu_ms.config.load import config_to_dict
from pangu_ms.config.schema import RunConfig
from pangu_ms.errors import ConfigError, OutputError
from pangu_ms.train import bend
from pangu_ms.train.directory import require_own

# What a resumed run may change; anything else would make it another run. An order file may move: its content must stay.
FREE_TO_CHANGE = ("train.steps", "train.log_every", "train.eval_every", "train.eval_batches", "train.save_every", "train.keep_checkpoints", "data.order")
FREE_SECTIONS = ("runtime", "guard", "tokenizer")
FREE_WITH_BATCH = ("parallel", "train.batch_size")  # while the global batch stays: then each step reads the rows that it would have read


def starting_point(config: RunConfig, output: Path, resume: bool, digests: bool = True, resume_from: int | None = None) -> store.Checkpoint | None:
    """The checkpoint in `output` that a run goes on from; None where it starts anew. `resume_from`: the step at which the run is bent, see bend.py.

    Without `digests` sizes alone are looked at: enough before ranks start, one of which computes them.

    Raises:
        OutputError: the directory has other content, or holds a run and `resume` is off, or no checkpoint in it is valid, or it has none of `resume_from`.
        ConfigError: the checkpoint is of another run.
    """
    if resume_from is not None:
        start, bends = bend.starting_point(config, output / "checkpoints", resume_from, digests)
        require_same_run(start.config(), config, str(start.path), bend.BENDABLE if bends else ())
        return start
    checkpoint, passed_over = store.latest_valid(output / "checkpoints", digests)
    if resume and checkpoint is None and store.step_directories(output / "checkpoints"):  # what a killed first save left is no checkpoint
        raise OutputError(f"{output / 'checkpoints'}: no valid checkpoint to resume from: {'; '.join(passed_over)}")
    if checkpoint and not resume:
        raise OutputError(f"{output}: holds a run at step {checkpoint.step}; add --resume to go on with it, or name a new --output")
    if checkpoint:
        require_same_run(checkpoint.config(), config, str(checkpoint.path))
    else:
        require_own(output, resume)
    return checkpoint


def require_same_run(stored: RunConfig, wanted: RunConfig, where: str, also_free: tuple[str, ...] = ()) -> None:
    """Raise ConfigError unless a checkpoint's configuration differs from the wanted one in what a resumed run may change alone, `also_free` included."""
    old, new = config_to_dict(stored), config_to_dict(wanted)
    optimizer = wanted.optimizer
    if stored.train.steps != wanted.train.steps and optimizer.schedule != "constant" and not optimizer.decay_steps:
        was = stored.train.steps
        raise ConfigError(
            f"{where}: train.steps={wanted.train.steps} (was {was}): would bend the learning rate, which ends its decay at train.steps; "
            f"end a session early with --stop-at, or plan longer runs with optimizer.decay_steps"
        )
    free = FREE_TO_CHANGE + FREE_SECTIONS + also_free + (FREE_WITH_BATCH if stored.global_batch_size == wanted.global_batch_size else ())
    changed = [
        f"{section}.{key}={new[section].get(key)!r} (was {old[section].get(key)!r})"
        for section in new
        if section not in free
        for key in new[section]
        if new[section][key] != old[section].get(key) and f"{section}.{key}" not in free
    ]
    if changed:
        bendable = all(change.partition("=")[0] in bend.BENDABLE for change in changed)
        other = "add --resume-from STEP, the number of a checkpoint, to bend the run there" if bendable else "start in a new --output"
        raise ConfigError(f"{where}: was trained with another configuration: {', '.join(changed)}; resume with the old values, or {other}")
