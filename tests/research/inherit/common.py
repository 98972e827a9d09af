"""Small models with random parameters, and their logits by the numpy float64 references."""

import numpy as np

from pangu_ms.models.alpha.config import AlphaConfig
from pangu_ms.models.pi.config import PiConfig
from tests.reference import alpha_numpy, pi_numpy

EOD = 3
PLAIN = {"siaf_terms": 1, "aug_shortcut_branches": 0}


def small_pi(**fields) -> PiConfig:
    """V 40, E 24, H 6 of 4 channels, F 10, S 16."""
    sizes = {
        "vocab_size": 40,
        "hidden_size": 24,
        "num_layers": 3,
        "num_heads": 6,
        "head_dim": 4,
        "ffn_hidden_size": 10,
        "seq_length": 16,
    }
    return PiConfig(**sizes | {"aug_shortcut_reduction": 4} | fields)


def small_alpha(**fields) -> AlphaConfig:
    sizes = {
        "vocab_size": 40,
        "hidden_size": 24,
        "num_layers": 3,
        "num_heads": 6,
        "ffn_hidden_size": 10,
        "seq_length": 16,
    }
    return AlphaConfig(**sizes | {"dropout": 0.0} | fields)


def random_tensors(config, seed=0, deviation=0.3) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    return {
        name: generator.normal(0, deviation, shape).astype(np.float32)
        for name, shape in config.parameter_shapes().items()
    }


def make_batch(config, rows=4, seed=0):
    from pangu_ms.data.loader import batch_from_ids

    ids = np.random.default_rng(seed).integers(4, config.vocab_size, (rows, config.seq_length + 1)).astype(np.int32)
    ids[0, 5] = ids[1, [2, 9]] = EOD  # where documents end: positions that do not count
    return batch_from_ids(ids, EOD, 0, True)


def weight_gradients(derivatives, tensors, batch) -> tuple[float, dict[str, np.ndarray]]:
    """The summed loss, and gradients of all weights, of the graph of a MaskDerivatives."""
    import mindspore as ms
    from mindspore import Tensor

    from pangu_ms.models.build import fill
    from pangu_ms.models.common.loss import to_tensors

    fill(derivatives.weights, tensors)
    total, _, gradients = derivatives.gradients(*to_tensors(batch), Tensor(0, ms.int32), Tensor(1.0, ms.float32))
    by_name = {weight.name: gradient.asnumpy() for weight, gradient in zip(derivatives.masked, gradients)}
    return total.asnumpy().item(), by_name


def logits(config, tensors, batch) -> np.ndarray:
    """float64 [B, S, V]; that models compute what the references do: tests/models."""
    reference = {"alpha": alpha_numpy, "pi": pi_numpy}[config.family]
    return reference.forward(config, tensors, batch.ids[:, :-1], EOD)
