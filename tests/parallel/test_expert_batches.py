"""Batches for experts on many ranks, against loops over every sequence and token."""

import re

import numpy as np
import pytest

from pangu_ms.config import load_config
from pangu_ms.core.errors import PlanError
from pangu_ms.models.common.batch import Batch
from pangu_ms.models.sigma.routing import initial_tables
from pangu_ms.parallel.expert_batches import arranged, bucket_rows, require_room, tokens_sent
from pangu_ms.parallel.plan import Plan

pytestmark = pytest.mark.fast
NAMES = ["a", "b", "c", "d", "e", "f"]


def plan(*fields, sizes=(4, 4, 2, 2), groups=(0, 1, 2, 3, 3, 0), batch=12):
    model = [f"domains=[{','.join(NAMES)}]", f"num_experts={sum(sizes)}", f"group_of_domain={list(groups)}"]
    model += [f"group_sizes={list(sizes)}", "vocab_size=50", "hidden_size=8", "num_heads=2", "seq_length=8"]
    fields = [f if "." in f.partition("=")[0] else f"parallel.{f}" for f in fields]
    return Plan.of(load_config("sigma/tiny", [*(f"model.{f}" for f in model), f"train.batch_size={batch}", *fields]))


def ranks(dp, ep):
    return [f"data_parallel={dp}", f"expert_parallel={ep}"]


def batch_of(domains, seed=0):
    generator, rows = np.random.default_rng(seed), len(domains)
    ids = generator.integers(0, 50, (rows, 9)).astype(np.int32)
    numbers = np.repeat(np.arange(rows, dtype=np.int32)[:, None], 8, 1)  # which sequence it was
    mask = np.ones((rows, 8), np.float32)
    return Batch(ids, numbers, numbers, mask, {"domain": np.array(domains, np.int32)})


def balanced(laid, generator):
    """Domains of a batch in which every expert has equally many sequences."""
    model, size = laid.config.model, laid.config.global_batch_size
    found = []
    for group, experts in enumerate(model.group_sizes):
        its = [d for d, g in enumerate(model.group_of_domain) if g == group]
        found += generator.choice(its, size * experts // model.num_experts).tolist()
    return generator.permutation(found)


def experts_of_rank(laid, place):
    here = laid.config.model.num_experts // laid.config.parallel.expert_parallel
    return set(range(place * here, (place + 1) * here))


@pytest.mark.parametrize("dp, ep, micro", [(12, 12, 1), (6, 6, 1), (3, 3, 1), (12, 6, 2), (6, 3, 3), (2, 1, 1)])
def test_every_sequence_goes_to_a_rank_that_holds_experts_of_its_domain(dp, ep, micro):
    laid = plan(*ranks(dp, ep), f"train.accumulation_steps={micro}")
    batch = batch_of(balanced(laid, np.random.default_rng(3)))
    after = arranged(batch, laid)
    was = after.positions[:, 0]
    assert sorted(was) == list(range(len(was))), "a permutation"
    assert np.array_equal(after.ids, batch.ids[was]) and np.array_equal(
        after.extra["domain"], batch.extra["domain"][was]
    )
    model, each = laid.config.model, 12 // micro
    for row, domain in enumerate(after.extra["domain"]):
        place = row % (each * dp) // each % ep  # micro-batches, then dp, then ep
        held = experts_of_rank(laid, place)
        assert held & set(model.domain_experts(int(domain))), (row, place)


def test_a_batch_that_cannot_be_spread_is_told_with_what_it_needs():
    laid = plan(*ranks(6, 6))
    domains = balanced(laid, np.random.default_rng(3))
    domains[np.flatnonzero(np.isin(domains, (0, 5)))[0]] = 1
    message = (
        "parallel.expert_parallel=6: a batch has 23 of 72 sequences in domains a, f; the 2 of 6 ranks that hold their"
        " experts take 24; set data.samples_per_domain so that these domains have 2/6 of train.batch_size"
    )
    with pytest.raises(PlanError, match=re.escape(message)):
        arranged(batch_of(domains), laid)
    laid = plan(*ranks(6, 6), "data.samples_per_domain={a: 2, b: 4, c: 2, d: 2, f: 2}")  # what the line advises
    domains = np.repeat([0, 1, 2, 3, 5], [12, 24, 12, 12, 12])
    assert len(arranged(batch_of(domains), laid).ids) == 72


def test_tokens_sent_against_a_loop():
    laid = plan(*ranks(12, 6), "train.accumulation_steps=2", "expert_capacity_factor=0")
    tables = initial_tables(laid.config.model)
    batch = arranged(batch_of(balanced(laid, np.random.default_rng(5))), laid)
    expected = np.zeros((len(tables), 2, 12, 6), int)
    for layer, table in enumerate(tables.values()):
        for row in range(144):
            micro, rank = row // 72, row % 72 // 6
            for token in batch.ids[row, :-1]:
                expected[layer, micro, rank, table[batch.extra["domain"][row], token] // 2] += 1
    sent = tokens_sent(batch, tables, laid)
    assert np.array_equal(sent, expected)
    assert sent.sum() == len(tables) * 144 * 8, "no token is lost"
    together = np.array([[0, 1], [0, 1], [2, 3], [2, 3], [4, 4], [5, 5]])  # ranks along ep that hold a group
    for rank in range(12):
        assert {to for to in range(6) if sent[:, :, rank, to].any()} <= set(together[rank % 6])


def test_no_token_is_dropped_a_bucket_that_is_too_small_is_told_with_the_factor_it_needs():
    fields = ranks(6, 6)
    laid = plan(*fields, "expert_capacity_factor=1")
    tables = initial_tables(laid.config.model)
    batch = arranged(batch_of(balanced(laid, np.random.default_rng(5))), laid)
    most = int(tokens_sent(batch, tables, laid).max())
    assert bucket_rows(laid, 2) == 48 < most <= 96, "12 sequences of 8 tokens for 2 ranks"
    with pytest.raises(
        PlanError, match=f"a rank has {most} tokens for another one in a layer, and a bucket holds 48"
    ) as told:
        require_room(batch, tables, laid)
    needed = re.search(r"set it to ([\d.]+) or more", str(told.value))[1]
    require_room(batch, tables, plan(*fields, f"expert_capacity_factor={needed}"))
    assert bucket_rows(plan(*fields, f"expert_capacity_factor={needed}"), 2) >= most
    require_room(batch, tables, plan(*fields, "expert_capacity_factor=0"))
    assert bucket_rows(plan(*fields, "expert_capacity_factor=0"), 2) == 96
    with pytest.raises(PlanError):
        require_room(batch, tables, plan(*fields, f"expert_capacity_factor={float(needed) - 0.05:.2f}"))
