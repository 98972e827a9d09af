"""The sizes of PanGu-Sigma's configs against a closed form written out here."""

import numpy as np
import pytest

from pangu_ms.cli.main import main
from pangu_ms.config import load_config

pytestmark = pytest.mark.fast

EACH_ITS_SLOT = "model.slot_of_domain=[0,1,2,3" + ",0" * 36 + "]"


def counted(width, ffn, layers, sparse, experts, domains, vocab, tables, length):
    """Values of a model, from the sizes alone."""
    network = 2 * width * ffn + ffn + width
    attention = 4 * (width * width + width) + 2 * 2 * width  # with the two norms of a layer
    routing = sparse * domains * vocab + (domains if tables > 1 else 0)
    outside = tables * vocab * width + 2 * length * width + 2 * width  # words, positions, queries, final norm
    return layers * attention + (layers - sparse) * network + sparse * experts * network + routing + outside


@pytest.mark.parametrize(
    "overrides, vocab, tables, trillions",
    [
        ([], 40_000, 1, 1.0850),
        (["model.vocab_size=64000"], 64_000, 1, 1.0851),
        (["model.vocab_size=64000", EACH_ITS_SLOT], 64_000, 4, 1.0861),
    ],
)
def test_a_trillion_parameters_in_each_reading(overrides, vocab, tables, trillions):
    model = load_config("sigma/1t", overrides).model
    assert model.num_parameters() == counted(5120, 20480, 40, 8, 640, 40, vocab, tables, 1024)
    assert round(model.num_parameters() / 1e12, 4) == trillions
    assert len(model.sparse_layers) == 8 and model.num_layers - 1 in model.sparse_layers
    assert set(model.group_sizes) == {16} and len(model.group_sizes) == 40


def test_the_reading_with_a_dense_query_layer_has_as_many_parameters():
    other = load_config("sigma/1t", ["model.num_dense_layers=31", "model.query_layer_sparse=false"]).model
    assert other.num_parameters() == load_config("sigma/1t").model.num_parameters()


def test_a_config_for_a_cpu_has_the_active_parameters_of_alphas():
    sigma, alpha = load_config("sigma/10m").model, load_config("alpha/10m").model
    assert sigma.num_parameters() == counted(256, 1024, 10, 3, 16, 4, 8000, 1, 256)
    tables = 3 * 4 * 8000
    unused = 3 * 15 * (2 * 256 * 1024 + 1024 + 256)
    assert sigma.num_parameters() - tables - unused == alpha.num_parameters()


def test_no_array_of_a_stack_is_made_to_show_count_and_plan_it(capsys, monkeypatch):
    def refuse(*_args, **_kwargs):
        raise AssertionError("an array was made")

    for maker in ("empty", "zeros", "ones", "full", "array", "broadcast_to", "arange"):
        monkeypatch.setattr(np, maker, refuse)
    ranks = ["parallel.model_parallel=8", "parallel.data_parallel=40", "parallel.expert_parallel=40"]
    assert main(["config", "show", "--config", "sigma/1t"]) == 0
    assert main(["plan", "show", "--config", "sigma/1t", *ranks]) == 0
    assert main(["plan", "estimate", "--config", "sigma/1t", *ranks]) == 1, "no such plan fits in 32 GiB"
    assert "1,085,008,640,000 parameters on 320 devices" in capsys.readouterr().out


@pytest.mark.parametrize("name, source, sparse, billions", [("3b", "350m", 5, 2.99), ("22b", "2_6b", 6, 22.45)])
def test_sizes_between_grow_out_of_alphas(name, source, sparse, billions):
    sigma, alpha = load_config(f"sigma/{name}").model, load_config(f"alpha/{source}").model
    sizes = (alpha.hidden_size, alpha.ffn_hidden_size, alpha.num_layers)
    assert sigma.num_parameters() == counted(*sizes, sparse, 64, 4, alpha.vocab_size, 1, alpha.seq_length)
    assert round(sigma.num_parameters() / 1e9, 2) == billions
    same = (set(alpha.field_names()) & set(sigma.field_names())) - {"family"}
    assert {field for field in same if getattr(alpha, field) != getattr(sigma, field)} == set()
