"""Execution of a plan: MindSpore's parallel compiler makes a graph for each rank, and a CPU process for each rank runs
it. The results are compared with those of a single process without a plan.

For every rank these are compared: loss and norm of every step, the gradients of the first step, and the parameters
after the last step. No mindspore import.
"""

import dataclasses
import json
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pangu_ms.config.load import config_to_dict, replace
from pangu_ms.config.parallel import ParallelConfig
from pangu_ms.config.schema import RunConfig
from pangu_ms.core.errors import PlanError
from pangu_ms.core.exit_codes import EXIT_STOPPED
from pangu_ms.core.isolated import python_command, python_environment
from pangu_ms.core.progress import progress_bar
from pangu_ms.models.common.batch import Batch, blank_batch
from pangu_ms.models.common.config import ModelConfig
from pangu_ms.models.common.init import initial_values
from pangu_ms.parallel.plan import Plan
from pangu_ms.rehearsal.rehearse import reason_of, with_absolute_paths

TOLERANCE = 1e-4
"""Largest allowed difference, relative to the largest value of a tensor. Another order of rounding makes 1e-6 to
1e-5."""
SMALLEST_SIZE = 1e-3
"""Smallest divisor of a relative difference, as a share of the largest tensor's value: alpha's key biases have a
gradient that is zero up to rounding."""
LEARNING_RATE = 0.05
"""With this rate, momentum, and gradients clipped at 1, weights move by some percent in 20 steps, and nothing
diverges."""
MAX_RANKS, MAX_PARAMETERS = 8, 50_000_000
REQUEST, GROUPS, SINGLE = "request.json", "groups.json", "single.npz"
NATIVE, EMULATED = ("AllReduce sum",), ("AllGather", "ReduceScatter sum", "AllReduce max", "AlltoAll")
"""Collectives that MindSpore's CPU backend has, and those that execute_graph.py replaces by them."""
StartRanks = Callable[..., int]
"""Runs processes on this machine to their end and returns an exit code, as `pangu_run.launcher.run_ranks`."""
_CHILD = "pangu_ms.rehearsal.execute_child"
_HISTORY = ("total loss", "tokens", "gradient norm", "applied")


@dataclass(frozen=True)
class Difference:
    """The difference of one tensor between the ranks and the single process."""

    name: str
    kind: str
    """history, gradient or parameter."""
    error: float
    """Largest difference over ranks and values, relative to the tensor's largest value."""
    rank: int
    """The rank with the largest difference."""


@dataclass(frozen=True)
class Execution:
    """The result of an execution."""

    collectives: dict[str, int]
    """Number of calls of collectives in the step of one rank, by kind."""
    emulated: list[str]
    """The kinds in `collectives` that the CPU backend lacks; see execute_graph.py."""
    losses: list[float]
    """Mean loss of each step, in nats, of the single process."""
    differences: list[Difference]

    @property
    def worst(self) -> list[Difference]:
        """The largest difference of each kind."""
        kinds = dict.fromkeys(one.kind for one in self.differences)
        return [max((one for one in self.differences if one.kind == kind), key=lambda one: one.error) for kind in kinds]

    @property
    def agrees(self) -> bool:
        """Whether all differences are within TOLERANCE."""
        return all(one.error <= TOLERANCE for one in self.differences)


def execute(config: RunConfig, start_ranks: StartRanks, steps: int = 20, progress: bool = True) -> Execution:
    """Run `steps` steps of momentum SGD on random batches, by the ranks of the plan and by one process.

    Args:
        start_ranks: starts the ranks, as `pangu_run.launcher.run_ranks` does.

    Raises:
        PlanError: a CPU cannot execute the plan, or a process failed.
    """
    check(config, steps)
    plan = Plan.of(config)
    with (
        tempfile.TemporaryDirectory(prefix="pangu-execute-") as name,
        progress_bar(progress, total=plan.mesh.world + 2, desc="execute") as bar,
    ):
        directory = Path(name)
        (directory / REQUEST).write_text(
            json.dumps({"config": config_to_dict(with_absolute_paths(config)), "steps": steps})
        )
        collectives, groups = _compile(plan, directory, bar)
        # Sorted, because all ranks must create the groups in the same order.
        (directory / GROUPS).write_text(json.dumps(dict(sorted(groups.items()))))
        _child("the single process", "single", name)
        bar.update()
        if code := start_ranks(
            lambda rank: ["-m", _CHILD, "run", name, str(rank)],
            plan.mesh.world,
            directory,
            {"GLOG_v": "3"},
            stream_rank=None,
            name="pangu plan",
        ):
            # Ended by a signal: nothing is wrong with the plan.
            if code == EXIT_STOPPED or code > 128:
                raise PlanError(f"execution: stopped (exit code {code}); run the same command again")
            raise PlanError(
                f"execution: a rank failed with exit code {code}: {_last_error(directory)}; see `pangu plan rehearse`"
            )
        bar.update()
        single = dict(np.load(directory / SINGLE))
        ranks: list[Mapping[str, np.ndarray]] = [
            dict(np.load(directory / result_name(rank))) for rank in range(plan.mesh.world)
        ]
    history = single["history"]
    emulated = [kind for kind in EMULATED if collectives.get(kind)]
    return Execution(collectives, emulated, (history[:, 0] / history[:, 1]).tolist(), compare(plan, single, ranks))


def check(config: RunConfig, steps: int) -> None:
    """Check what can be known before anything is compiled.

    Raises:
        PlanError: "KEY=VALUE: what a CPU cannot do; what to do".
    """
    parallel, model = config.parallel, config.model
    rehearse = "rehearse it: `pangu plan rehearse`"
    rules = (
        (steps > 0, f"--steps {steps}: must be positive"),
        (
            parallel.pipeline_stage == 1,
            (
                f"parallel.pipeline_stage={parallel.pipeline_stage}: a CPU cannot send and receive between stages;"
                f" {rehearse}"
            ),
        ),
        (
            parallel.search_mode in ("sharding_propagation", "none"),
            (
                f"parallel.search_mode={parallel.search_mode}: lays parameters out by itself, so that the plan's slices"
                f" are not its own; {rehearse}"
            ),
        ),
        (
            1 < parallel.world <= MAX_RANKS,
            f"parallel: {parallel.world} rank(s): an execution needs 2 to {MAX_RANKS}; change a degree, or {rehearse}",
        ),
        (
            model.compute_dtype == "float32",
            (
                f"model.compute_dtype={model.compute_dtype}: rounding would hide differences; use"
                " model.compute_dtype=float32"
            ),
        ),
        (
            model.dropout == 0.0,
            f"model.dropout={model.dropout}: ranks draw other masks; use model.dropout=0",
        ),
        (
            model.num_parameters() <= MAX_PARAMETERS,
            (
                f"model: {model.num_parameters():,} parameters: an execution takes {MAX_PARAMETERS:,} at most; use"
                " fewer layers, or a smaller config"
            ),
        ),
    )
    for holds, message in rules:
        if not holds:
            raise PlanError(message)


def on_one_device(config: RunConfig) -> RunConfig:
    """The same run without a plan: the batch of all replicas in one process."""
    alone = dataclasses.replace(config, parallel=ParallelConfig())
    return replace(alone, train={"batch_size": config.global_batch_size, "accumulation_steps": 1})


def batch(config: RunConfig, number: int) -> Batch:
    """A batch of random tokens with two documents in each row; about a fifth of the tokens does not count."""
    model, generator = config.model, np.random.default_rng([config.train.seed, number])
    B, S = config.global_batch_size, model.seq_length
    ids = generator.integers(0, model.vocab_size, (B, S + 1)).astype(np.int32)
    segments = (np.arange(S) >= generator.integers(1, S, (B, 1))).astype(np.int32)
    positions = np.broadcast_to(np.arange(S, dtype=np.int32), (B, S)).copy()
    mask = (generator.random((B, S)) < 0.8).astype(np.float32)
    extra = blank_batch(model, B).extra
    if model.domains:
        extra["domain"] = _domains(model, B)[generator.permutation(B)]
    return Batch(ids, positions, segments, mask, extra)


def _domains(model: ModelConfig, size: int) -> np.ndarray:
    """Domains of the sequences of a batch, each group's in proportion to its experts: so that ranks with equally many
    experts get equally many sequences of their domains, whatever the plan."""
    shares = np.ones(len(model.domains))
    if model.group_sizes:
        shares = np.array([model.group_sizes[g] / model.group_of_domain.count(g) for g in model.group_of_domain])
    ends = np.rint(np.cumsum(shares) / shares.sum() * size).astype(int)
    return np.searchsorted(ends, np.arange(size), side="right").astype(np.int32)


def starting_values(config: RunConfig) -> Iterator[tuple[str, np.ndarray]]:
    """Initial values of the whole model plus noise, so that biases and scales, which begin at 0 or 1, differ between
    slices."""
    for i, (name, value) in enumerate(initial_values(config.model, config.train.seed)):
        noise = 0.02 * np.random.default_rng([config.train.seed, i]).standard_normal(value.shape)
        yield name, (value + noise).astype(np.float32) if value.dtype == np.float32 else value


def compare(plan: Plan, single: Mapping[str, np.ndarray], ranks: list[Mapping[str, np.ndarray]]) -> list[Difference]:
    """Compare every rank's losses, gradients and parameters with the single process's, of which the plan gives the
    rank's slices.

    Args:
        single: "history" [steps, 4] and "gradient NAME", "parameter NAME" of whole tensors; a step in micro-batches
            gives no gradients.
        ranks: the same for each rank, with its slices.
    """
    found = []
    for column, name in enumerate(_HISTORY):
        expected = single["history"][:, column]
        found.append(
            _difference(
                name, "history", [(expected, rank["history"][:, column]) for rank in ranks], np.abs(expected).max()
            )
        )
    for kind in ("gradient", "parameter") if plan.num_micro_batches == 1 else ("parameter",):
        names = plan.config.model.trainable_parameter_shapes() if kind == "gradient" else plan.layouts
        sizes = {name: float(np.abs(single[f"{kind} {name}"]).max()) for name in names}
        floor = SMALLEST_SIZE * max(sizes.values())
        for name in names:
            layout, whole = plan.layouts[name], single[f"{kind} {name}"]
            pairs = [(whole[layout.slices(i)], rank[f"{kind} {name}"]) for i, rank in enumerate(ranks)]
            found.append(_difference(name, kind, pairs, max(sizes[name], floor)))
    return found


def _difference(name: str, kind: str, pairs: list[tuple[np.ndarray, np.ndarray]], size: float) -> Difference:
    """`pairs` are the (expected, found) arrays of each rank."""
    errors = [
        float(np.abs(found - expected).max() / size) if found.shape == expected.shape else np.inf
        for expected, found in pairs
    ]
    # NaN is neither larger nor smaller than a number, so that `max` could miss it.
    errors = [np.inf if np.isnan(error) else error for error in errors]
    return Difference(name, kind, max(errors), int(np.argmax(errors)))


def graph_name(rank: int) -> str:
    """File name of a rank's graph."""
    return f"rank_{rank}.mindir"


def result_name(rank: int) -> str:
    """File name of a rank's results."""
    return f"rank_{rank}.npz"


def _compile(plan: Plan, directory: Path, bar: Any) -> tuple[dict[str, int], dict[str, list[int]]]:
    """Export the graph of each rank, two at a time; returns the collectives of rank 0, and the groups of all ranks."""

    def one(rank: int) -> dict[str, Any]:
        answer = _child(f"rank {rank}", "compile", str(directory), str(rank))
        bar.update()
        return answer

    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(one, range(plan.mesh.world)))
    collectives = Counter(answers[0]["collectives"])
    if missing := [kind for answer in answers for kind in answer["collectives"] if kind not in (*NATIVE, *EMULATED)]:
        raise PlanError(
            f"execution: the plan needs {missing[0]}, which a CPU has not; rehearse it: `pangu plan rehearse`"
        )
    return dict(collectives), {name: ranks for answer in answers for name, ranks in answer["groups"].items()}


def _last_error(directory: Path) -> str:
    """The first line of the ranks' logs that names an error."""
    logs = [path.read_text(errors="replace") for path in sorted((directory / "logs").glob("rank_*/output.log"))]
    found = re.search(r"^\w+(?:\.\w+)*(?:Error|Exception): *(.*)$", "\n".join(logs), re.MULTILINE)
    return found[0] if found else "no message"


def _child(who: str, *arguments: str) -> Any:
    done = subprocess.run(python_command(_CHILD, *arguments), env=python_environment(), capture_output=True, text=True)
    if done.returncode:
        raise PlanError(f"execution of {who}: {reason_of(done)}; see `pangu plan rehearse`")
    return json.loads(done.stdout) if done.stdout else None
