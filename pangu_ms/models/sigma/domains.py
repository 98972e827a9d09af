"""Models made of others by domain: extraction of one domain, a new domain, and inheritance from PanGu-alpha. Source:
specification C5, C7. No mindspore import."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from pangu_ms.core.errors import ConfigError
from pangu_ms.models.common.config import ModelConfig
from pangu_ms.models.common.derived import Copy, Derived, single_parameters
from pangu_ms.models.common.stacks import member_name
from pangu_ms.models.sigma.config import SigmaConfig
from pangu_ms.models.sigma.routing import layer_table

WORD_TABLE = "word_embedding.weight"
WORD_TABLES, SLOT_OF_DOMAIN = "word_embedding.slots.weight", "word_embedding.slot_of_domain"

Tables = dict[str, np.ndarray]
"""The tables of integers of a model by name."""


def index_of(config: ModelConfig, domain: str) -> int:
    """The index of a domain.

    Raises:
        ConfigError: the model has no such domain.
    """
    if domain not in config.domains:
        raise ConfigError(
            f"domain={domain}: the model has no such domain; it has {', '.join(config.domains)}; name one of them"
        )
    return config.domains.index(domain)


def routing_name(config: ModelConfig, layer: int) -> str:
    """Name of the routing table of a layer."""
    return f"{config.layer_names()[layer]}.ffn.routing"


def word_table_of(config: SigmaConfig, domain: int) -> str:
    """Name of the word table that a domain reads; see `Copy.name`."""
    return WORD_TABLE if config.num_slots == 1 else member_name(WORD_TABLES, config.slot_of_domain[domain])


def extracted(
    config: SigmaConfig,
    tables: Tables,
    domain: str,
    drop_unused: bool = False,
    vocabulary: np.ndarray | None = None,
) -> Derived:
    """The model of one domain: all that its sequences read, so that it computes the same for them, bit for bit.

    Args:
        config: the configuration of the model.
        tables: its tables.
        domain: the name of the domain.
        drop_unused: also leave out experts to which no token of the vocabulary goes. All layers keep the same number,
            the largest number of used experts of a layer.
        vocabulary: int64, the ids of a smaller vocabulary; None keeps all.

    Raises:
        ConfigError: the model has no such domain.
    """
    index = index_of(config, domain)
    if vocabulary is not None:
        tables = {name: table[..., vocabulary] if name != SLOT_OF_DOMAIN else table for name, table in tables.items()}
    kept = _kept_experts(config, tables, index, drop_unused)
    size = len(next(iter(kept.values()), ()))
    new = dataclasses.replace(
        config,
        domains=(domain,),
        default_domain="",
        vocab_size=config.vocab_size if vocabulary is None else len(vocabulary),
        num_experts=size,
        group_of_domain=(0,),
        group_sizes=(size,) if size else (),
        slot_of_domain=(0,),
    )
    layer_of = {routing_name(config, layer): layer for layer in kept}
    numbers = {name.rpartition(".")[0]: kept[layer] for name, layer in layer_of.items()}
    parameters: dict[str, Copy | np.ndarray] = {}
    for name, whole, member, _ in single_parameters(new):
        if whole in layer_of:
            parameters[name] = np.searchsorted(kept[layer_of[whole]], tables[whole][[index]]).astype(np.int32)
        elif member is not None:
            parameters[name] = Copy(member_name(whole, int(numbers[whole.partition(".experts.")[0]][member])))
        elif whole == WORD_TABLE:
            parameters[name] = Copy(word_table_of(config, index), vocabulary)
        else:
            parameters[name] = Copy(whole)
    return Derived(new, parameters)


def _kept_experts(config: SigmaConfig, tables: Tables, domain: int, drop_unused: bool) -> dict[int, np.ndarray]:
    """For each sparse layer the numbers of the experts that an extracted model keeps, in rising order."""
    experts = np.array(config.domain_experts(domain))
    if not drop_unused:
        return dict.fromkeys(config.sparse_layers, experts)
    used = {layer: np.unique(tables[routing_name(config, layer)][domain]) for layer in config.sparse_layers}
    size = max(map(len, used.values()), default=0)
    return {
        layer: np.sort(np.concatenate([own, np.setdiff1d(experts, own)[: size - len(own)]]))
        for layer, own in used.items()
    }


def experts_of(config: SigmaConfig, domain: int) -> range:
    """Numbers of the experts to which tokens of a domain can go."""
    return config.domain_experts(domain)


def expert_loads(config: SigmaConfig, tables: Tables, token_counts: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Each sparse layer with the number of tokens that come to each of its experts: int64 [domains, K].

    Args:
        config: the configuration of the model.
        tables: its tables.
        token_counts: int64 [domains, V], how often each token is read in each domain.
    """
    for layer in config.sparse_layers:
        loads = np.zeros((len(config.domains), config.num_experts), np.int64)
        for domain, line in enumerate(tables[routing_name(config, layer)]):
            np.add.at(loads[domain], line, token_counts[domain])
        yield layer, loads


@dataclass(frozen=True, eq=False)
class Donor:
    """The model from which a new domain gets its experts: the model itself, or another one."""

    config: ModelConfig
    tables: Tables
    domain: int | None
    """Index of the domain; None if the model has no domains: its feed-forward networks become experts."""
    other: bool
    """Whether it is another model than the one that gets the domain."""

    @property
    def num_experts(self) -> int:
        """Number of experts of its domain; 1 if it has no domains."""
        return 1 if self.domain is None else len(self._experts)

    @property
    def _experts(self) -> range:
        assert isinstance(self.config, SigmaConfig) and self.domain is not None
        return self.config.domain_experts(self.domain)

    def expert(self, stack: str, number: int) -> Copy:
        """The parameter that a new expert's member of a stack is a copy of."""
        if self.domain is None:
            return Copy(stack.replace(".experts.", "."), donor=True)
        return Copy(member_name(stack, self._experts[number % self.num_experts]), donor=self.other)

    def word_table(self) -> Copy:
        """The parameter that a new word table is a copy of."""
        if self.domain is None:
            return Copy(WORD_TABLE, donor=True)
        assert isinstance(self.config, SigmaConfig)
        return Copy(word_table_of(self.config, self.domain), donor=self.other)

    def line(self, table: str) -> np.ndarray:
        """The line of its domain in a routing table, counted from the first expert of the domain."""
        return self.tables[table][self.domain] - self._experts.start


def with_domain(config: SigmaConfig, tables: Tables, name: str, donor: Donor, num_experts: int = 0) -> Derived:
    """The model with one more domain, which has a group of experts, a line in every table and, if the model has several
    word tables, a word table of its own. Nothing else of it trains.

    At first the new domain computes what the donor's domain does, or what a model computes that has the donor's
    feed-forward networks. The lines of the other domains and their parameters stay as they are.

    Args:
        config: the configuration of the model.
        tables: its tables.
        name: the name of the domain.
        donor: where the experts come from.
        num_experts: experts of the group, a multiple of the donor's; each of the donor's experts is then copied several
            times, and its tokens are dealt out to the copies. 0: as many as the donor's, or for a donor without domains
            as many as the first group.

    Raises:
        ConfigError: the model has the domain, or the donor cannot give its experts.
    """
    _require_donor(config, name, donor)
    size = num_experts or (config.group_sizes[0] if donor.domain is None else donor.num_experts)
    if size < 1 or size % donor.num_experts:
        raise ConfigError(
            f"--experts {num_experts}: the new group copies a group of {donor.num_experts} experts; must be a multiple"
            " of that"
        )
    new = dataclasses.replace(
        config,
        domains=(*config.domains, name),
        num_experts=config.num_experts + size,
        group_of_domain=(*config.group_of_domain, len(config.group_sizes)),
        group_sizes=(*config.group_sizes, size),
        slot_of_domain=(*config.slot_of_domain, config.num_slots if config.num_slots > 1 else 0),
        trainable="experts",
    )
    layer_of = {routing_name(config, layer): layer for layer in config.sparse_layers}
    parameters: dict[str, Copy | np.ndarray] = {}
    for single, whole, member, _ in single_parameters(new):
        if whole in layer_of:
            line = _dealt(donor, whole, size) if donor.domain is not None else _drawn(new, layer_of[whole])
            parameters[single] = np.vstack([tables[whole], config.num_experts + line]).astype(np.int32)
        elif whole == SLOT_OF_DOMAIN:
            parameters[single] = np.array(new.slot_of_domain, np.int32)
        elif whole == WORD_TABLES and member == config.num_slots:
            parameters[single] = donor.word_table()
        elif whole != WORD_TABLES and member is not None and member >= config.num_experts:
            parameters[single] = donor.expert(whole, member - config.num_experts)
        else:
            parameters[single] = Copy(single)
    return Derived(new, parameters)


def _dealt(donor: Donor, table: str, size: int) -> np.ndarray:
    """The donor's line with the tokens of each expert dealt out to its copies: int [V]."""
    line, copies = donor.line(table), size // donor.num_experts
    turn = np.empty(len(line), np.int64)
    for expert in range(donor.num_experts):
        own = np.flatnonzero(line == expert)
        turn[own] = np.arange(len(own)) % copies
    return line + donor.num_experts * turn


def _drawn(config: SigmaConfig, layer: int) -> np.ndarray:
    """A new line for the last domain, counted from its first expert: int [V]."""
    return layer_table(config, layer)[-1] - config.domain_experts(len(config.domains) - 1).start


def _require_donor(config: SigmaConfig, name: str, donor: Donor) -> None:
    if name in config.domains:
        raise ConfigError(
            f"--name {name}: the model has this domain; it has {', '.join(config.domains)}; choose another"
        )
    if not config.sparse_layers:
        raise ConfigError(
            f"model.num_dense_layers={config.num_dense_layers}: no layer is sparse, so that a domain has no experts;"
            " use another checkpoint"
        )
    fields = ["vocab_size", "hidden_size", "num_layers", "num_heads", "ffn_hidden_size", "seq_length", "hidden_act"]
    if donor.domain is not None:
        fields += ["num_dense_layers", "query_layer_sparse"]
    for field in fields:
        if (own := getattr(donor.config, field)) != (wanted := getattr(config, field)):
            raise ConfigError(f"--from: model.{field}={own}: must be {wanted}, as in the model; use another checkpoint")


FREE_OF_BASE = {"family", "vocab_size", "compute_dtype", "init_std", "init_rule", "dropout"}
"""Fields in which a model may differ from the PanGu-alpha whose weights it inherits."""


def inherited(
    old: ModelConfig, config: SigmaConfig, rows: np.ndarray | None = None, token_counts: np.ndarray | None = None
) -> Derived:
    """A model that computes what a PanGu-alpha computes, for every domain: each expert is a copy of its layer's
    feed-forward network, and each word table a copy of the word table (spec C5).

    Args:
        old: the configuration of the PanGu-alpha.
        config: the configuration of the new model.
        rows: int64 [vocab_size], for each id of the new vocabulary the old one with the same piece, -1 if there is
            none: such rows get initial values. None: the vocabulary is the same.
        token_counts: see `ModelConfig.initial_tables`.

    Raises:
        ConfigError: the new model would compute something else.
    """
    for field in old.field_names():
        if field not in FREE_OF_BASE and (own := getattr(config, field)) != (given := getattr(old, field)):
            raise ConfigError(
                f"model.{field}={own}: must stay {given}, or the model would not compute what the checkpoint's does;"
                f" set model.{field}={given}"
            )
    tables = config.initial_tables(token_counts)
    parameters: dict[str, Copy | np.ndarray] = {}
    for name, whole, _, spec in single_parameters(config):
        if whole in tables:
            parameters[name] = tables[whole]
        else:
            source = whole.replace(".experts.", ".").replace(".slots.", ".")
            parameters[name] = Copy(source, rows if spec.axes[0] == "vocab" else None)
    return Derived(config, parameters)
