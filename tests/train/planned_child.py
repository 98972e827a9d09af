"""A rank of a plan.

DIRECTORY RANK PLAN            builds the model of a virtual rank, which compiles its step, and writes what it holds
to DIRECTORY/held.npz:
                               initial values, then those of the checkpoint DIRECTORY/source, then its part of a save
                               below DIRECTORY/saved

`ranks_agree` is of a real CPU process: what the ranks say to each other, to DIRECTORY/agreed_N.json.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np

from pangu_ms.config.schema import RunConfig
from pangu_ms.core import runtime
from tests.checkpoint.reshard_common import ALPHA, planned

TEXT = "runs/\u9e4f/step-00000005"


def virtual(directory: Path, rank: int, config: RunConfig, compiled: Callable[[Any], None] = lambda step: None) -> None:
    """One rank of a cluster that is not there; `compiled` gets its graph when that is compiled."""
    import mindspore as ms

    from ascend_ops import backend
    from pangu_ms.checkpoint import store
    from pangu_ms.models.common.batch import Batch
    from pangu_ms.rehearsal import virtual_cluster
    from pangu_ms.train import distributed_model

    ms.set_context(mode=ms.GRAPH_MODE)
    virtual_cluster.enter(config.parallel.world, rank)
    ranks = SimpleNamespace(rank=rank, world=config.parallel.world, leads=rank == 0, barrier=lambda word=None: word)
    backend.assume_soc("ascend910")
    with mock.patch.object(distributed_model.DeviceRanks, "join", lambda: ranks):
        own = distributed_model.ShardedModel(config)
        own.compile()
        step, B, S = own.train_step, config.global_batch_size, config.model.seq_length
        ones = np.ones((B, S), np.int32)
        step.cell(
            *step.inputs(Batch(np.ones((B, S + 1), np.int32), ones, ones, ones.astype(np.float32)), 3, 0.25, 8.0, 3e38)
        )
        control = (
            [float(p.asnumpy()) for p in (step.cell.lr, step.cell.scale)]
            if config.parallel.pipeline_stage > 1
            else [0.25, 8.0]
        )
    compiled(step.cell)
    distributed_model.initialize(own)
    first = held(own)
    checkpoint = store.open_checkpoint(directory / "source")
    for group in own.groups:
        distributed_model.load(own, checkpoint, group)
    sliced = all(p.sliced for parameters in own.groups.values() for p in parameters)
    np.savez(
        directory / "held.npz",
        graphs=len(step.cell.compile_cache),
        control=control,
        sliced=sliced,
        **{f"first/{n}": v for n, v in first.items()},
        **held(own),
    )
    own.save(directory / "saved", 5, checkpoint.state(), None)


def held(own) -> dict:
    """All tensors of a distributed model."""
    return {p.name: p.asnumpy().copy() for parameters in own.groups.values() for p in parameters}


def ranks_agree(directory: Path) -> None:
    """Agree under the settings of a plan; the process is of no other use afterwards."""
    import mindspore as ms

    from pangu_ms.parallel.device_ranks import DeviceRanks

    ranks = DeviceRanks.join()
    ms.set_auto_parallel_context(
        device_num=2, global_rank=ranks.rank, full_batch=True, pipeline_stages=2, parallel_mode="semi_auto_parallel"
    )
    brought = [(None, None), (None, "SIGTERM"), ("SIGINT", None), ("SIGINT", "failed"), ("SIGUSR1", None)]
    heard = [ranks.barrier(pair[ranks.rank]) for pair in brought]
    told = [ranks.broadcast(TEXT if ranks.leads else ""), ranks.broadcast("")]
    (directory / f"agreed_{ranks.rank}.json").write_text(json.dumps([heard, told]))
    ranks.barrier()


if __name__ == "__main__":
    runtime.quiet()
    virtual(Path(sys.argv[1]), int(sys.argv[2]), planned(ALPHA, tuple(json.loads(sys.argv[3]))))
