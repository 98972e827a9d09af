"""Compares a quantized checkpoint with the one it was made from, on the same records. mindspore is imported when the
models are loaded, after all checks."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pangu_ms.checkpoint import store
from pangu_ms.core.errors import CheckpointError
from pangu_ms.core.progress import progress_bar
from pangu_ms.data.domains import require_known
from pangu_ms.data.loader import batch_rows, require_batches, sequential_batches
from pangu_ms.data.records import RecordSet


class Comparison:
    """What a checkpoint says about records, for comparison with what another says."""

    def __init__(
        self,
        checkpoint: store.Checkpoint,
        records: Path | str,
        split: str = "held_out",
        batch_size: int = 4,
        max_batches: int = 0,
        progress: bool = True,
    ):
        """Open the records; the arguments are those of `eval.report.evaluate`.

        Raises:
            DataError: the records do not fit the model.
            CheckpointError: the checkpoint is quantized, so that nothing is there to compare with.
        """
        checkpoint.require_not_quantized()
        require_batches(batch_size, max_batches)
        self.checkpoint, self.split, self.progress = checkpoint, split, progress
        self.config = checkpoint.config()
        self.records = RecordSet.open(records, split)
        self.records.check(self.config.model, checkpoint.tokenizer(), evaluation=True)
        self.domains = self.records.domain_names
        require_known(self.records.source, self.domains, self.config.model, leave_out="option")
        self.batch_size, self.max_batches = batch_size, max_batches
        self.num_batches = len(batch_rows(self.records, batch_size, max_batches, self.domains))

    def measure(self, quantized: store.Checkpoint) -> dict[str, Any]:
        """Score both checkpoints.

        Returns:
            `tokens`, the number of tokens that were scored; `split`; `loss` (nats per token) and `perplexity`, both
            before and after; `same_likeliest`, the part of the tokens for which both find the same token the likeliest.
        """
        from pangu_ms.eval.perplexity import Score

        scores, same = [], 0.0
        expected: list[np.ndarray] = []
        for opened in (self.checkpoint, quantized):
            total = count = 0.0
            for number, (loss, choice, mask) in enumerate(self._each(opened)):
                total, count = total + float((loss * mask).sum(dtype=np.float64)), count + float(mask.sum())
                if opened is quantized:
                    same += float(((choice == expected[number]) * mask).sum())
                else:
                    expected.append(choice)
            if not np.isfinite(total):
                raise CheckpointError(
                    f"{opened.path}: the loss is {total}; it must be a number; use another checkpoint"
                )
            scores.append(Score(total, count))
        return {
            "tokens": int(scores[0].num_tokens),
            "split": self.split,
            "loss": [score.loss for score in scores],
            "perplexity": [score.perplexity for score in scores],
            "same_likeliest": same / scores[0].num_tokens if scores[0].num_tokens else 1.0,
        }

    def _each(self, checkpoint: store.Checkpoint) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Losses, likeliest tokens and mask of each batch, [B, S]."""
        import mindspore as ms

        from pangu_ms.eval.choices import LossAndChoice
        from pangu_ms.eval.perplexity import Evaluator
        from pangu_ms.models.common.loss import to_tensors

        config = self.config
        graph = LossAndChoice(Evaluator.load(checkpoint, config).loss.model)
        batches = sequential_batches(
            self.records, self.batch_size, config.data.eod_reset, self.max_batches, config.model, self.domains
        )
        name = checkpoint.quantized or "before"
        for batch in progress_bar(self.progress, iterable=batches, total=self.num_batches, desc=name, unit="batch"):
            loss, choice = graph(*to_tensors(batch), ms.Tensor(0, ms.int32))
            yield loss.asnumpy(), choice.asnumpy(), np.asarray(batch.arrays()[3], np.float32)
