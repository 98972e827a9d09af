"""PanGu-Sigma's model and its routing tables."""

import dataclasses
import itertools

import numpy as np
import pytest

from pangu_ms.config import load_config
from pangu_ms.core.errors import ConfigError
from pangu_ms.models.common.init import initial_value, initial_values
from pangu_ms.models.common.stacks import member_name, members, stack_of
from pangu_ms.models.sigma.routing import layer_table
from tests.models.sigma import FIELDS

SMALL = load_config("sigma/tiny", [f"model.{field}" for field in FIELDS]).model
GROUPS = [range(2), range(2, 5), range(5, 6)]
"""The experts of each domain of SMALL."""


def test_tables_deal_the_vocabulary_out_within_the_group_of_each_domain():
    """Each expert has as many tokens as the others of its group, up to one; tables of layers and domains differ."""
    first, second = (layer_table(SMALL, layer) for layer in (1, 2))
    for row, experts in zip(first, GROUPS):
        counts = np.bincount(row, minlength=6)
        assert set(np.flatnonzero(counts)) == set(experts)
        assert counts[list(experts)].max() - counts[list(experts)].min() <= 1
    assert (first != second).any(1).tolist() == [True, True, False]  # the last group has one expert
    assert not np.array_equal(first[1] % 2, first[0] % 2)
    more = dataclasses.replace(
        SMALL, domains=(*SMALL.domains, "poems"), group_of_domain=(0, 1, 2, 3), num_experts=8, group_sizes=(2, 3, 1, 2),
        slot_of_domain=(0, 1, 0, 1),
    )  # fmt: skip
    assert np.array_equal(layer_table(more, 1)[:3], first)  # a new domain leaves the rows of the others


def test_balanced_tables_give_experts_equally_many_tokens_of_the_text():
    """Against the best that any table can do: the most frequent token, or the mean."""
    config = dataclasses.replace(SMALL, routing_mode="frequency_balanced")
    counts = np.random.default_rng(0).zipf(1.3, (3, config.vocab_size)).clip(0, 5_000)
    counts[:, 300:] = 0  # tokens that do not occur are dealt out, too
    for table in (layer_table(config, 1, counts), layer_table(config, 2, counts)):
        for row, of_domain, experts in zip(table, counts, GROUPS):
            loads = np.bincount(row, of_domain, minlength=6)[list(experts)]
            assert loads.max() <= max(of_domain.max(), loads.mean() * 1.01)
            unused = np.bincount(row[300:], minlength=6)[list(experts)]
            assert unused.max() - unused.min() <= 1
    random = np.bincount(layer_table(SMALL, 1)[1], counts[1], minlength=6)[2:5]
    assert random.max() > 1.05 * random.mean()  # what the mode is for


@pytest.fixture(scope="module")
def parameters():
    """Random values of every parameter: experts differ."""
    generator = np.random.default_rng(3)
    return {
        name: value if value.dtype == np.int32 else value + generator.normal(0, 0.2, value.shape).astype(np.float32)
        for name, value in initial_values(SMALL, 1)
    }


@pytest.fixture(scope="module")
def logits(mindspore_cpu):
    """A function from parameters to the logits of a batch of all domains; compiled once."""
    from mindspore import Tensor

    from pangu_ms.models.build import build_model, fill, weights

    model, ids = build_model(SMALL), np.random.default_rng(1).integers(4, 384, (4, 32)).astype(np.int32)
    positions, domains = np.tile(np.arange(32, dtype=np.int32), (4, 1)), np.array([1, 0, 2, 1], np.int32)
    model.set_train(False)

    def compute(parameters):
        fill(weights(model), parameters)
        inputs = Tensor(ids), Tensor(positions), Tensor(np.zeros_like(ids)), Tensor(np.int32(0)), Tensor(domains)
        return model(*inputs).asnumpy()

    return compute


def test_table_and_experts_permuted_together_compute_the_same(parameters, logits):
    """The table alone computes something else: it does say which expert computes."""
    expected, permuted = logits(parameters), dict(parameters)
    permutation = np.array([1, 0, 4, 2, 3, 5])  # within the groups
    for name, value in parameters.items():
        if ".experts." in name:
            permuted[name] = value[np.argsort(permutation)]
        elif name.endswith(".routing"):
            permuted[name] = permutation[value].astype(np.int32)
    np.testing.assert_allclose(logits(permuted), expected, atol=2e-5)
    tables = {name: value for name, value in permuted.items() if name.endswith(".routing")}
    assert np.abs(logits(parameters | tables) - expected).max() > 0.05


def test_a_sparse_network_is_that_of_each_token_s_expert(parameters, mindspore_cpu):
    """Against numpy float64, token by token."""
    from mindspore import Tensor

    from pangu_ms.models.build import build_model, fill, weights

    model = build_model(SMALL)
    fill(weights(model), parameters)
    generator = np.random.default_rng(2)
    x, ids = generator.normal(size=(3, 7, 32)).astype(np.float32), generator.integers(0, 384, (3, 7)).astype(np.int32)
    domains = np.array([2, 0, 1], np.int32)
    found = model.blocks[1].ffn(Tensor(x), Tensor(ids), Tensor(domains)).asnumpy()
    prefix = "blocks.1.ffn."
    w1, b1, w2, b2 = (
        parameters[f"{prefix}experts.{part}"].astype(np.float64)
        for part in ("up.weight", "up.bias", "down.weight", "down.bias")
    )
    for row, column in itertools.product(range(3), range(7)):
        e = parameters[f"{prefix}routing"][domains[row], ids[row, column]]
        inner = w1[e] @ x[row, column] + b1[e]
        y = w2[e] @ (inner / (1 + np.exp(-1.702 * inner))) + b2[e]
        np.testing.assert_allclose(found[row, column], y, atol=1e-4)


@pytest.mark.parametrize(
    ("fields", "sparse"),
    [
        ({"num_dense_layers": 3, "num_experts": 0}, []),
        ({"num_dense_layers": 0}, [0, 1, 2]),
        ({"num_dense_layers": 1, "query_layer_sparse": False}, [1]),
    ],
    ids=["dense", "sparse", "query layer dense"],
)
def test_layouts_follow_from_four_numbers(fields, sparse):
    config = (
        dataclasses.replace(SMALL, **fields, group_sizes=())
        if "num_experts" in fields
        else dataclasses.replace(SMALL, **fields)
    )
    assert list(config.sparse_layers) == sparse
    names = [name for name in config.parameters() if name.endswith("ffn.routing")]
    assert names == [f"{config.layer_names()[layer]}.ffn.routing" for layer in sparse]


def test_members_of_stacks_are_initialised_by_their_own_names():
    """A part of a stack has the values of the whole, and a stack of more experts those of fewer."""
    spec, shapes = SMALL.parameters(), SMALL.parameter_shapes()
    name = "blocks.1.ffn.experts.up.weight"
    whole = initial_value(spec[name], name, shapes[name], 5)
    part = initial_value(spec[name], name, shapes[name], 5, (slice(2, 4), slice(0, 8), slice(0, 32)))
    assert np.array_equal(part, whole[2:4, :8])
    assert np.array_equal(initial_value(spec[name], name, (9, *shapes[name][1:]), 5)[:6], whole)
    assert [stack_of(member) for member, _ in members({name: whole})] == [(name, index) for index in range(6)]
    assert member_name("adam_m." + name, 3) == "adam_m.blocks.1.ffn.experts.3.up.weight"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["domains=[]"], "domains: is required; name the domains of the records"),
        (["domains=[a,a,b]"], "names must differ"),
        (["group_sizes=[2,2,1]"], "sum to 5; must sum to num_experts=6; change one of them"),
        (["group_sizes=[2,4]"], "must be 3 positive numbers"),
        (["group_sizes=[]", "num_experts=7"], "must divide into 3 equal groups; use a multiple of 3"),
        (["group_of_domain=[0,1]"], "has 2 numbers; the model has 3 domains; give one for each"),
        (["group_of_domain=[0,2,2]"], "must use every number from 0 to 2; renumber them"),
        (["default_domain=poems"], "is none of the model's domains, text, code, law"),
        (["num_dense_layers=4"], "must be at most num_layers=3"),
        (["num_dense_layers=3"], "no layer is sparse"),
    ],
)  # fmt: skip
def test_a_wrong_field_is_told(overrides, message):
    with pytest.raises(ConfigError, match="model.*" + message):
        load_config("sigma/tiny", [f"model.{field}" for field in [*FIELDS, *overrides]])
