"""The batch that a rank's step gives to its graph if experts are on many ranks; no graph is compiled."""

import re

import numpy as np
import pytest
from mindspore import Parameter, Tensor

from pangu_ms.config import load_config
from pangu_ms.core.errors import PlanError
from pangu_ms.models.common.batch import blank_batch
from pangu_ms.parallel.plan import Plan
from pangu_ms.train.steps.protocol import GraphStep
from pangu_ms.train.steps.rank_step import RankStep


def step_of(*overrides):
    ranks = ["parallel.data_parallel=4", "parallel.expert_parallel=4", "train.batch_size=2"]
    plan = Plan.of(load_config("sigma/tiny", [*ranks, *overrides]))
    step = RankStep.__new__(RankStep)
    GraphStep.__init__(step, None, plan.config.train.seed)
    table = np.zeros((2, 1024), np.int32)
    table[1] = 4  # all tokens of a domain go to the first expert of its group
    step.plan, step.tables = plan, None
    step.weights = [Parameter(Tensor(table), name="blocks.1.ffn.routing", requires_grad=False)]
    return step


def batch_of(step, domains):
    batch = blank_batch(step.plan.config.model, len(domains))
    return batch.with_extra({"domain": np.array(domains, np.int32)})


def test_sequences_go_to_the_ranks_of_their_domains():
    step = step_of("parallel.expert_capacity_factor=0")
    inputs = step.inputs(batch_of(step, [1, 0, 1, 0, 0, 1, 1, 0]), 3, 1e-3)
    assert inputs[4].asnumpy().tolist() == [0, 0, 0, 0, 1, 1, 1, 1]


def test_a_batch_that_would_lose_tokens_or_cannot_be_spread_stops_the_run():
    step = step_of("parallel.expert_capacity_factor=1.5")
    message = (
        "a rank has 256 tokens for another one in a layer, and a bucket holds 192; no token is dropped; set it to 2"
    )
    with pytest.raises(PlanError, match=re.escape(message)):
        step.inputs(batch_of(step, [1, 0, 1, 0, 0, 1, 1, 0]), 3, 1e-3)
    with pytest.raises(PlanError, match="a batch has 3 of 8 sequences in domains modules; the 2 of 4 ranks"):
        step.inputs(batch_of(step, [1, 0, 1, 0, 1, 1, 1, 0]), 3, 1e-3)
