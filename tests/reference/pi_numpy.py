"""PanGu-pi in numpy float64, written from the specification (parts D and F1) alone, for tests to compare the model
with.

It shares no line with pangu_ms/models and is meant to be read beside the specification: one row of the batch and one
head at a time, no cast. With `siaf_terms` 1 and `aug_shortcut_branches` 0 it is LLaMA, and with `attention_bias`
openPangu; both are checked against weights and logits made by another implementation (llama_golden.npz).

Shape suffixes: B batch, S sequence, E hidden_size, D head_dim, F ffn_hidden_size, V vocab_size. All matrices are [out,
in].
"""

import numpy as np

from pangu_ms.models.pi.config import PiConfig
from tests.reference.alpha_numpy import Arrays, fast_gelu, gelu, gelu_erf, positions_and_mask


def parameter_shapes(config: PiConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all parameters.

    Source: specification D2 (bottleneck FC(d -> d/r), FC(d/r -> d)), D3 (readings A and B), F1 (bias on q, k, v and o).
    """
    E, F, V, n = config.hidden_size, config.ffn_hidden_size, config.vocab_size, config.siaf_terms
    query_width, key_width, narrow = (
        config.num_heads * config.head_dim,
        config.num_kv_heads * config.head_dim,
        E // config.aug_shortcut_reduction,
    )
    shapes = {"word_embedding.weight": (V, E), "final_norm.weight": (E,)}
    if not config.tie_word_embeddings:
        shapes["head.weight"] = (V, E)
    for block in (f"blocks.{i}" for i in range(config.num_layers)):
        shapes |= {f"{block}.attention_norm.weight": (E,), f"{block}.ffn_norm.weight": (E,)}
        projections = {
            "query": (query_width, E),
            "key": (key_width, E),
            "value": (key_width, E),
            "output": (E, query_width),
        }
        for name, (rows, columns) in projections.items():
            shapes |= _linear_shapes(f"{block}.attention.{name}", rows, columns, config.attention_bias)
        for t in range(config.aug_shortcut_branches):
            shapes |= _linear_shapes(f"{block}.aug_shortcut.{t}.down", narrow, E, config.aug_shortcut_bias)
            shapes |= _linear_shapes(f"{block}.aug_shortcut.{t}.up", E, narrow, config.aug_shortcut_bias)
        shapes |= {
            f"{block}.ffn.gate.weight": (F, E),
            f"{block}.ffn.up.weight": (F, E),
            f"{block}.ffn.down.weight": (E, F),
        }
        if n > 1 and config.siaf_mode == "matrices":
            shapes |= {f"{block}.ffn.siaf_gates.{i}.weight": (F, E) for i in range(n - 1)}
        elif n > 1:
            width = F if config.siaf_mode == "channel" else 1
            shapes |= {f"{block}.ffn.siaf.scale": (n, width), f"{block}.ffn.siaf.shift": (n, width)}
    return shapes


def forward(config: PiConfig, parameters: Arrays, ids_BS: np.ndarray, eod_id: int | None) -> np.ndarray:
    """Logits of the next token at every position.

    Args:
        config: Architecture, with its defaults of 0 resolved.
        parameters: Exactly the arrays that `parameter_shapes(config)` names; any floating dtype.
        ids_BS: Token ids, integer [B, S].
        eod_id: Token that ends a document; None for no EOD reset.

    Returns:
        float64 [B, S, V].
    """
    x_BSE = hidden_states(config, parameters, ids_BS, eod_id)[-1]
    table_VE = np.asarray(
        parameters["word_embedding.weight" if config.tie_word_embeddings else "head.weight"], np.float64
    )
    return _rms_norm(config, np.asarray(parameters["final_norm.weight"], np.float64), x_BSE) @ table_VE.T


def hidden_states(config: PiConfig, parameters: Arrays, ids_BS: np.ndarray, eod_id: int | None) -> list[np.ndarray]:
    """The residual stream: the embedding's output, then each block's, before the final norm.

    Args:
        config, parameters, ids_BS, eod_id: As for `forward`.

    Returns:
        num_layers + 1 arrays, float64 [B, S, E].
    """
    p = {name: np.asarray(array, np.float64) for name, array in parameters.items()}
    assert {name: array.shape for name, array in p.items()} == parameter_shapes(config)
    rows = [_hidden_states_row(config, p, ids_S, eod_id) for ids_S in np.asarray(ids_BS)]
    return [np.stack(states) for states in zip(*rows, strict=True)]


def _hidden_states_row(config: PiConfig, p: Arrays, ids_S: np.ndarray, eod_id: int | None) -> list[np.ndarray]:
    positions_S, mask_SS = positions_and_mask(ids_S, eod_id)
    states = [p["word_embedding.weight"][ids_S]]
    for i in range(config.num_layers):
        block, x_SE = f"blocks.{i}", states[-1]
        # D2: x + MSA(Norm(x)) + sum of the branches
        a_SE = _rms_norm(config, p[f"{block}.attention_norm.weight"], x_SE)
        branch_input_SE = a_SE if config.aug_shortcut_input == "normed" else x_SE
        y_SE = x_SE + _attention(config, p, f"{block}.attention", a_SE, positions_S, mask_SS)
        for t in range(config.aug_shortcut_branches):
            y_SE = y_SE + _aug_shortcut(config, p, f"{block}.aug_shortcut.{t}", branch_input_SE)
        m_SE = _rms_norm(config, p[f"{block}.ffn_norm.weight"], y_SE)
        states.append(y_SE + _ffn(config, p, f"{block}.ffn", m_SE))
    return states


def _linear_shapes(name: str, rows: int, columns: int, bias: bool) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (rows, columns)} | ({f"{name}.bias": (rows,)} if bias else {})


def _linear(p: Arrays, name: str, x: np.ndarray) -> np.ndarray:
    y = x @ p[f"{name}.weight"].T
    return y + p[f"{name}.bias"] if f"{name}.bias" in p else y


def _rms_norm(config: PiConfig, weight_E: np.ndarray, x: np.ndarray) -> np.ndarray:
    # eps stands inside the root. Source: arXiv 1910.07467, eq 4; LLaMA adds the eps.
    return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + config.rms_norm_eps) * weight_E


def _rotate(config: PiConfig, positions_S: np.ndarray, x_SD: np.ndarray) -> np.ndarray:
    # Dimensions j and j + D/2 are the real and imaginary part of one number, turned by position * theta^(-2j/D).
    # Source: arXiv 2104.09864, eq 15, in the "rotate half" order of LLaMA checkpoints (F1).
    half = config.head_dim // 2
    turn = np.exp(1j * np.outer(positions_S, config.rope_theta ** (-np.arange(half) / half)))
    z = (x_SD[:, :half] + 1j * x_SD[:, half:]) * turn
    return np.concatenate([z.real, z.imag], axis=-1)


def _attention(
    config: PiConfig, p: Arrays, name: str, a_SE: np.ndarray, positions_S: np.ndarray, mask_SS: np.ndarray
) -> np.ndarray:
    D = config.head_dim
    q, k, v = (_linear(p, f"{name}.{part}", a_SE) for part in ("query", "key", "value"))
    heads_per_kv_head = config.num_heads // config.num_kv_heads
    heads = []
    for h in range(config.num_heads):
        own, shared = slice(h * D, (h + 1) * D), slice(h // heads_per_kv_head * D, (h // heads_per_kv_head + 1) * D)
        q_SD, k_SD = _rotate(config, positions_S, q[:, own]), _rotate(config, positions_S, k[:, shared])
        scores_SS = np.where(mask_SS, q_SD @ k_SD.T / np.sqrt(D), -np.inf)
        e_SS = np.exp(scores_SS - scores_SS.max(axis=-1, keepdims=True))
        heads.append(e_SS / e_SS.sum(axis=-1, keepdims=True) @ v[:, shared])
    return _linear(p, f"{name}.output", np.concatenate(heads, axis=-1))


def _aug_shortcut(config: PiConfig, p: Arrays, name: str, z_SE: np.ndarray) -> np.ndarray:
    # D2, the bottleneck form
    return _linear(p, f"{name}.up", _ACTIVATIONS[config.aug_shortcut_act](_linear(p, f"{name}.down", z_SE)))


def _ffn(config: PiConfig, p: Arrays, name: str, m_SE: np.ndarray) -> np.ndarray:
    # D3: down(phi(gate m) * up m), or phi around the product
    act = _ACTIVATIONS[config.hidden_act]
    gate_SF, up_SF = _linear(p, f"{name}.gate", m_SE), _linear(p, f"{name}.up", m_SE)
    if config.siaf_terms == 1:
        inner_SF = act(gate_SF) * up_SF
    elif config.siaf_mode == "matrices":  # eq 9 read literally: a matrix for every term
        more = (_linear(p, f"{name}.siaf_gates.{i}", m_SE) for i in range(config.siaf_terms - 1))
        inner_SF = sum((act(g_SF) for g_SF in more), act(gate_SF)) * up_SF
    elif config.siaf_position == "gate":
        inner_SF = _series(config, p, name, gate_SF) * up_SF
    else:
        inner_SF = _series(config, p, name, act(gate_SF) * up_SF)
    return _linear(p, f"{name}.down", inner_SF)


def _series(config: PiConfig, p: Arrays, name: str, x_SF: np.ndarray) -> np.ndarray:
    # eq 7: phi(x) = sum_i act(a_i * x + b_i)
    scale, shift = p[f"{name}.siaf.scale"], p[f"{name}.siaf.shift"]
    return sum(_ACTIVATIONS[config.hidden_act](scale[i] * x_SF + shift[i]) for i in range(config.siaf_terms))


def silu(x: np.ndarray) -> np.ndarray:
    """x * sigmoid(x). Source: arXiv 1702.03118, eq 2."""
    return x / (1 + np.exp(-x))


_ACTIVATIONS = {"silu": silu, "gelu": gelu, "gelu_erf": gelu_erf, "fast_gelu": fast_gelu}
