"""One run in its output directory: opens its records and model, begins or resumes it, saves and evaluates it."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

import ascend_ops
from pangu_ms.checkpoint import store
from pangu_ms.config.load import dump_config
from pangu_ms.config.schema import OffloadConfig, RunConfig
from pangu_ms.core import files, runtime
from pangu_ms.core.heartbeat import EVALUATE, INIT, SAVE, beat
from pangu_ms.data.loader import Loader
from pangu_ms.data.records import RecordSet
from pangu_ms.data.resample import Order
from pangu_ms.data.token_counts import domain_token_counts
from pangu_ms.data.tokenizer import Tokenizer
from pangu_ms.eval.perplexity import Score
from pangu_ms.models.common.batch import Batch
from pangu_ms.train import branch, global_batch
from pangu_ms.train.directory import RunLock
from pangu_ms.train.distributed_model import build_distributed_model, initialize, load
from pangu_ms.train.guard import Guard
from pangu_ms.train.health_check import PeekableBatches, healthy_loss
from pangu_ms.train.resume import require_same_domains, starting_point
from pangu_ms.train.state import Branch, RunState

if TYPE_CHECKING:
    from pangu_ms.train.task_scores import TaskScores

log = logging.getLogger(__name__)


class Run:
    """One run in one output directory: config.yaml, metrics.jsonl, checkpoints/."""

    def __init__(self, config: RunConfig, records: Path | str, output: Path):
        """Open the records and build model and optimizer; nothing is written yet.

        Raises:
            DataError: the records do not fit the model, or data.order or a domain does not fit the records; or the data
                of a task in train.eval_tasks cannot be used.
            ConfigError: a task in train.eval_tasks cannot be scored.
        """
        self.config, self.output, self.checkpoints = config, Path(output), Path(output) / "checkpoints"
        self.train_set = RecordSet.open(records, "train")
        self.train_set.check(config.model)
        self.order = Order.open(config.data.order, self.train_set)
        # A wrong domain is told before the model is built.
        loader = Loader.of(self.train_set, config, config.global_batch_size, order=self.order.rows)
        self.tokenizer = self.train_set.directory and self.train_set.directory / "tokenizer"
        self.held_out_set = RecordSet.open(records, "held_out") if self.train_set.has_split("held_out") else None
        self.tasks = _open_tasks(config, self.tokenizer)  # before the model is built: files may be missing
        runtime.start(config.runtime.device)
        _warn_of_slow_dtype(config)
        _warn_of_idle_offload(config.offload)
        self.model = build_distributed_model(config, loader)
        self.ranks, self.train_step = self.model.ranks, self.model.train_step
        self.guard, self.step = Guard.create(config), 0
        self.saved: int | None = None
        """Step of the newest checkpoint that this process restored or committed."""
        self.refused: int | None = None
        """Step of the last checkpoint that it refused to commit."""
        self.branches: list[Branch] = []
        self.lock = RunLock(self.output)

    def begin(self, resume: bool, init_from: Path | None = None, resume_from: int | None = None) -> None:
        """Initialise the model, or load the weights of `init_from`, or with `resume` restore the newest valid
        checkpoint.

        `resume_from` starts a branch at the checkpoint of that step: see branch.py.

        Raises:
            OutputError: the directory has other content, or holds a run and `resume` is off.
            ConfigError: the checkpoint is of another run, or `init_from` has other domains.
            CheckpointError: `init_from` holds weights of another model.
            DataError: the records were made with another tokenizer than the checkpoint's.
            PlanError: MindSpore gives a parameter another layout than the plan.
        """
        checkpoint = self.model.find_checkpoint(lambda: self._starting_point(resume, resume_from))
        beat(INIT)  # all ranks are here
        weights = None
        if init_from and not checkpoint:
            weights = self.model.find_checkpoint(lambda: store.open_checkpoint(init_from))
        if weights:
            require_same_domains(str(weights.path), weights.config().model, self.config.model)
        self.model.compile()
        if checkpoint:
            self._restore(checkpoint, branches=checkpoint.step == resume_from)
        elif weights:
            self._load(weights, "model")
        else:
            initialize(self.model, self._token_counts())
        if self.ranks.leads:
            files.write_text(
                self.output / "config.yaml", branch.config_comments(self.branches) + dump_config(self.config)
            )

    def _starting_point(self, resume: bool, resume_from: int | None) -> store.Checkpoint | None:
        if self.ranks.leads:
            self.lock.acquire()  # with the lock, what is found here stays true until the run ends
        return starting_point(self.config, self.output, resume, resume_from=resume_from)

    def _restore(self, checkpoint: store.Checkpoint, branches: bool) -> None:
        state = RunState.of(checkpoint)
        self.order.require_unchanged(checkpoint.state(), f"{checkpoint.path}: data.order={self.config.data.order}")
        self._load(checkpoint, "model", "optimizer")
        self.model.restored(checkpoint)
        self.step, self.guard, self.saved, self.branches = state.step, state.guard, state.step, list(state.branches)
        # state.json of version 0.1.0 has no graph_batch_size
        was = state.graph_batch_size or global_batch.graph_batch_size(checkpoint.config())
        self.guard.scale = global_batch.rescaled_loss_scale(self.guard.scale, self.config, was)
        if self.ranks.leads and global_batch.changes_dropout_masks(self.config, was):
            log.warning(
                "model.dropout=%g: micro-batches have another size from step %d on, and dropout draws other masks",
                self.config.model.dropout,
                self.step,
            )
        if branches:
            self.branches = [*self.branches, branch.branch_at(checkpoint, self.config)]
            if self.ranks.leads:
                branch.archive_later_checkpoints(self.checkpoints, self.step)

    def _token_counts(self) -> np.ndarray | None:
        """What a new model's tables may depend on."""
        model = self.config.model
        return domain_token_counts(self.train_set, model) if model.uses_token_counts else None

    def _load(self, checkpoint: store.Checkpoint, *groups: str) -> None:
        if tokenizer := checkpoint.tokenizer_path():
            self.train_set.check(self.config.model, Tokenizer.load(tokenizer))
        for group in groups:
            load(self.model, checkpoint, group)

    def save(self, batches: PeekableBatches) -> None:
        """Commit a checkpoint of the present step, unless the losses of its weights on the next batches are bad. Every
        rank calls this; a second call for the same step does nothing."""
        if self.step in (self.saved, self.refused):
            return
        loss_after = None
        if self.step:  # the loss of initial weights says nothing
            beat(EVALUATE, self.step)
            # This comes before anything is written, because a checkpoint of bad weights would displace a good one.
            loss_after = healthy_loss(self.train_step, self.guard, self.config, self.step, batches)
            if loss_after is None:
                self.refused = self.step
                return
        beat(SAVE, self.step)
        state = {
            "step": self.step,
            "guard": self.guard.state(),
            "order": self.order.sha256,
            "loss_after": loss_after,
            "bends": self.branches,  # the key that earlier versions wrote
            "graph_batch_size": global_batch.graph_batch_size(self.config),
        }
        self.model.save(self.checkpoints, self.step, state, self.tokenizer)
        self.saved = self.step
        if self.ranks.leads:
            beat(SAVE, self.step, saved=self.step)

    def evaluate(self) -> Score | None:
        """Score the first train.eval_batches global batches of the held-out records on rank 0; None on other ranks,
        under a plan, and without held-out records."""
        beat(EVALUATE, self.step)
        return self.model.evaluate(self.held_out_set) if self.held_out_set else None

    def score_tasks(self) -> dict[str, float]:
        """Scores on the tasks of train.eval_tasks by name, computed on rank 0; none on other ranks, and without
        tasks."""
        if self.tasks is None or not self.ranks.leads:
            return {}
        beat(EVALUATE, self.step)
        return self.model.score_tasks(self.tasks)

    def loader(self) -> Loader:
        """The loader of this rank's batches."""
        return Loader.of(self.train_set, self.config, **self.model.loader_part, order=self.order.rows)

    def batches(self) -> Iterator[Batch]:
        """This rank's batches from the present step on, an endless iterator."""
        return self.loader().batches(self.step)

    def close(self) -> None:
        """Release the lock, so that other runs can train in the directory."""
        self.lock.release()


def _open_tasks(config: RunConfig, tokenizer: Path | None) -> "TaskScores | None":
    """The tasks of train.eval_tasks; None without any."""
    if not config.train.eval_tasks:
        return None
    from pangu_ms.train.task_scores import TaskScores  # imported here: few runs have tasks

    return TaskScores(config, tokenizer)


def _warn_of_slow_dtype(config: RunConfig) -> None:
    if config.runtime.device != "CPU" or config.model.compute_dtype != "bfloat16":
        return
    if not ascend_ops.has_bfloat16_products():
        log.warning(
            "model.compute_dtype=bfloat16: gains nothing here, as this CPU has no bfloat16 products (AVX512_BF16) or"
            " they cannot be used"
        )


def _warn_of_idle_offload(offload: OffloadConfig) -> None:
    if not offload.experts and offload != OffloadConfig():
        log.warning("offload.directory, offload.transfer: have no effect without offload.experts=true")
