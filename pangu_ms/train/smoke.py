"""Shrinks a cluster's configuration to CPU processes, to test everything around the model. No mindspore import."""

import dataclasses
import json
from typing import Any

from pangu_ms.config.parallel import ParallelConfig
from pangu_ms.config.schema import RunConfig

HIDDEN_SIZE, NUM_LAYERS, NUM_HEADS, HEAD_DIM, SEQ_LENGTH, VOCAB_SIZE = 64, 2, 4, 16, 64, 512
LARGEST_GROUP = 8  # most query heads that share a key/value head
STEPS, BATCH_SIZE, EVAL_BATCHES = 5, 2, 2


def smoke_overrides(config: RunConfig, num_ranks: int = 2, own_records: bool = False) -> list[str]:
    """Overrides that reduce any configuration to a few steps of a tiny model of its family, on `num_ranks` replicas on
    a CPU.

    The family's special parts, dropout, the optimizer and the reading of data stay as they are; sizes, parallel degrees
    and the dtype change.

    Args:
        config: as the user wrote it, overrides included.
        num_ranks: processes, each with BATCH_SIZE sequences.
        own_records: the user has records, so that the sizes of vocabulary and sequence are kept.
    """
    sections = {
        "model": _model(config, own_records),
        "train": _train(config, own_records),
        "parallel": _parallel(config, num_ranks),
        "runtime": {"device": "CPU"},
    }
    if not own_records:  # the default records' tokenizer is trained on code
        sections["tokenizer"] = {"vocab_size": sections["model"]["vocab_size"], "segmenter": "none"}
        if config.data.mixture or config.data.samples_per_domain:  # of domains that the default records lack
            sections["data"] = {"mixture": {}, "samples_per_domain": {}}
    return [
        f"{section}.{field}={json.dumps(value)}"
        for section, fields in sections.items()
        for field, value in fields.items()
    ]


def _model(config: RunConfig, own_records: bool) -> dict[str, Any]:
    model = config.model
    fields: dict[str, Any] = {"hidden_size": HIDDEN_SIZE, "num_layers": NUM_LAYERS, "compute_dtype": "float32"}
    fields["ffn_hidden_size"] = max(8, round(HIDDEN_SIZE / 8 * model.ffn_hidden_size / model.hidden_size) * 8)
    group = min(model.num_heads // model.num_kv_heads, LARGEST_GROUP)
    kv_heads = max(1, NUM_HEADS // group)
    fields |= {"num_heads": group * kv_heads, "num_kv_heads": kv_heads, "head_dim": HEAD_DIM}
    fields |= model.fields_for_hidden_size(HIDDEN_SIZE) | model.fields_for_num_layers(NUM_LAYERS)
    fields |= model.fields_for_smoke_run(HIDDEN_SIZE)
    if not own_records:
        fields |= {"vocab_size": VOCAB_SIZE, "seq_length": min(SEQ_LENGTH, model.seq_length)}
    return {name: value for name, value in fields.items() if name in model.field_names()}


def _train(config: RunConfig, own_records: bool) -> dict[str, Any]:
    train = config.train
    fields = {"steps": min(STEPS, train.steps)}
    if not (own_records and config.data.samples_per_domain):  # whose sum is the batch size
        accumulation_steps = min(BATCH_SIZE, train.accumulation_steps)
        fields |= {"batch_size": BATCH_SIZE, "accumulation_steps": accumulation_steps}
    fields |= {"eval_batches": min(EVAL_BATCHES, train.eval_batches), "save_every": 0, "eval_every": 0}
    return fields | {"eval_tasks": []}


def _parallel(config: RunConfig, num_ranks: int) -> dict[str, Any]:
    changed = {
        f.name: f.default for f in dataclasses.fields(ParallelConfig) if getattr(config.parallel, f.name) != f.default
    }
    return changed | {"data_parallel": num_ranks}
