"""A small PanGu-alpha, its weights and ids, and its logits."""

import numpy as np

from pangu_ms.models.alpha.config import AlphaConfig

EOD = 3


def small(**fields) -> AlphaConfig:
    return AlphaConfig(
        **{"vocab_size": 61, "hidden_size": 32, "num_layers": 3, "num_heads": 4, "seq_length": 24, "dropout": 0.0}
        | fields
    )


def random_parameters(config, seed=0, deviation=0.3):
    generator = np.random.default_rng(seed)
    return {
        name: generator.normal(0, deviation, shape).astype(np.float32)
        for name, shape in config.parameter_shapes().items()
    }


def random_ids(config, rows=2, seed=1):
    ids = np.random.default_rng(seed).integers(4, config.vocab_size, (rows, config.seq_length)).astype(np.int32)
    ids[0, [5, 6, 15]] = EOD  # an empty document too
    ids[1, -1] = EOD
    return ids


def our_logits(config, parameters, ids, eod_reset):
    from pangu_ms.data.loader import batch_from_ids
    from tests.models.logits import logits_of

    batch = batch_from_ids(np.pad(ids, ((0, 0), (0, 1))), EOD, 0, eod_reset)
    return logits_of(config, parameters, ids, batch.positions, batch.segments)
