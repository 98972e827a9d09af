"""PanGu-alpha in numpy float64, written from the specification (part A1) alone, for tests to compare the model with.

It shares no line with pangu_ms/models and is meant to be read beside the specification: one row of the batch and one
head at a time, no dropout, no cast (the specification's fp16 and fp32 casts, `compute_dtype` and `softmax_dtype` have
no counterpart here).

Shape suffixes: B batch, S sequence, E hidden_size, D head_dim, F ffn_hidden_size, V vocab_size. All matrices are [out,
in].
"""

import math
from collections.abc import Sequence

import numpy as np

from pangu_ms.models.alpha.config import AlphaConfig

Arrays = dict[str, np.ndarray]


def forward(config: AlphaConfig, parameters: Arrays, ids_BS: np.ndarray, eod_id: int | None) -> np.ndarray:
    """Logits of the next token at every position.

    Args:
        config: Architecture; `final_norm_position` and `hidden_act` choose the variant.
        parameters: At least the arrays that `config.parameter_shapes()` names; any floating dtype.
        ids_BS: Token ids, integer [B, S], S at most `config.seq_length`.
        eod_id: Token that ends a document; None for no EOD reset.

    Returns:
        float64 [B, S, V].

    Source: specification A1.1, A1.2.
    """
    p = {name: np.asarray(parameters[name], np.float64) for name in config.parameter_shapes()}
    assert {name: array.shape for name, array in p.items()} == config.parameter_shapes()
    return np.stack([_forward_row(config, p, ids_S, eod_id) for ids_S in np.asarray(ids_BS)])


def _forward_row(config: AlphaConfig, p: Arrays, ids_S: np.ndarray, eod_id: int | None) -> np.ndarray:
    positions_S, mask_SS = positions_and_mask(ids_S, eod_id)

    # A1.1 step 1
    x_SE = p["word_embedding.weight"][ids_S] + p["position_embedding.weight"][positions_S]

    # A1.1 step 2: num_layers counts the query layer
    for i in range(config.num_layers - 1):
        block = f"blocks.{i}"
        a_SE = _layer_norm(config, p, f"{block}.attention_norm", x_SE)
        x_SE = x_SE + _attention(config, p, f"{block}.attention", a_SE, a_SE, mask_SS)
        m_SE = _layer_norm(config, p, f"{block}.ffn_norm", x_SE)
        x_SE = x_SE + _ffn(config, p, f"{block}.ffn", m_SE)

    # A1.1 step 3; the pipeline variant of A1.2 skips it
    if config.final_norm_position == "before_query":
        x_SE = _layer_norm(config, p, "final_norm", x_SE)

    # A1.1 step 4. The query table is read at the SAME position ids as the position table: no "+ 1".
    t_SE = p["query_embedding.weight"][positions_S]
    a_SE = _layer_norm(config, p, "query_layer.attention_norm", x_SE)  # keys and values only: t is not normalised
    x_SE = x_SE + _attention(config, p, "query_layer.attention", t_SE, a_SE, mask_SS)  # the residual is x, not t
    m_SE = _layer_norm(config, p, "query_layer.ffn_norm", x_SE)
    x_SE = x_SE + _ffn(config, p, "query_layer.ffn", m_SE)

    # A1.2: x -> query layer -> LNf -> head
    if config.final_norm_position == "after_query":
        x_SE = _layer_norm(config, p, "final_norm", x_SE)

    # A1.1 step 5: tied to the word table, no bias
    return x_SE @ p["word_embedding.weight"].T


def positions_and_mask(ids_S: np.ndarray, eod_id: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Position ids and attention mask of one sequence.

    Args:
        ids_S: Input token ids, integer [S].
        eod_id: Token that ends a document; None for no EOD reset.

    Returns:
        Positions, int64 [S], and mask, int64 [S, S] with row = query and column = key, 1 = may attend.

    Source: specification A1.5.
    """
    length = len(ids_S)
    positions_S = np.arange(length)
    mask_SS = np.tril(np.ones((length, length), np.int64))
    if eod_id is None:
        return positions_S, mask_SS
    prev = 0
    for e in range(length):  # left to right
        if ids_S[e] == eod_id:
            mask_SS[e + 1 :, : e + 1] = 0
            positions_S[e + 1 :] -= e + 1 - prev
            prev = e + 1
    return positions_S, mask_SS


def _linear(p: Arrays, name: str, x: np.ndarray) -> np.ndarray:
    return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]


def _layer_norm(config: AlphaConfig, p: Arrays, name: str, x_SE: np.ndarray) -> np.ndarray:
    # A1.1 "LayerNorms that exist". The variance divides by E, and eps stands inside the root.
    centred_SE = x_SE - x_SE.mean(axis=-1, keepdims=True)
    variance_S1 = (centred_SE**2).mean(axis=-1, keepdims=True)
    return centred_SE / np.sqrt(variance_S1 + config.layer_norm_eps) * p[f"{name}.weight"] + p[f"{name}.bias"]


def _softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def _attention(
    config: AlphaConfig, p: Arrays, name: str, query_SE: np.ndarray, hidden_SE: np.ndarray, mask_SS: np.ndarray
) -> np.ndarray:
    # A1.3. `query_SE` is the hidden stream in a block and the query embedding in the query layer.
    head_dim = config.hidden_size // config.num_heads
    q_SE = _linear(p, f"{name}.query", query_SE)
    k_SE = _linear(p, f"{name}.key", hidden_SE)
    v_SE = _linear(p, f"{name}.value", hidden_SE)
    heads = []
    for h in range(config.num_heads):
        head = slice(h * head_dim, (h + 1) * head_dim)  # head h owns D neighbouring columns
        q_SD = q_SE[:, head] / head_dim**0.25
        k_SD = k_SE[:, head] / head_dim**0.25
        scores_SS = q_SD @ k_SD.T + (1 - mask_SS) * -10000.0
        heads.append(_softmax(scores_SS) @ v_SE[:, head])
    return _linear(p, f"{name}.output", np.concatenate(heads, axis=-1))


def _ffn(config: AlphaConfig, p: Arrays, name: str, m_SE: np.ndarray) -> np.ndarray:
    # A1.1 step 2: W2 * act(W1 * m + b1) + b2
    activation = {"gelu": gelu, "gelu_erf": gelu_erf, "fast_gelu": fast_gelu}[config.hidden_act]
    return _linear(p, f"{name}.down", activation(_linear(p, f"{name}.up", m_SE)))


def gelu(x: np.ndarray) -> np.ndarray:
    """MindSpore's GeLU primitive, the tanh form. Source: specification A1.4; constants of arXiv 1606.08415, section
    2."""
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def gelu_erf(x: np.ndarray) -> np.ndarray:
    """Exact GELU: x times the normal distribution function. Source: specification A1.4."""
    return 0.5 * x * (1 + np.vectorize(math.erf, otypes=[np.float64])(x / math.sqrt(2)))


def fast_gelu(x: np.ndarray) -> np.ndarray:
    """MindSpore's FastGeLU, equal to x * sigmoid(1.702 x). Source: specification A1.4."""
    return x * np.exp(0.851 * (x - np.abs(x))) / (1 + np.exp(-1.702 * np.abs(x)))


def loss(logits_BSV: np.ndarray, labels_BS: np.ndarray, loss_mask_BS: np.ndarray) -> float:
    """Masked mean cross entropy.

    Args:
        logits_BSV: [B, S, V].
        labels_BS: The next token's id, integer [B, S].
        loss_mask_BS: 1 where the position counts, [B, S]; in training, input token != pad (not label != pad).

    Returns:
        The loss in nats per token; 0 if no position counts.

    Source: specification A1.6.
    """
    # Both epsilons of A1.6 are kept, as sum / (sum(mask) + 1e-5). The 1e-5 settles the empty mask and makes the
    # loss smaller than the true mean by the relative amount 1e-5 / sum(mask): 1e-6 at 10 tokens, so a comparison
    # tighter than that sees which divisor was used. The 1e-24 caps the loss of one token at 55.3 nats, where a
    # log_softmax has no cap; below 30 nats the two agree to 1e-10.
    probability_BSV = _softmax(np.asarray(logits_BSV, np.float64))
    mask_BS = np.asarray(loss_mask_BS, np.float64)
    picked_BS = np.take_along_axis(probability_BSV, np.asarray(labels_BS)[..., None], axis=-1)[..., 0]
    return float((-np.log(picked_BS + 1e-24) * mask_BS).sum() / (mask_BS.sum() + 1e-5))


def finite_difference_gradient(
    config: AlphaConfig,
    parameters: Arrays,
    ids: np.ndarray,
    labels: np.ndarray,
    mask: np.ndarray,
    eod_id: int | None,
    name: str,
    index: tuple[int, ...],
    step: float = 1e-5,
) -> float:
    """Derivative of the loss by one entry of one parameter, by central differences.

    Args:
        config, parameters, ids, eod_id: As for `forward`; `parameters` is not changed.
        labels, mask: As for `loss`.
        name: Parameter name. The word table is tied: its derivative includes lookup and head.
        index: Entry of that parameter.
        step: Distance to either side. 1e-5 balances truncation (step^2) with float64 rounding (1e-16 / step): about
            1e-10 in all.

    Returns:
        (loss(p + step) - loss(p - step)) / (2 step).
    """
    losses = []
    for shift in (step, -step):
        shifted = np.array(parameters[name], np.float64)  # a float64 copy: float32 would swallow the step
        shifted[index] += shift
        losses.append(loss(forward(config, parameters | {name: shifted}, ids, eod_id), labels, mask))
    return (losses[0] - losses[1]) / (2 * step)


def adamw_reference(
    parameters: Arrays,
    gradients_list: Sequence[Arrays],
    learning_rate: float | Sequence[float],
    beta1: float = 0.9,
    beta2: float = 0.95,
    eps: float = 1e-8,
    weight_decay: float = 0.1,
) -> Arrays:
    """Parameters after AdamWeightDecay steps: no bias correction, decoupled decay; no clipping and no loss scale.

    Args:
        parameters: Start values; not changed.
        gradients_list: One dict of gradients per step, a gradient for every parameter.
        learning_rate: One for all steps, or one per step.
        beta1, beta2, eps, weight_decay: Defaults of specification A3.1.

    Returns:
        float64 arrays under the same names.

    Source: specification A3.1. Its "names containing layernorm or bias are not decayed" reads here: names ending in
    .bias or containing norm. Embedding tables are decayed.
    """
    result = {name: np.array(value, np.float64) for name, value in parameters.items()}
    m = {name: np.zeros_like(value) for name, value in result.items()}
    v = {name: np.zeros_like(value) for name, value in result.items()}
    rates = [float(rate) for rate in np.broadcast_to(learning_rate, len(gradients_list))]
    for lr, gradients in zip(rates, gradients_list, strict=True):
        for name, value in result.items():
            g = np.asarray(gradients[name], np.float64)
            wd = 0.0 if name.endswith(".bias") or "norm" in name else weight_decay
            m[name] = beta1 * m[name] + (1 - beta1) * g
            v[name] = beta2 * v[name] + (1 - beta2) * g**2
            result[name] = value - lr * (m[name] / (np.sqrt(v[name]) + eps) + wd * value)
    return result
