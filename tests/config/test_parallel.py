"""Every rule of the parallel section has its own message, through the command line's way of giving it."""

import pytest

from pangu_ms.config import load_config
from pangu_ms.core.errors import ConfigError

pytestmark = pytest.mark.fast


def parallel(*fields, config="alpha/13b"):
    return load_config(config, [f if "." in f.partition("=")[0] else f"parallel.{f}" for f in fields])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            ["num_devices=6", "data_parallel=4"],
            "parallel.num_devices=6: must be data_parallel * model_parallel * pipeline_stage = 4 * 1 * 1 = 4",
        ),
        (
            ["data_parallel=4", "expert_parallel=3"],
            "parallel.expert_parallel=3: must divide data_parallel=4; use one of 1, 2, 4",
        ),
        (["pipeline_stage=4", "micro_batch_num=2"], "parallel.micro_batch_num=2: must be at least pipeline_stage=4"),
        (
            ["micro_batch_num=2"],
            "parallel.micro_batch_num=2: needs pipeline_stage above 1; without stages use train.accumulation_steps",
        ),
        (["model_parallel=5"], "parallel.model_parallel=5: must divide devices_per_server=8 or be a multiple of it"),
        (
            ["pipeline_stage=2", "micro_batch_num=2", "stage_layers=[40]"],
            "parallel.stage_layers: names 1 stages; pipeline_stage=2",
        ),
        (["sequence_parallel=true"], "parallel.sequence_parallel: needs model_parallel above 1"),
        (["data_parallel=0"], "parallel.data_parallel=0: must be positive"),
        (["num_devices=-1"], "parallel.num_devices=-1: must not be negative; 0 means the product"),
        (["recompute=some"], "parallel.recompute='some': input should be 'none', 'selective' or 'full'"),
        (["model_parallel=2.0"], "parallel.model_parallel=2.0: input should be a valid integer"),
        (["tensor_parallel=2"], "parallel.tensor_parallel: unknown key; did you mean"),
        # against the model and the batch
        (
            ["model_parallel=16"],
            "parallel.model_parallel=16: must divide num_heads=40; use one of 1, 2, 4, 5, 8, 10, 20, 40",
        ),
        (
            ["model_parallel=8", "model.ffn_hidden_size=20484"],
            "parallel.model_parallel=8: must divide ffn_hidden_size=20484; use one of 1, 2, 3, 4",
        ),
        (
            ["model_parallel=8", "vocab_embedding=row", "model.vocab_size=40004"],
            "parallel.vocab_embedding=row: model_parallel=8 must divide vocab_size=40004",
        ),
        (
            ["model_parallel=8", "sequence_parallel=true", "model.seq_length=1020"],
            "parallel.sequence_parallel=True: model_parallel=8 must divide seq_",
        ),
        (
            ["pipeline_stage=64", "micro_batch_num=64", "train.batch_size=64"],
            "parallel.pipeline_stage=64: must not exceed num_layers=40",
        ),
        (
            ["pipeline_stage=2", "micro_batch_num=2", "stage_layers=[20,21]"],
            "parallel.stage_layers=(20, 21): must be positive and add up to num_layers=40",
        ),
        (
            ["pipeline_stage=2", "micro_batch_num=2", "stage_layers=[41,-1]"],
            "parallel.stage_layers=(41, -1): must be positive and add up",
        ),
        (
            ["data_parallel=2", "expert_parallel=2"],
            "parallel.expert_parallel=2: this alpha model has no experts; use 1",
        ),
        (
            ["pipeline_stage=2", "micro_batch_num=2", "train.accumulation_steps=2"],
            "train.accumulation_steps=2: use micro_batch_num instead",
        ),
        (["pipeline_stage=2", "micro_batch_num=3"], "parallel.micro_batch_num=3: must divide train.batch_size=8"),
    ],
)
def test_a_wrong_degree_is_told_with_its_rule(fields, message):
    with pytest.raises(ConfigError) as error:
        parallel(*fields)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_key_and_value_heads_are_a_rule_of_their_own():
    with pytest.raises(ConfigError, match="parallel.model_parallel=8: must divide num_kv_heads=4; use one of 1, 2, 4"):
        parallel(
            "model_parallel=8",
            "model.num_heads=16",
            "model.num_kv_heads=4",
            "model.hidden_size=1792",
            config="pi/1b_pro",
        )


def test_what_the_rules_allow():
    published = [
        "data_parallel=16",
        "model_parallel=8",
        "pipeline_stage=16",
        "micro_batch_num=32",
        "optimizer_shard=true",
        "train.batch_size=32",
    ]
    config = parallel(*published, "num_devices=2048", config="alpha/200b")
    assert config.parallel.world == 2048 and config.global_batch_size == 512
    assert parallel("model_parallel=40", "devices_per_server=8").parallel.world == 40  # five whole servers
