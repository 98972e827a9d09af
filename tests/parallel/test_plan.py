"""Plans: balanced stages against brute force, stages and layouts of every parameter against the model."""

import itertools
import math
import random

import pytest

from pangu_ms.config import load_config
from pangu_ms.core.errors import ConfigError
from pangu_ms.models.registry import FAMILIES
from pangu_ms.parallel.plan import Plan, balance


def plan(name, *fields, devices=0):
    return Plan.of(load_config(name, [f if "." in f.partition("=")[0] else f"parallel.{f}" for f in fields]), devices)


@pytest.mark.parametrize("seed", range(20))
def test_no_other_cut_has_a_smaller_largest_stage(seed):
    draw = random.Random(seed)
    costs = [draw.choice([1, 1, 2, 3, draw.random()]) for _ in range(draw.randint(1, 9))]
    stages = draw.randint(1, len(costs))

    def largest(lengths):
        ends = list(itertools.accumulate(lengths, initial=0))
        return max(sum(costs[a:b]) for a, b in itertools.pairwise(ends))

    cuts = (
        tuple(b - a for a, b in itertools.pairwise((0, *inner, len(costs))))
        for inner in itertools.combinations(range(1, len(costs)), stages - 1)
    )
    found = balance(costs, stages)
    assert len(found) == stages and sum(found) == len(costs) and min(found) > 0
    assert largest(found) == pytest.approx(min(largest(lengths) for lengths in cuts))


def test_the_head_counts_as_the_layers_that_it_costs():
    # alpha/tiny with 8 layers: head 2VE = 2 * 8192 * 192; a layer 24 E^2 + 4SE = 983,040: the head is 3.2 layers
    fields = [
        "pipeline_stage=2",
        "micro_batch_num=2",
        "model.num_layers=8",
        "model.vocab_size=8192",
        "tokenizer.vocab_size=8192",
    ]
    assert plan("alpha/tiny", *fields).stage_layers == (6, 2)
    assert plan("alpha/tiny", *fields, "stage_layers=[4,4]").stage_layers == (4, 4)  # given ones are kept


def test_where_parameters_are():
    alpha = plan("alpha/tiny", "pipeline_stage=3", "micro_batch_num=4", "model.num_layers=6").parameter_stages
    assert alpha["word_embedding.weight"] == (0, 2)  # the head is the table
    assert alpha["position_embedding.weight"] == (0,) and alpha["query_embedding.weight"] == (2,)
    assert (
        alpha["blocks.0.ffn.up.weight"] == (0,)
        and alpha["query_layer.ffn.up.weight"] == (2,) == alpha["final_norm.bias"]
    )
    for tied, stages in ((False, (0,)), (True, (0, 1))):
        pi = plan("pi/tiny", "pipeline_stage=2", "micro_batch_num=2", f"model.tie_word_embeddings={str(tied).lower()}")
        assert pi.parameter_stages["word_embedding.weight"] == stages and ("head.weight" in pi.layouts) is not tied
    assert list(alpha) == list(load_config("alpha/tiny", ["model.num_layers=6"]).model.parameters())


@pytest.mark.parametrize(
    ("name", "fields", "cuts"),
    [
        (
            "alpha/tiny",
            [],
            {
                "attention.query.weight": ("mp", ""),
                "attention.output.weight": ("", "mp"),
                "ffn.up.bias": ("mp",),
                "ffn.down.bias": ("",),
            },
        ),
        (
            "pi/tiny",
            [],
            {"attention.key.weight": ("mp", ""), "ffn.siaf.scale": ("", "mp"), "aug_shortcut.0.up.weight": ("", "")},
        ),
    ],
)
def test_what_is_cut(name, fields, cuts):
    layouts = plan(name, "model_parallel=2", "data_parallel=2", *fields).layouts
    for part, dims in cuts.items():
        assert layouts[f"blocks.0.{part}"].dims == tuple((d,) if d else () for d in dims), part
    assert layouts["word_embedding.weight"].dims == ((), ())
    assert plan(name, "model_parallel=2", "vocab_embedding=row").layouts["word_embedding.weight"].dims == (("mp",), ())


@pytest.mark.parametrize("name", ["alpha/13b", "alpha/200b", "pi/7b", "pi/openpangu_7b", "pi/1b_pro"])
def test_slices_of_all_devices_are_the_whole_model(name):
    batch = ["train.batch_size=2", "train.accumulation_steps=1"]
    laid = plan(
        name,
        "model_parallel=2",
        "data_parallel=4",
        "optimizer_shard=true",
        "pipeline_stage=2",
        "micro_batch_num=2",
        *batch,
    )
    shapes = laid.config.model.parameter_shapes()
    assert laid.layouts.keys() == shapes.keys() == laid.parameter_stages.keys()
    for parameter, layout in laid.layouts.items():
        assert layout.shape == shapes[parameter] and math.prod(layout.counts) * layout.slice_size == math.prod(
            shapes[parameter]
        )
    assert set(range(2)) == {stage for stages in laid.parameter_stages.values() for stage in stages}


def test_another_number_of_devices():
    with pytest.raises(
        ConfigError,
        match=(
            r"data_parallel=4 \* model_parallel=2 \* pipeline_stage=1 = 8: must be the number of devices, 16; change a"
            r" degree"
        ),
    ):
        plan("alpha/13b", "data_parallel=4", "model_parallel=2", devices=16)


def test_an_axis_without_a_rule(monkeypatch):
    monkeypatch.delitem(FAMILIES["alpha"].rules, "position")
    with pytest.raises(
        ConfigError, match="plan of alpha: position_embedding.weight: axis position has no rule; add it"
    ):
        plan("alpha/tiny")
