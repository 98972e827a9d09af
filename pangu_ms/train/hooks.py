"""Hooks that the loop calls around its steps: metrics, the guard, stopping, checkpoints, evaluation. They handle no
tensors."""

from typing import TYPE_CHECKING, Any

from pangu_ms.config.schema import TrainConfig
from pangu_ms.core.errors import TrainingDiverged
from pangu_ms.core.heartbeat import DATA, STEP, beat
from pangu_ms.train.stop import StopSignal

if TYPE_CHECKING:
    from pangu_ms.train.loop import StepRecord, TrainLoop

STOP_AT = "stop_at"
"""TrainResult.stopped_by of a session that --stop-at ended."""


class Hook:
    """Base class of hooks: the loop calls the methods below at fixed points; a hook overrides those that it needs."""

    every: int = 1
    """Number of optimizer steps between calls of `on_step_end`; 0 if it is never called."""

    def is_due(self, record: "StepRecord") -> bool:
        """Whether `on_step_end` is called after a step."""
        return self.every > 0 and record.steps_done % self.every == 0

    def on_begin(self, loop: "TrainLoop") -> None:
        """Before the first step of this session, if there is one."""

    def on_data(self, loop: "TrainLoop") -> None:
        """Before a batch is read."""

    def on_step_begin(self, loop: "TrainLoop") -> None:
        """Before a step is computed."""

    def on_step_end(self, loop: "TrainLoop", record: "StepRecord") -> None:
        """After a step, which `loop.run.step` already counts."""

    def on_stop(self, loop: "TrainLoop") -> None:
        """After the last step of this session: the run is complete, or `loop.stopped_by` says why not."""


class SendHeartbeat(Hook):
    """Tells the launcher what this rank is about to do; the launcher takes a rank without heartbeats for hung."""

    def on_data(self, loop: "TrainLoop") -> None:
        """See Hook."""
        beat(DATA, loop.run.step, **loop.speed())

    def on_step_begin(self, loop: "TrainLoop") -> None:
        """See Hook."""
        beat(STEP, loop.run.step, **loop.speed())


class LogMetrics(Hook):
    """Logs every `every`-th step, from the first on, and every skipped step to the trackers."""

    def __init__(self, every: int):
        self.every = every

    def is_due(self, record: "StepRecord") -> bool:
        """See Hook."""
        return record.step % self.every == 0 or not record.result.applied

    def on_step_end(self, loop: "TrainLoop", record: "StepRecord") -> None:
        """See Hook."""
        values = {
            "loss": record.result.loss,
            "grad_norm": record.result.grad_norm,
            "lr": record.lr,
            "loss_scale": record.loss_scale,
            "skipped": int(not record.result.applied),
        } | record.result.metrics
        loop.log(record.step, **values, tokens_per_second=loop.tokens_per_second(1))


class UpdateGuard(Hook):
    """Records every step with the guard, which ends a run that only skips steps."""

    def on_step_end(self, loop: "TrainLoop", record: "StepRecord") -> None:
        """See Hook.

        Raises:
            TrainingDiverged: guard.max_skipped steps in a row were skipped.
        """
        result = record.result
        loop.run.guard.record(loop.run.config, record.steps_done, result.loss, result.grad_norm, result.applied)


class ShowProgress(Hook):
    """Advances a progress bar."""

    def __init__(self, bar: Any):
        self._bar = bar

    def on_step_end(self, loop: "TrainLoop", record: "StepRecord") -> None:
        """See Hook."""
        self._bar.update()
        loss, speed = f"{record.result.loss:.3f}", f"{loop.tokens_per_second():,.0f}"
        self._bar.set_postfix(loss=loss, tokens_per_s=speed, refresh=False)


class StopOnSignal(Hook):
    """Ends the session after a signal that any rank received, or after step `stop_at`."""

    def __init__(self, signal: StopSignal, stop_at: int | None):
        self._signal, self._stop_at = signal, stop_at

    def on_begin(self, loop: "TrainLoop") -> None:
        """See Hook: a signal that came during initialisation ends the session before its first step."""
        # a barrier of all ranks, so that all stop at the same step
        loop.stopped_by = loop.run.ranks.barrier(self._signal.received) or self._reached(loop)

    def on_step_end(self, loop: "TrainLoop", record: "StepRecord") -> None:
        """See Hook."""
        self.on_begin(loop)

    def _reached(self, loop: "TrainLoop") -> str | None:
        run = loop.run
        return STOP_AT if self._stop_at and self._stop_at <= run.step < run.config.train.steps else None


class SaveCheckpoint(Hook):
    """Commits a checkpoint every `every` steps and at the end of the session."""

    def __init__(self, every: int):
        self.every = every

    def on_step_end(self, loop: "TrainLoop", record: "StepRecord") -> None:
        """See Hook."""
        loop.run.save(loop.batches)

    def on_stop(self, loop: "TrainLoop") -> None:
        """See Hook.

        Raises:
            TrainingDiverged: the last step has no checkpoint, since the losses after it are bad.
        """
        run = loop.run
        run.save(loop.batches)
        # After a signal this is no error: the run is expected to be resumed.
        if run.saved != run.step and loop.stopped_by in (None, STOP_AT):
            raise TrainingDiverged(f"step {run.step}: is the last one, and the losses after it are bad")


class EvaluateHeldOut(Hook):
    """Scores the held-out records every `every` steps, and when the run is complete."""

    def __init__(self, every: int):
        self.every = every

    def is_due(self, record: "StepRecord") -> bool:
        """See Hook: the last step of the run is left to `on_stop`."""
        return super().is_due(record) and not record.is_last

    def on_step_end(self, loop: "TrainLoop", record: "StepRecord") -> None:
        """See Hook."""
        self._evaluate(loop)

    def on_stop(self, loop: "TrainLoop") -> None:
        """See Hook."""
        if loop.run.step == loop.run.config.train.steps:
            self._evaluate(loop)

    def _evaluate(self, loop: "TrainLoop") -> None:
        score = loop.held_out = loop.run.evaluate()
        if score:
            by_domain = {f"held_out_loss/{domain}": own.loss for domain, own in score.domains.items()}
            loop.log(loop.run.step - 1, held_out_loss=score.loss, held_out_perplexity=score.perplexity, **by_domain)


class EvaluateTasks(EvaluateHeldOut):
    """Scores the model on benchmark tasks, likewise."""

    def _evaluate(self, loop: "TrainLoop") -> None:
        if scores := loop.run.score_tasks():
            loop.task_scores = scores
            loop.log(loop.run.step - 1, **scores)


def default_hooks(train: TrainConfig, signal: StopSignal, stop_at: int | None, bar: Any) -> list[Hook]:
    """The hooks of `pangu train`, in the order in which the loop calls them."""
    return [
        SendHeartbeat(),
        # Before the guard, which may end the run, so that the step that ends it is logged.
        LogMetrics(train.log_every),
        # Before checkpoints, which hold its state.
        UpdateGuard(),
        ShowProgress(bar),
        # A barrier of all ranks after each step, before rank 0 saves or evaluates. All ranks stop after the same step,
        # whose checkpoint `SaveCheckpoint.on_stop` commits. A later signal counts after the next step.
        StopOnSignal(signal, stop_at),
        # Before the evaluation, so that a run that is killed during it has lost nothing.
        SaveCheckpoint(train.save_every),
        EvaluateHeldOut(train.eval_every),
        EvaluateTasks(train.eval_tasks_every),
    ]
