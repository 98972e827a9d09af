"""`python -m tests.bench.offload`: training with experts in host memory (ECSS) against all experts in the graph, over
the number of domains that a model owns and that a batch has.

The saving is (domains owned) / (domains in the batch): a step moves and updates the experts of the batch's domains
alone. Each line is a process of its own. Ways: `all` updates every expert in every step, as AdamW does; `lazy` updates
those with tokens, in the graph; `in place` and `copy` keep experts on the host, whose arrays the graph reads in place
or is given copies of.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time

import numpy as np

from pangu_ms.config.load import load_config
from pangu_ms.core import runtime

WAYS = ("all", "lazy", "in place", "copy")
GROUP = 4  # experts of a domain in each of the two sparse layers
MODEL = [
    "model.vocab_size=4096",
    "model.hidden_size=512",
    "model.num_layers=4",
    "model.num_dense_layers=2",
    "model.num_heads=8",
    "model.seq_length=128",
    "train.batch_size=8",
]


def make_batch(config, step: int, present: int):
    """Random tokens; the domains of a batch rotate over those of the model."""
    from pangu_ms.data.loader import batch_from_ids

    size, owned = config.train.batch_size, len(config.model.domains)
    shape = (size, config.model.seq_length + 1)
    ids = np.random.default_rng(step).integers(8, config.model.vocab_size, shape).astype(np.int32)
    domains = (step * present + np.arange(size) * present // size) % owned
    return batch_from_ids(ids, 0, 1, True).with_extra({"domain": domains.astype(np.int32)})


def build_step(config, way: str, present: int):
    """The optimizer step of one way, with random weights; and the seconds of its parts, filled by its calls."""
    from pangu_ms.models.build import build_model, fill, initialize, weights
    from pangu_ms.models.common.init import initial_values
    from pangu_ms.models.common.stacks import is_stack
    from pangu_ms.train.offload.expert_store import ExpertStore
    from pangu_ms.train.offload.offload_step import OffloadStep
    from pangu_ms.train.steps.train_step import TrainStep

    seconds = {"fetch": [], "update": []}
    if way in ("all", "lazy"):
        model = build_model(config.model)
        initialize(model, config.model, 1)
        return TrainStep(model, config), seconds
    room = {"expert": GROUP * present}
    model, store = build_model(config.model.with_members(room)), ExpertStore(config.model, config.optimizer)
    tables = config.model.initial_tables()
    others = {weight.name: weight for weight in weights(model) if not is_stack(weight.name)}
    for name, value in initial_values(config.model, 1):
        if name in store.stacks:
            for index, member in enumerate(value):
                store.set(name, index, member)
        elif name not in tables:
            fill([others[name]], {name: value})

    class Timed(OffloadStep):
        def fetch(self, batch):
            began = time.perf_counter()
            super().fetch(batch)
            seconds["fetch"].append(time.perf_counter() - began)

        def _update(self, *arguments):
            began = time.perf_counter()
            super()._update(*arguments)
            seconds["update"].append(time.perf_counter() - began)

    ahead = lambda step: make_batch(config, step, present).extra["domain"].tolist()  # noqa: E731
    return Timed(model, config, store, tables, room, ahead), seconds


def measure(way: str, owned: int, present: int, steps: int) -> dict:
    """One line of the table, in this process."""
    domains = ",".join(f"d{i}" for i in range(owned))
    transfer = "copy" if way == "copy" else "in_place"
    settings = [f"model.domains=[{domains}]", f"model.num_experts={owned * GROUP}", f"offload.transfer={transfer}"]
    config = load_config("sigma/tiny", [*MODEL, *settings, f"optimizer.lazy_experts={str(way != 'all').lower()}"])
    runtime.start("CPU")
    step, parts = build_step(config, way, present)
    seconds = []
    for i in range(steps + 2):
        batch = make_batch(config, i, present)
        began = time.perf_counter()
        step(batch, i, 1e-3)
        seconds.append(time.perf_counter() - began)
    whole = statistics.median(seconds[2:])
    row = {"domains": owned, "in_batch": present, "way": way, "step_ms": 1e3 * whole}
    row |= {f"{name}_ms": 1e3 * statistics.median(values[2:]) for name, values in parts.items() if values}
    row["tokens_per_s"] = config.train.batch_size * config.model.seq_length / whole
    row["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if way not in ("all", "lazy"):
        calls = steps + 2
        row["host_mb"] = step.store.nbytes / 2**20
        row["working_set_mb"] = sum(array.nbytes for array in step.sets[0].arrays.values()) / 2**20
        row |= {f"{name}_mb_per_step": value / calls / 2**20 for name, value in vars(step.traffic).items()}
    return row


HEADERS = {
    "domains": "owned", "in_batch": "in batch", "way": "way", "tokens_per_s": "tokens/s", "step_ms": "step ms",
    "fetch_ms": "fetch", "update_ms": "update", "host_mb": "host MB", "working_set_mb": "set MB",
    "gathered_mb_per_step": "gathered", "to_graph_mb_per_step": "to graph", "peak_mb": "peak MB",
}  # fmt: skip


def main() -> None:
    """Print a table or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--domains", nargs="+", type=int, default=[1, 2, 4, 8, 16], help="domains that the model owns")
    parser.add_argument("--in-batch", nargs="+", type=int, default=[1, 2], help="domains in a batch")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS, help="what to measure")
    parser.add_argument("--steps", type=int, default=36, help="steps timed; more than twice the domains")
    parser.add_argument("--json", action="store_true", help="machine-readable output")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)  # way, domains, in batch: in this process
    args = parser.parse_args()
    runtime.quiet()
    if args.one:
        way, owned, present = args.one
        print(json.dumps(measure(way, int(owned), int(present), args.steps)))
        return
    rows = []
    for owned in args.domains:
        for present in (number for number in args.in_batch if number <= owned):
            for way in args.ways:
                words = ["--one", way, str(owned), str(present), "--steps", str(args.steps)]
                command = [sys.executable, "-m", "tests.bench.offload", *words]
                rows.append(json.loads(subprocess.run(command, capture_output=True, check=True, text=True).stdout))
    if args.json:
        print(json.dumps(rows))
        return
    from pangu_ms.core.table import table_lines

    shown = [[_cell(row.get(key)) for key in HEADERS] for row in rows]
    print("\n".join(table_lines(tuple(HEADERS.values()), shown, ">><" + ">" * (len(HEADERS) - 3))))


def _cell(value) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"
    return "" if value is None else str(value)


if __name__ == "__main__":
    main()
