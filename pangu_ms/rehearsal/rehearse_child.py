"""The process of one virtual rank: it compiles a plan's training step and reports the compiler's result. It must be a
process of its own, because `enter` changes the process irreversibly."""

import contextlib
import dataclasses
import json
import os
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from pangu_ms.config.load import config_from_dict
from pangu_ms.core import runtime
from pangu_ms.parallel.plan import Plan
from pangu_ms.rehearsal.compiled_graph import collectives


def main() -> int:
    """Read a request {"config", "rank", "soc", "output", "where"} from stdin and write a report to stdout, both in
    JSON."""
    request = json.load(sys.stdin)
    answer, sys.stdout = sys.stdout, sys.stderr  # only the report may be written to the real stdout
    with tempfile.TemporaryDirectory(prefix="pangu-rehearse-") as graphs:
        prepare(Path(graphs))
        report = rehearse_rank(request, Path(graphs))
    json.dump(report, answer)
    return 0


def prepare(graphs: Path) -> None:
    """Make MindSpore write its graphs to this directory; must be called before it compiles."""
    os.environ |= {
        "MS_DEV_SAVE_GRAPHS": "2",
        "MS_DEV_SAVE_GRAPHS_PATH": str(graphs),
        "MS_DEV_DUMP_IR_PASSES": "validate",  # only the last pass: all of them would double the time
        "GLOG_v": runtime.ERRORS_ONLY,
    }
    os.chdir(graphs)  # MindSpore writes files of failed compilations to the working directory
    runtime.quiet()


def rehearse_rank(request: dict[str, Any], graphs: Path) -> dict[str, Any]:
    """Compile the step for one rank; times in seconds, sizes in bytes."""
    import mindspore as ms

    import ascend_ops
    from ascend_ops import backend
    from pangu_ms.models.build import build_model
    from pangu_ms.parallel import apply
    from pangu_ms.rehearsal import virtual_cluster
    from pangu_ms.train.steps.rank_graph import build_rank_graph, example_inputs

    plan, rank = Plan.of(config_from_dict(request["config"], request["where"])), request["rank"]
    ms.set_context(mode=ms.GRAPH_MODE)
    virtual_cluster.enter(plan.mesh.world, rank)
    apply.begin(plan, rank)
    if request["output"]:
        ms.set_auto_parallel_context(strategy_ckpt_save_file=f"{request['output']}/strategy_rank_{rank}.ckpt")
        # MindSpore writes operator strategies for rank 0 only, and only after sharding propagation.
        if (
            rank == 0
            and plan.config.parallel.search_mode == "sharding_propagation"
            and not plan.config.parallel.operator_strategies
        ):
            ms.parallel.set_op_strategy_config("SAVE", f"{request['output']}/operators_rank_{rank}.json")
    began = time.perf_counter()
    model = build_model(plan.config.model)
    apply.apply(plan, model)
    step = build_rank_graph(plan, model)
    if request["soc"]:
        backend.assume_soc(request["soc"])
    with contextlib.nullcontext() if request["soc"] else ascend_ops.use("composed"):
        step.set_train().compile(*example_inputs(plan))
    seconds = time.perf_counter() - began
    return {
        "rank": rank,
        "seconds": seconds,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,  # Linux counts KiB
        "parameters": {p.name: list(p.shape) for p in step.get_parameters()},
        "layouts": {name: _to_lists(layout) for name, layout in step.parameter_layout_dict.items()},
        "collectives": [dataclasses.asdict(one) for one in collectives(_validated(graphs), plan.mesh.world)],
        "operators": _to_lists(_strategies(step)),
    }


def _validated(graphs: Path) -> list[str]:
    """The last graph before code generation, line by line."""
    files = sorted(graphs.glob("**/*validate*.ir"))
    assert files, "the compiler wrote no graph"
    return files[-1].read_text(encoding="utf-8", errors="replace").splitlines()


def _strategies(step: Any) -> dict[str, Any]:
    """The strategy of every operator by its name in the graph."""
    from mindspore.common.api import _cell_graph_executor

    return dict(_cell_graph_executor._get_shard_strategy(step))


def _to_lists(value: Any) -> Any:
    """Convert tuples and MindSpore's own lists to lists, for JSON."""
    if isinstance(value, dict):
        return {str(k): _to_lists(v) for k, v in value.items()}
    return [_to_lists(v) for v in value] if isinstance(value, list | tuple) else value


if __name__ == "__main__":
    sys.exit(main())
