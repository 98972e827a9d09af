"""A run bent at one of its checkpoints: it goes on from there with another learning rate, and says so in config.yaml,
metrics.jsonl and its checkpoints.

The checkpoints behind that step belong to the run as it was: they are set aside, so that none of them is taken for the
bent run's. No mindspore import.
"""

import logging
import os
from pathlib import Path

from pangu_ms.checkpoint import commit, store
from pangu_ms.config.load import config_to_dict
from pangu_ms.config.schema import RunConfig
from pangu_ms.core import files
from pangu_ms.core.errors import OutputError
from pangu_ms.train.state import Bend, RunState

log = logging.getLogger(__name__)

BENDABLE = ("optimizer.lr", "optimizer.min_lr", "optimizer.clip_norm")
"""What may change where a run is bent."""
LOWER = 0.1
"""The advised factor of a learning rate that diverged; at most the default is advised."""


def made(checkpoint: store.Checkpoint, wanted: RunConfig) -> Bend:
    """The bend of a run that goes on from a checkpoint with another configuration."""
    old, new = config_to_dict(checkpoint.config())["optimizer"], config_to_dict(wanted)["optimizer"]
    fields = [name.partition(".")[2] for name in BENDABLE]
    return {
        "step": checkpoint.step,
        "changed": [
            f"optimizer.{field}={new[field]!r} (was {old[field]!r})" for field in fields if new[field] != old[field]
        ],
    }


def in_words(bend: Bend) -> str:
    """What changed."""
    return ", ".join(bend["changed"]) or "nothing changed"


def comments(bends: list[Bend]) -> str:
    """The lines of config.yaml that tell of bends."""
    return "".join(f"# bent at step {bend['step']}: {in_words(bend)}\n" for bend in bends)


def starting_point(config: RunConfig, root: Path, step: int, digests: bool) -> tuple[store.Checkpoint, bool]:
    """The checkpoint of a step at which a run is to be bent, and True; or the newest one and False, where it was bent
    there already, to the same values.

    The second is what a command finds that a scheduler repeats.

    Raises:
        OutputError: there is no checkpoint of that step.
        CheckpointError: it is damaged.
    """
    if _bent(store.latest_valid(root, digests=False)[0], config, step):
        newest, _ = store.latest_valid(root, digests)
        if newest and _bent(newest, config, step):
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


def _bent(checkpoint: store.Checkpoint | None, config: RunConfig, step: int) -> bool:
    """Whether it is of a run that was last bent at that step and has the wanted values."""
    if checkpoint is None or checkpoint.step <= step or made(checkpoint, config)["changed"]:
        return False
    bends = RunState.of(checkpoint).bends
    return bool(bends) and bends[-1]["step"] == step


def set_aside(root: Path, step: int) -> None:
    """Move the checkpoints behind a step into a directory of their own, the newest first: at every instant the others
    are those of one run.

    Raises:
        OutputError: the directory cannot be written.
    """
    later = [path for path in store.step_directories(root) if int(path.name.removesuffix(commit.OLD)[5:]) > step]
    if not later:
        return
    with files.writing(root), commit.only_saver(root):
        number = 1
        while (aside := root / f"before-bend-{number}-at-{step:08d}").exists():
            number += 1
        aside.mkdir()
        for path in later:
            os.rename(path, aside / path.name)
            files.sync_path(root)
        files.sync_path(aside)
    log.warning(
        "%s: holds the %d checkpoints behind step %d, at which the run is bent; remove it when you do not need them",
        aside,
        len(later),
        step,
    )


def advice(config: RunConfig, good: int | None) -> str:
    """What to do about a run that diverged; `good`: step of its newest good checkpoint, if it has one."""
    optimizer = config.optimizer
    lr = min(optimizer.lr * LOWER, type(optimizer)().lr)
    lower = f"optimizer.lr={lr:g}" + (f" optimizer.min_lr={lr * LOWER:g}" if optimizer.min_lr > lr else "")
    if good is None:
        return (
            f"no checkpoint was committed yet; begin again with a lower rate, as by `--resume {lower}`, and save more"
            " often (train.save_every), or look at the data"
        )
    return (
        f"the newest good checkpoint is of step {good}; go on from it, or from an earlier one, with a lower rate, as by"
        f" `--resume-from {good} {lower}`, or look at the data"
    )
