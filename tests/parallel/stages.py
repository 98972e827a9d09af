"""Alpha's two layers on two stages: what MindSpore's compiler makes of a rank of each, and what the rank of the second
one loads and saves. `make` has both compiled by one child, since that changes a process for good; the tests of several
files read what it leaves.

    python -m tests.parallel.stages DIRECTORY    the child: CASE.json, the layouts, CASE.ir, the compiled graph, and
                                                 what tests.train.planned_child writes
"""

import json
import os
import subprocess
import sys
from pathlib import Path

from pangu_ms.checkpoint import store
from pangu_ms.checkpoint.reshard import Source, reshard
from pangu_ms.config.schema import RunConfig
from pangu_ms.parallel.plan import Plan
from tests.checkpoint.rank_saver import groups
from tests.checkpoint.reshard_common import planned

SIZES = ["vocab_size=512", "hidden_size=256", "num_layers=2", "num_heads=4", "seq_length=32"]
BASE = ["alpha/tiny", "tokenizer.vocab_size=512", *(f"model.{size}" for size in SIZES)]
BASE += ["parallel.recompute=full", "parallel.search_mode=sharding_propagation"]
PLAN = (2, 2, 2, 1, 0, 1, 1)
"""As in reshard_common: dp, mp, pp, optimizer_shard, row, layers of each stage."""
CASES = {"first stage": 0, "second stage": 4}
"""Name: rank."""


def config() -> RunConfig:
    """Of both cases."""
    return planned(BASE, PLAN)


def make(directory: Path) -> None:
    """Leave a checkpoint of another plan in DIRECTORY/source, and what the child makes."""
    write_checkpoints(directory, BASE, PLAN)
    environment = os.environ | {
        "GLOG_v": "3",
        "MS_DEV_SAVE_GRAPHS": "2",
        "MS_DEV_DUMP_IR_PASSES": "validate",
        "MS_DEV_SAVE_GRAPHS_PATH": str(directory),
    }
    arguments = [sys.executable, "-m", __name__, str(directory)]
    child = subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=500)
    assert child.returncode == 0, child.stderr[-3000:]


def write_checkpoints(directory: Path, base: list[str], plan: tuple[int, ...]) -> None:
    """A model's step 5: whole in DIRECTORY/whole, in slices of another plan in DIRECTORY/source."""
    config, another = planned(base, plan), (2, 4, 1, 1, 0, sum(plan[5:]))
    whole = store.save(directory / "whole", 5, groups(config), {"step": 5}, config)
    reshard(Source.of(store.open_checkpoint(whole)), directory / "source", planned(base, another))


def main(directory: Path) -> None:
    """The child."""
    import mindspore as ms

    from ascend_ops import backend
    from pangu_ms.rehearsal import virtual_cluster
    from tests.train.planned_child import virtual

    ms.set_context(mode=ms.GRAPH_MODE)
    backend.assume_soc("ascend910")  # its operators are few to compile
    first, second = CASES.values()
    virtual_cluster.enter(config().parallel.world, first)
    write("first stage", compile_step(Plan.of(config()), first), directory)
    ms.reset_auto_parallel_context()
    virtual(directory, second, config(), lambda step: write("second stage", step, directory))


def write(case: str, step, graphs: Path) -> None:
    """Write the layouts of a step that was just compiled, and rename its graph."""
    shapes = {p.name: p.shape for p in step.get_parameters()}  # the layouts' own do not know optimizer_shard
    layouts = {name: [*layout[:2], shapes.get(name)] for name, layout in step.parameter_layout_dict.items()}
    (graphs / f"{case}.json").write_text(json.dumps(layouts))
    written = sorted(graphs.rglob("*validate*.ir"))
    written[-1].rename(graphs / f"{case}.ir")
    for path in written[:-1]:
        path.unlink()


def compile_step(plan: Plan, rank: int):
    """The step of a virtual rank, compiled."""
    from pangu_ms.models.build import build_model
    from pangu_ms.parallel import apply
    from pangu_ms.train.steps.rank_graph import build_rank_graph, example_inputs

    apply.begin(plan, rank)
    model = build_model(plan.config.model)
    apply.apply(plan, model)
    step = build_rank_graph(plan, model)
    step.set_train().compile(*example_inputs(plan))
    return step


if __name__ == "__main__":
    main(Path(sys.argv[1]))
