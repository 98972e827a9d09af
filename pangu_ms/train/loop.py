"""The training run: from a configuration and records to committed checkpoints; stopped at any instant, it resumes bit
for bit."""

import contextlib
import logging
import statistics
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ascend_ops
from pangu_ms.checkpoint import store
from pangu_ms.config.load import config_to_dict, dump_config
from pangu_ms.config.schema import RunConfig
from pangu_ms.core import files, runtime
from pangu_ms.core.compile_cache import cached_compile
from pangu_ms.core.errors import TrainingDiverged
from pangu_ms.core.heartbeat import DATA, EVALUATE, INIT, SAVE, STEP, beat
from pangu_ms.core.progress import progress_bar
from pangu_ms.data.extra_inputs import require_sources
from pangu_ms.data.loader import Loader
from pangu_ms.data.records import RecordSet
from pangu_ms.data.resample import Order
from pangu_ms.data.tokenizer import Tokenizer
from pangu_ms.eval.perplexity import Score
from pangu_ms.models.common.batch import Batch
from pangu_ms.train import bend, global_batch
from pangu_ms.train.confirm import LookAhead, good_loss
from pangu_ms.train.directory import RunLock
from pangu_ms.train.guard import Guard
from pangu_ms.train.metrics import MetricsWriter, require_tensorboard
from pangu_ms.train.placement import initialize, load, place
from pangu_ms.train.resume import starting_point
from pangu_ms.train.schedule import learning_rate
from pangu_ms.train.state import RunState
from pangu_ms.train.stop import StopSignal

log = logging.getLogger(__name__)

STOP_AT = "stop_at"


@dataclass(frozen=True)
class TrainResult:
    """How a run ended."""

    output: Path
    step: int
    """Optimizer steps done since the run began."""
    loss: float | None
    """Mean of the training loss over the last 20 steps of this session; None where it had none to do."""
    held_out: Score | None
    tokens_per_second: float
    """Median over the steps of this session, checkpoints and evaluations excluded."""
    compile_seconds: float
    """Time of this session's first step, compilation included; a plan is compiled before it."""
    cache_hit: bool
    skipped: int
    stopped_by: str | None
    """Name of the signal, "stop_at", or None when the run is complete."""
    saved: int | None
    """Step of the newest checkpoint; not `step` where a signal came while the losses were bad."""


class Run:
    """One run in one output directory: config.yaml, metrics.jsonl, checkpoints/."""

    def __init__(self, config: RunConfig, records: Path | str, output: Path):
        """Open the records and build model and optimizer; nothing is written yet.

        Raises:
            DataError: the records do not fit the model, or data.order not the records.
        """
        self.config, self.output, self.checkpoints = config, Path(output), Path(output) / "checkpoints"
        self.train_set = RecordSet.open(records, "train")
        self.train_set.check(config.model)
        require_sources(config.model.extra_inputs())
        self.order = Order.open(config.data.order, self.train_set)
        self.tokenizer = self.train_set.directory and self.train_set.directory / "tokenizer"
        self.held_out_set = RecordSet.open(records, "held_out") if self.train_set.has_split("held_out") else None
        runtime.start(config.runtime.device)
        if (
            config.runtime.device == "CPU"
            and config.model.compute_dtype == "bfloat16"
            and not ascend_ops.has_bfloat16_products()
        ):
            log.warning(
                "model.compute_dtype=bfloat16: gains nothing here, as this CPU has no bfloat16 products (AVX512_BF16)"
                " or they cannot be used"
            )
        self.placement = place(config)
        self.ranks, self.train_step = self.placement.ranks, self.placement.train_step
        self.guard, self.step = Guard.create(config), 0
        self.saved: int | None = None
        """Step of the newest checkpoint that this process restored or committed."""
        self.refused: int | None = None
        """Step of the last one that it refused to commit."""
        self.bends: list[bend.Bend] = []
        self.lock = RunLock(self.output)

    def begin(self, resume: bool, init_from: Path | None = None, resume_from: int | None = None) -> None:
        """Give the model its first values, or the weights of `init_from`, or with `resume` the state of the newest
        valid checkpoint.

        `resume_from` bends the run at the checkpoint of that step: see bend.py.

        Raises:
            OutputError: the directory has other content, or holds a run and `resume` is off.
            ConfigError: the checkpoint is of another run.
            CheckpointError: `init_from` holds weights of another model.
            DataError: the records were made with another tokenizer than the checkpoint's.
            PlanError: MindSpore does not follow the plan.
        """
        checkpoint = self.placement.find(lambda: self._starting_point(resume, resume_from))
        beat(INIT)  # the ranks have met
        weights = (
            self.placement.find(lambda: store.open_checkpoint(init_from)) if init_from and not checkpoint else None
        )
        self.placement.prepare()
        if checkpoint:
            self._restore(checkpoint, bent=checkpoint.step == resume_from)
        elif weights:
            self._load(weights, "model")
        else:
            initialize(self.placement)
        if self.ranks.leads:
            files.write_text(self.output / "config.yaml", bend.comments(self.bends) + dump_config(self.config))

    def _starting_point(self, resume: bool, resume_from: int | None) -> store.Checkpoint | None:
        if self.ranks.leads:
            self.lock.acquire()  # what is found holds until the end
        return starting_point(self.config, self.output, resume, resume_from=resume_from)

    def _restore(self, checkpoint: store.Checkpoint, bent: bool) -> None:
        state = RunState.of(checkpoint)
        self.order.require_unchanged(checkpoint.state(), f"{checkpoint.path}: data.order={self.config.data.order}")
        self._load(checkpoint, "model", "optimizer")
        self.step, self.guard, self.saved, self.bends = state.step, state.guard, state.step, list(state.bends)
        was = state.graph_batch_size or global_batch.graph_batch_size(checkpoint.config())  # 0.1.0 has not written it
        self.guard.scale = global_batch.carried_scale(self.guard.scale, self.config, was)
        if self.ranks.leads and global_batch.draws_other_masks(self.config, was):
            dropout = getattr(self.config.model, "dropout", 0)
            log.warning(
                "model.dropout=%g: micro-batches have another size from step %d on, and dropout draws other masks",
                dropout,
                self.step,
            )
        if bent:
            self.bends = [*self.bends, bend.made(checkpoint, self.config)]
            if self.ranks.leads:
                bend.set_aside(self.checkpoints, self.step)

    def _load(self, checkpoint: store.Checkpoint, *groups: str) -> None:
        if tokenizer := checkpoint.tokenizer_path():
            self.train_set.check(self.config.model, Tokenizer.load(tokenizer))
        for group in groups:
            load(self.placement, checkpoint, group)

    def save(self, batches: LookAhead) -> None:
        """Commit a checkpoint of the present step, unless the losses after it, on the next batches, speak against it;
        every rank calls it. Once a step."""
        if self.step in (self.saved, self.refused):
            return
        loss_after = None
        if self.step:  # initial weights have nothing to show
            beat(EVALUATE, self.step)
            if (loss_after := good_loss(self.train_step, self.guard, self.config, self.step, batches)) is None:
                self.refused = self.step
                return
        beat(SAVE, self.step)
        state = {
            "step": self.step,
            "guard": self.guard.state(),
            "order": self.order.sha256,
            "loss_after": loss_after,
            "bends": self.bends,
        }
        state["graph_batch_size"] = global_batch.graph_batch_size(self.config)
        self.placement.save(self.checkpoints, self.step, state, self.tokenizer)
        self.saved = self.step
        if self.ranks.leads:
            beat(SAVE, self.step, saved=self.step)

    def close(self) -> None:
        """Let others train in the directory."""
        self.lock.release()

    def evaluate(self) -> Score | None:
        """Score the first train.eval_batches global batches of the held-out records on rank 0; None elsewhere, under a
        plan, and where there are none."""
        beat(EVALUATE, self.step)
        return self.placement.evaluate(self.held_out_set) if self.held_out_set else None

    def batches(self) -> Iterator[Batch]:
        """This rank's batches from the present step on, for ever."""
        data, part = self.config.data, self.placement.batch
        options: dict[str, Any] = {
            "seed": data.seed,
            "shuffle": data.shuffle,
            "eod_reset": data.eod_reset,
            "order": self.order.rows,
            "extra_inputs": self.config.model.extra_inputs(),
        }
        return Loader(self.train_set, part["batch_size"], rank=part["rank"], world=part["world"], **options).batches(
            self.step
        )


def train(
    config: RunConfig,
    records: Path | str,
    output: Path,
    resume: bool = False,
    init_from: Path | None = None,
    stop_at: int | None = None,
    progress: bool = True,
    tensorboard: bool = False,
    resume_from: int | None = None,
) -> TrainResult:
    """Train in `output`, or go on with the run there; ends with a committed checkpoint whether complete or stopped.

    `init_from` is a checkpoint whose weights a new run starts from, as after `pangu convert`. `stop_at` ends this
    session after that step. STOP_SIGNALS end it after the running step, or before the first one, with a checkpoint of
    step 0 where the run is new. With several ranks each calls this; rank 0 alone writes metrics, evaluates and shows
    progress. `resume_from` is the step of a checkpoint at which the run is bent; see bend.py.

    Raises:
        TrainingDiverged: guard.max_skipped steps in a row were skipped, or the losses after the last step are bad;
            checkpoints are as they were.
        UserError: see `Run.begin`.
    """
    with StopSignal() as stop:
        beat(INIT)
        if tensorboard:
            require_tensorboard()
        run = Run(config, records, output)
        with contextlib.closing(run):
            run.begin(resume, init_from, resume_from)
            return _go(run, stop, stop_at, progress, tensorboard)


def _go(run: Run, stop: StopSignal, stop_at: int | None, progress: bool, tensorboard: bool) -> TrainResult:
    leads, steps = run.ranks.leads, run.config.train.steps
    session = Session(run, MetricsWriter(run.output, run.step, tensorboard) if leads else None, stop_at)
    try:
        with progress_bar(progress and leads, total=steps, initial=run.step, unit="step", desc="train") as bar:
            session.go(stop, bar)
    except TrainingDiverged as error:
        run.ranks.agree()  # nobody leaves, and ends the job, before all know why
        raise TrainingDiverged(f"{error}; {bend.advice(run.config, run.saved)}") from None
    finally:
        session.close()
    return session.result()


class Session:
    """The loop of one process over a run."""

    def __init__(self, run: Run, metrics: MetricsWriter | None, stop_at: int | None):
        self.run, self.metrics, self.stop_at = run, metrics, stop_at
        self.seconds: list[float] = []
        self.losses: deque[float] = deque(maxlen=20)
        self.cache_hit = False
        self.held_out: Score | None = None
        self.stopped_by: str | None = None

    def go(self, stop: StopSignal, bar: Any) -> None:
        """Step until the run is complete or something stops it; commit a checkpoint."""
        run, train = self.run, self.run.config.train
        batches = LookAhead(run.batches())
        if self.metrics and run.bends and run.bends[-1]["step"] == run.step:
            self.metrics.note(run.step, bent=bend.in_words(run.bends[-1]))
        self._agree_to_stop(stop)
        while run.step < train.steps and not self.stopped_by:
            beat(DATA, run.step, **self._speed())
            batch = next(batches)
            beat(STEP, run.step, **self._speed())
            self.one_step(batch)
            bar.update()
            bar.set_postfix(
                loss=f"{self.losses[-1]:.3f}", tokens_per_s=f"{self.tokens_per_second():,.0f}", refresh=False
            )
            self._agree_to_stop(stop)
            if train.save_every and run.step % train.save_every == 0:
                run.save(batches)
            if train.eval_every and run.step % train.eval_every == 0 and run.step < train.steps:
                self.evaluate()
        run.save(batches)
        if run.saved != run.step and self.stopped_by in (None, STOP_AT):  # who sent a signal starts the run again
            raise TrainingDiverged(f"step {run.step}: is the last one, and the losses after it are bad")
        if run.step == train.steps:
            self.evaluate()
        run.ranks.agree()

    def _agree_to_stop(self, stop: StopSignal) -> None:
        self.stopped_by = self.run.ranks.agree(stop.received) or self._stop_at_reached()

    def _stop_at_reached(self) -> str | None:
        return STOP_AT if self.stop_at and self.stop_at <= self.run.step < self.run.config.train.steps else None

    def one_step(self, batch: Batch) -> None:
        """Compute a step, guard it, write its metrics."""
        run, config = self.run, self.run.config
        lr = learning_rate(config, run.step)
        began = time.perf_counter()
        with self._cache_first_step():
            result = run.train_step(batch, run.step, lr, run.guard.scale, run.guard.loss_limit(config))
        self.seconds.append(time.perf_counter() - began)
        self.losses.append(result.loss)
        if run.step % config.train.log_every == 0 or not result.applied:
            values = {
                "loss": result.loss,
                "grad_norm": result.grad_norm,
                "lr": lr,
                "loss_scale": run.guard.scale,
                "skipped": int(not result.applied),
            }
            self._write(run.step, **values, tokens_per_second=self.tokens_per_second(1))
        run.step += 1
        run.guard.record(config, run.step, result.loss, result.grad_norm, result.applied)

    @contextlib.contextmanager
    def _cache_first_step(self) -> Iterator[None]:
        """The first step compiles: from the cache where it has this graph."""
        config, sections = self.run.config, config_to_dict(self.run.config)
        batch = (config.train.batch_size, config.train.accumulation_steps, self.run.train_step.in_one_graph)
        identity = {
            "graph": "train step",
            "model": sections["model"],
            "optimizer": sections["optimizer"],
            "batch": batch,
            "device": config.runtime.device,
        }
        enabled = config.runtime.compile_cache and self.run.placement.cacheable and not self.seconds
        with cached_compile(enabled, identity) as found:
            yield
            self.cache_hit = self.cache_hit or found

    def evaluate(self) -> None:
        """Score the held-out records and write the result."""
        self.held_out = self.run.evaluate()
        if self.held_out:
            self._write(
                self.run.step - 1, held_out_loss=self.held_out.loss, held_out_perplexity=self.held_out.perplexity
            )

    def _write(self, step: int, **values: Any) -> None:
        if self.metrics:
            self.metrics.write(step, **values)

    def close(self) -> None:
        """Close the metrics."""
        if self.metrics:
            self.metrics.close()

    def tokens_per_second(self, last: int = 20) -> float:
        """Of all ranks, over the last steps; the first, which compiles, does not count once there are others."""
        seconds = self.seconds[1:][-last:] or self.seconds
        return self.run.config.global_batch_size * self.run.config.model.seq_length / statistics.median(seconds)

    def _speed(self) -> dict[str, float]:
        return {"tokens_per_second": self.tokens_per_second()} if self.seconds else {}

    def result(self) -> TrainResult:
        """The summary of this session."""
        return TrainResult(
            output=self.run.output,
            step=self.run.step,
            loss=statistics.fmean(self.losses) if self.losses else None,
            held_out=self.held_out,
            tokens_per_second=self.tokens_per_second(len(self.seconds)) if self.seconds else 0.0,
            compile_seconds=self.seconds[0] if self.seconds else 0.0,
            cache_hit=self.cache_hit,
            skipped=self.run.guard.skipped,
            stopped_by=self.stopped_by,
            saved=self.run.saved,
        )
