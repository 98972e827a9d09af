"""Loads a checkpoint for generation: its decoder and its tokenizer. mindspore is imported when the model is built,
after all checks."""

import dataclasses
import functools
import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from pangu_ms.checkpoint import store
from pangu_ms.checkpoint.model import fill_from
from pangu_ms.config.load import config_to_dict
from pangu_ms.config.schema import RunConfig
from pangu_ms.core import runtime
from pangu_ms.core.compile_cache import cached_compile
from pangu_ms.core.errors import CheckpointError, GenerationError
from pangu_ms.core.free_memory import available_memory
from pangu_ms.data.tokenizer import Tokenizer, require_vocabulary
from pangu_ms.infer.decoder import Decoder, GraphShape
from pangu_ms.infer.domains import Domains
from pangu_ms.infer.generate import Generator, Prompt
from pangu_ms.infer.questions import Questions, asked_tokens
from pangu_ms.infer.scheduling.length_predictors import OwnAnswer
from pangu_ms.infer.scoring import LARGE, Item, Scorer, require_scorable
from pangu_ms.infer.window_scorer import MOST_LOGITS, WindowScorer
from pangu_ms.models.common.config import ModelConfig
from pangu_ms.planner.serving import ServingMemory

log = logging.getLogger(__name__)
STORED = "stored"
"""Weights that are not packed."""


def load_decoder(
    checkpoint: store.Checkpoint,
    shape: GraphShape,
    config: RunConfig | None = None,
    weights: str = "",
    generates: bool = True,
    cache_dtype: str = "",
) -> Decoder:
    """Build and compile the model of a checkpoint, with a KV cache.

    Args:
        checkpoint: the weights.
        shape: static shapes of the graph and its cache.
        config: device and dtype; by default the checkpoint's own configuration.
        weights: see `weights_of`.
        generates: False compiles nothing, for a Scorer, which has graphs of its own.
        cache_dtype: see `cache_dtype_of`.

    Raises:
        CheckpointError: names or shapes of the tensors are not those of the configuration, or a quantized checkpoint
            has its weights in another dtype.
        GenerationError: weights and cache do not fit in the memory of a CPU, or there is no such cache.
    """
    from pangu_ms.infer.cached_model import CachedModel
    from pangu_ms.models.common.layers import CacheShape

    config = config or checkpoint.config()
    weights, model = weights_of(checkpoint, config, weights), _computed_model(config)
    if model.compute_dtype != config.model.compute_dtype:
        log.info("generation on a CPU computes in float32")
    cache_dtype = cache_dtype_of(config, cache_dtype)
    _require_memory(config, shape, weights, cache_dtype)
    runtime.start(config.runtime.device)
    _require_writable(cache_dtype)
    graph = CachedModel(model, CacheShape(shape.batch_size, shape.capacity, cache_dtype))
    if weights:
        from pangu_ms.infer.packed_model import fill_packed, pack_cells

        pack_cells(graph.model, model, weights)
        fill_packed(checkpoint, graph.model, model, weights)
    else:
        fill_from(checkpoint, graph.model, model)
    identity = {
        "graph": "append to slots",
        "model": config_to_dict(config)["model"],
        "shape": vars(shape),
        "weights": weights,
        "cache dtype": cache_dtype,
        "device": config.runtime.device,
    }
    all_logits = identity | {"graph": "append to slots, with all logits"}
    compiling = functools.partial(cached_compile, config.runtime.compile_cache, all_logits)
    decoder = Decoder(graph, shape, domains_of(model), graph.caches(), compiling)
    if not generates:
        return decoder
    with cached_compile(config.runtime.compile_cache, identity):
        decoder.prefill([[0]])  # the first call compiles the graph
    return decoder


def weights_of(checkpoint: store.Checkpoint, config: RunConfig, asked: str = "") -> str:
    """The dtype of packed weights (packed_model.py), or "" if they are not packed.

    Args:
        checkpoint: where they are.
        config: says on which device they are used.
        asked: a dtype, or STORED for weights that are not packed; "" is that of a quantized checkpoint, and of any
            other float32 on a CPU, where packing keeps every bit of them, and STORED elsewhere.

    Raises:
        CheckpointError: a quantized checkpoint has its weights in another dtype than is asked for.
    """
    if checkpoint.quantized and asked not in ("", checkpoint.quantized):
        raise CheckpointError(
            f"{checkpoint.path}: is quantized to {checkpoint.quantized}, weights={asked} is asked for; what was rounded"
            " away is not there; leave --weights out, or name the checkpoint it was made from"
        )
    if asked == STORED:
        return ""
    return asked or checkpoint.quantized or ("float32" if config.runtime.device == "CPU" else "")


def _computed_model(config: RunConfig) -> ModelConfig:
    """The model in the dtype that generation has: on a CPU float32 in place of bfloat16, for which MindSpore lacks
    operators there."""
    if config.runtime.device != "CPU" or config.model.compute_dtype != "bfloat16":
        return config.model
    return dataclasses.replace(config.model, compute_dtype="float32")


def cache_dtype_of(config: RunConfig, asked: str = "") -> str:
    """The dtype of cached keys and values: "" is that in which generation computes, and so is its name.

    Args:
        config: says in which dtype generation computes.
        asked: "float16" and "bfloat16" halve a cache of float32.

    Raises:
        GenerationError: the cache cannot have this dtype.
    """
    computed = _computed_model(config).compute_dtype
    if asked in ("", computed):
        return ""
    if asked in ("float16", "bfloat16") and computed == "float32":
        return asked
    raise GenerationError(
        f"--cache-dtype {asked}: generation computes in {computed} here, and keeps keys and values so; leave it out"
    )


def _require_writable(cache_dtype: str) -> None:
    """Raise GenerationError if nothing here can write to a cache of this dtype."""
    import mindspore as ms

    import ascend_ops

    chosen = ascend_ops.choose("cached_attention")
    if cache_dtype == "bfloat16" and ms.get_context("device_target") == "CPU" and chosen.backend != "cpu":
        raise GenerationError(
            f"--cache-dtype bfloat16: only our CPU kernels can write to such a cache, which are not used here"
            f" ({chosen.reason}); use float16"
        )


def _require_memory(
    config: RunConfig, shape: GraphShape, weights: str, cache_dtype: str, searches_beams: bool = False
) -> None:
    """Raise GenerationError if generating does not fit in the memory of a CPU."""
    if config.runtime.device != "CPU":
        return
    sizes = shape.batch_size, shape.capacity, shape.chunk
    memory = ServingMemory(_computed_model(config), *sizes, weights, searches_beams, cache_dtype)
    memory.require_fitting(available_memory())


def domains_of(model: ModelConfig) -> Domains:
    """The domains that a model tells apart."""
    return Domains(model.domains, model.default_domain)


def load_tokenizer(checkpoint: store.Checkpoint, path: Path | str | None = None) -> Tokenizer:
    """The tokenizer at `path`, or the checkpoint's own.

    Raises:
        CheckpointError: the checkpoint has none, and no path is given.
        DataError: its vocabulary size is not the model's.
    """
    found = path or checkpoint.tokenizer_path()
    if found is None:
        raise CheckpointError(
            f"{checkpoint.path}: holds no tokenizer, as it came from weights or records without one; name one with"
            " --tokenizer"
        )
    tokenizer = Tokenizer.load(found)
    require_vocabulary(tokenizer, checkpoint.config().model.vocab_size)
    return tokenizer


def load_generator(
    checkpoint: store.Checkpoint,
    prompts: Sequence[Prompt],
    batch_size: int = 8,
    chunk: int = 64,
    tokenizer: Path | str | None = None,
    config: RunConfig | None = None,
    weights: str = "",
    cache_dtype: str = "",
    **scheduling: Any,
) -> Generator:
    """A Generator whose cache has just enough room for these prompts and their continuations.

    Args:
        checkpoint: the model.
        prompts: what it will continue.
        batch_size: slots, if there are as many continuations; beam search has one for each beam.
        chunk: prompt tokens of a step.
        tokenizer: path of a tokenizer; by default the checkpoint's own.
        config: device and dtype; by default the checkpoint's own configuration.
        weights: see `weights_of`.
        cache_dtype: see `cache_dtype_of`.
        scheduling: further arguments of Generator; a slot has room for what a predictor asks of the model.

    Raises:
        GenerationError: there are no prompts, one is empty or longer than the context, or the model lacks the domain of
            one. This is found before the model is built.
    """
    if not prompts:
        raise GenerationError("no prompts; give at least one")
    config = config or checkpoint.config()
    domains_of(config.model).indices([prompt.domain for prompt in prompts], len(prompts))
    loaded = load_tokenizer(checkpoint, tokenizer)
    ids = [loaded.encode_prompt(prompt.text) for prompt in prompts]
    beams = max(prompt.sampling.num_beams for prompt in prompts)
    slots = min(batch_size, sum(prompt.sampling.num_samples for prompt in prompts))
    asked = asked_tokens(scheduling.get("predictor"))
    longest = max(len(one) + max(prompt.sampling.max_new_tokens, asked) for one, prompt in zip(ids, prompts))
    shape = GraphShape.fitting(config.model.seq_length, beams if beams > 1 else slots, longest, chunk)
    shape.require_room(ids)
    cached = cache_dtype_of(config, cache_dtype)
    _require_memory(config, shape, weights_of(checkpoint, config, weights), cached, beams > 1)
    decoder = load_decoder(checkpoint, shape, config, weights, cache_dtype=cache_dtype)
    return Generator(decoder, loaded, **scheduling)


def load_scorer(
    checkpoint: store.Checkpoint,
    items: Sequence[Item],
    tokenizer: Tokenizer,
    config: RunConfig | None = None,
    weights: str = "",
    places: Sequence[str] = (),
    cache_dtype: str = "",
) -> Scorer | WindowScorer:
    """What scores these items fastest: a WindowScorer if all of them are texts and the logits of a window fit into
    memory, else a Scorer, whose cache has room for the longest of them, or for the model's context. With a
    `cache_dtype` it is always a Scorer: a WindowScorer has no cache.

    Args:
        checkpoint: the model.
        items: what it will score.
        tokenizer: the model's.
        config: device and dtype; by default the checkpoint's own configuration.
        weights: see `weights_of`.
        places: how messages name the items; by default by their numbers.
        cache_dtype: see `cache_dtype_of`.

    Raises:
        GenerationError: an item cannot be scored, see `Scorer.score_all`. This is found before the model is built.
    """
    config = config or checkpoint.config()
    packed, cached = weights_of(checkpoint, config, weights), cache_dtype_of(config, cache_dtype)
    window, domains = config.model.seq_length, domains_of(config.model)
    for item, place in zip(items, places or [f"item {number}" for number in range(1, len(items) + 1)]):
        require_scorable(item, place, window, tokenizer, domains)
    longest = min(max((item.longest() for item in items), default=1), window)
    # A power of two, so that commands with other items find the graphs in the compile cache.
    length = min(max(64, 1 << (longest - 1).bit_length()), window)
    texts = not cache_dtype and all(item.is_text for item in items) and length * config.model.vocab_size <= MOST_LOGITS
    identity = {
        "graph": "score texts" if texts else "score",
        "model": config_to_dict(config)["model"],
        "length": length,
        "weights": packed,
        "cache dtype": cached,
        "device": config.runtime.device,
    }

    def compiling(*sizes: int) -> AbstractContextManager[bool]:
        return cached_compile(config.runtime.compile_cache, identity | {"sizes": sizes})

    if texts:
        graph = _whole_windows(checkpoint, config, packed)
        return WindowScorer(graph, tokenizer, length, domains, compiling)
    shape = GraphShape.fitting(window, 1, length, LARGE)
    decoder = load_decoder(checkpoint, shape, config, weights, generates=False, cache_dtype=cache_dtype)
    return Scorer(decoder, tokenizer, compiling=compiling)


def _whole_windows(checkpoint: store.Checkpoint, config: RunConfig, weights: str) -> Any:
    """The graph of a WindowScorer, in the dtype that generation has."""
    from pangu_ms.models.build import build_model
    from pangu_ms.models.common.loss import TokenLogprobs

    model = _computed_model(config)
    runtime.start(config.runtime.device)
    graph = TokenLogprobs(build_model(model))
    if weights:
        from pangu_ms.infer.packed_model import fill_packed, pack_cells

        pack_cells(graph.model, model, weights)
        fill_packed(checkpoint, graph.model, model, weights)
    else:
        fill_from(checkpoint, graph.model, model)
    return graph


def load_questions(
    checkpoint: store.Checkpoint, predictor: OwnAnswer, prompts: Sequence[Sequence[int]], tokenizer: Tokenizer
) -> Questions:
    """A checkpoint's model in slots with room for prompts and the predictor's question, to measure the predictor.

    Raises:
        GenerationError: a prompt is empty or longer than the context.
    """
    longest = max(map(len, prompts)) + asked_tokens(predictor)
    shape = GraphShape.fitting(checkpoint.config().model.seq_length, min(8, len(prompts)), longest)
    shape.require_room(prompts)
    return Questions(load_decoder(checkpoint, shape), tokenizer)
