"""A decoder with caches over given weights."""


def make_decoder(config, parameters, batch_size, chunk=5, max_length=None):
    from pangu_ms.infer.cached_model import CachedModel
    from pangu_ms.infer.decoder import Decoder, GraphShape
    from pangu_ms.models.build import fill
    from pangu_ms.models.common.layers import CacheShape

    shape = GraphShape.fitting(config.seq_length, batch_size, max_length or config.seq_length, chunk)
    model = CachedModel(config, CacheShape(shape.batch_size, shape.capacity))
    fill(model.model.trainable_params(), parameters)
    return Decoder(model, shape, caches=model.caches())
