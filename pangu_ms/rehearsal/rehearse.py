"""Rehearsal: runs MindSpore's own parallel compiler for virtual ranks of a plan, each in a child process, and checks
the compiled graph against the plan.

No mindspore import here. Shapes, layouts and collectives come from MindSpore; nothing is executed.
"""

import dataclasses
import json
import math
import re
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pangu_ms.config.load import config_to_dict, replace
from pangu_ms.config.schema import RunConfig
from pangu_ms.core.errors import PlanError
from pangu_ms.core.isolated import python_command, python_environment
from pangu_ms.core.progress import progress_bar
from pangu_ms.parallel.operator_file import check_operators, read_operator_strategies
from pangu_ms.parallel.plan import MOMENTS, Plan
from pangu_ms.rehearsal.compiled_graph import Collective

# The exception that reaches Python says only that the initialisation of an operator failed. The reason (which
# dimension, which divisor) is in the C++ log on stderr, at level ERROR.
_COMPLAINT = re.compile(r"^\[ERROR\] (?:PARALLEL|PIPELINE)\([^)]*\):\S+ \[[^]]*\] \w+\] (.*)$", re.MULTILINE)


@dataclasses.dataclass(frozen=True)
class RankReport:
    """The compiler's result for one rank."""

    rank: int
    stage: int
    seconds: float
    """Seconds from building the model to the end of compilation."""
    peak_bytes: int
    """Largest resident memory of the child process."""
    slices: dict[str, tuple[int, ...]]
    """Shape of each parameter and moment that the rank holds."""
    layouts: dict[str, Any]
    """MindSpore's own description of each layout: device matrix, tensor map, slice shape, ..."""
    collectives: list[Collective]
    operators: dict[str, Any]
    """The strategy of each operator by its name in the graph."""
    differences: list[str]
    """Deviations from the plan, one line each."""

    @property
    def parameter_bytes(self) -> int:
        """Bytes of the float32 parameters."""
        return 4 * sum(math.prod(shape) for name, shape in self.slices.items() if not name.startswith(MOMENTS))

    @property
    def optimizer_bytes(self) -> int:
        """Bytes of both moments."""
        return 4 * sum(math.prod(shape) for name, shape in self.slices.items() if name.startswith(MOMENTS))


def rehearse(
    config: RunConfig,
    ranks: Sequence[int],
    soc: str = "ascend910",
    strategy_directory: Path | None = None,
    progress: bool = True,
) -> list[RankReport]:
    """Compile the training step of `config` for each of `ranks`, one after the other.

    Args:
        soc: the Ascend chip for whose operators the step is compiled (ascend910, ascend910b, ascend910_93); empty for
            elementary operators, which a CPU can execute.
        strategy_directory: directory for MindSpore's files of each rank: strategy_rank_N.ckpt (parameter layouts) and,
            for rank 0 with sharding propagation, operators_rank_0.json (operator strategies).

    Raises:
        PlanError: MindSpore refuses the plan, or cannot be used for rehearsals here.
    """
    plan = Plan.of(config)
    for rank in ranks:
        plan.mesh.coordinate(rank)  # raises PlanError for an unknown rank
    if config.parallel.operator_strategies:
        _check_operator_strategies(plan, soc)
    return list(_reports(plan, ranks, soc, strategy_directory, progress))


def _check_operator_strategies(plan: Plan, soc: str) -> None:
    """Check that the file has exactly the operators of the model. For this the model is compiled once without the file,
    since MindSpore fails obscurely on a wrong file, or ignores a name.

    Only rank 0 is compiled, since MindSpore writes the operators of no other rank.
    """
    path = plan.config.parallel.operator_strategies
    operators = read_operator_strategies(path)
    check_operators(path, operators, plan)
    with tempfile.TemporaryDirectory(prefix="pangu-rehearse-") as directory:
        run_child(replace(plan.config, parallel={"operator_strategies": ""}), 0, soc, directory)
        check_operators(path, operators, plan, read_operator_strategies(f"{directory}/operators_rank_0.json"))


def _reports(
    plan: Plan, ranks: Sequence[int], soc: str, directory: Path | None, progress: bool
) -> Iterator[RankReport]:
    with progress_bar(progress, total=len(ranks), unit="rank", desc="rehearse") as bar:
        for rank in ranks:
            yield _report(plan, run_child(plan.config, rank, soc, str(directory.absolute()) if directory else ""))
            bar.update()


def run_child(config: RunConfig, rank: int, soc: str, output: str = "") -> dict[str, Any]:
    """The report of `rehearse_child` for one rank.

    Raises:
        PlanError: the child failed; the message has MindSpore's reason in one line.
    """
    request = {
        "config": config_to_dict(with_absolute_paths(config)),
        "rank": rank,
        "soc": soc,
        "output": output,
        "where": "rehearsal",
    }
    command = python_command("pangu_ms.rehearsal.rehearse_child")
    done = subprocess.run(command, env=python_environment(), input=json.dumps(request), capture_output=True, text=True)
    if done.returncode == 0:
        return json.loads(done.stdout)
    raise PlanError(f"rehearsal of rank {rank}: {reason_of(done)}; see `pangu plan show`, or try it with fewer degrees")


def with_absolute_paths(config: RunConfig) -> RunConfig:
    """The configuration with absolute paths, for a child process with another working directory."""
    path = config.parallel.operator_strategies
    return replace(config, parallel={"operator_strategies": str(Path(path).absolute())}) if path else config


def reason_of(done: subprocess.CompletedProcess) -> str:
    """Why a child process that compiles failed, in one line."""
    if done.returncode < 0:
        return f"MindSpore's compiler ended with {signal.Signals(-done.returncode).name}"
    if found := _COMPLAINT.search(done.stderr):
        return f"MindSpore refuses the plan: {found[1].strip()}"
    lines = [line for line in done.stderr.splitlines() if re.match(r"\w+(\.\w+)*(Error|Exception)\b", line)]
    return (
        lines[-1].partition(": ")[2]
        if lines and "PlanError" in lines[-1]
        else f"failed: {(lines or done.stderr.splitlines() or ['no message'])[-1]}"
    )


def _report(plan: Plan, raw: dict[str, Any]) -> RankReport:
    stage = plan.mesh.coordinate(raw["rank"]).stage
    states = {prefix + name: name for name in plan.layouts for prefix in ("", *MOMENTS)}
    # The shapes of the parameters are taken, since MindSpore's layouts do not include the sharding of optimizer_shard.
    slices = {name: tuple(raw["parameters"][name]) for name in raw["layouts"] if name in states}
    trained = plan.config.model.trainable_parameter_shapes()
    expected = {
        prefix + name: plan.layouts[name]
        for name in plan.stage_parameters(stage)
        for prefix in ("", *MOMENTS)
        if not prefix or name in trained
    }
    differences = [
        f"{name}: is on the rank, but not on stage {stage} of the plan" for name in slices if name not in expected
    ]
    for name, layout in expected.items():
        if name not in slices:
            differences.append(f"{name}: is not on the rank, but on stage {stage} of the plan")
        elif slices[name] != layout.slice_shape:
            differences.append(f"{name}: has shape {list(slices[name])}, the plan says {list(layout.slice_shape)}")
    return RankReport(
        rank=raw["rank"],
        stage=stage,
        seconds=raw["seconds"],
        peak_bytes=raw["peak_bytes"],
        slices=slices,
        layouts={name: raw["layouts"][name] for name in slices},
        collectives=[Collective(**one) for one in raw["collectives"]],
        operators=raw["operators"],
        differences=differences,
    )


def thinned(config: RunConfig, layers_per_stage: int = 0, micro_batches: int = 0) -> RunConfig:
    """The same widths and degrees with fewer layers and micro-batches. Compilation time grows with the number of both;
    the slices and the collectives of a layer or micro-batch do not depend on it.

    Args:
        layers_per_stage: largest number of layers on a stage; 0 keeps all.
        micro_batches: approximate number of micro-batches, but at least the number of stages, each of the same size as
            before; 0 keeps all.
    """
    stages = config.parallel.pipeline_stage
    if layers_per_stage and config.model.num_layers > stages * layers_per_stage:
        # At least 2: alpha has a block and the query layer.
        layers = max(2, stages * layers_per_stage)
        model = {"num_layers": layers} | config.model.fields_for_num_layers(layers)
        config = replace(config, model=model, parallel={"stage_layers": ()})
    present = Plan.of(config).num_micro_batches
    kept = min(present, max(micro_batches, stages)) if micro_batches else present
    if kept == present:
        return config
    number = {"micro_batch_num": kept} if stages > 1 else {}
    accumulated = {"accumulation_steps": kept} if stages == 1 else {}
    batch = {"batch_size": config.train.batch_size // present * kept}
    return replace(config, parallel=number, train=batch | accumulated)


def sample_ranks(plan: Plan, number: int = 0) -> list[int]:
    """One rank of every stage, or `number` ranks: from as many stages as possible, then from different positions in
    them."""
    mesh = plan.mesh
    number = min(number or mesh.num_stages, mesh.world)
    stages = [
        round(i * (mesh.num_stages - 1) / max(1, min(number, mesh.num_stages) - 1))
        for i in range(min(number, mesh.num_stages))
    ]
    # The stages above are evenly spaced, from the first to the last. Each turn through them takes a rank of each, the
    # first turn the first rank, later ones ranks that are spread over the stage.
    chosen: dict[int, None] = {}
    for i in range(number):
        turn, stage = divmod(i, len(stages))
        inside = (turn * (mesh.stage_size - 1)) // max(1, -(-number // len(stages)) - 1) if turn else 0
        chosen.setdefault(mesh.stage_ranks(stages[stage])[inside])
    return sorted(chosen)
