"""What each rank of test_data_parallel runs: steps on its part of the batches; rank 0 alone, or all, write what they
got to DIRECTORY/rank_N.npz. Afterwards they agree as the ranks of a plan do; see planned_child.py.

Their heartbeats go to DIRECTORY/heart_N.
"""

import os
import sys
from pathlib import Path

import numpy as np

from pangu_ms.core import heartbeat, runtime
from pangu_ms.core.heartbeat import DESCRIPTOR
from tests.models.alpha import random_parameters, small
from tests.train.steps import arrays, make_batch, make_config

RATE = 0.3
STEPS = 8


def config_of(replicas, parts, dropout=0.0, rows=4):
    """The same global batch of `rows` rows and the same micro-batches, however many replicas share them."""
    model = small(num_layers=2, hidden_size=16, seq_length=24, dropout=dropout)
    optimizer = {"beta1": 0.5, "clip_norm": 0.0, "weight_decay": 0.0}
    return make_config(
        model,
        train={"batch_size": rows // replicas, "accumulation_steps": parts},
        parallel={"data_parallel": replicas},
        optimizer=optimizer,
    )


def global_batch(config, seed, rank=0, world=1):
    """Rank `rank`'s rows of a batch of 4 in which a whole row does not count, so that the replicas have different
    numbers of tokens."""
    batch = make_batch(config, rows=4, seed=seed)
    batch.loss_mask[seed % 4] = 0
    return list(batch.split(world))[rank]


def momentum_sgd(config, replicas, model, step):
    """Losses, gradient norms, and the last momentum and weights of STEPS steps; AdamW's first moment is the momentum,
    its own update has rate 0."""
    rows = []
    for number in range(STEPS):
        result = step(global_batch(config, number, replicas.rank, replicas.world), number, lr=0.0)
        rows.append((result.loss, result.grad_norm))
        for weight, momentum in zip(model.trainable_params(), step.optimizer.m):
            weight.set_data(weight - RATE * momentum)
    moments = {f"m/{name}": value for name, value in arrays(step.optimizer.m).items()}
    return {
        "rows": np.array(rows),
        **moments,
        **{f"w/{name}": value for name, value in arrays(model.trainable_params()).items()},
    }


def adamw(config, replicas, model, step):
    """Losses and weights of four steps of which the second overflows on the last rank alone, and the third exceeds the
    limit of the mean loss."""
    rows, before = [], {}
    last = replicas.rank == replicas.world - 1
    for number in range(4):
        batch = global_batch(config, number, replicas.rank, replicas.world)
        if number == 1 and last:
            batch.loss_mask[-1] = np.inf  # that rank's loss and gradients alone are not finite
        result = step(batch, number, lr=1e-2, loss_limit=4.2 if number == 2 else float("inf"))
        rows.append((result.loss, result.applied))
        weights = arrays(model.trainable_params())
        rows[-1] += (all(np.array_equal(weights[name], value) for name, value in before.items()) and bool(before),)
        before = weights
    return {"rows": np.array(rows, np.float64), **{f"w/{name}": value for name, value in before.items()}}


CASES = {"sgd": (momentum_sgd, 2, 0.0), "sgd_cut": (momentum_sgd, 4, 0.2), "guard": (adamw, 4, 0.2)}
"""What runs, micro-batches of all replicas, dropout. Cases with the same numbers share a compiled step."""


def results_of(names, replicas):
    """CASE/NAME -> array of some cases, for this process's place."""
    from pangu_ms.models.build import build_model, fill
    from pangu_ms.train.steps.train_step import TrainStep

    results, compiled = {}, {}
    for name in names:
        run, *sizes = CASES[name]
        config = config_of(replicas.world, sizes[0] // replicas.world, sizes[1])
        if str(sizes) not in compiled:
            model = build_model(config.model)
            compiled[str(sizes)] = model, TrainStep(model, config, replicas)
        model, step = compiled[str(sizes)]
        fill(model.trainable_params(), random_parameters(config.model))
        for moment in step.parameters():
            moment.asnumpy()[...] = 0  # set_data would not reach a graph that has run
        found = run(config, replicas, model, step)
        results |= {f"{name}/{key}": value for key, value in found.items()}
    return results


if __name__ == "__main__":
    runtime.quiet()
    runtime.start("CPU")
    from pangu_ms.parallel.replicas import Replicas

    os.environ[DESCRIPTOR] = str(os.open(f"{sys.argv[1]}/heart_{os.environ['RANK_ID']}", os.O_WRONLY | os.O_CREAT))
    heartbeat._pipe.cache_clear()  # the launcher's own has beaten already
    replicas = Replicas.join(config_of(2, 1))
    np.savez(Path(sys.argv[1]) / f"rank_{replicas.rank}.npz", **results_of(sys.argv[2:], replicas))
    replicas.barrier()
    del os.environ[DESCRIPTOR]  # what follows beats for nobody
    heartbeat._pipe.cache_clear()
    from tests.train.planned_child import ranks_agree

    ranks_agree(Path(sys.argv[1]))
