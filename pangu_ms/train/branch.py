"""Branches of a run: the run continues from one of its checkpoints with another learning rate. config.yaml,
metrics.jsonl and later checkpoints record this, under the name "bend" that earlier versions used.

Checkpoints after the branching point belong to the run before the branch. They are moved into a directory of their own,
so that none of them is mistaken for one of the branch. No mindspore import.
"""

import logging
import os
from pathlib import Path

from pangu_ms.checkpoint import commit, store
from pangu_ms.config.load import config_to_dict
from pangu_ms.config.schema import RunConfig
from pangu_ms.core import files
from pangu_ms.core.errors import OutputError
from pangu_ms.train.state import Branch, RunState

log = logging.getLogger(__name__)

MAY_CHANGE = ("optimizer.lr", "optimizer.min_lr", "optimizer.clip_norm")
"""Fields that may change where a branch starts."""
LOWER_RATE = 0.1
"""After a run diverged, the advised learning rate is this factor times the old one, but at most the default."""


def branch_at(checkpoint: store.Checkpoint, wanted: RunConfig) -> Branch:
    """The branch that starts at a checkpoint with another configuration."""
    old, new = config_to_dict(checkpoint.config())["optimizer"], config_to_dict(wanted)["optimizer"]
    fields = [name.partition(".")[2] for name in MAY_CHANGE]
    changed = [field for field in fields if new[field] != old[field]]
    return {
        "step": checkpoint.step,
        "changed": [f"optimizer.{field}={new[field]!r} (was {old[field]!r})" for field in changed],
    }


def describe(branch: Branch) -> str:
    """Text about the fields that changed."""
    return ", ".join(branch["changed"]) or "nothing changed"


def config_comments(branches: list[Branch]) -> str:
    """Comment lines of config.yaml about the branches."""
    return "".join(f"# bent at step {branch['step']}: {describe(branch)}\n" for branch in branches)


def starting_point(config: RunConfig, root: Path, step: int, digests: bool) -> tuple[store.Checkpoint, bool]:
    """Returns the checkpoint of step `step` and True if a branch must start there. If the run has already branched
    there with the same values, returns the newest checkpoint and False.

    The second case occurs when a scheduler repeats the command.

    Raises:
        OutputError: there is no checkpoint of that step.
        CheckpointError: the checkpoint is damaged.
    """
    if _is_branch(store.latest_valid(root, digests=False)[0], config, step):
        newest, _ = store.latest_valid(root, digests)
        if newest and _is_branch(newest, config, step):
            return newest, False
    path = store.step_path(root, step)
    if not path.is_dir():
        present = ", ".join(
            str(int(path.name[5:])) for path in reversed(store.step_directories(root)) if path.suffix != commit.OLD
        )
        there = (
            f"there are those of steps {present}; name one of these"
            if present
            else "there is none; leave --resume-from out to begin"
        )
        raise OutputError(f"--resume-from {step}: {root} has no checkpoint of that step; {there}")
    return store.open_checkpoint(path, digests), True


def _is_branch(checkpoint: store.Checkpoint | None, config: RunConfig, step: int) -> bool:
    """Whether a checkpoint belongs to a run whose last branch started at that step, with the wanted values."""
    if checkpoint is None or checkpoint.step <= step or branch_at(checkpoint, config)["changed"]:
        return False
    branches = RunState.of(checkpoint).branches
    return bool(branches) and branches[-1]["step"] == step


def archive_later_checkpoints(root: Path, step: int) -> None:
    """Move the checkpoints after a step into a directory of their own, the newest first, so that at every instant the
    remaining ones belong to one run.

    Raises:
        OutputError: the directory cannot be written.
    """
    later = [path for path in store.step_directories(root) if int(path.name.removesuffix(commit.OLD)[5:]) > step]
    if not later:
        return
    with files.writing(root), commit.only_saver(root):
        number = 1
        while (archive := root / f"before-bend-{number}-at-{step:08d}").exists():
            number += 1
        archive.mkdir()
        for path in later:
            os.rename(path, archive / path.name)
            files.sync_path(root)
        files.sync_path(archive)
    log.warning(
        "%s: holds the %d checkpoints behind step %d, at which the run branches; remove it when you do not need them",
        archive,
        len(later),
        step,
    )


def advice_after_divergence(config: RunConfig, good: int | None) -> str:
    """Advice for a run that diverged; `good` is the step of its newest good checkpoint, if it has one."""
    optimizer = config.optimizer
    lr = min(optimizer.lr * LOWER_RATE, type(optimizer)().lr)
    lower = f"optimizer.lr={lr:g}" + (f" optimizer.min_lr={lr * LOWER_RATE:g}" if optimizer.min_lr > lr else "")
    if good is None:
        return (
            f"no checkpoint was committed yet; begin again with a lower rate, as by `--resume {lower}`, and save more"
            " often (train.save_every), or look at the data"
        )
    return (
        f"the newest good checkpoint is of step {good}; go on from it, or from an earlier one, with a lower rate, as by"
        f" `--resume-from {good} {lower}`, or look at the data"
    )
