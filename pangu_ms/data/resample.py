"""Multi-round training: draws the batches of the next round from those of the last round. The higher the loss of a
batch, the more likely it is drawn. No mindspore import.

Legend: N batches, B rows in a batch, M rows in an order.

Source: spec E2.4 (PanGu-pi Pro).
"""

import hashlib
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pangu_ms.core import files
from pangu_ms.core.errors import ConfigError, DataError
from pangu_ms.data.npz_file import read_npz, to_npz
from pangu_ms.data.records import RecordSet

_FINGERPRINT_ROWS = 1024
"""Number of rows that a fingerprint of records depends on. Reading them takes 0.1 s; hashing the files of a large
corpus at every start would take minutes."""


@dataclass(frozen=True)
class BatchLosses:
    """The loss of every batch of a round under the model that the round trained.

    Attributes:
        rows: int64 [N, B], row numbers of each batch in the records.
        loss: float32 [N], mean loss of each batch in nats per token.
        records: fingerprint of the records.
        checkpoint: fingerprint of the checkpoint.
        made_by: JSON object that says how the losses were computed.
    """

    rows: np.ndarray
    loss: np.ndarray
    records: str
    checkpoint: str
    made_by: str

    def save(self, path: Path) -> None:
        """Write the losses as an .npz file."""
        files.write_new(path, to_npz(asdict(self)))

    @classmethod
    def load(cls, path: Path) -> "BatchLosses":
        """Read what `save` wrote.

        Raises:
            DataError: `save` did not write this file, or it is damaged.
        """
        found = cls(**read_npz(path, cls.__annotations__, "name a file that `pangu data losses` wrote")[0])
        if not found._has_form():
            raise DataError(
                f"{path}: rows and loss must be int64 [N, B] and N finite numbers; make it again with `pangu data"
                " losses`"
            )
        return found

    def _has_form(self) -> bool:
        """Whether the fields have the types and shapes that the class describes."""
        if not (_is_array(self.rows, "i", 2) and _is_array(self.loss, "f", 1)):
            return False
        if not (self.rows.size and len(self.rows) == len(self.loss)):
            return False
        texts = _is_text(self.records, self.checkpoint, self.made_by)
        return texts and bool(self.rows.min() >= 0 and np.isfinite(self.loss).all())


@dataclass(frozen=True)
class OrderFile:
    """The content of an order file: the rows that the next round reads.

    Attributes:
        rows: int64 [M], row numbers of the records in the order in which they are read.
        batch_size: rows in each of the batches that were kept or dropped as a whole.
        records: fingerprint of the records.
        made_by: JSON object that says how the rows were drawn.
    """

    rows: np.ndarray
    batch_size: int
    records: str
    made_by: str

    @classmethod
    def load(cls, path: str | Path) -> tuple["OrderFile", str]:
        """Read what `resample` wrote; returns the content and the hex SHA-256 of the file.

        Raises:
            DataError: the file is not an order file, or it is damaged.
        """
        fields, sha256 = read_npz(path, cls.__annotations__, "data.order names a file that `pangu data resample` wrote")
        found = cls(**fields)
        if not (
            _is_array(found.rows, "i", 1) and len(found.rows) and found.rows.min() >= 0 and _is_text(found.records)
        ):
            raise DataError(
                f"{path}: rows must be one or more numbers from 0 up, the rows of the records that it names; draw again"
            )
        return found, sha256


@dataclass(frozen=True)
class Order:
    """Which rows a run reads, and in which order.

    Attributes:
        rows: int64 [M]; None for all rows in file order.
        sha256: SHA-256 of the order file; "" without one.
    """

    rows: np.ndarray | None = None
    sha256: str = ""

    @classmethod
    def open(cls, path: str | Path, records: RecordSet) -> "Order":
        """Read an order file.

        Args:
            path: the file; "" means all rows in file order.
            records: the records that it must have been drawn from.

        Raises:
            DataError: the file is not an order file, is damaged, or was drawn from other records.
        """
        if not path:
            return cls()
        found, sha256 = OrderFile.load(path)
        if found.records != (own := fingerprint(records)):
            raise DataError(
                f"{path}: drawn from records {found.records[:12]}, {records.source} is {own[:12]}: must be the same; "
                "name the records of the earlier round, or draw again"
            )
        if found.rows.max() >= records.num_rows:
            raise DataError(
                f"{path}: rows must be one or more numbers in [0, {records.num_rows}), the rows of {records.source};"
                " draw again"
            )
        return cls(found.rows, sha256)

    def require_unchanged(self, state: dict[str, Any], where: str) -> None:
        """Check that this is the order that a run was trained with.

        Args:
            state: the state of the run's checkpoint; its "order" is the SHA-256 of the order file, or "" or absent for
                all rows.
            where: what the error message begins with.

        Raises:
            ConfigError: the run was trained with another order file, or only one of the two has an order file.
        """
        was = str(state.get("order", ""))
        if was != self.sha256:
            now, then = (text[:12] or "none" for text in (self.sha256, was))
            raise ConfigError(
                f"{where}: its SHA-256 is {now}, was {then} in training: must be the same file; restore it, or begin a"
                " new run"
            )


def fingerprint(records: RecordSet) -> str:
    """Hex SHA-256 of the number of rows, their length and up to 1,024 evenly spaced rows. A copy of the records has the
    same fingerprint."""
    numbers = np.unique(np.linspace(0, records.num_rows - 1, _FINGERPRINT_ROWS).astype(np.int64))
    rows = np.ascontiguousarray(records.read_rows(numbers), "<i4")
    return hashlib.sha256(f"{records.num_rows} {records.row_length} ".encode() + rows.tobytes()).hexdigest()


def sample_batches(loss: np.ndarray, keep: float, seed: int, temperature: float = 1.0) -> np.ndarray:
    """Draw round(keep * N) of N batches without replacement.

    Each draw takes one of the remaining batches with a probability proportional to exp(loss / temperature). The
    implementation is the Gumbel top-k trick: the k batches with the largest loss / temperature + Gumbel noise have the
    same distribution as k such draws.

    Args:
        loss: [N], finite, nats per token.
        keep: share of the batches, in (0, 1].
        seed: seed of the noise.
        temperature: in nats; a higher value makes the draw more uniform.

    Returns:
        Numbers of the drawn batches, ascending: int64 [round(keep * N)].

    Raises:
        DataError: a value is outside its range, or nothing would be kept.

    Source: spec E2.4; Gumbel top-k, arXiv 1903.06059, section 2.3.
    """
    count = _number_kept(len(loss), keep, seed, temperature)
    noise = np.random.Generator(np.random.Philox(seed)).gumbel(size=len(loss))
    scores = np.asarray(loss, np.float64) / temperature + noise
    return np.sort(np.argsort(-scores, kind="stable")[:count])


def effective_batches(loss: np.ndarray, temperature: float = 1.0) -> float:
    """The effective number of batches: the perplexity of softmax(loss / temperature), between 1 and N.

    The first draw of `sample_batches` is as uncertain as a draw among this number of equally likely batches.
    """
    logits = np.asarray(loss, np.float64) / temperature
    log_p = logits - logits.max()
    log_p -= np.log(np.exp(log_p).sum())
    return math.exp(-(np.exp(log_p) * log_p).sum())


def resample(
    losses: str | Path, keep: float, seed: int, output: str | Path, temperature: float = 1.0
) -> dict[str, Any]:
    """Draw the batches of the next round and write their rows as an order file, for the setting data.order.

    The batches that are kept stay in the order in which the earlier round read them.

    Args:
        losses: a file that `BatchLosses.save` wrote.
        keep, seed, temperature: as in `sample_batches`.
        output: new file.

    Returns:
        A dict with these keys. batches, kept: number of batches before and after the draw. rows: number of rows in the
        kept batches. mean_loss_kept, mean_loss_dropped: nats per token; the second is None if nothing is dropped.
        effective_batches: see the function of that name. effective_share: effective_batches divided by `batches`; 1
            means that at this temperature all losses are alike.

    Raises:
        DataError: a value is outside its range, or the file is damaged.
        OutputError: `output` exists or cannot be written.
    """
    files.require_new(Path(output))
    found = BatchLosses.load(Path(losses))
    kept = sample_batches(found.loss, keep, seed, temperature)
    dropped = np.delete(found.loss, kept)
    made_by: dict[str, Any] = {"losses": str(losses), "losses_sha256": files.sha256_file(Path(losses))}
    made_by |= {"checkpoint": found.checkpoint, "keep": keep, "seed": seed, "temperature": temperature}
    order = OrderFile(found.rows[kept].reshape(-1), found.rows.shape[1], found.records, json.dumps(made_by))
    files.write_new(Path(output), to_npz(asdict(order)))
    effective = effective_batches(found.loss, temperature)
    return {
        "batches": len(found.loss),
        "kept": len(kept),
        "rows": len(order.rows),
        "mean_loss_kept": found.loss[kept].mean(dtype=np.float64).item(),
        "mean_loss_dropped": dropped.mean(dtype=np.float64).item() if dropped.size else None,
        "effective_batches": effective,
        "effective_share": effective / len(found.loss),
    }


def _is_array(value: Any, kind: str, ndim: int) -> bool:
    return isinstance(value, np.ndarray) and value.dtype.kind == kind and value.ndim == ndim


def _is_text(*values: Any) -> bool:
    return all(isinstance(value, str) for value in values)


def _number_kept(total: int, keep: float, seed: int, temperature: float) -> int:
    if not 0 < keep <= 1:
        raise DataError(f"keep={keep}: must be in (0, 1], the share of batches to keep; use e.g. 0.5")
    if not 1e-6 <= temperature <= 1e6:
        raise DataError(f"temperature={temperature}: must be in [1e-6, 1e6]; 1 draws in proportion to exp(loss)")
    if seed < 0:
        raise DataError(f"seed={seed}: must not be negative; use e.g. 1")
    if not round(keep * total):
        raise DataError(f"keep={keep}: keeps none of {total} batches; use a larger share or smaller batches")
    return round(keep * total)
