"""Computes the loss of every batch of a finished training round, with the model that the round produced.
`data.resample` uses these losses to draw the batches of the next round.

Source: spec E2.4.
"""

import json
import math
import time
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from pangu_ms.checkpoint import store
from pangu_ms.config.schema import RunConfig
from pangu_ms.core import files, small_json
from pangu_ms.core.errors import DataError
from pangu_ms.core.progress import progress_bar
from pangu_ms.data.loader import Loader
from pangu_ms.data.npz_file import read_npz, to_npz
from pangu_ms.data.records import RecordSet
from pangu_ms.data.resample import BatchLosses, Order, fingerprint
from pangu_ms.eval.perplexity import Evaluator

SAVE_SECONDS = 5.0
"""Seconds between saves. A killed process loses only the losses computed since the last save."""


def batch_losses(
    checkpoint: store.Checkpoint,
    records: Path | str,
    output: Path | str,
    batch_size: int | None = None,
    config: RunConfig | None = None,
    progress: bool = True,
) -> BatchLosses:
    """Score the batches of the first epoch of a checkpoint's run, and write the losses to `output`.

    All batches of the epoch are scored, even if the run ended before it had read them. Their rows are in the order of
    the run's data.seed, data.shuffle and data.order; rows that do not fill a last batch are left out. The losses
    computed so far are kept in OUTPUT.partial; after an interruption the same call resumes from them.

    Args:
        checkpoint: the run's last checkpoint.
        records: the records that the run was trained on.
        output: new .npz file.
        batch_size: rows B in a batch; by default the run's train.batch_size.
        config: as in `eval.report.evaluate`.
        progress: show a bar.

    Raises:
        DataError: the records do not fit the model or have too few rows for a batch, the run mixed domains and so has
            no common epoch, a loss is not finite, or OUTPUT.partial was begun with other settings.
        ConfigError: the run's order file is not the one it was trained with.
        CheckpointError: names or shapes of the tensors are not those of the checkpoint's configuration.
        OutputError: `output` exists or cannot be written.
    """
    files.require_new(Path(output))
    config = config or checkpoint.config()
    batch_size = config.train.batch_size if batch_size is None else batch_size
    record_set, loader = _open(checkpoint, records, batch_size, config)
    total = loader.num_rows // batch_size
    identity = _identity(checkpoint, record_set, batch_size, config)
    partial = Partial.open(Path(f"{output}.partial"), identity)
    if len(partial.losses) < total:
        with partial:
            _score(partial, total, loader, Evaluator.load(checkpoint, config), progress)
    rows = loader.epoch_rows(0)[: total * batch_size].reshape(total, batch_size)
    made_by = identity | {
        "path": str(checkpoint.path),
        "step": checkpoint.step,
        "dropped_rows": loader.num_rows - rows.size,
    }
    found = BatchLosses(
        rows, np.array(partial.losses, np.float32), identity["records"], identity["checkpoint"], json.dumps(made_by)
    )
    found.save(Path(output))
    partial.path.unlink()
    return found


def _identity(
    checkpoint: store.Checkpoint, record_set: RecordSet, batch_size: int, config: RunConfig
) -> dict[str, Any]:
    """Everything that the losses depend on."""
    return {
        "records": fingerprint(record_set),
        "checkpoint": files.sha256_json(checkpoint.manifest),
        "batch_size": batch_size,
        "compute_dtype": config.model.compute_dtype,
        "device": config.runtime.device,
    }


def _open(
    checkpoint: store.Checkpoint, records: Path | str, batch_size: int, config: RunConfig
) -> tuple[RecordSet, Loader]:
    """Open and check the records, and make the same loader that the run trained with."""
    data = config.data
    if data.mixture or data.samples_per_domain:
        field = "mixture" if data.mixture else "samples_per_domain"
        raise DataError(
            f"{checkpoint.path}: trained with data.{field}; the batches of an epoch are scored, and with it each domain"
            " has epochs of its own; score a run without it"
        )
    record_set = RecordSet.open(records, "train")
    record_set.check(config.model, checkpoint.tokenizer())
    order = Order.open(data.order, record_set)
    order.require_unchanged(checkpoint.state(), f"{checkpoint.path}: data.order={data.order}")
    num_rows = record_set.num_rows if order.rows is None else len(order.rows)
    if not 1 <= batch_size <= num_rows:
        raise DataError(
            f"batch_size={batch_size}: must be in [1, {num_rows}], the rows of the round; name one with --batch-size"
        )
    return record_set, Loader.of(record_set, config, batch_size, order=order.rows)


def _score(partial: "Partial", total: int, loader: Loader, evaluator: Evaluator, progress: bool) -> None:
    """Score the batches whose losses `partial` does not hold yet."""
    done = len(partial.losses)
    batches = islice(loader.batches(done), total - done)
    scores = evaluator.each(
        progress_bar(progress, iterable=batches, total=total, initial=done, desc="losses", unit="batch")
    )
    for score in scores:
        partial.add(score.loss)


@dataclass
class Partial:
    """The losses computed so far. The file is rewritten every few seconds and at the end of the `with` block, even
    after an exception.

    Attributes:
        path: OUTPUT.partial.
        identity: JSON object with everything that the losses depend on.
        losses: nats per token of the batches scored so far, in order, rounded to float32.
    """

    path: Path
    identity: str
    losses: list[float]
    saved_at: float = 0.0

    @classmethod
    def open(cls, path: Path, identity: dict[str, Any]) -> "Partial":
        """Read the file of an earlier call, or make a new one.

        Raises:
            DataError: the file was begun with another checkpoint, records or settings, or is damaged.
        """
        found = cls(path, json.dumps(identity, sort_keys=True), [])
        if path.exists():
            fields, _ = read_npz(path, ("identity", "losses"), "remove it to begin anew")
            if fields["identity"] != found.identity:
                raise DataError(
                    f"{path}: begun with {_difference(fields['identity'], identity)}; repeat that command, name another"
                    " --output, or remove it"
                )
            losses = fields["losses"]
            has_form = isinstance(losses, np.ndarray) and losses.dtype == np.float32 and losses.ndim == 1
            if not (has_form and np.isfinite(losses).all()):
                raise DataError(
                    f"{path}: its losses are no row of finite numbers of float32; it is damaged; remove it to begin"
                    " anew"
                )
            found.losses = losses.tolist()
        found.save()  # a path that cannot be written fails here, before the scoring
        return found

    def add(self, loss: float) -> None:
        """Append the loss of the next batch.

        Raises:
            DataError: the loss is not finite.
        """
        if not math.isfinite(loss):
            raise DataError(
                f"{self.path}: batch {len(self.losses)}: loss {loss}: must be finite; use model.compute_dtype=float32"
                " or another checkpoint"
            )
        self.losses.append(loss)
        if time.monotonic() - self.saved_at > SAVE_SECONDS:
            self.save()

    def save(self) -> None:
        """Rewrite the file with the losses computed so far."""
        files.write_bytes(self.path, to_npz({"identity": self.identity, "losses": np.array(self.losses, np.float32)}))
        self.saved_at = time.monotonic()

    def __enter__(self) -> "Partial":
        return self

    def __exit__(self, *exception: object) -> None:
        self.save()


def _difference(stored: str, identity: dict[str, Any]) -> str:
    """The settings in which an earlier call differs from this one, for an error message."""
    try:
        was = small_json.parse_object(stored)
    except (TypeError, ValueError):
        return "nothing that this version knows"
    different = {name: value for name, value in identity.items() if was.get(name) != value}
    return ", ".join([f"{name} {str(was.get(name))[:12]} (now {str(now)[:12]})" for name, now in different.items()])
