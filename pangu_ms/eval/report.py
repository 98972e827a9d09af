"""Evaluates a checkpoint: held-out perplexity, and that of unigram and bigram models for comparison.

mindspore is imported when records are opened and the model is loaded, after all checks that need neither.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pangu_ms.checkpoint import store
from pangu_ms.config.schema import RunConfig
from pangu_ms.core.errors import CheckpointError, DataError
from pangu_ms.core.progress import progress_bar
from pangu_ms.data.domains import require_known
from pangu_ms.data.loader import batch_rows, num_batches, require_batches, sequential_batches
from pangu_ms.data.records import RecordSet
from pangu_ms.eval.ngram import NgramModels

if TYPE_CHECKING:
    from pangu_ms.eval.perplexity import Score

COUNTING_ROWS = 4096
"""Rows per batch while n-grams are counted; the counts are merged after each batch."""


def evaluate(
    checkpoint: store.Checkpoint,
    records: Path | str,
    split: str,
    batch_size: int,
    max_batches: int = 0,
    progress: bool = True,
    config: RunConfig | None = None,
    domain: str | None = None,
) -> dict[str, Any]:
    """Score one split of the records.

    Args:
        checkpoint: its model and tokenizer.
        records: a directory that `pangu data prepare` wrote, or official files.
        split: train or held_out.
        batch_size: rows per batch.
        max_batches: batches to score, but at least one of each domain; 0 scores all.
        progress: show a bar.
        domain: score only the rows of this domain.
        config: device and compute dtype to use instead of the checkpoint's, see `checkpoint.model.checkpoint_config`.

    Returns:
        A dict with step; split; tokens (how many were scored); loss (nats per token); perplexity; and bits_per_byte, if
        the records have a manifest, which holds the size of the text. With `domain` it has a key of this name. If rows
        of several domains are scored, `domains` has tokens, loss, perplexity and bits_per_byte of each.

    Raises:
        DataError: the records do not fit the model or have no such domain, or nothing can be scored.
        CheckpointError: names or shapes of the tensors are not those of the configuration; or the loss is not finite.
    """
    require_batches(batch_size, max_batches)
    config, tokenizer = config or checkpoint.config(), checkpoint.tokenizer()
    record_set = RecordSet.open(records, split)
    domains = record_set.domain_names if domain is None else [domain]
    parts = batch_rows(record_set, batch_size, max_batches, domains)
    record_set.check(config.model, tokenizer, evaluation=True)
    require_known(record_set.source, domains, config.model, leave_out="option")

    from pangu_ms.eval.perplexity import Evaluator, combined

    evaluator = Evaluator.load(checkpoint, config)
    batches = sequential_batches(record_set, batch_size, config.data.eod_reset, max_batches, config.model, domains)
    shown = progress_bar(progress, iterable=batches, total=len(parts), desc="evaluate", unit="batch")
    score = combined(_finite(checkpoint, evaluator.each(shown)), [name for name, _ in parts])
    _require_tokens(score.num_tokens, record_set, split)
    texts = record_set.manifest["splits"][split] if record_set.manifest else None
    of_domains = texts["domains"] if texts else {}
    result: dict[str, Any] = {"step": checkpoint.step, "split": split}
    if domain is None:
        result |= _measures(score, texts)
    else:
        result |= {"domain": domain} | _measures(score, of_domains.get(domain))
    if score.domains:
        result["domains"] = {name: _measures(own, of_domains[name]) for name, own in score.domains.items()}
    return result


def _measures(score: "Score", text: dict[str, Any] | None) -> dict[str, Any]:
    """The results of a score, and bits per byte if `text` has the tokens and bytes of the scored text."""
    measures = {"tokens": int(score.num_tokens), "loss": score.loss, "perplexity": score.perplexity}
    return measures | ({"bits_per_byte": bits_per_byte(score.loss, text)} if text else {})


def _finite(checkpoint: store.Checkpoint, scores: Iterable["Score"]) -> Iterator["Score"]:
    """Yield the scores; raises CheckpointError at the first that is no number, before further batches are scored."""
    for score in scores:
        if not math.isfinite(score.total_nats):
            advice = "use another checkpoint, or float32 (model.compute_dtype=float32)"
            raise CheckpointError(
                f"{checkpoint.path}: the loss is {score.total_nats}; it must be a number; the weights are damaged or"
                f" overflow: {advice}"
            )
        yield score


def bits_per_byte(loss: float, split: dict[str, Any]) -> float:
    """Bits that a model needs per UTF-8 byte of a split's text. They compare models with different tokenizers.

    The mean loss is multiplied by the number of all tokens of the split, though some are never scored (the first of
    every document and of every row), because the bytes are those of the whole text. The eod of every document counts as
    a token, since a language model has to predict where each text ends; padding does not count.

    Args:
        loss: mean loss in nats per token.
        split: the split's section in the manifest.
    """
    return loss * split["tokens"] / (math.log(2) * split["bytes"])


def baselines(
    records: Path | str,
    split: str,
    vocab_size: int,
    batch_size: int,
    max_batches: int = 0,
    progress: bool = False,
    domains: Sequence[str] | None = None,
) -> dict[str, float | None]:
    """Perplexities of a unigram and a bigram model at the positions that `evaluate` scores. Both models are counted on
    the whole training split.

    Args:
        records, split, batch_size, max_batches, progress: as for `evaluate`.
        vocab_size: the model's.
        domains: names of the domains that are scored; by default all.

    Returns:
        unigram_perplexity and bigram_perplexity. Both are None for the training split, since the models would be scored
        on their own training text; official files are always a training split.
    """
    if split == "train":
        return {"unigram_perplexity": None, "bigram_perplexity": None}
    from pangu_ms.eval.perplexity import Score

    train_set, record_set = RecordSet.open(records, "train"), RecordSet.open(records, split)
    num_batches(record_set, batch_size, max_batches, domains)  # a wrong size fails here, before the slow counting
    batches = sequential_batches(train_set, COUNTING_ROWS, False)
    total = num_batches(train_set, COUNTING_ROWS)
    models = NgramModels.count(
        progress_bar(progress, iterable=batches, total=total, desc="count n-grams", unit="batch"), vocab_size
    )
    scored = sequential_batches(record_set, batch_size, False, max_batches, domains=domains)
    unigram, bigram, tokens = models.score(scored)
    _require_tokens(tokens, record_set, split)
    scores = {"unigram_perplexity": unigram, "bigram_perplexity": bigram}
    return {name: Score(nats, tokens).perplexity for name, nats in scores.items()}


def _require_tokens(count: float, record_set: RecordSet, split: str) -> None:
    """Raise DataError if no token counts."""
    if not count:
        raise DataError(
            f"{record_set.source}: 0 tokens that count in split {split}: must be at least 1; prepare again from more"
            " text"
        )
