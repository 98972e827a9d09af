"""Held-out perplexity of a checkpoint, beside unigram and bigram models counted on the training records."""

import math
from pathlib import Path
from typing import Any

from pangu_ms import runtime
from pangu_ms.checkpoint import store
from pangu_ms.compile_cache import cached_compile
from pangu_ms.config.load import config_to_dict
from pangu_ms.data.records import RecordSet
from pangu_ms.data.tokenizer import Tokenizer
from pangu_ms.eval.ngram import NgramModels
from pangu_ms.eval.perplexity import Evaluator, sequential_batches
from pangu_ms.models.build import build_model, fill
from pangu_ms.progress import progress_bar

COUNTING_ROWS = 4096  # rows per merge of the n-gram counts


def evaluate(checkpoint: store.Checkpoint, records: Path | str, split: str, batch_size: int, max_batches: int = 0, progress: bool = True) -> dict[str, Any]:
    """Score one split of the records.

    Returns step, tokens, loss (nats per token), perplexity and, where the manifest tells the split's size in bytes, bits per byte.
    """
    config = checkpoint.config()
    held_out = RecordSet.open(records, split)
    tokenizer = checkpoint.tokenizer_path()
    held_out.check(config.model, tokenizer and Tokenizer.load(tokenizer), evaluation=True)
    runtime.start(config.runtime.device)
    weights = checkpoint.tensors("model")
    store.check_names_and_shapes(str(checkpoint.path), weights, config.model.parameter_shapes())
    model = build_model(config.model)
    fill(model.trainable_params(), weights)
    evaluator = Evaluator(model, config.model)
    batches = list(sequential_batches(held_out, batch_size, config.data.eod_reset, max_batches))
    identity = {"graph": "evaluate", "model": config_to_dict(config)["model"], "batch_size": batch_size, "device": config.runtime.device}
    with cached_compile(config.runtime.compile_cache, identity):
        first = evaluator.score(batches[:1])
    rest = evaluator.score(progress_bar(progress, iterable=batches[1:], desc="evaluate", unit="batch"))
    total, tokens = first.total_nats + rest.total_nats, first.num_tokens + rest.num_tokens
    result = {"step": checkpoint.step, "split": split, "tokens": int(tokens), "loss": total / tokens, "perplexity": math.exp(total / tokens)}
    if held_out.manifest and not max_batches:
        result["bits_per_byte"] = total / math.log(2) / held_out.manifest["splits"][split]["bytes"]
    return result


def baselines(records: Path | str, split: str, vocab_size: int, batch_size: int, max_batches: int = 0) -> dict[str, float]:
    """Perplexities of the unigram and the bigram model on the positions that `evaluate` scores."""
    train_set, held_out = RecordSet.open(records, "train"), RecordSet.open(records, split)
    models = NgramModels.count(sequential_batches(train_set, COUNTING_ROWS, False), vocab_size)
    unigram, bigram, tokens = models.score(sequential_batches(held_out, batch_size, False, max_batches))
    return {"unigram_perplexity": math.exp(unigram / tokens), "bigram_perplexity": math.exp(bigram / tokens)}
