"""The processes of an execution: a virtual rank that exports its graph, a rank that runs one, and the single process
that they are compared with.

python -m pangu_ms.rehearsal.execute_child compile DIR RANK     writes rank_N.mindir; its collectives and groups to
stdout, JSON
python -m pangu_ms.rehearsal.execute_child run DIR RANK         writes rank_N.npz
python -m pangu_ms.rehearsal.execute_child single DIR           writes single.npz
"""

import functools
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pangu_ms.config.load import config_from_dict
from pangu_ms.config.schema import RunConfig
from pangu_ms.core import runtime
from pangu_ms.parallel.plan import Plan
from pangu_ms.rehearsal import execute


def main(argv: Sequence[str]) -> int:
    """Entry of each of the processes; DIR/request.json says what to do."""
    answer, sys.stdout = sys.stdout, sys.stderr  # nothing else may write to it
    os.environ["GLOG_v"] = runtime.ERRORS_ONLY
    runtime.quiet()
    directory = Path(argv[1]).absolute()
    os.chdir(directory)  # MindSpore leaves files of failed compilations where it runs
    request = json.loads((directory / execute.REQUEST).read_text())
    config, steps = config_from_dict(request["config"], "execution"), request["steps"]
    if argv[0] == "compile":
        json.dump(compile_rank(Plan.of(config), int(argv[2]), directory), answer)
    elif argv[0] == "run":
        run_rank(Plan.of(config), int(argv[2]), steps, directory)
    else:
        run_single(execute.on_one_device(config), steps, directory)
    return 0


def compile_rank(plan: Plan, rank: int, directory: Path) -> dict[str, Any]:
    """Compile the plan's step for a virtual rank and write it as MindIR that a CPU can run."""
    import mindspore as ms

    import ascend_ops
    from pangu_ms.models.build import build_model
    from pangu_ms.parallel import apply
    from pangu_ms.rehearsal import virtual_cluster
    from pangu_ms.rehearsal.execute_graph import ExportedGraph
    from pangu_ms.rehearsal.execute_step import with_momentum_sgd
    from pangu_ms.train.parallel_step import build_step

    ms.set_context(mode=ms.GRAPH_MODE)
    virtual_cluster.enter(plan.mesh.world, rank)
    apply.begin(plan, rank)
    model = build_model(plan.config.model)
    apply.apply(plan, model)
    path = directory / execute.graph_name(rank)
    with ascend_ops.use("composed"):
        step = with_momentum_sgd(build_step(plan, model)).set_train()
        ms.export(
            step,
            *_inputs(plan.config, 0, plan.num_micro_batches),
            file_name=str(path.with_suffix("")),
            file_format="MINDIR",
        )
    graph = ExportedGraph(path)
    collectives = graph.collectives()
    answer = {"collectives": collectives, "groups": graph.groups()}
    if any(collectives[kind] for kind in execute.EMULATED):
        graph.emulate(rank)
        graph.save()
    return answer


def run_rank(plan: Plan, rank: int, steps: int, directory: Path) -> None:
    """Run an exported graph among the other ranks, from the rank's slices of the initial values."""
    import mindspore as ms
    from mindspore import Tensor, nn
    from mindspore.communication import create_group

    from pangu_ms.train.pipeline_step import CONTROLS

    runtime.start("CPU")
    ms.communication.init()
    for name, ranks in json.loads((directory / execute.GROUPS).read_text()).items():
        if rank in ranks:
            create_group(name, ranks)
    slices = {
        name: np.ascontiguousarray(value[plan.layouts[name].slices(rank)])
        for name, value in execute.starting_values(plan.config)
    }
    values = {name: Tensor(value) for name, value in slices.items()}
    if plan.num_micro_batches > 1:
        values |= dict(zip(CONTROLS, _controls()))
    step = nn.GraphCell(ms.load(str(directory / execute.graph_name(rank))), params_init=values)
    parameters = {parameter.name: parameter for parameter in step.get_parameters()}
    assert slices.keys() <= parameters.keys(), "MindSpore renamed parameters on export"
    inputs = functools.partial(_inputs, plan.config, parts=plan.num_micro_batches)
    _run(
        step,
        plan.config,
        steps,
        inputs,
        lambda: {name: parameters[name].asnumpy() for name in slices},
        directory / execute.result_name(rank),
    )


def run_single(config: RunConfig, steps: int, directory: Path) -> None:
    """The ordinary training step of one process."""
    import ascend_ops
    from pangu_ms.models.build import build_model, fill, to_arrays, weights
    from pangu_ms.rehearsal.execute_step import with_momentum_sgd
    from pangu_ms.train.step import TrainStep

    runtime.start("CPU")
    with ascend_ops.use("composed"):
        model = build_model(config.model)
        every = weights(model)
        fill(every, dict(execute.starting_values(config)))
        step = with_momentum_sgd(TrainStep(model, config).whole).set_train()
        _run(
            step,
            config,
            steps,
            functools.partial(_inputs, config),
            lambda: to_arrays(every),
            directory / execute.SINGLE,
        )


def _run(
    step: Callable[..., Any],
    config: RunConfig,
    steps: int,
    inputs: Callable[[int], list[Any]],
    parameters: Callable[[], dict[str, np.ndarray]],
    path: Path,
) -> None:
    """Take the steps, then write what `execute.compare` reads."""
    history, gradients = [], {}
    for number in range(steps):
        outputs = step(*inputs(number))
        total, count, norm, applied, *rest = outputs
        history.append([float(value.asnumpy().ravel()[0]) for value in (total, count, norm, applied)])
        if number == 0 and rest:
            rest = rest[0] if isinstance(rest[0], tuple) else rest  # MindIR flattens the tuple of gradients
            gradients = {
                "gradient " + name: value.asnumpy()
                for name, value in zip(config.model.trainable_parameter_shapes(), rest, strict=True)
            }
    after = {"parameter " + name: value for name, value in parameters().items()}
    np.savez(path, history=np.array(history), **gradients, **after)


def _inputs(config: RunConfig, number: int, parts: int = 1) -> list[Any]:
    """Of a step in `parts` micro-batches."""
    from mindspore import Tensor

    from pangu_ms.models.common.loss import to_tensors

    batch = to_tensors(execute.batch(config, number))
    return [*batch, Tensor(np.int32(1)), *_controls()] if parts == 1 else [*batch, Tensor(np.ones(parts, np.int32))]


def _controls() -> list[Any]:
    """Learning rate, loss scale and loss limit."""
    import mindspore as ms
    from mindspore import Tensor

    return [Tensor(value, ms.float32) for value in (execute.LEARNING_RATE, 1.0, 3e38)]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
