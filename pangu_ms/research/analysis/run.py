"""Runs a checkpoint's model over records and measures the features of each layer."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from pangu_ms.checkpoint import store
from pangu_ms.checkpoint.model import checkpoint_config, load_model
from pangu_ms.config.schema import RunConfig
from pangu_ms.core import runtime
from pangu_ms.core.errors import CheckpointError, DataError
from pangu_ms.core.progress import progress_bar
from pangu_ms.data.loader import batch_rows, num_batches, sequential_batches
from pangu_ms.data.records import RecordSet
from pangu_ms.models.common.batch import Batch
from pangu_ms.models.common.config import ModelConfig
from pangu_ms.research.analysis.collapse import LayerDiversity
from pangu_ms.research.analysis.experts import load_report


@dataclass(frozen=True)
class Subject:
    """A checkpoint and the records to run it on, checked against each other."""

    checkpoint: store.Checkpoint
    config: RunConfig
    records: RecordSet

    @classmethod
    def open(cls, checkpoint: Path | str, records: Path | str, split: str, overrides: Sequence[str] = ()) -> "Subject":
        """Open a checkpoint and records and start MindSpore on the checkpoint's device. Weights are not read yet.

        Raises:
            CheckpointError: there is no valid checkpoint.
            ConfigError: an override would make another model, or the device is missing.
            DataError: the records do not fit the model.
        """
        found = store.open_checkpoint(Path(checkpoint))
        config = checkpoint_config(found, overrides)
        record_set = RecordSet.open(records, split)
        record_set.check(config.model, found.tokenizer(), evaluation=True)
        runtime.start(config.runtime.device)
        return cls(found, config, record_set)

    def model(self) -> nn.Cell:
        """The checkpoint's model with its weights.

        Raises:
            CheckpointError: names or shapes of the tensors are not those of the checkpoint's configuration.
        """
        return load_model(self.checkpoint, self.config)


class HiddenStates(nn.Cell):
    """The embedding output and the output of each layer of a batch."""

    def __init__(self, model: nn.Cell):
        super().__init__(auto_prefix=False)
        self.model, self.cast = model, ops.Cast()
        self.set_train(False)

    def construct(self, ids_BS, positions_BS, segments_BS, *extra):
        """Compute the states of a batch.

        Args:
            ids_BS, positions_BS, segments_BS: int32.
            extra: the family's extra inputs.

        Returns:
            num_layers + 1 states, float32 [B, S, E]. They are cast to float32, since numpy has no bfloat16.
        """
        states = self.model.hidden_states(ids_BS, positions_BS, segments_BS, *extra)
        return tuple([self.cast(x_BSE, ms.float32) for x_BSE in states])

    def of(self, batch: Batch) -> list[np.ndarray]:
        """The states of a batch as numpy arrays."""
        inputs = batch.ids[:, :-1], batch.positions, batch.segments, *batch.extra.values()
        return [state.asnumpy() for state in self(*(Tensor(np.ascontiguousarray(array)) for array in inputs))]


def collapse(
    subject: Subject, batch_size: int = 8, max_batches: int = 8, share: float = 0.8, progress: bool = True
) -> dict[str, Any]:
    """Measure the diversity of each layer's features over the first batches of a split.

    The same tokens are used as in evaluation: all but padding and ends of documents. With `data.eod_reset`, attention
    and positions restart after each document, but a row with several documents is still one sequence.

    Args:
        subject: checkpoint and records.
        batch_size: rows per batch. All states of a batch are in memory at once: (num_layers + 1) * B * S * E float32.
        max_batches: batches to measure; 0 takes all.
        share: share of the variance, for the effective dimension.
        progress: show a bar.

    Returns:
        A dict with step, family and hidden_size; tokens and sequences (how many were measured); share; and layers, a
        list of dicts with layer (0 is the embedding), name and the measures of `LayerDiversity.result`.

    Raises:
        ConfigError, DataError: the share or a size is out of range; or no sequence has two unmasked tokens.
        CheckpointError: a feature is not finite, or names or shapes are not those of the configuration.
    """
    config, records = subject.config, subject.records
    total = num_batches(records, batch_size, max_batches)
    layers = [LayerDiversity(config.model.hidden_size, share) for _ in range(config.model.num_layers + 1)]
    model = subject.model()
    states, names = HiddenStates(model), state_names(config.model)
    batches = sequential_batches(records, batch_size, config.data.eod_reset, max_batches, config.model)
    for batch in progress_bar(
        progress, iterable=batches, total=total, desc=f"analyze step {subject.checkpoint.step}", unit="batch"
    ):
        for layer, name, features in zip(layers, names, states.of(batch), strict=True):
            _require_finite(features[batch.loss_mask != 0], f"{subject.checkpoint.path}: {name}")
            layer.update(features, batch.loss_mask)
    if not layers[0].num_sequences:
        raise DataError(
            f"{records.source}: 0 sequences with two tokens that count: must be at least 1; take more batches, or"
            " prepare again from more text"
        )
    return {
        "step": subject.checkpoint.step,
        "family": config.model.family,
        "hidden_size": config.model.hidden_size,
        "tokens": layers[0].num_tokens,
        "sequences": layers[0].num_sequences,
        "share": share,
        "layers": [{"layer": i, "name": name} | layer.result() for i, (name, layer) in enumerate(zip(names, layers))],
    }


class ChosenExperts(nn.Cell):
    """The experts that each token of a batch goes to, for a model with routers."""

    def __init__(self, model: nn.Cell):
        super().__init__(auto_prefix=False)
        self.model = model
        self.set_train(False)

    def construct(self, ids_BS, positions_BS, segments_BS):
        """The experts of each token in each layer: num_layers tensors int32 [B * S, C]."""
        return self.model.chosen_experts(ids_BS, positions_BS, segments_BS)

    def of(self, batch: Batch) -> list[np.ndarray]:
        """The experts of a batch as numpy arrays."""
        inputs = batch.ids[:, :-1], batch.positions, batch.segments
        return [chosen.asnumpy() for chosen in self(*(Tensor(np.ascontiguousarray(array)) for array in inputs))]


def routed_load(subject: Subject, batch_size: int = 8, max_batches: int = 8, progress: bool = True) -> dict[str, Any]:
    """Count the tokens that the routers of a model send to each expert, over the first batches of each domain.

    The same tokens are used as in evaluation: all but padding and ends of documents.

    Args:
        subject: checkpoint and records.
        batch_size, max_batches: see `data.loader.batch_rows`.
        progress: show a bar.

    Returns:
        See `load_report`. A token counts for each of the experts that it goes to.

    Raises:
        DataError: a size is out of range.
        CheckpointError: names or shapes are not those of the configuration.
    """
    config, records, names = subject.config, subject.records, subject.records.domain_names
    of_batches = [domain for domain, _ in batch_rows(records, batch_size, max_batches)]
    tokens = dict.fromkeys(names, 0)
    size = config.model.num_experts
    loads = {layer: np.zeros((len(names), size), np.int64) for layer in range(config.model.num_layers)}
    experts = ChosenExperts(subject.model())
    batches = sequential_batches(records, batch_size, config.data.eod_reset, max_batches, config.model)
    shown = progress_bar(progress, iterable=batches, total=len(of_batches), desc="analyze", unit="batch")
    for domain, batch in zip(of_batches, shown):
        counts = batch.loss_mask.reshape(-1) != 0
        tokens[domain] += int(counts.sum())
        for layer, chosen_TC in enumerate(experts.of(batch)):
            loads[layer][names.index(domain)] += np.bincount(chosen_TC[counts].reshape(-1), minlength=size)
    report = load_report(config.model, tokens, loads, [range(size)] * len(names))
    return {"step": subject.checkpoint.step} | report


def state_names(model: ModelConfig) -> list[str]:
    """Names of the hidden states: the embedding, then the layers, counted from 1; a layer with a special name, such as
    alpha's query layer, keeps this name."""
    names = ["embedding"]
    for i, name in enumerate(model.layer_names()):
        names.append(f"layer {i + 1}" if name == f"blocks.{i}" else name.replace("_", " "))
    return names


def _require_finite(features: np.ndarray, where: str) -> None:
    if not np.isfinite(features).all():
        raise CheckpointError(
            f"{where}: features that are not finite: all must be; use model.compute_dtype=float32, or another"
            " checkpoint"
        )
