"""The processes of an execution: a virtual rank that exports its graph, a rank that runs one, and the single process
that they are compared with.

    python -m pangu_ms.rehearsal.execute_child
        compile DIR RANK    writes rank_N.mindir, and its collectives and groups as JSON to stdout
        run DIR RANK        writes rank_N.npz
        single DIR          writes single.npz
"""

import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pangu_ms.config.load import config_from_dict
from pangu_ms.config.schema import RunConfig
from pangu_ms.core import runtime
from pangu_ms.parallel.expert_batches import arranged
from pangu_ms.parallel.plan import Plan
from pangu_ms.rehearsal import execute

if TYPE_CHECKING:
    from pangu_ms.rehearsal.execute_step import RecordedStep


def main(argv: Sequence[str]) -> int:
    """Entry of each of the processes; DIR/request.json says what to do."""
    answer, sys.stdout = sys.stdout, sys.stderr  # only the answer may be written to the real stdout
    os.environ["GLOG_v"] = runtime.ERRORS_ONLY
    runtime.quiet()
    directory = Path(argv[1]).absolute()
    os.chdir(directory)  # MindSpore writes files of failed compilations to the working directory
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
    from pangu_ms.train.steps.rank_graph import build_rank_graph, example_inputs

    ms.set_context(mode=ms.GRAPH_MODE)
    virtual_cluster.enter(plan.mesh.world, rank)
    apply.begin(plan, rank)
    model = build_model(plan.config.model)
    apply.apply(plan, model)
    path = directory / execute.graph_name(rank)
    # Compiled for Ascend, the graph would otherwise contain operators that a CPU lacks.
    with ascend_ops.use("composed"):
        step = with_momentum_sgd(build_rank_graph(plan, model)).set_train()
        ms.export(step, *example_inputs(plan), file_name=str(path.with_suffix("")), file_format="MINDIR")
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

    from pangu_ms.rehearsal.execute_step import RecordedStep
    from pangu_ms.train.steps.micro_batches import CONTROLS
    from pangu_ms.train.steps.protocol import control_tensors

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
        values |= dict(zip(CONTROLS, control_tensors(execute.LEARNING_RATE)))
    graph = nn.GraphCell(ms.load(str(directory / execute.graph_name(rank))), params_init=values)
    parameters = {parameter.name: parameter for parameter in graph.get_parameters()}
    assert slices.keys() <= parameters.keys(), "MindSpore renamed parameters on export"
    step = RecordedStep(graph, plan.config.train.seed, plan.num_micro_batches)
    _run(
        step,
        plan.config,
        steps,
        lambda: {name: parameters[name].asnumpy() for name in slices},
        directory / execute.result_name(rank),
        plan,
    )


def run_single(config: RunConfig, steps: int, directory: Path) -> None:
    """Run the ordinary training step in one process."""
    import ascend_ops
    from pangu_ms.models.build import build_model, fill, to_arrays, weights
    from pangu_ms.rehearsal.execute_step import RecordedStep, with_momentum_sgd
    from pangu_ms.train.steps.train_step import TrainStep

    runtime.start("CPU")
    with ascend_ops.use("composed"):
        model = build_model(config.model)
        every = weights(model)
        fill(every, dict(execute.starting_values(config)))
        graph = with_momentum_sgd(TrainStep(model, config).whole.cell).set_train()
        step = RecordedStep(graph, config.train.seed)
        _run(step, config, steps, lambda: to_arrays(every), directory / execute.SINGLE)


def _run(
    step: "RecordedStep",
    config: RunConfig,
    steps: int,
    parameters: Callable[[], dict[str, np.ndarray]],
    path: Path,
    plan: Plan | None = None,
) -> None:
    """Take the steps, then write what `execute.compare` reads. The ranks of a plan take its order of the sequences."""
    history, gradients = [], {}
    for number in range(steps):
        batch = execute.batch(config, number)
        result = step(arranged(batch, plan) if plan else batch, number, execute.LEARNING_RATE)
        history.append([result.total_loss, result.num_tokens, result.grad_norm, float(result.applied)])
        if number == 0 and step.gradients:
            names = config.model.trainable_parameter_shapes()
            gradients = {"gradient " + name: value for name, value in zip(names, step.gradients, strict=True)}
    after = {"parameter " + name: value for name, value in parameters().items()}
    np.savez(path, history=np.array(history), **gradients, **after)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
