"""From a checkpoint to a Decoder and its tokenizer."""

from pathlib import Path

from pangu_ms import runtime
from pangu_ms.checkpoint import store
from pangu_ms.compile_cache import cached_compile
from pangu_ms.config.load import config_to_dict
from pangu_ms.data.tokenizer import Tokenizer, require_vocabulary
from pangu_ms.errors import CheckpointError
from pangu_ms.infer.cached_model import CachedModel, ReorderCaches
from pangu_ms.infer.decoder import Decoder, GraphShape
from pangu_ms.models.build import fill
from pangu_ms.models.layers import CacheShape


def load_decoder(checkpoint: store.Checkpoint, shape: GraphShape) -> Decoder:
    """Build the checkpoint's model with a cache of the given shape and compile it.

    Raises:
        CheckpointError: names or shapes are not those of its own configuration.
    """
    config = checkpoint.config()
    runtime.start(config.runtime.device)
    weights = checkpoint.tensors("model")
    store.check_names_and_shapes(str(checkpoint.path), weights, config.model.parameter_shapes())
    graph = CachedModel(config.model, CacheShape(shape.batch_size, shape.capacity))
    fill(graph.model.trainable_params(), weights)
    decoder = Decoder(graph, shape, ReorderCaches(graph, shape.batch_size))
    identity = {"graph": "prefill and decode", "model": config_to_dict(config)["model"], "shape": vars(shape), "device": config.runtime.device}
    with cached_compile(config.runtime.compile_cache, identity):
        decoder.prefill([[0]])
    return decoder


def load_tokenizer(checkpoint: store.Checkpoint, path: Path | str | None = None) -> Tokenizer:
    """The tokenizer at `path`, or the checkpoint's own.

    Raises:
        CheckpointError: neither is there.
        DataError: it has another vocabulary size than the model.
    """
    found = path or checkpoint.tokenizer_path()
    if found is None:
        raise CheckpointError(f"{checkpoint.path}: holds no tokenizer, as it came from weights or records without one; name one with --tokenizer")
    tokenizer = Tokenizer.load(found)
    require_vocabulary(tokenizer, checkpoint.config().model.vocab_size)
    return tokenizer
