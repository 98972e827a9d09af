"""Alpha as a family that reads two more inputs, "domain" and "weight"."""

import numpy as np

from pangu_ms.config import load_config
from pangu_ms.data import extra_inputs
from pangu_ms.models.alpha import model as alpha
from pangu_ms.models.alpha.config import AlphaConfig
from pangu_ms.models.common.config import ExtraInput

DECLARED = {"domain": ExtraInput(("batch",)), "weight": ExtraInput(("batch", "sequence"), "float32")}


class Toned(alpha.PanguAlpha):
    """Alpha whose logits are larger by half in rows of domain 1, so that their losses are other ones."""

    def construct(self, ids_BS, positions_BS, segments_BS, key, domain_B, weight_BS):
        """`domain_B` int32 [B], `weight_BS` float32 [B, S]."""
        logits_BSV = super().construct(ids_BS, positions_BS, segments_BS, key)
        return logits_BSV * (1.0 + domain_B.reshape(-1, 1) * weight_BS).expand_dims(2)


def halves(model, records, rows, ids):
    """The weights of rows: one half everywhere."""
    return np.full((len(rows), ids.shape[1] - 1), 0.5, np.float32)


def make_alpha_toned(monkeypatch, tiny_overrides):
    """Makes alpha the toned family for a test; returns a function from overrides to its configuration, for runs of
    three steps. No cached graph of alpha is taken."""
    monkeypatch.setattr(AlphaConfig, "extra_inputs", lambda config: DECLARED)
    for name in ("PanguAlpha", "MODEL"):
        monkeypatch.setattr(alpha, name, Toned, raising=False)
    monkeypatch.setitem(extra_inputs.SOURCES, "weight", halves)
    short = ["train.steps=3", "train.save_every=0", "train.eval_batches=1", "model.dropout=0.0"]
    overrides = [*tiny_overrides, *short, "runtime.compile_cache=false"]
    return lambda *more: load_config("alpha/tiny", [*overrides, *more])
