"""PanGu-Sigma's routing tables: which expert each token goes to. Source: specification C3.1. No mindspore import."""

import heapq
from collections.abc import Iterator, Sequence

import numpy as np

from pangu_ms.models.sigma.config import SigmaConfig


def initial_tables(config: SigmaConfig, token_counts: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """The tables of a new model by name: for each sparse layer int32 [domains, V] with the number of an expert, and
    with several embedding slots int32 [domains] with the number of a slot.

    Args:
        config: its group sizes, mode and seed.
        token_counts: int64 [domains, V], for the mode frequency_balanced; None counts every token once.
    """
    names = config.layer_names()
    tables = {f"{names[layer]}.ffn.routing": layer_table(config, layer, token_counts) for layer in config.sparse_layers}
    if config.num_slots > 1:
        tables["word_embedding.slot_of_domain"] = np.array(config.slot_of_domain, np.int32)
    return tables


def local_lines(
    config: SigmaConfig, tables: dict[str, np.ndarray], domains: Sequence[int]
) -> Iterator[tuple[str, int, np.ndarray]]:
    """See `ModelConfig.local_tables`."""
    members = config.members_of(domains)
    positions = {}
    for axis, indices in members.items():
        positions[axis] = np.full(config.axis_sizes()[axis], -1, np.int32)
        positions[axis][indices] = np.arange(len(indices), dtype=np.int32)
    for name, table in tables.items():
        position = positions["slot" if name.endswith("slot_of_domain") else "expert"]
        yield from ((name, domain, position[table[domain]]) for domain in domains)


def layer_table(config: SigmaConfig, layer: int, token_counts: np.ndarray | None = None) -> np.ndarray:
    """The table of one layer: int32 [domains, V]. Each domain and layer draws from the seed by itself, so that another
    domain leaves the rows of the others as they are."""
    rows = []
    for domain in range(len(config.domains)):
        experts = config.domain_experts(domain)
        generator = np.random.Generator(np.random.Philox(np.random.SeedSequence([config.routing_seed, layer, domain])))
        shuffled = generator.permutation(config.vocab_size)
        if config.routing_mode == "frequency_balanced":
            counts = np.ones(config.vocab_size, np.int64) if token_counts is None else token_counts[domain]
            row = _balanced(shuffled, counts, len(experts))
        else:
            row = np.empty(config.vocab_size, np.int64)
            row[shuffled] = np.arange(config.vocab_size) % len(experts)
        rows.append(experts.start + row)
    return np.stack(rows).astype(np.int32)


def _balanced(shuffled: np.ndarray, counts: np.ndarray, num_experts: int) -> np.ndarray:
    """Give each token, the most frequent first, to the expert with the fewest occurrences so far, among equals to the
    one with the fewest tokens. `shuffled` is the order of tokens of one frequency. Tokens that do not occur are dealt
    out in turn: all would go to one expert."""
    row = np.empty(len(counts), np.int64)
    order = shuffled[np.argsort(-counts[shuffled], kind="stable")]
    occurring = np.count_nonzero(counts)
    loads = [(0, 0, expert) for expert in range(num_experts)]
    for token in order[:occurring]:
        occurrences, tokens, expert = loads[0]
        row[token] = expert
        heapq.heapreplace(loads, (occurrences + int(counts[token]), tokens + 1, expert))
    row[order[occurring:]] = np.arange(len(order) - occurring) % num_experts
    return row
