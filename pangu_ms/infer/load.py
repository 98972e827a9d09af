"""Loads a checkpoint for generation: its decoder and its tokenizer. mindspore is imported when the model is built,
after all checks."""

import dataclasses
import logging
from collections.abc import Sequence
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
from pangu_ms.models.common.config import ModelConfig
from pangu_ms.planner.serving import ServingMemory

log = logging.getLogger(__name__)
STORED = "stored"
"""Weights that are not packed."""


def load_decoder(
    checkpoint: store.Checkpoint, shape: GraphShape, config: RunConfig | None = None, weights: str = ""
) -> Decoder:
    """Build and compile the model of a checkpoint, with a KV cache.

    Args:
        checkpoint: the weights.
        shape: static shapes of the graph and its cache.
        config: device and dtype; by default the checkpoint's own configuration.
        weights: dtype of packed weights, see packed_model.py; `stored` or empty: they are not packed, as an export
            needs them.

    Raises:
        CheckpointError: names or shapes of the tensors are not those of the configuration.
        GenerationError: weights and cache do not fit in the memory of a CPU.
    """
    from pangu_ms.infer.cached_model import CachedModel
    from pangu_ms.models.common.layers import CacheShape

    config = config or checkpoint.config()
    model = config.model
    if config.runtime.device == "CPU" and model.compute_dtype == "bfloat16":
        # On a CPU MindSpore has no kernel that writes to a bfloat16 cache.
        log.info("generation on a CPU computes in float32")
        model = dataclasses.replace(model, compute_dtype="float32")
    if config.runtime.device == "CPU":
        ServingMemory(model, shape.batch_size, shape.capacity, shape.chunk).require_fitting(available_memory())
    runtime.start(config.runtime.device)
    graph = CachedModel(model, CacheShape(shape.batch_size, shape.capacity))
    if weights not in ("", STORED):
        from pangu_ms.infer.packed_model import fill_packed, pack_cells

        pack_cells(graph.model, model, weights)
        fill_packed(checkpoint, graph.model, model, weights)
    else:
        fill_from(checkpoint, graph.model, model)
    decoder = Decoder(graph, shape, domains_of(model), graph.caches())
    identity = {
        "graph": "append to slots",
        "model": config_to_dict(config)["model"],
        "shape": vars(shape),
        "weights": weights,
        "device": config.runtime.device,
    }
    with cached_compile(config.runtime.compile_cache, identity):
        decoder.prefill([[0]])  # the first call compiles the graph
    return decoder


def default_weights(config: RunConfig) -> str:
    """What the weights of a Generator are if nothing else is asked for: on a CPU packed, which keeps every bit of them
    and is faster for any number of rows."""
    return "float32" if config.runtime.device == "CPU" else STORED


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
        weights: see `load_decoder`; empty: `default_weights`.
        scheduling: further arguments of Generator.

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
    longest = max(len(one) + prompt.sampling.max_new_tokens for one, prompt in zip(ids, prompts))
    shape = GraphShape.fitting(config.model.seq_length, beams if beams > 1 else slots, longest, chunk)
    shape.require_room(ids)
    decoder = load_decoder(checkpoint, shape, config, weights or default_weights(config))
    return Generator(decoder, loaded, **scheduling)
