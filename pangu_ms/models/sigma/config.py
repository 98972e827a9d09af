"""PanGu-Sigma: its fields and its parameters. Source: specification C1 to C5.

No code of the model was published. What the sources leave open is a field here, whose default is a reading of them and
not a fact; the field's description says so with the words "not published".
"""

import dataclasses
from typing import TYPE_CHECKING, Any, Literal

from pydantic.dataclasses import dataclass

from pangu_ms.core.fields import STRICT, Int, require, require_not_negative
from pangu_ms.models.alpha.config import AlphaConfig
from pangu_ms.models.common.config import Activation, ExtraInput, ParameterSpec, stack

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    import numpy as np


@dataclass(frozen=True, config=STRICT, kw_only=True)
class SigmaConfig(AlphaConfig):
    """PanGu-Sigma: PanGu-alpha whose upper layers have Random Routed Experts instead of one feed-forward network.

    A sequence belongs to a domain, a domain to a group of experts, and a table says to which expert of the group each
    token id goes in each layer. Nothing of this is learned: no gate, no balance loss, no dropped token. The layout is
    (num_dense_layers, number of sparse layers, num_experts, groups): without sparse layers the model is PanGu-alpha.
    """

    BASE_FAMILY = "alpha"

    family: Literal["sigma"] = "sigma"  # type: ignore[assignment]
    """Model family: a folder of pangu_ms/models. Every config states it."""
    hidden_act: Literal["gelu", "gelu_erf", "fast_gelu"] = "fast_gelu"
    """gelu (tanh form) | gelu_erf | fast_gelu = x * sigmoid(1.702 x). The model's own is not published."""
    domains: tuple[str, ...] = ()
    """Names of the domains, in the order of the routing table's rows: those that the records name (`pangu data
    prepare`)."""
    default_domain: str = ""
    """Domain of prompts and texts that name none; empty: the first of `domains`."""
    num_dense_layers: Int = 0
    """Lower layers with one feed-forward network for all domains; the layers above are sparse. Not published: 32 of 40
    fits the number of parameters if a layer has 640 experts (spec C2)."""
    query_layer_sparse: bool = True
    """Whether the query layer, the last one, is sparse like the layers before it. Not published (spec C3)."""
    num_experts: Int = 0
    """Experts of each sparse layer, over all groups; 0 without sparse layers."""
    group_of_domain: tuple[Int, ...] = ()
    """Group of experts of each domain, numbered from 0; empty: each domain has a group of its own."""
    group_sizes: tuple[Int, ...] = ()
    """Experts of each group; must sum to num_experts. Empty: equal groups."""
    slot_of_domain: tuple[Int, ...] = ()
    """Embedding slot of each domain, numbered from 0: each slot is a word table of its own. Empty: one table for all.
    Number and sizes of the slots are not published (spec C3)."""
    routing_mode: Literal["random", "frequency_balanced"] = "random"
    """How a new run makes its table. random: the token ids of the vocabulary are shuffled and dealt out, so that each
    expert of a group has as many ids (spec C3.1); frequency_balanced: the most frequent ids first, each to the expert
    with the fewest tokens so far, so that each has as many tokens of the training text (Roller et al. 2021, Hash
    Layers). A checkpoint keeps its table."""
    routing_seed: Int = 1
    """Seed of the routing table; each layer and domain draws its own."""
    trainable: Literal["all", "experts"] = "all"
    """experts: only experts and embedding slots train, each by the tokens of its own domains; all that domains share
    keeps its values, the only word table of a model without slots included. Then training on one domain leaves what the
    model computes for domains of other groups and slots as it is, bit for bit (with optimizer.lazy_experts)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        names = self.domains
        require(len(names) > 0, "domains", ": is required; name the domains of the records, such as [zh, en]")
        require(len(set(names)) == len(names), "domains", f"={list(names)}: names must differ; remove one")
        require("" not in names, "domains", f"={list(names)}: a name must not be empty")
        require(
            self.default_domain in ("", *names),
            "default_domain",
            f"={self.default_domain}: is none of the model's domains, {', '.join(names)}",
        )
        require_not_negative(self, routing_seed="is the smallest", num_dense_layers="makes every layer sparse")
        require(
            self.num_dense_layers <= self.num_layers,
            "num_dense_layers",
            f"={self.num_dense_layers}: must be at most num_layers={self.num_layers}",
        )
        self._resolve("group_of_domain", self._numbered("group_of_domain", tuple(range(len(names)))))
        self._resolve("slot_of_domain", self._numbered("slot_of_domain", (0,) * len(names)))
        if self.sparse_layers:
            self._resolve("group_sizes", self._checked_group_sizes())
        else:
            require(
                self.num_experts == 0,
                "num_experts",
                f"={self.num_experts}: no layer is sparse; lower num_dense_layers={self.num_dense_layers} or use 0",
            )

    def _numbered(self, field: str, default: tuple[int, ...]) -> tuple[int, ...]:
        """The value of `group_of_domain` or `slot_of_domain`: one number for each domain, none left out."""
        value: tuple[int, ...] = getattr(self, field) or default
        require(
            len(value) == len(self.domains),
            field,
            f"={list(value)}: has {len(value)} numbers; the model has {len(self.domains)} domains; give one for each",
        )
        require(
            set(value) == set(range(max(value) + 1)),
            field,
            f"={list(value)}: must use every number from 0 to {max(value)}; renumber them",
        )
        return value

    def _checked_group_sizes(self) -> tuple[int, ...]:
        groups = max(self.group_of_domain) + 1
        require(
            self.num_experts >= groups,
            "num_experts",
            f"={self.num_experts}: must be at least the number of groups, {groups}, in the sparse layers; raise it",
        )
        if not self.group_sizes:
            require(
                self.num_experts % groups == 0,
                "num_experts",
                f"={self.num_experts}: must divide into {groups} equal groups; use a multiple of {groups}, or give"
                " group_sizes",
            )
            return (self.num_experts // groups,) * groups
        require(
            len(self.group_sizes) == groups and min(self.group_sizes) > 0,
            "group_sizes",
            f"={list(self.group_sizes)}: must be {groups} positive numbers, one for each group of group_of_domain",
        )
        require(
            sum(self.group_sizes) == self.num_experts,
            "group_sizes",
            f"={list(self.group_sizes)}: sum to {sum(self.group_sizes)}; must sum to num_experts={self.num_experts};"
            " change one of them",
        )
        return self.group_sizes

    @property
    def sparse_layers(self) -> range:
        """Numbers of the sparse layers."""
        return range(self.num_dense_layers, self.num_layers - (not self.query_layer_sparse))

    @property
    def num_slots(self) -> int:
        """Number of word tables."""
        return max(self.slot_of_domain) + 1

    def group_experts(self, group: int) -> range:
        """Numbers of the experts of a group."""
        start = sum(self.group_sizes[:group])
        return range(start, start + self.group_sizes[group])

    def domain_experts(self, domain: int) -> range:
        """Numbers of the experts to which tokens of a domain can go."""
        return self.group_experts(self.group_of_domain[domain])

    def axis_sizes(self) -> dict[str, int]:
        """See ModelConfig."""
        return super().axis_sizes() | {
            "expert": self.num_experts,
            "slot": self.num_slots,
            "domain": len(self.domains),
            "token": self.vocab_size,
        }

    def extra_inputs(self) -> dict[str, ExtraInput]:
        """See ModelConfig."""
        return {"domain": ExtraInput(("batch",))}

    def layer_parameters(self, layer: int) -> dict[str, ParameterSpec]:
        """See ModelConfig: the four parameters of a sparse layer's network are stacks of those of alpha's."""
        specs = super().layer_parameters(layer)
        if layer not in self.sparse_layers:
            return self._frozen(specs)
        dense = {name: specs.pop(name) for name in list(specs) if name.startswith("ffn.")}
        stacks = {
            name.replace("ffn.", "ffn.experts."): stack("expert", spec, lazy=True) for name, spec in dense.items()
        }
        return self._frozen(specs) | {"ffn.routing": table("domain", "token")} | stacks

    def outer_parameters(self) -> tuple[dict[str, ParameterSpec], dict[str, ParameterSpec]]:
        """See ModelConfig."""
        before, behind = super().outer_parameters()
        if self.num_slots == 1:
            return self._frozen(before), self._frozen(behind)
        word = before.pop("word_embedding.weight")
        slotted = {
            "word_embedding.slot_of_domain": table("domain"),
            "word_embedding.slots.weight": stack("slot", word, lazy=True),
        }
        return slotted | self._frozen(before), self._frozen(behind)

    def _frozen(self, shared: dict[str, ParameterSpec]) -> dict[str, ParameterSpec]:
        """Parameters that all domains share."""
        if self.trainable == "all":
            return shared
        return {name: dataclasses.replace(spec, trainable=False) for name, spec in shared.items()}

    def outer_parameter_layers(self) -> dict[str, tuple[int, ...]]:
        """See ModelConfig."""
        layers = super().outer_parameter_layers()
        if self.num_slots == 1:
            return layers
        word = layers.pop("word_embedding.weight")
        return {"word_embedding.slot_of_domain": word, "word_embedding.slots.weight": word} | layers

    def feed_forward_activations(
        self, layer: int, element_bytes: int, model_parallel: int, sequence_parallel: int
    ) -> list[Activation]:
        """See ModelConfig: a sparse layer also keeps the rows sorted by expert, before and behind the experts."""
        kept = super().feed_forward_activations(layer, element_bytes, model_parallel, sequence_parallel)
        if layer not in self.sparse_layers:
            return kept
        kept = [dataclasses.replace(one, routed=one.name in ("before the activation", "activation")) for one in kept]
        rows = element_bytes * self.seq_length * self.hidden_size
        return [*kept, Activation("rows sorted by expert", 2 * rows, count=2, routed=True)]

    @property
    def uses_token_counts(self) -> bool:
        """See ModelConfig."""
        return self.routing_mode == "frequency_balanced" and bool(self.sparse_layers)

    def initial_tables(self, token_counts: "np.ndarray | None" = None) -> "dict[str, np.ndarray]":
        """See ModelConfig."""
        from pangu_ms.models.sigma.routing import initial_tables

        return initial_tables(self, token_counts)

    def members_of(self, domains: "Iterable[int]") -> dict[str, list[int]]:
        """See ModelConfig."""
        domains = set(domains)
        members = {}
        if self.sparse_layers:
            groups = sorted({self.group_of_domain[domain] for domain in domains})
            members["expert"] = [expert for group in groups for expert in self.group_experts(group)]
        if self.num_slots > 1:
            members["slot"] = sorted({self.slot_of_domain[domain] for domain in domains})
        return members

    def with_members(self, numbers: dict[str, int]) -> "SigmaConfig":
        """See ModelConfig: one group of experts. At least two slots are kept, since the only word table of a model has
        another name."""
        others = len(self.domains) - 1
        fields: dict[str, Any] = {}
        if experts := numbers.get("expert"):
            fields |= {"num_experts": experts, "group_of_domain": (0,) * (others + 1), "group_sizes": (experts,)}
        if slots := numbers.get("slot"):
            fields["slot_of_domain"] = tuple(min(i, max(2, slots) - 1) for i in range(others + 1))
        return dataclasses.replace(self, **fields)

    def local_tables(
        self, tables: "dict[str, np.ndarray]", domains: "Sequence[int]"
    ) -> "Iterator[tuple[str, int, np.ndarray]]":
        """See ModelConfig."""
        from pangu_ms.models.sigma.routing import local_lines

        yield from local_lines(self, tables, domains)

    def fields_for_num_layers(self, num_layers: int) -> dict[str, Any]:
        """See ModelConfig: about the same share of dense layers."""
        if not self.sparse_layers:
            return {"num_dense_layers": num_layers} if self.num_dense_layers else {}
        dense = round(num_layers * self.num_dense_layers / self.num_layers)
        return {"num_dense_layers": min(max(dense, min(self.num_dense_layers, 1)), num_layers - 1)}

    def fields_for_smoke_run(self, hidden_size: int) -> dict[str, Any]:
        """See ModelConfig: at most two experts in a group."""
        sizes = tuple(min(2, size) for size in self.group_sizes)
        return {"group_sizes": sizes, "num_experts": sum(sizes)} if sizes else {}

    def fields_free_in_students(self) -> set[str]:
        """See ModelConfig."""
        return super().fields_free_in_students() | {"routing_mode", "routing_seed", "default_domain", "trainable"}


def table(*axes: str) -> ParameterSpec:
    """A table of integers, which training does not change."""
    return ParameterSpec(axes, trainable=False, dtype="int32")


CONFIG = SigmaConfig
