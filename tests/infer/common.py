"""A decoder with caches over given weights."""

from contextlib import nullcontext
from types import SimpleNamespace


def make_decoder(config, parameters, batch_size, chunk=5, max_length=None, weights="", cache_dtype=""):
    """`weights` is the dtype of packed ones; empty: they are not packed."""
    from pangu_ms.infer.cached_model import CachedModel
    from pangu_ms.infer.decoder import Decoder, GraphShape
    from pangu_ms.models.build import fill
    from pangu_ms.models.common.layers import CacheShape

    shape = GraphShape.fitting(config.seq_length, batch_size, max_length or config.seq_length, chunk)
    model = CachedModel(config, CacheShape(shape.batch_size, shape.capacity, cache_dtype))
    if weights:
        from pangu_ms.infer.packed_model import fill_packed, pack_cells

        pack_cells(model.model, config, weights)
        stored = {name: SimpleNamespace(shape=v.shape, values=lambda v=v: v) for name, v in parameters.items()}
        checkpoint = SimpleNamespace(path="parameters", quantized="", stored=lambda: stored)
        fill_packed(checkpoint, model.model, config, weights)
    else:
        fill(model.model.trainable_params(), parameters)
    return Decoder(model, shape, caches=model.caches(), compiling=nullcontext)
