"""The registry of model families. A family is one folder and one line in `FAMILIES`.

The folder is a package of five files. Code outside of the folder imports none of them; it uses `FAMILIES`, or the
configuration of a model.

`__init__.py`   A docstring that names the models.

`config.py`     `CONFIG`: a frozen pydantic dataclass derived from `ModelConfig` (models/common/config.py), with
                `family: Literal["NAME"] = "NAME"`, its fields (a string under each is its description), and its checks
                in `__post_init__`. It must define
                    layer_parameters            the parameters of one layer, each a ParameterSpec: logical axes, initial
                                                values, weight decay, trainable or not
                    outer_parameters            those before and behind the layers, the word table
                                                `word_embedding.weight` and, if untied, the head `head.weight` included
                    outer_parameter_layers      beside which layers each of these is read, for pipeline stages
                    feed_forward_activations    what a layer keeps for its backward pass, for `pangu plan`
                and may define `axis_sizes` (further logical axes), `extra_inputs` (what it reads beside token ids),
                `layer_names`, `default_ffn_hidden_size`, and what
                `pangu model` and smoke runs ask (`fields_free_in_students` and its neighbours). No mindspore import.

`model.py`      `MODEL`: an nn.Cell of single-device mathematics over ascend_ops and the layers of
                models/common/layers.py, whose parameters have the names, shapes, dtypes and order of
                `CONFIG.parameters()`.
                    MODEL(config, cache: CacheShape | None)
                    construct(ids, positions, segments, key, *extra) -> logits [B, S, V]    whole sequences, in the
                                                compute dtype, for training and evaluation; `key` int32 seeds dropout;
                                                `extra` are the inputs of `CONFIG.extra_inputs`, if it declares any
                    extend(ids, places, last, *extra) -> logits float32 [S, V]  with a cache, appends tokens to
                                                sequences in slots: see `KVCache` and infer/cached_model.py
                    hidden_states(ids, positions, segments, *extra) -> tuple of [B, S, E]   the output of the embeddings
                                                and then of each layer, for analyses
                and, if `CONFIG.has_balance_loss`,
                    with_balance_loss(ids, positions, segments, key, *extra) -> (logits, float32 scalar)    what
                                                training adds to the mean cross-entropy of a micro-batch to balance
                                                the load of experts
                A cell that `layer_names` or an outer parameter names has that path in the model. Logits are made by a
                `Logits` cell, which a pipeline puts on its last stage. Keys and values of past tokens live in `KVCache`
                cells: every other parameter is a weight.

`sharding.py`   `RULES`: which mesh axes shard each logical axis: the rules of all families (models/common/sharding.py)
                and the family's own. No mindspore import.

`weights.py`    `FORMATS`: by the name of a foreign format a `Format` (models/common/weights.py): names of the
                parameters there, and how its config.json is read and written. `MINDFORMERS` fits any family. No
                mindspore import. `GGUF` describes its models for llama.cpp, or says what that lacks
                (models/common/gguf.py).

`domains.py`    Only in families whose models tell domains apart: `extracted`, `with_domain`, `Donor`, `expert_loads`,
                `experts_of` and `index_of`, and for a family with a `BASE_FAMILY` `inherited` (see
                models/sigma/domains.py). No mindspore import.

The smallest configuration is `configs/NAME/tiny.yaml`: tests/families runs train, resume, eval, generate, export,
convert, plan, execute and collapse over the `tiny` of every family listed here.
"""

import importlib
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING

from pangu_ms.models.common.config import ModelConfig
from pangu_ms.models.common.gguf import Describe
from pangu_ms.models.common.sharding import Rules
from pangu_ms.models.common.weights import Format

if TYPE_CHECKING:
    from mindspore import nn


@dataclass(frozen=True)
class Family:
    """One family by its package; each part is imported when it is first asked for."""

    package: str

    @property
    def config(self) -> type[ModelConfig]:
        """The class of its configuration."""
        return importlib.import_module(f"{self.package}.config").CONFIG

    @property
    def model(self) -> type["nn.Cell"]:
        """The class of its model; imports mindspore."""
        return importlib.import_module(f"{self.package}.model").MODEL

    @property
    def rules(self) -> Rules:
        """Its sharding rules."""
        return importlib.import_module(f"{self.package}.sharding").RULES

    @property
    def formats(self) -> dict[str, Format]:
        """Foreign formats of its weights, by name."""
        return importlib.import_module(f"{self.package}.weights").FORMATS

    @property
    def gguf(self) -> Describe:
        """Describes its models for llama.cpp."""
        return importlib.import_module(f"{self.package}.weights").GGUF

    @property
    def domains(self) -> ModuleType:
        """What makes models of others by domain, if its models have domains."""
        return importlib.import_module(f"{self.package}.domains")


FAMILIES = {
    "alpha": Family("pangu_ms.models.alpha"),
    "pi": Family("pangu_ms.models.pi"),
    "moge": Family("pangu_ms.models.moge"),
    "sigma": Family("pangu_ms.models.sigma"),
}
