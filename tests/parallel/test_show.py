"""`pangu plan show`: what it prints is the plan."""

import json
import math

import pytest

from pangu_ms.cli.main import main
from pangu_ms.config import load_config
from pangu_ms.parallel.plan import Plan
from pangu_ms.parallel.strategy_file import read_parameter_layouts

DEGREES = [
    "data_parallel=2",
    "model_parallel=8",
    "pipeline_stage=4",
    "micro_batch_num=4",
    "vocab_embedding=row",
    "optimizer_shard=true",
]
FIELDS = [*(f"parallel.{d}" for d in DEGREES), "train.batch_size=4"]


@pytest.fixture
def show(capsys):
    def command(*words, code=0):
        assert main(["plan", "show", *words]) == code
        out, err = capsys.readouterr()
        return err if code else json.loads(out) if "--json" in words else out

    return command


def test_stages_and_collapsed_parameters_add_up(show):
    shown, plan = show("--config", "alpha/13b", "--json", *FIELDS), Plan.of(load_config("alpha/13b", FIELDS))
    assert shown["devices"] == 64 and shown["num_parameters"] == plan.config.model.num_parameters()
    assert [name for stage in shown["stages"] for name in stage["layers"]] == plan.config.model.layer_names()
    rows = shown["parameters"]
    assert sum(row["count"] for row in rows) == len(plan.layouts) and len(rows) < 40
    assert sum(row["count"] * math.prod(row["shape"]) for row in rows) == shown["num_parameters"]
    for row in rows:
        parts = math.prod(a // b for a, b in zip(row["shape"], row["slice_shape"]))
        assert row["bytes"] == 4 * math.prod(row["slice_shape"]) and row["copies"] * parts == 16
    everywhere = sum(stage["parameter_bytes"] * 16 for stage in shown["stages"])
    table = next(row for row in rows if row["name"] == "word_embedding.weight")  # on the first and the last stage
    assert everywhere == sum(row["count"] * row["bytes"] * 16 for row in rows) + table["bytes"] * 16
    assert shown["placement"] == [[at.server, at.device] for at in plan.mesh.placement()]
    groups = {group["axis"]: (group["ranks"], group["servers"]) for group in shown["groups"]}
    assert groups == {"dp": ([0, 8], 2), "mp": (list(range(8)), 1), "stage": ([0, 16, 32, 48], 4)}


def test_a_plan_is_written_as_mindspores_strategy_files(show, tmp_path):
    show("--config", "alpha/13b", "--strategy-files", str(tmp_path / "files"), "--json", *FIELDS)
    plan = Plan.of(load_config("alpha/13b", FIELDS))
    for stage in range(plan.mesh.num_stages):
        assert (
            read_parameter_layouts(tmp_path / "files" / f"strategy_stage_{stage}.ckpt", plan.mesh).differences(plan)
            == []
        )


def test_one_rank_shows_its_place_and_its_slices(show):
    shown, plan = (
        show("--config", "alpha/13b", "--rank", "59", "--json", *FIELDS),
        Plan.of(load_config("alpha/13b", FIELDS)),
    )
    assert shown["coordinate"] == {"stage": 3, "dp": 1, "mp": 3} and (shown["server"], shown["device"]) == (7, 3)
    assert [stage["stage"] for stage in shown["stages"]] == [3]
    rows = {row["name"]: row for row in shown["parameters"]}
    assert (
        sum(row["count"] for row in rows.values()) == len(plan.stage_parameters(3))
        and "position_embedding.weight" not in rows
    )
    # stage rank 11 = dp 1, mp 3: rows cut by mp, then once more by dp
    assert rows["query_layer.attention.query.weight"]["slice"] == [[3 * 640 + 320, 4 * 640], [0, 5120]]
    assert rows["query_layer.ffn.down.weight"]["slice"] == [[2560, 5120], [3 * 2560, 4 * 2560]]
    assert rows["word_embedding.weight"]["slice"] == [
        [3 * 5000, 4 * 5000],
        [0, 5120],
    ]  # of two stages: the optimizer leaves it
    assert rows["final_norm.bias"]["slice"] == [[0, 5120]]  # below the optimizer's threshold
    text = show("--config", "alpha/13b", "--rank", "59", *FIELDS)
    assert "rank 59: stage 3, dp 1, mp 3; placed on server 7, device 3" in text and "2240:2560, 0:5120" in text


def test_the_table_of_a_model_of_another_family(show):
    text = show("--config", "pi/7b", "parallel.data_parallel=4", "parallel.model_parallel=8")
    assert "6,727,240,704 parameters on 32 devices" in text and "mp         8 ranks in 1 server: 0, 1, 2" in text
    (line,) = [line for line in text.splitlines() if line.startswith("blocks.*.ffn.siaf.scale")]
    assert line.split() == "blocks.*.ffn.siaf.scale 29 2 x 11008 - x mp 4 10.8 2 x 1376".split()


def test_mistakes(show):
    assert "rank 64: the plan has 64 devices; ranks are 0 to 63" in show(
        "--config", "alpha/13b", "--rank", "64", *FIELDS, code=2
    )
    assert "= 64: must be the number of devices, 32; change a degree" in show(
        "--config", "alpha/13b", "--devices", "32", *FIELDS, code=2
    )


@pytest.mark.parametrize("action", ["show", "estimate", "search"])
def test_help_has_defaults(action, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["plan", action, "--help"])
    out = capsys.readouterr().out
    out = " ".join(out.split())
    assert stop.value.code == 0 and "(default: alpha/13b)" in out and "--json" in out
    assert action == "show" or "ascend910b" in out and "(default: runtime.chip, or ascend910)" in out
