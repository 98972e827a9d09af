"""`python -m tests.bench.schedule CHECKPOINT ANSWERS --predictor NAME=FILE ...`: every scheduling policy with every
predictor on real prompts and a trained model, simulated and measured, at an equal budget of cache tokens.

ANSWERS is what `pangu generate --output` wrote of the same checkpoint with the same settings. The prompts are answered
once more first, by another number of slots; how many answers differ from the file is printed, and every run must give
these tokens. The steps that are simulated must be those of the engine. The cost of a step is measured first, so that
predicted seconds stand beside measured ones. Policies whose rows share a budget run in an engine of more slots, whose
books keep to the budget of the others.
"""

import argparse
import dataclasses
import json
import time
from pathlib import Path

import numpy as np

from pangu_ms.checkpoint.store import open_checkpoint
from pangu_ms.core import runtime
from pangu_ms.core.table import table_lines
from pangu_ms.infer.calibration import measure_steps
from pangu_ms.infer.continuation import Request
from pangu_ms.infer.decoder import GraphShape
from pangu_ms.infer.engine import Engine
from pangu_ms.infer.load import load_decoder, load_tokenizer
from pangu_ms.infer.prompt_states import PromptStates
from pangu_ms.infer.questions import Questions, asked_tokens
from pangu_ms.infer.sampling import SamplingConfig
from pangu_ms.infer.scheduling.length_predictors import OwnAnswer, Prompt, StateProbe, load_predictor
from pangu_ms.infer.scheduling.lengths import accuracy, describe
from pangu_ms.infer.scheduling.policies import POLICIES, Settings
from pangu_ms.infer.scheduling.simulator import Given, Rows, simulate
from pangu_ms.infer.scheduling.step_costs import fit


def spread(values) -> list[float]:
    """Its 50th and 99th percentile."""
    return np.percentile(list(values), [50, 99]).tolist()


class Workload:
    """Prompts, the answers that they have, and the engines that answer them."""

    def __init__(self, args):
        self.args = args
        checkpoint = open_checkpoint(args.checkpoint)
        self.tokenizer = load_tokenizer(checkpoint)
        lines = [json.loads(line) for line in args.answers.read_text().splitlines()][: args.requests]
        self.expected = [line["token_ids"] for line in lines]
        self.indices = [line["index"] for line in lines]  # tokens are drawn with them
        self.lengths = [len(ids) for ids in self.expected]
        self.templates = [line.get("template", "") for line in lines]
        self.prompts = [tuple(self.tokenizer.encode_prompt(line["prompt"])) for line in lines]
        self.sampling = SamplingConfig(max_new_tokens=args.max_new_tokens, temperature=args.temperature)
        longest = max(map(len, self.prompts)) + args.max_new_tokens
        context = checkpoint.config().model.seq_length
        self.decoders = {}
        for slots in sorted({args.slots, args.rows}):
            shape = GraphShape.fitting(context, slots, longest, args.chunk)
            self.decoders[slots] = load_decoder(checkpoint, shape)
        self.shape = shape
        self.states = PromptStates(checkpoint)
        self.budget = None  # of the first run
        written, self.expected = self.expected, None
        self.expected = self.run("fcfs", [None] * len(lines), slots=max(self.decoders))["found"]
        self.lengths = [len(ids) for ids in self.expected]
        differ = [i for i, ids in enumerate(self.expected) if ids != written[i]]
        print(f"{len(differ)} of {len(lines)} answers differ from {args.answers}: {differ}", flush=True)
        self.budget = args.slots * shape.max_length

    def rows_of(self, policy: str) -> int:
        return self.args.slots if POLICIES[policy].rows == "slots" else self.args.rows

    def budget_of(self, policy: str) -> int | None:
        return None if POLICIES[policy].rows == "any" else self.budget

    def scheduler(self, policy: str):
        bin_tokens = self.args.bin
        return POLICIES[policy].make(Settings(group_size=self.args.group_size, bin_tokens=bin_tokens))

    def predictions(self, path: Path) -> tuple[list[float], dict]:
        """What the predictor in a file says, and what that costs."""
        predictor = load_predictor(path, self.tokenizer, self.states)
        prompts = [Prompt(ids, template) for ids, template in zip(self.prompts, self.templates)]
        if isinstance(predictor, OwnAnswer):
            ask = Questions(self.decoders[self.args.slots], self.tokenizer)
            numbers = dataclasses.replace(predictor, ask=ask).numbers(prompts)
            cost = {"steps": ask.steps, "seconds": ask.seconds, "question_tokens": asked_tokens(predictor)}
            cost["answered"] = sum(number is not None for number in numbers) / len(numbers)
            return [predictor.otherwise if number is None else number for number in numbers], cost
        if not isinstance(predictor, StateProbe):
            return predictor.predict(prompts), {}
        predictor.predict(prompts)  # compiles
        before = self.states.passes, self.states.seconds
        found = predictor.predict(prompts)
        return found, {"passes": self.states.passes - before[0], "seconds": self.states.seconds - before[1]}

    def simulated(self, policy: str, predicted, cost, arrivals=None, in_steps=True):
        given = [
            Given(n, len(p), q, a)
            for n, p, q, a in zip(self.lengths, self.prompts, predicted, arrivals or [0.0] * len(self.prompts))
        ]
        rows = Rows(self.rows_of(policy), self.shape.max_length, self.shape.chunk, self.budget_of(policy))
        clock = "steps" if in_steps else "seconds"
        return simulate(self.scheduler(policy), given, rows, cost, self.args.max_new_tokens, clock)

    def run(self, policy: str, predicted, arrivals=None, slots=None) -> dict:
        """Serve the requests, each at its arrival in steps; all tokens must be the expected ones."""
        skipped = 0.0
        decoder = self.decoders[slots or self.rows_of(policy)]
        engine = Engine(
            decoder,
            self.tokenizer,
            self.scheduler(policy),
            prefix_cache=False,
            clock=lambda: engine.counts.steps + skipped,
            budget_tokens=self.budget_of(policy),
        )
        coming = list(enumerate(arrivals or [0.0] * len(self.prompts)))
        came, first, ended, found, began = {}, {}, {}, {}, time.perf_counter()

        def got_text(index):
            def on_text(_):
                first.setdefault(index, (engine.now() + 1, time.perf_counter()))

            return on_text

        while coming or engine.busy:
            if not engine.busy and coming[0][1] > engine.now():
                skipped += coming[0][1] - engine.now()
            while coming and coming[0][1] <= engine.now():
                index, arrival = coming.pop(0)
                known = {"predicted_tokens": predicted[index], "template": self.templates[index]}
                request = Request(self.prompts[index], self.sampling, self.indices[index], arrival=arrival, **known)
                came[engine.submit(request, got_text(index))] = (arrival, time.perf_counter())
            for number, one in engine.step():
                ended[number] = (engine.now(), time.perf_counter())
                found[number] = one.ids
        seconds = time.perf_counter() - began
        answers = [found[i] for i in range(len(self.prompts))]
        assert self.expected in (None, answers), f"{policy}: other tokens than the first run"
        per_token = [
            (ended[i][1] - first[i][1]) / (len(found[i]) - 1) for i in ended if len(found[i]) > 1 and i in first
        ]
        return {
            "steps": engine.counts.steps,
            "seconds": seconds,
            "found": answers,
            "latencies": {i: ended[i][0] - came[i][0] for i in ended},
            "first_s": [first[i][1] - came[i][1] for i in first],
            "per_token_s": per_token,
        }


def closed(work: Workload, predictions: dict, cost) -> list[dict]:
    """All requests are there at the beginning: each policy with each predictor, some of them measured in turns."""
    rows = []
    for policy, known in POLICIES.items():
        for name in predictions if known.uses_predictions else ["-"]:
            predicted = predictions.get(name) or [None] * len(work.prompts)
            done = work.simulated(policy, predicted, cost)
            row = {"policy": policy, "predictor": name, "simulated_steps": done.steps}
            row |= {"predicted_s": done.seconds, "effective": done.summary()["effective_ratio"]}
            rows.append(row | {"failed": done.failures / len(work.prompts), "runs": []})
    for _ in range(work.args.rounds):
        for row in rows:
            if row["predictor"] not in ("-", *work.args.measure) or row["policy"] not in work.args.policies:
                continue
            run = work.run(row["policy"], predictions.get(row["predictor"]) or [None] * len(work.prompts))
            assert run["steps"] == row["simulated_steps"], row
            row["runs"].append(run["seconds"])
            print(row["policy"], row["predictor"], run["steps"], f"{run['seconds']:.2f} s", flush=True)
    base = rows[0]
    for row in rows:
        row["seconds"] = min(row["runs"], default=None)
        row["gain_steps"] = base["simulated_steps"] / row["simulated_steps"]
        row["gain_predicted"] = base["predicted_s"] / row["predicted_s"]
        row["gain"] = base["seconds"] / row["seconds"] if row["seconds"] and base["seconds"] else None
    return rows


def arriving(work: Workload, predicted, cost) -> list[dict]:
    """Poisson arrivals, at shares of what the slots can do with first come, first served."""
    all_at_once = work.simulated("fcfs", [None] * len(work.prompts), cost).steps
    rows = []
    for load in work.args.loads:
        waits = np.random.default_rng(7).exponential(all_at_once / len(work.prompts) / load, len(work.prompts))
        arrivals = np.cumsum(waits).tolist()
        for policy in work.args.arriving_policies:
            done = work.simulated(policy, predicted, cost, arrivals)
            row = {
                "load": load,
                "policy": policy,
                "steps": done.steps,
                "first_steps": spread(done.first_tokens.values()),
            }
            row |= {
                "per_token_steps": spread(done.times_per_token()),
                "tokens_per_step": done.useful_tokens / done.steps,
            }
            if load in work.args.measure_loads and policy in work.args.policies:
                run = work.run(policy, predicted, arrivals)
                took = f"{policy} at load {load}: the engine took other steps than the simulator"
                assert run["steps"] == done.steps and run["latencies"].keys() == done.latencies.keys(), took
                # Both clocks add steps to arrivals that are no whole numbers, in another order.
                assert all(abs(run["latencies"][i] - done.latencies[i]) < 1e-6 for i in done.latencies), took
                row |= {"first_s": spread(run["first_s"]), "per_token_s": spread(run["per_token_s"])}
                row["tokens_per_s"] = sum(work.lengths) / run["seconds"]
                print(load, policy, run["steps"], f"{run['seconds']:.2f} s", flush=True)
            rows.append(row)
    return rows


def shown(rows: list[dict]) -> str:
    """Rows as a table."""

    def cell(value):
        if isinstance(value, list):
            return " / ".join(f"{one:.3g}" for one in value) or "-"
        return "-" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)

    names = list(dict.fromkeys(name for row in rows for name in row))
    cells = [[cell(row.get(name)) for name in names] for row in rows]
    return "\n".join(table_lines(tuple(name.replace("_", " ") for name in names), cells, "<<" + ">" * (len(names) - 2)))


def main() -> None:
    """Print tables; --json FILE also writes everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("answers", type=Path, help="written by pangu generate --output, with templates")
    parser.add_argument("--predictor", action="append", default=[], metavar="NAME=FILE", help="further predictors")
    parser.add_argument("--measure", nargs="*", default=["oracle"], help="predictors whose runs are measured")
    parser.add_argument("--policies", nargs="*", choices=list(POLICIES), default=list(POLICIES), help="to measure")
    parser.add_argument("--requests", type=int, default=128, help="the first of the answers")
    parser.add_argument("--slots", type=int, default=8, help="rows of policies whose rows have room for any request")
    parser.add_argument("--rows", type=int, default=16, help="most rows of policies that share the budget")
    parser.add_argument("--chunk", type=int, default=64, help="prompt tokens of a step")
    parser.add_argument("--max-new-tokens", type=int, default=224, help="as the answers had")
    parser.add_argument("--temperature", type=float, default=1.0, help="as the answers had")
    parser.add_argument("--group-size", type=int, default=64, help="requests that static batches are sorted in")
    parser.add_argument("--bin", type=int, default=32, help="width of a bin of predictions")
    parser.add_argument("--rounds", type=int, default=1, help="turns of each measured run")
    parser.add_argument("--loads", type=float, nargs="*", default=[0.5, 0.8, 0.95], help="arrivals / capacity")
    parser.add_argument("--measure-loads", type=float, nargs="*", default=[0.8], help="those that are measured")
    names = ["static", "fcfs", "sjf", "hrrn"]
    parser.add_argument("--arriving-policies", nargs="*", choices=list(POLICIES), default=names, help="with arrivals")
    parser.add_argument("--arriving-predictor", default="oracle", help="of the runs with arrivals")
    parser.add_argument("--json", type=Path, help="file for everything")
    args = parser.parse_args()
    runtime.quiet()
    work = Workload(args)
    described = describe(work.lengths, args.max_new_tokens)
    print({key: described[key] for key in ("number", "mean", "p50", "p90", "p99", "share_at_cap")})
    print(dict(zip(described["histogram"]["edges"], described["histogram"]["counts"])))
    predictions = {"oracle": [float(n) for n in work.lengths]}
    quality = {"oracle": accuracy(predictions["oracle"], work.lengths)}
    for named in args.predictor:
        name, _, path = named.partition("=")
        predictions[name], spent = work.predictions(Path(path))
        quality[name] = accuracy(predictions[name], work.lengths) | spent
    print(json.dumps(quality, indent=1))
    steps = [
        step
        for one in work.decoders.values()
        for step in measure_steps(one, work.tokenizer, work.sampling, work.args.rounds)
    ]
    cost = fit(steps)
    print(cost, flush=True)
    rows = closed(work, predictions, cost)
    print(shown(rows), flush=True)
    arrivals = arriving(work, predictions[args.arriving_predictor], cost)
    print(shown(arrivals))
    if args.json:
        everything = {"lengths": described, "predictors": quality, "cost": dataclasses.asdict(cost)}
        args.json.write_text(json.dumps(everything | {"policies": rows, "arrivals": arrivals}, indent=1))


if __name__ == "__main__":
    main()
