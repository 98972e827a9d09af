"""`pangu schedule simulate`: compare policies of batching without a model."""

import math
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pangu_ms.cli import options
from pangu_ms.core import runtime
from pangu_ms.core.errors import ConfigError
from pangu_ms.core.figure import new_figure, require_plot, write_figure
from pangu_ms.core.parser import Parser
from pangu_ms.core.table import print_result, table_lines

if TYPE_CHECKING:
    from pangu_ms.data.tokenizer import Tokenizer
    from pangu_ms.infer.scheduling.length_predictors import Prompt
    from pangu_ms.infer.scheduling.lengths import Answer
    from pangu_ms.infer.scheduling.policies import Policy
    from pangu_ms.infer.scheduling.simulator import Cost, Given, Rows
    from pangu_ms.infer.scheduling.step_costs import StepCosts

DESCRIPTION = """Compare policies of batching on given lengths of answers, without a model: the schedulers of the engine
decide, and a cost model tells the time. All policies have the same budget of cache tokens. A policy that gives
every row the capacity for the longest request has --slots rows; one that limits rows by prediction may have more of
them. The published batch sizes keep to no budget and are marked with *."""
LOGNORMAL = "lognormal"
MADE_UP = ("oracle", "noisy", "shuffled", "constant")
"""Predictions that are made of the true lengths."""


def build_parser() -> Parser:
    """The action's options."""
    parser = Parser(prog="pangu schedule simulate", description=DESCRIPTION)
    _add_requests(parser)
    _add_engine(parser)
    parser.add_argument("--policy", default="all", metavar="NAME,NAME,...", help="policies to compare, or all")
    text = "on the clock of --cost: the longest that sjf lets a request be passed by later ones; default: 2000 steps"
    parser.add_argument("--max-wait", type=float, metavar="SECONDS", help=text)
    text = "requests that are sorted together, of policies with static batches"
    parser.add_argument("--group-size", type=int, default=256, metavar="N", help=text)
    text = "predictions that limit a request are rounded up to a multiple of this"
    parser.add_argument("--bin", type=int, default=50, metavar="TOKENS", help=text)
    text = "added to predictions that limit a request"
    parser.add_argument("--margin", type=int, default=0, metavar="TOKENS", help=text)
    text = "new .png, .svg or .pdf: the histogram of the lengths, and the throughput of each policy"
    options.add_new_file(parser, "--plot", text)
    options.add_json(parser)
    parser.set_defaults(run=_run)
    return parser


def _add_requests(parser: Parser) -> None:
    text = (
        "lognormal, or a file: lengths, objects with tokens, or answers as `pangu generate --json` writes them, one a"
        " line; objects may have prompt_tokens, predicted_tokens and arrival in seconds"
    )
    parser.add_argument("--lengths", default=LOGNORMAL, metavar="FILE", help=text)
    text = "number of lognormal lengths (default: 1024)"
    parser.add_argument("--requests", type=int, metavar="N", help=text)
    parser.add_argument("--seed", type=int, default=0, help="seed of all that is drawn")
    text = "length of the prompts of which it is not known; 0: they cost nothing, as in the paper"
    parser.add_argument("--prompt-tokens", type=int, default=0, metavar="N", help=text)
    text = "longest answer; lengths above it are cut"
    parser.add_argument("--max-new-tokens", type=int, default=512, metavar="N", help=text)
    text = (
        "predictions: oracle, the true lengths; noisy, as wrong as the paper's; shuffled, those of other requests;"
        " constant; given, those in the file; or a file of `pangu schedule train-predictor`, for lengths with prompts"
        " (default: given if the file has them, otherwise noisy)"
    )
    parser.add_argument("--predictor", metavar="NAME", help=text)
    text = "the model of a predictor that reads its states or asks it; its tokenizer is the default"
    parser.add_argument("--checkpoint", type=Path, metavar="PATH", help=text)
    text = "tokenizer of a predictor that is a file; it also tells the lengths of prompts"
    options.add_tokenizer(parser, text, required=False)
    text = "Poisson arrivals per second (default: all requests are there at the beginning)"
    parser.add_argument("--rate", type=float, metavar="N", help=text)


def _add_engine(parser: Parser) -> None:
    parser.add_argument(
        "--slots", type=int, default=16, metavar="N", help="rows that have the capacity for any request"
    )
    text = "cache tokens of all rows together (default: --slots times the longest request)"
    parser.add_argument("--budget", type=int, metavar="TOKENS", help=text)
    text = "most rows of a step (default: 256, or those of the largest graph of --cost)"
    parser.add_argument("--max-rows", type=int, metavar="N", help=text)
    text = "most prompt tokens of a step (default: 64, or that of --cost)"
    parser.add_argument("--chunk", type=int, metavar="TOKENS", help=text)
    text = (
        "seconds of a step, of each of its rows, and of each of its prompt tokens (may be left out: 0); or a file of"
        " `pangu schedule calibrate`"
    )
    parser.add_argument("--cost", default="1,0.004", metavar="A,B[,C]", help=text)


def _run(args: Namespace) -> int:
    from pangu_ms.infer.scheduling.lengths import accuracy, cap_warning, describe

    if args.plot:
        require_plot(args.plot)
    cost, measured = _cost(args.cost)
    _complete(args, measured)
    _check(args)
    policies = _policies(args.policy)
    requests = _requests(args)
    slots, budget = _rows_of(args, requests)
    lengths = [given.new_tokens for given in requests]
    described = describe(lengths, args.max_new_tokens)
    predicted = [given.predicted_tokens for given in requests]
    known = [(p, min(n, args.max_new_tokens)) for p, n in zip(predicted, lengths) if p is not None]
    result: dict[str, Any] = {"lengths": described, "warning": cap_warning(described["share_at_cap"])}
    result["prediction"] = accuracy(*zip(*known)) if known else None
    result |= {"slots": args.slots, "budget_tokens": budget.budget_tokens, "cost": args.cost}
    result["policies"] = {name: _simulate(args, policies[name], requests, cost, slots, budget) for name in policies}
    first = next(iter(result["policies"].values()))
    for row in result["policies"].values():
        row["speed_up"] = row["tokens_per_second"] / first["tokens_per_second"]
    if args.plot:
        _plot(result, args.plot)
    print_result(result, "\n".join(_text(result)), args.json)
    return 0


def _check(args: Namespace) -> None:
    least = {"requests": 1, "prompt_tokens": 0, "max_new_tokens": 1, "slots": 1, "max_rows": 1, "chunk": 1}
    least |= {"group_size": 1, "bin": 1, "margin": 0, "budget": 1, "seed": 0}
    for name, bound in least.items():
        value = getattr(args, name)
        if value is not None and not bound <= value < 1 << 31:
            raise ConfigError(f"--{name.replace('_', '-')} {value}: must be a number from {bound} to 2^31; correct it")
    for name in ("rate", "max_wait"):
        value = getattr(args, name)
        if value is not None and not 0 < value < math.inf:
            raise ConfigError(f"--{name.replace('_', '-')} {value}: must be above 0; leave it out for the default")
    if args.requests and args.lengths != LOGNORMAL:
        raise ConfigError(
            f"--requests {args.requests}: {args.lengths} has as many as it holds; leave --requests or --lengths out"
        )
    if args.max_rows < args.slots:
        raise ConfigError(f"--max-rows {args.max_rows}: must be at least --slots {args.slots}; raise it")


def _cost(text: str) -> "tuple[Cost, StepCosts | None]":
    """The cost of --cost, and the file that it came from."""
    from pangu_ms.infer.scheduling import step_costs
    from pangu_ms.infer.scheduling.simulator import LinearCost

    try:
        numbers = [float(number) for number in text.split(",")]
    except ValueError:
        measured = step_costs.load(Path(text))
        return measured.cost, measured
    if not (2 <= len(numbers) <= 3 and all(0 <= number < math.inf for number in numbers) and numbers[0] > 0):
        raise ConfigError(f"--cost {text}: must be two or three numbers from 0 up, the first above 0, as 1,0.004")
    return LinearCost(*numbers), None


def _complete(args: Namespace, measured: "StepCosts | None") -> None:
    """Give --max-rows and --chunk their defaults, which are those of the measured steps if there are some."""
    largest = max(measured.cost.decode) if measured else 256
    if args.max_rows is None:
        args.max_rows = largest
    if args.chunk is None:
        args.chunk = measured.chunk if measured else 64
    if not measured:
        return
    if args.chunk != measured.chunk:
        raise ConfigError(f"--chunk {args.chunk}: {args.cost} was measured with {measured.chunk}; leave it out")
    for option, rows in (("slots", args.slots), ("max-rows", args.max_rows)):
        if rows > largest:
            rule = f"the largest graph in {args.cost} has {largest} slots"
            raise ConfigError(f"--{option} {rows}: {rule}; use at most {largest}, or calibrate with more --slots")


def _policies(text: str) -> "dict[str, Policy]":
    from pangu_ms.infer.scheduling.policies import POLICIES

    names = list(POLICIES) if text == "all" else text.split(",")
    for name in names:
        if name not in POLICIES:
            raise ConfigError(f"--policy {name}: no such policy; use all, or some of {', '.join(POLICIES)}")
    return {name: POLICIES[name] for name in names}


def _requests(args: Namespace) -> "list[Given]":
    """The requests in order of arrival, with their predictions."""
    import numpy as np

    from pangu_ms.infer.scheduling import lengths
    from pangu_ms.infer.scheduling.simulator import Given

    if args.lengths == LOGNORMAL:
        drawn = lengths.lognormal_lengths(args.requests or 1024, args.seed, most=args.max_new_tokens)
        answers = [lengths.Answer(int(length)) for length in drawn]
    else:
        answers = lengths.read_answers(Path(args.lengths))
    arrivals = [answer.arrival for answer in answers]
    if args.rate:
        waits = np.random.default_rng([args.seed, 2]).exponential(1 / args.rate, len(answers))
        arrivals = np.cumsum(waits).tolist()
    tokenizer = _tokenizer(args, answers)
    encoded = [tuple(tokenizer.encode_prompt(answer.prompt)) for answer in answers] if tokenizer else []
    predictions, requests = _predictions(args, answers, tokenizer, encoded), []
    for index, answer in enumerate(answers):
        prompt_tokens = answer.prompt_tokens
        if prompt_tokens is None:
            prompt_tokens = len(encoded[index]) if encoded else args.prompt_tokens
        requests.append(Given(answer.tokens, prompt_tokens, predictions[index], arrivals[index], answer.template))
    return sorted(requests, key=lambda given: given.arrival)


def _tokenizer(args: Namespace, answers: "list[Answer]") -> "Tokenizer | None":
    from pangu_ms.data.tokenizer import Tokenizer

    if not args.tokenizer and not args.checkpoint:
        return None
    if not all(answer.prompt for answer in answers):
        option = f"--tokenizer {args.tokenizer}" if args.tokenizer else f"--checkpoint {args.checkpoint}"
        raise ConfigError(f"{option}: a length has no prompt; leave it out, or add the prompts")
    if not args.checkpoint:
        return Tokenizer.load(args.tokenizer)
    from pangu_ms.checkpoint.store import open_checkpoint
    from pangu_ms.infer.load import load_tokenizer

    return load_tokenizer(open_checkpoint(args.checkpoint), args.tokenizer)


def _predictions(
    args: Namespace, answers: "list[Answer]", tokenizer: "Tokenizer | None", encoded: list[tuple[int, ...]]
) -> list[float]:
    from pangu_ms.infer.scheduling import length_predictors, lengths

    given = [answer.predicted_tokens for answer in answers if answer.predicted_tokens is not None]
    kind = args.predictor or ("given" if given else "noisy")
    if kind == "given":
        if len(given) < len(answers):
            raise ConfigError(f"{args.lengths}: a length has no predicted_tokens; add it, or name another --predictor")
        return given
    if kind not in MADE_UP:
        if not tokenizer:
            rule = f"is none of given, {', '.join(MADE_UP)}; a file needs --tokenizer or --checkpoint, and prompts"
            raise ConfigError(f"--predictor {kind}: {rule}; correct it")
        prompts = [length_predictors.Prompt(ids, answer.template) for ids, answer in zip(encoded, answers)]
        return _of_file(args, Path(kind), tokenizer, prompts)
    true = [min(answer.tokens, args.max_new_tokens) for answer in answers]
    if kind == "constant":
        return [sum(true) / len(true)] * len(true)
    if kind == "noisy":
        return lengths.noisy(true, args.seed + 1, most=args.max_new_tokens).tolist()
    return lengths.shuffled(true, args.seed + 1).tolist() if kind == "shuffled" else [float(n) for n in true]


def _of_file(args: Namespace, path: Path, tokenizer: "Tokenizer", prompts: "list[Prompt]") -> list[float]:
    """What the predictor in a file says."""
    from dataclasses import replace

    from pangu_ms.infer.scheduling.length_predictors import OwnAnswer, load_predictor

    if not args.checkpoint:
        predictor = load_predictor(path, tokenizer)
        if isinstance(predictor, OwnAnswer):
            raise ConfigError(f"--predictor {path}: asks the model; name its checkpoint with --checkpoint")
        return predictor.predict(prompts)
    from pangu_ms.checkpoint.store import open_checkpoint
    from pangu_ms.infer.load import load_questions
    from pangu_ms.infer.prompt_states import PromptStates

    runtime.quiet()
    checkpoint = open_checkpoint(args.checkpoint)
    predictor = load_predictor(path, tokenizer, PromptStates(checkpoint))
    if isinstance(predictor, OwnAnswer):
        ask = load_questions(checkpoint, predictor, [prompt.token_ids for prompt in prompts], tokenizer)
        predictor = replace(predictor, ask=ask)
    return predictor.predict(prompts)


def _rows_of(args: Namespace, requests: "list[Given]") -> "tuple[Rows, Rows]":
    """The shape of an engine whose slots have rows of their own, and of one whose slots share the budget."""
    from pangu_ms.infer.scheduling.simulator import Rows

    longest = max(given.prompt_tokens for given in requests) + args.max_new_tokens
    budget = args.slots * longest if args.budget is None else args.budget
    if budget // args.slots < longest:
        raise ConfigError(
            f"--budget {budget}: is {budget // args.slots} tokens for each of {args.slots} slots; the longest request"
            f" needs {longest}; use at most {budget // longest} slots, a larger budget or a smaller --max-new-tokens"
        )
    own = Rows(args.slots, budget // args.slots, args.chunk, budget)
    return own, Rows(args.max_rows, budget // args.slots, args.chunk, budget)


def _simulate(
    args: Namespace, policy: "Policy", requests: "list[Given]", cost: "Cost", slots: "Rows", budget: "Rows"
) -> dict[str, Any]:
    from dataclasses import replace

    from pangu_ms.infer.scheduling.policies import Settings
    from pangu_ms.infer.scheduling.simulator import Work, simulate

    step = cost(Work(args.slots))
    max_wait = 2000 * step if args.max_wait is None else args.max_wait
    scheduler = policy.make(Settings(max_wait, args.group_size, args.bin, args.margin, step))
    rows = {"slots": slots, "budget": budget, "any": replace(budget, budget_tokens=None)}[policy.rows]
    done = simulate(scheduler, requests, rows, cost, args.max_new_tokens)
    return {"equal_budget": policy.rows != "any"} | done.summary()


HEAD = ("policy", "speed-up", "tokens/s", "steps", "length", "effective", "failed", "cache", "kept")
TIMES = ("wait: mean", "p50", "p99", "max", "latency: mean")


def _text(result: dict[str, Any]) -> list[str]:
    rows = []
    for name, row in result["policies"].items():
        shares = f"{row['effective_ratio']:.1%}", f"{row['failure_ratio']:.1%}"
        tokens = f"{row['peak_cache_tokens']:,}", f"{row['peak_kept_tokens']:,}"
        times = [_number(row["wait"][key]) for key in ("mean", "p50", "p99", "max")] + [_number(row["latency"]["mean"])]
        figures = f"{row['speed_up']:.2f}", _number(row["tokens_per_second"]), f"{row['steps']:,}"
        label = name if row["equal_budget"] else f"{name} *"
        rows.append((label, *figures, f"{row['average_length']:.0f}", *shares, *tokens, *times))
    lines = [*_lengths_text(result["lengths"]), *filter(None, (result["warning"],))]
    if of := result["prediction"]:
        lines.append(f"predictions: MAE {of['mae']:.1f}, Acc-50 {of['acc_50']:.1%}, Acc-100 {of['acc_100']:.1%}")
    budget = f"{result['budget_tokens']:,} tokens of cache"
    lines.append(f"{budget}; seconds of a step, a row, a prompt token: {result['cost']}")
    return [*lines, "", *table_lines(HEAD + TIMES, rows, "<" + ">" * (len(HEAD + TIMES) - 1))]


def _number(value: float) -> str:
    """Three digits or more."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _lengths_text(lengths: dict[str, Any]) -> list[str]:
    """The histogram of the lengths, a line for each bar."""
    quantiles = ", ".join(f"{key} {lengths[key]:.0f}" for key in ("mean", "p50", "p90", "p99"))
    cap = f"{lengths['share_at_cap']:.1%} at the maximum of {lengths['max_new_tokens']}"
    edges, counts = lengths["histogram"]["edges"], lengths["histogram"]["counts"]
    rows = []
    for low, high, count in zip(edges, edges[1:], counts):
        rows.append((f"{low:.0f} - {high:.0f}", f"{count:,}", "#" * round(40 * count / max(counts))))
    head = f"{lengths['number']:,} answers: {quantiles} tokens; {cap}"
    return [head, *table_lines(None, rows, ">><", indent="  ")]


def _plot(result: dict[str, Any], path: Path) -> None:
    """Draw the histogram of the lengths beside the throughput of each policy."""
    figure = new_figure(11, 4)
    left, right = figure.subplots(1, 2)
    edges, counts = result["lengths"]["histogram"]["edges"], result["lengths"]["histogram"]["counts"]
    left.bar(edges[:-1], counts, width=edges[1] - edges[0], align="edge")
    left.set(xlabel="tokens of an answer", ylabel="answers")
    left.set_title(f"{result['lengths']['share_at_cap']:.1%} at the maximum")
    names = list(result["policies"])
    right.barh(names[::-1], [result["policies"][name]["speed_up"] for name in names[::-1]])
    right.set(xlabel=f"throughput / that of {names[0]}")
    write_figure(figure, path)
