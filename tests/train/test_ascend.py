"""What runs on a host when runtime.device is Ascend, with the device stubbed (tests/stub_ascend): launched training
from start to end."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pangu_ms.checkpoint.store import open_checkpoint
from pangu_ms.config import load_config
from pangu_ms.data.loader import Loader
from pangu_ms.data.records import RecordSet
from pangu_ms.models.common.init import initial_values
from tests.faults.common import ROOT, free_ports
from tests.faults.rank_tables import dump, table
from tests.stub_ascend.sitecustomize import executed, loss_of
from tests.train.runs import losses

STUB = Path(__file__).parents[1] / "stub_ascend"
SMALL = [
    "model.num_layers=2",
    "train.batch_size=2",
    "train.keep_checkpoints=0",
    "runtime.device=Ascend",
    "model.compute_dtype=float32",
]
PLANS = {
    "tensors": ["parallel.model_parallel=2"],
    "stages": ["parallel.pipeline_stage=2", "parallel.micro_batch_num=2"],
}


def pangu(name, *words):
    """A `pangu` command on a host with stubbed devices."""
    path = os.pathsep.join([str(STUB), str(ROOT), str(ROOT / "run")])
    command = [sys.executable, "-m", "pangu_ms", *map(str, words)]
    done = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": path, "ASCEND_STUB": name}, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr[-5000:]
    return done


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("plan", PLANS)
def test_a_launched_plan_trains_logs_saves_and_resumes_to_the_end(records, tiny_overrides, tmp_path, plan):
    """All but the execution of the step's graph: the weights are what the stub makes of the initial ones and of each
    batch."""
    output, overrides = (
        tmp_path / "run",
        [
            *tiny_overrides,
            *SMALL,
            *PLANS[plan],
            "train.steps=6",
            "parallel.devices_per_server=2",
            "train.save_every=2",
        ],
    )
    (tmp_path / "hccl.json").write_bytes(dump(table(1, 2)))
    launch = [
        "launch",
        "--rank-table",
        tmp_path / "hccl.json",
        "--server-id",
        "10.0.0.0",
        "--bind",
        "none",
        "--master-port",
        free_ports(),
    ]
    words = ["train", "--config", "alpha/tiny", *overrides, "--data", records, "--output", output]
    pangu(f"{tmp_path}/1", *launch, *words, "--stop-at", 3)
    assert open_checkpoint(output).step == 3
    pangu(f"{tmp_path}/2", *launch, *words, "--resume")
    checkpoint = open_checkpoint(output)
    assert checkpoint.step == 6 and sorted(losses(output)) == [*range(6)]
    assert [loss for loss, _ in losses(output).values()] == pytest.approx([3.0] * 6)
    config = load_config("alpha/tiny", overrides)
    batches = Loader(RecordSet.open(records, "train"), config.global_batch_size, config.data.seed).batches()
    expected = dict(initial_values(config.model, config.train.seed))
    moments = {
        prefix + name: np.zeros_like(value) for prefix in ("adam_m.", "adam_v.") for name, value in expected.items()
    }
    for _, batch in zip(range(6), batches):
        change = loss_of(batch.ids, batch.loss_mask)[2]
        expected, moments = (
            {name: executed(value, change) for name, value in tensors.items()} for tensors in (expected, moments)
        )
    for group, tensors in (("model", expected), ("optimizer", moments)):
        found = checkpoint.tensors(group)
        assert found.keys() == tensors.keys() and all(np.array_equal(found[name], tensors[name]) for name in tensors)
