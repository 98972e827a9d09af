"""The training loop: it trains a configuration on records and commits checkpoints. A run that is stopped at any instant
resumes with bit-identical results."""

import contextlib
import statistics
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pangu_ms.config.load import config_to_dict
from pangu_ms.config.schema import RunConfig
from pangu_ms.core.compile_cache import cached_compile
from pangu_ms.core.errors import TrainingDiverged
from pangu_ms.core.heartbeat import INIT, beat
from pangu_ms.core.progress import progress_bar
from pangu_ms.eval.perplexity import Score
from pangu_ms.models.common.batch import Batch
from pangu_ms.train import branch
from pangu_ms.train.health_check import PeekableBatches
from pangu_ms.train.hooks import Hook, default_hooks
from pangu_ms.train.metrics import MetricsFile
from pangu_ms.train.run import Run
from pangu_ms.train.schedule import learning_rate
from pangu_ms.train.steps.protocol import StepResult
from pangu_ms.train.stop import StopSignal
from pangu_ms.train.trackers import Tracker, open_trackers, require_trackers


@dataclass(frozen=True)
class TrainResult:
    """How a run ended."""

    output: Path
    step: int
    """Optimizer steps done since the run began."""
    loss: float | None
    """Mean training loss over the last 20 steps of this session; None if it had no steps to do."""
    held_out: Score | None
    tokens_per_second: float
    """Median over the steps of this session, checkpoints and evaluations excluded."""
    compile_seconds: float
    """Time of this session's first step, which includes compilation, except with a plan: its step is compiled
    before."""
    cache_hit: bool
    skipped: int
    stopped_by: str | None
    """Name of the signal that stopped the session, or "stop_at"; None if the run is complete."""
    saved: int | None
    """Step of the newest checkpoint. It differs from `step` if a signal came while the losses were bad."""
    task_scores: dict[str, float] = field(default_factory=dict)
    """Scores of train.eval_tasks when the session last evaluated them, by their names in metrics.jsonl."""


def train(
    config: RunConfig,
    records: Path | str,
    output: Path,
    resume: bool = False,
    init_from: Path | None = None,
    stop_at: int | None = None,
    progress: bool = True,
    trackers: Sequence[str] = (),
    resume_from: int | None = None,
) -> TrainResult:
    """Train in the directory `output`, or continue the run there. It ends with a committed checkpoint, whether complete
    or stopped.

    STOP_SIGNALS end the session after the running step, or before its first step; a new run then has a checkpoint of
    step 0. With several ranks each rank calls this function; only rank 0 writes metrics, evaluates and shows progress.

    Args:
        init_from: a checkpoint with the initial weights of a new run, for example from `pangu convert`.
        stop_at: ends this session after that step.
        trackers: names in trackers.TRACKERS, to use in addition to metrics.jsonl.
        resume_from: the step of a checkpoint at which a branch of the run starts; see branch.py.

    Raises:
        TrainingDiverged: guard.max_skipped steps in a row were skipped, or the losses after the last step are bad.
            Checkpoints are left as they were.
        UserError: see `Run.begin`.
    """
    with StopSignal() as stop:
        beat(INIT)
        require_trackers(trackers)
        run = Run(config, records, output)
        with contextlib.closing(run):
            run.begin(resume, init_from, resume_from)
            leads, steps = run.ranks.leads, config.train.steps
            with (
                _opened(run, trackers if leads else None) as opened,
                progress_bar(progress and leads, total=steps, initial=run.step, unit="step", desc="train") as bar,
            ):
                loop = TrainLoop(run, default_hooks(config.train, stop, stop_at, bar), opened)
                try:
                    loop.go()
                except TrainingDiverged as error:
                    run.ranks.barrier()  # no rank exits, which ends the job, before all ranks know why
                    advice = branch.advice_after_divergence(config, run.saved)
                    raise TrainingDiverged(f"{error}; {advice}") from None
            return loop.result()


@contextlib.contextmanager
def _opened(run: Run, names: Sequence[str] | None) -> Iterator[list[Tracker]]:
    """Open metrics.jsonl and the named trackers; yields none of them if `names` is None."""
    if names is None:
        yield []
        return
    with contextlib.ExitStack() as stack:
        file = MetricsFile(run.output, run.step)
        stack.callback(file.finish)
        if run.branches and run.branches[-1]["step"] == run.step:
            file.note(run.step, bent=branch.describe(run.branches[-1]))  # "bent" is the key that earlier versions wrote
        others = open_trackers(names, run.output, run.step, run.config)
        for tracker in others:
            stack.callback(tracker.finish)
        yield [file, *others]


@dataclass(frozen=True)
class StepRecord:
    """One step: its number, its settings and its result."""

    step: int
    """Its number; 0 is the first of the run."""
    is_last: bool
    """Whether it is the last of the run."""
    lr: float
    loss_scale: float
    result: StepResult

    @property
    def steps_done(self) -> int:
        """Optimizer steps of the run, this one included."""
        return self.step + 1


class TrainLoop:
    """Takes the steps of a run in one process, and calls hooks around them."""

    def __init__(self, run: Run, hooks: Sequence[Hook], trackers: Sequence[Tracker]):
        self.run, self.hooks, self.trackers = run, hooks, trackers
        self.batches = PeekableBatches(run.batches())
        self.stopped_by: str | None = None
        """Why the session stops, as in TrainResult; a hook that sets it ends the session after the running step."""
        self.held_out: Score | None = None
        self.task_scores: dict[str, float] = {}
        self.cache_hit = False
        self._seconds: list[float] = []
        self._losses: deque[float] = deque(maxlen=20)

    def go(self) -> None:
        """Step until the run is complete or something stops it."""
        run, steps = self.run, self.run.config.train.steps
        for hook in self.hooks:
            hook.on_begin(self)
        while run.step < steps and not self.stopped_by:
            for hook in self.hooks:
                hook.on_data(self)
            batch = next(self.batches)
            for hook in self.hooks:
                hook.on_step_begin(self)
            record = self.one_step(batch)
            for hook in self.hooks:
                if hook.is_due(record):
                    hook.on_step_end(self, record)
        for hook in self.hooks:
            hook.on_stop(self)
        run.ranks.barrier()

    def one_step(self, batch: Batch) -> StepRecord:
        """Compute one step and increment the run's step counter."""
        run, config = self.run, self.run.config
        lr, scale = learning_rate(config, run.step), run.guard.scale
        began = time.perf_counter()
        with self._cached_first_step():
            result = run.train_step(batch, run.step, lr, scale, run.guard.loss_limit(config))
        self._seconds.append(time.perf_counter() - began)
        self._losses.append(result.loss)
        run.step += 1
        return StepRecord(run.step - 1, run.step == config.train.steps, lr, scale, result)

    @contextlib.contextmanager
    def _cached_first_step(self) -> Iterator[None]:
        """The first step compiles; within this context it uses the compile cache."""
        config, sections = self.run.config, config_to_dict(self.run.config)
        batch = (config.train.batch_size, config.train.accumulation_steps, self.run.train_step.in_one_graph)
        identity = {
            "graph": "train step",
            "model": sections["model"],
            "optimizer": sections["optimizer"],
            "batch": batch,
            "device": config.runtime.device,
            **self.run.model.graph_identity,
        }
        enabled = config.runtime.compile_cache and self.run.model.cacheable and not self._seconds
        with cached_compile(enabled, identity) as found:
            yield
            self.cache_hit = self.cache_hit or found

    def log(self, step: int, **values: float) -> None:
        """Give values of a step (0 is the first) to the trackers."""
        for tracker in self.trackers:
            tracker.log(step, values)

    def tokens_per_second(self, last: int = 20) -> float:
        """Tokens per second of all ranks, as the median over the last steps. The first step, which compiles, counts
        only if there is no other."""
        seconds = self._seconds[1:][-last:] or self._seconds
        return self.run.config.global_batch_size * self.run.config.model.seq_length / statistics.median(seconds)

    def speed(self) -> dict[str, float]:
        """The speed as fields of a heartbeat; empty before the first step."""
        return {"tokens_per_second": self.tokens_per_second()} if self._seconds else {}

    def result(self) -> TrainResult:
        """The summary of this session."""
        return TrainResult(
            output=self.run.output,
            step=self.run.step,
            loss=statistics.fmean(self._losses) if self._losses else None,
            held_out=self.held_out,
            tokens_per_second=self.tokens_per_second(len(self._seconds)) if self._seconds else 0.0,
            compile_seconds=self._seconds[0] if self._seconds else 0.0,
            cache_hit=self.cache_hit,
            skipped=self.run.guard.skipped,
            stopped_by=self.stopped_by,
            saved=self.run.saved,
            task_scores=self.task_scores,
        )
