"""Pangu Pro MoE in numpy float64, written from the specification (F1, F2) and arXiv 2505.21411 alone, for tests to
compare the model with.

It shares no line with pangu_ms/models, and is meant to be read beside the paper: one token, one head and one expert at
a time.

Shape suffixes: S sequence, E hidden_size, D head_dim, N experts. All matrices are [out, in].
"""

import numpy as np

from pangu_ms.models.moge.config import MogeConfig
from tests.reference.alpha_numpy import Arrays, positions_and_mask


def forward(
    config: MogeConfig, parameters: Arrays, ids_BS: np.ndarray, eod_id: int | None
) -> tuple[np.ndarray, float, np.ndarray]:
    """The model's function.

    Args:
        config: architecture, with its defaults of 0 resolved.
        parameters: its arrays; of any floating dtype.
        ids_BS: token ids.
        eod_id: token that ends a document; None for no EOD reset.

    Returns:
        Logits float64 [B, S, V]; the sum of the layers' balance losses over the batch; the smallest distance between
        the probabilities of an expert that is chosen and one of its group that is not, of each layer.
    """
    p = {name: np.asarray(array, np.float64) for name, array in parameters.items()}
    rows = [_Row(config, p, ids_S, eod_id) for ids_S in np.asarray(ids_BS)]
    balance, margins = 0.0, []
    for i in range(config.num_layers):
        for row in rows:
            row.attend(f"blocks.{i}")
        routed = [row.mix(f"blocks.{i}") for row in rows]
        balance += _balance_loss(config, [token for tokens in routed for token in tokens])
        margins.append(min(margin for tokens in routed for _, _, margin in tokens))
    logits = np.stack([_rms(config, p["final_norm.weight"], row.x_SE) @ p["head.weight"].T for row in rows])
    return logits, balance, np.array(margins)


def route(config: MogeConfig, logits_N: np.ndarray) -> tuple[list[int], np.ndarray, float]:
    """Experts of one token, group by group; probabilities of all experts; see `forward` for the third."""
    probability_N = np.exp(logits_N - logits_N.max())
    probability_N /= probability_N.sum()
    size, each = config.num_experts // config.num_expert_groups, config.experts_per_token // config.num_expert_groups
    experts, margin = [], 1.0
    for group in range(config.num_expert_groups):
        members = sorted(range(group * size, (group + 1) * size), key=lambda e: -probability_N[e])
        experts += members[:each]
        if each < size:
            margin = min(margin, probability_N[members[each - 1]] - probability_N[members[each]])
    return experts, probability_N, margin


class _Row:
    """The residual stream of one sequence."""

    def __init__(self, config: MogeConfig, p: Arrays, ids_S: np.ndarray, eod_id: int | None):
        self.config, self.p = config, p
        self.positions_S, self.mask_SS = positions_and_mask(ids_S, eod_id)
        self.x_SE = p["word_embedding.weight"][ids_S]

    def attend(self, block: str) -> None:
        """x += attention(norm(x))."""
        c, p, D = self.config, self.p, self.config.head_dim
        z_SE = _rms(c, p[f"{block}.attention_norm.weight"], self.x_SE)
        query, key, value = (
            z_SE @ p[f"{block}.attention.{name}.weight"].T + p[f"{block}.attention.{name}.bias"]
            for name in ("query", "key", "value")
        )
        heads = []
        for h in range(c.num_heads):
            g = h // (c.num_heads // c.num_kv_heads)
            q_SD, k_SD = self._rotated(query[:, h * D : (h + 1) * D]), self._rotated(key[:, g * D : (g + 1) * D])
            score_SS = np.where(self.mask_SS == 1, q_SD @ k_SD.T / np.sqrt(D), -np.inf)
            weight_SS = np.exp(score_SS - score_SS.max(-1, keepdims=True))
            heads.append(weight_SS / weight_SS.sum(-1, keepdims=True) @ value[:, g * D : (g + 1) * D])
        output = f"{block}.attention.output"
        self.x_SE = self.x_SE + np.concatenate(heads, -1) @ p[f"{output}.weight"].T + p[f"{output}.bias"]

    def _rotated(self, x_SD: np.ndarray) -> np.ndarray:
        """Channel i and channel i + D/2 are one complex number, turned by position * theta^(-2i/D)."""
        half = x_SD.shape[1] // 2
        angle = self.positions_S[:, None] * self.config.rope_theta ** (-np.arange(half) / half)
        turned = (x_SD[:, :half] + 1j * x_SD[:, half:]) * np.exp(1j * angle)
        return np.concatenate([turned.real, turned.imag], -1)

    def mix(self, block: str) -> list[tuple[list[int], np.ndarray, float]]:
        """x += shared(norm(x)) + sum of weight * expert(norm(x)); what `route` says of each token."""
        c, p = self.config, self.p
        z_SE = _rms(c, p[f"{block}.ffn_norm.weight"], self.x_SE)
        routed = [route(c, p[f"{block}.ffn.router.weight"] @ z_E) for z_E in z_SE]
        rows = []
        for z_E, (experts, probability_N, _) in zip(z_SE, routed):
            y_E = _gated(*(p[f"{block}.ffn.shared.{name}.weight"] for name in ("gate", "up", "down")), z_E)
            for e in experts:
                matrices = (p[f"{block}.ffn.experts.{name}.weight"][e] for name in ("gate", "up", "down"))
                y_E = y_E + probability_N[e] * p[f"{block}.ffn.router.scale"][0, e] * _gated(*matrices, z_E)
            rows.append(y_E)
        self.x_SE = self.x_SE + np.stack(rows)
        return routed


def _balance_loss(config: MogeConfig, routed: list[tuple[list[int], np.ndarray, float]]) -> float:
    """N * sum_e f_e p_e over the tokens of a batch: f_e the part of the choices that are e, p_e its mean
    probability."""
    choices = [e for experts, _, _ in routed for e in experts]
    mean_N = np.mean([probability_N for _, probability_N, _ in routed], axis=0)
    return config.num_experts * sum(choices.count(e) / len(choices) * mean_N[e] for e in range(config.num_experts))


def _gated(gate: np.ndarray, up: np.ndarray, down: np.ndarray, z_E: np.ndarray) -> np.ndarray:
    g = gate @ z_E
    return down @ (g / (1 + np.exp(-g)) * (up @ z_E))


def _rms(config: MogeConfig, gain_E: np.ndarray, x_SE: np.ndarray) -> np.ndarray:
    return x_SE / np.sqrt((x_SE**2).mean(-1, keepdims=True) + config.rms_norm_eps) * gain_E
