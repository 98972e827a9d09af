"""The Python API: the commands of the command line as functions.

    from pangu_ms import load_config, train, generate

    config = load_config("alpha/tiny", ["train.steps=200"])
    train(config, "records", "run")
    print(generate("run", ["def main("])[0].text)

For mistakes that its caller can fix, every function raises a subclass of `pangu_ms.core.errors.UserError` with a
message of the form "where: what was found; the rule; what to do". Only the functions that need a device (`train`,
`load_model`, `generate`, `evaluate`, `export`) import mindspore. A process cannot change the device on which it first
computed. Call `pangu_ms.core.runtime.quiet()` first to keep MindSpore's warnings from the terminal.

`checkpoint` is always a path: a run directory or its `checkpoints` directory, of which the newest valid checkpoint is
used, or the directory of one step.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pangu_ms.config.load import load_config
from pangu_ms.core.errors import ExportError, PlanError

if TYPE_CHECKING:
    from mindspore import nn

    from pangu_ms.config.schema import RunConfig
    from pangu_ms.data.tokenizer import Tokenizer
    from pangu_ms.infer.generate import Generation, OnText
    from pangu_ms.infer.sampling import SamplingConfig
    from pangu_ms.planner.cluster import Chip
    from pangu_ms.planner.estimate import Estimate
    from pangu_ms.planner.search import Found
    from pangu_ms.train.loop import TrainResult

__all__ = [
    "add_domain",
    "evaluate",
    "export",
    "extract",
    "generate",
    "load_config",
    "load_model",
    "load_tokenizer",
    "plan",
    "quantize",
    "search_plans",
    "train",
]

MIN_EXPORTED_LENGTH = 4  # tokens; enough for a prompt and some steps of the verification


def load_tokenizer(path: Path | str) -> Tokenizer:
    """Open a tokenizer.

    Args:
        path: a tokenizer directory, ours or Hugging Face's, or a bare SentencePiece model such as the released
            `vocab.model`.

    Returns:
        A tokenizer with `encode(text)`, `decode(ids)`, `vocab_size` and the ids of its special pieces.

    Raises:
        DataError: `path` does not exist, or is not a tokenizer.
    """
    from pangu_ms.data.tokenizer import Tokenizer

    return Tokenizer.load(path)


def train(
    config: RunConfig,
    data: Path | str,
    output: Path | str,
    *,
    resume: bool = False,
    init_from: Path | str | None = None,
    stop_at: int | None = None,
    progress: bool = False,
) -> TrainResult:
    """Train a model, or continue a run; ends with a committed checkpoint, whether complete or stopped.

    One process is one rank: with `parallel.data_parallel` above 1 on a CPU each rank must call this function, as the
    ranks that `pangu train` starts do.

    Args:
        config: the whole configuration, see `load_config`.
        data: directory of records, written by `pangu data prepare` or `pangu_ms.data.prepare.prepare`.
        output: directory of the run: config.yaml, metrics.jsonl and checkpoints.
        resume: continue the run in `output`.
        init_from: a checkpoint with the initial weights of a new run.
        stop_at: end this session after that optimizer step.
        progress: show a bar if stderr is a terminal.

    Returns:
        How the session ended: `step`, `loss` (nats per token), `held_out` (its `loss` and `perplexity`),
        `tokens_per_second`, `compile_seconds`, `cache_hit`, `skipped`, `stopped_by`, `saved`, `task_scores`.

    Raises:
        ConfigError: the checkpoint to resume is of another run, or this machine lacks the device.
        DataError: the records do not fit the model.
        OutputError: `output` has other content, or holds a run and `resume` is off.
        TrainingDiverged: too many steps in a row were skipped, or the last losses are bad.
    """
    from pangu_ms.train.loop import train as run

    start = None if init_from is None else Path(init_from)
    return run(config, data, Path(output), resume=resume, init_from=start, stop_at=stop_at, progress=progress)


def load_model(checkpoint: Path | str, overrides: Sequence[str] = ()) -> nn.Cell:
    """Load a checkpoint's model with its weights, for your own computations.

    Args:
        checkpoint: path of a checkpoint.
        overrides: only `runtime.*` and `model.compute_dtype` are allowed, such as "runtime.device=Ascend".

    Returns:
        The family's model as a MindSpore cell, without a cache of keys and values.

    Raises:
        CheckpointError: no valid checkpoint is there, or its weights are not those of its configuration.
        ConfigError: an override of another field.
    """
    from pangu_ms.checkpoint.model import checkpoint_config
    from pangu_ms.checkpoint.model import load_model as load
    from pangu_ms.checkpoint.store import open_checkpoint

    opened = open_checkpoint(Path(checkpoint))
    return load(opened, checkpoint_config(opened, overrides))


def generate(
    checkpoint: Path | str,
    prompts: Sequence[str],
    sampling: SamplingConfig | None = None,
    *,
    batch_size: int = 8,
    tokenizer: Path | str | None = None,
    overrides: Sequence[str] = (),
    on_text: OnText | None = None,
    domain: str | Sequence[str] = "",
) -> list[Generation]:
    """Continue prompts.

    Args:
        checkpoint: path of a checkpoint.
        prompts: texts, each of at least one token.
        sampling: `pangu_ms.infer.sampling.SamplingConfig`; by default 64 new tokens, sampled at temperature 1.
        batch_size: largest number of prompts that are continued together.
        tokenizer: path of a tokenizer; by default the checkpoint's own.
        overrides: only `runtime.*` and `model.compute_dtype` are allowed.
        on_text: called with (index of the prompt, new text) as text appears.
        domain: for a model with domains, that of all prompts or one for each prompt; empty: the model's default.

    Returns:
        A continuation for every prompt, in order: `text`, `token_ids`, `finish_reason` ("stop" or "length").

    Raises:
        GenerationError: a prompt is empty or longer than the model's context, or the model lacks the domain.
        CheckpointError: no valid checkpoint is there, or it contains no tokenizer and `tokenizer` is not given.
    """
    from pangu_ms.checkpoint.model import checkpoint_config
    from pangu_ms.checkpoint.store import open_checkpoint
    from pangu_ms.infer.generate import Prompt
    from pangu_ms.infer.load import domains_of, load_generator
    from pangu_ms.infer.sampling import SamplingConfig

    opened, sampling, texts = open_checkpoint(Path(checkpoint)), sampling or SamplingConfig(), list(prompts)
    config = checkpoint_config(opened, overrides)
    domains = [domain] * len(texts) if isinstance(domain, str) else list(domain)
    domains_of(config.model).indices(domains, len(texts))
    asked = Prompt.each_of(texts, sampling, domains)
    generator = load_generator(opened, asked, batch_size, tokenizer=tokenizer, config=config)
    return generator.generate(texts, sampling, on_text, domains)


def evaluate(
    checkpoint: Path | str,
    data: Path | str,
    *,
    split: str = "held_out",
    batch_size: int = 8,
    max_batches: int = 0,
    overrides: Sequence[str] = (),
    progress: bool = False,
    domain: str | None = None,
) -> dict[str, Any]:
    """Score the records of a split.

    Args:
        checkpoint: path of a checkpoint.
        data: directory of records.
        split: "held_out" or "train".
        batch_size: rows of a batch.
        max_batches: largest number of batches, but at least one of each domain; 0 scores all.
        overrides: only `runtime.*` and `model.compute_dtype` are allowed.
        progress: show a bar if stderr is a terminal.
        domain: score only the records of this domain.

    Returns:
        `step`, `split`, `tokens` (number scored), `loss` (nats per token), `perplexity` and, if the records know their
        number of bytes, `bits_per_byte`. If records of several domains are scored, `domains` has the last four of each.

    Raises:
        DataError: the records do not fit the model or have no such domain, or there is nothing to score.
        CheckpointError: no valid checkpoint is there, or its loss is not a number.
    """
    from pangu_ms.checkpoint.model import checkpoint_config
    from pangu_ms.checkpoint.store import open_checkpoint
    from pangu_ms.eval.report import evaluate as score

    opened = open_checkpoint(Path(checkpoint))
    config = checkpoint_config(opened, overrides)
    return score(opened, data, split, batch_size, max_batches, progress, config, domain)


def quantize(
    checkpoint: Path | str, output: Path | str, *, weights: str = "int8", progress: bool = False
) -> dict[str, Any]:
    """Write a checkpoint whose matrices are in int8 or bfloat16, for generation, evaluation and export.

    Args:
        checkpoint: path of a checkpoint.
        output: new or empty directory for the new checkpoint.
        weights: "int8" or "bfloat16".
        progress: show a bar if stderr is a terminal.

    Returns:
        `output`, the new step's directory; `weights`; `matrices`, the number that was rounded; `bytes` of all tensors,
        before and after; `experts_bytes`, those of experts and slots, which stay as they were.

    Raises:
        CheckpointError: no valid checkpoint is there, it is quantized already, or a matrix holds what is no number.
        OutputError: `output` has other content, or the disk is full.
    """
    from pangu_ms.checkpoint.quantized import quantize as write
    from pangu_ms.checkpoint.store import open_checkpoint

    return write(open_checkpoint(Path(checkpoint)), Path(output), weights, progress)


def export(
    checkpoint: Path | str,
    output: Path | str,
    *,
    batch_size: int = 4,
    max_length: int = 0,
    chunk: int = 64,
    tokenizer: Path | str | None = None,
    key_file: Path | str | None = None,
    sign_key: Path | str | None = None,
    overrides: Sequence[str] = (),
    domain: str = "",
    weights: str = "",
    kernels: bool = True,
    cache_dtype: str = "",
) -> dict[str, Any]:
    """Write a MindIR package that runs without this code base, and verify it against the checkpoint in a fresh process.

    Args:
        checkpoint: path of a checkpoint.
        output: new directory of the package.
        batch_size: sequences per call, fixed in the graph.
        max_length: largest length of prompt and continuation together, in tokens; 0 means the model's context.
        chunk: prompt tokens per call, fixed in the graph.
        tokenizer: path of a tokenizer; by default the checkpoint's own.
        key_file: file with an AES key of 16, 24 or 32 bytes, which encrypts the graph.
        sign_key: PEM file with an Ed25519 private key, which signs the manifest.
        overrides: only `runtime.*` and `model.compute_dtype` are allowed.
        domain: export only the model of this domain, of a model with domains; empty: the whole model.
        weights: pack the matrices as float32, bfloat16 or int8; empty: they stay as they are.
        kernels: whether a package for a CPU carries our kernels' source.
        cache_dtype: dtype of cached keys and values, "float16" for half a cache of float32; empty: as computed.

    Returns:
        The manifest. Its entry `verified` holds `steps`, `weights` and `max_difference` of a logit.

    Raises:
        ExportError: `max_length`, `weights` or a key cannot be used, or the package differs from the checkpoint.
        OutputError: `output` has other content, or the disk is full.
    """
    from pangu_ms.checkpoint.domains import extracted
    from pangu_ms.checkpoint.model import checkpoint_config
    from pangu_ms.checkpoint.store import open_checkpoint
    from pangu_ms.export.write import export_package
    from pangu_ms.infer.decoder import GraphShape
    from pangu_ms.infer.load import domains_of

    opened = open_checkpoint(Path(checkpoint))
    config = checkpoint_config(opened, overrides)
    domains_of(config.model).index(domain)
    if weights not in ("", "float32", "bfloat16", "int8"):
        raise ExportError(f"weights={weights!r}: must be float32, bfloat16, int8 or empty; correct it")
    context = config.model.seq_length
    if max_length and not MIN_EXPORTED_LENGTH <= max_length <= context:
        raise ExportError(
            f"max_length={max_length}: must be between {MIN_EXPORTED_LENGTH} and the model's context of {context}"
        )
    shape = GraphShape.fitting(context, batch_size, max_length or context, chunk)
    aes_key, private_key = (path if path is None else Path(path) for path in (key_file, sign_key))
    with extracted(opened, domain) as exported:
        config = checkpoint_config(exported, overrides)
        keys = aes_key, tokenizer, config, private_key
        return export_package(exported, Path(output), shape, *keys, weights, kernels, cache_dtype)


def extract(
    checkpoint: Path | str,
    domain: str,
    output: Path | str,
    *,
    drop_unused: bool = False,
    tokenizer: Path | str | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Write the checkpoint of a model that computes for one domain what a model with domains does, bit for bit, and
    holds nothing of other domains.

    Args:
        checkpoint: path of a checkpoint of a model with domains, such as a PanGu-Sigma.
        domain: the name of the domain.
        output: directory of the new checkpoint, which must be empty or not exist.
        drop_unused: leave out experts to which no token of the vocabulary goes.
        tokenizer: directory of a compact tokenizer that `pangu tokenizer compress` made from the checkpoint's; the new
            model has its vocabulary.
        progress: show a bar if stderr is a terminal.

    Returns:
        `output` (the new step's directory), `domain`, and `num_experts` (of a layer) and `parameters` as [old, new].

    Raises:
        ConfigError: the model has no such domain.
        DataError: the tokenizer was not made from the checkpoint's.
        CheckpointError: no valid checkpoint is there.
        OutputError: `output` has other content, or the disk is full.
    """
    from pangu_ms.checkpoint.domains import extract as cut_out
    from pangu_ms.checkpoint.store import open_checkpoint

    compact = None if tokenizer is None else Path(tokenizer)
    return cut_out(open_checkpoint(Path(checkpoint)), domain, Path(output), drop_unused, compact, progress)


def add_domain(
    checkpoint: Path | str,
    name: str,
    output: Path | str,
    *,
    parent: str | None = None,
    donor: Path | str | None = None,
    num_experts: int = 0,
    progress: bool = False,
) -> dict[str, Any]:
    """Write the checkpoint of a model with one more domain, of which only experts and embedding slots train.

    Args:
        checkpoint: path of a checkpoint of a model with domains, such as a PanGu-Sigma.
        name: the name of the new domain.
        output: directory of the new checkpoint, which must be empty or not exist.
        parent: domain whose experts are copied; by default the model's default domain.
        donor: path of a checkpoint from which the experts come: a model of the same family with the same shared
            parameters, or a PanGu-alpha, whose feed-forward networks become experts.
        num_experts: experts of the new group, a multiple of those that are copied; 0 means as many.
        progress: show a bar if stderr is a terminal.

    Returns:
        As `extract`.

    Raises:
        ConfigError: the model has the domain, or lacks the parent, or the donor does not fit.
        CheckpointError: no valid checkpoint is there, or the donor's shared parameters are others.
        OutputError: `output` has other content, or the disk is full.
    """
    from pangu_ms.checkpoint.domains import add_domain as append
    from pangu_ms.checkpoint.store import open_checkpoint

    source, giver = open_checkpoint(Path(checkpoint)), None if donor is None else open_checkpoint(Path(donor))
    return append(source, name, Path(output), parent, giver, num_experts, progress)


def plan(config: RunConfig, *, devices: int = 0, chip: str | None = None, hbm_bytes: int = 0) -> Estimate:
    """Predict the memory per device and the time per step. Only the bytes of parameters and moments are exact; the
    other numbers were never checked on hardware.

    Args:
        config: the model, and the parallel degrees in the section `parallel`.
        devices: number of devices, which must be the product of the degrees; 0 means that product.
        chip: a name of `pangu_ms.planner.cluster.CHIPS`; by default `runtime.chip`, or ascend910.
        hbm_bytes: memory of a card in bytes; 0 means the chip's.

    Returns:
        An estimate: `memory` (lines for each stage), `bytes`, `excess` (bytes above the memory; negative if some is
        left), `terms` of the time, `seconds`, `tokens_per_second`, `mfu`, `plan`, and `row()` with only the totals.

    Raises:
        PlanError: the degrees do not fit the devices or the model, or the chip has no rate for the dtype.
    """
    from pangu_ms.parallel.plan import Plan
    from pangu_ms.planner.estimate import Estimate

    return Estimate.of(Plan.of(config, devices), _chip(config, chip), hbm_bytes)


def search_plans(
    config: RunConfig,
    devices: int,
    *,
    chip: str | None = None,
    hbm_bytes: int = 0,
    global_batch: int = 0,
    margin: float = 0.05,
    progress: bool = False,
) -> Found:
    """Try every valid plan for a number of devices, and rank those that fit by speed.

    Args:
        config: the model; degrees, micro-batches, optimizer_shard, recompute, sequence_parallel and vocab_embedding
            are searched.
        devices: cards of the job.
        chip: as in `plan`.
        hbm_bytes: as in `plan`.
        global_batch: sequences per step over all replicas; 0 means the config's.
        margin: share of the memory that must stay free, in [0, 1).
        progress: show a bar if stderr is a terminal.

    Returns:
        `ranked` (an estimate for each dp, mp and pp), `near` (faster plans that do not fit), `tried`, `fitting`.

    Raises:
        PlanError: no plan is valid, or none fits; the message then names the cheapest changes.
    """
    from pangu_ms.planner.search import search

    found = _chip(config, chip)
    return search(config, devices, found, hbm_bytes or found.hbm_bytes, global_batch, margin, progress)


def _chip(config: RunConfig, name: str | None) -> Chip:
    from pangu_ms.planner.cluster import CHIPS, DEFAULT_CHIP

    wanted = name or config.runtime.chip or DEFAULT_CHIP
    if wanted not in CHIPS:
        raise PlanError(f"chip={wanted!r}: no such chip; use one of {', '.join(CHIPS)}")
    return CHIPS[wanted]
