"""`pangu schedule train-predictor`: predict the length of an answer from its prompt."""

import dataclasses
import time
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pangu_ms.cli import options
from pangu_ms.core import runtime
from pangu_ms.core.errors import DataError
from pangu_ms.core.parser import Parser
from pangu_ms.core.table import print_result, table_lines

if TYPE_CHECKING:
    from pangu_ms.checkpoint.store import Checkpoint
    from pangu_ms.data.tokenizer import Tokenizer
    from pangu_ms.infer.scheduling.length_predictors import OwnAnswer, Predictor, Prompt

DESCRIPTION = """Train a predictor of the length of answers on lines with a prompt and the length of its answer, as
`pangu schedule label` writes them, and measure it on prompts that were held out. Its file belongs to the tokenizer, and
that of a probe to the checkpoint as well."""
WITH_MODEL = ("probe", "answer")


def build_parser() -> Parser:
    """The action's options."""
    parser = Parser(prog="pangu schedule train-predictor", description=DESCRIPTION)
    text = "JSON lines with prompt and tokens, and a template if there are some"
    parser.add_argument("lines", type=Path, metavar="LINES", help=text)
    options.add_tokenizer(parser, "tokenizer of the prompts (default: that of --checkpoint)", required=False)
    options.add_new_file(parser, "--output", "new file for the predictor", required=True)
    text = (
        "ngrams: ridge regression on hashed n-grams of the prompt; template: the mean of each template; probe: ridge"
        " regression on the prompt's last hidden state; answer: ask the model how long its answer will be"
    )
    parser.add_argument("--kind", choices=["ngrams", "template", *WITH_MODEL], default="ngrams", help=text)
    text = "the model that answers: a run directory or a checkpoint; probe and answer need it"
    parser.add_argument("--checkpoint", type=Path, metavar="PATH", help=text)
    text = "what answer appends to a prompt (default: two English sentences)"
    parser.add_argument("--question", metavar="TEXT", help=text)
    text = (
        "share of the prompts that it is measured on; chosen by a hash of the text, so that equal prompts stay together"
    )
    parser.add_argument("--held-out", type=float, default=0.1, metavar="SHARE", help=text)
    text = "number of features that n-grams are hashed to"
    parser.add_argument("--features", type=int, default=2048, metavar="N", help=text)
    text = "weight of the squared coefficients (default: 1 for ngrams, 100 for probe, whose features are scaled)"
    parser.add_argument("--ridge", type=float, help=text)
    options.add_json(parser)
    options.add_verbose(parser)
    parser.set_defaults(run=_run)
    return parser


def _run(args: Namespace) -> int:
    from pangu_ms.infer.scheduling.length_predictors import save_predictor
    from pangu_ms.infer.scheduling.lengths import accuracy

    _check(args)
    runtime.quiet(args.verbose)
    started = time.perf_counter()
    checkpoint, tokenizer = _model(args)
    longest = checkpoint.config().model.seq_length if checkpoint and args.kind == "probe" else None
    train, held_out = _split(args, tokenizer, longest)
    middle = float(sorted(length for _, length in train)[len(train) // 2])
    predictor = _trained(args, train, middle, tokenizer, checkpoint)
    lengths = [length for _, length in held_out]
    predicted, cost = _predicted(predictor, [prompt for prompt, _ in held_out], tokenizer, checkpoint)
    measured = {"predictor": accuracy(predicted, lengths), "median of all": accuracy([middle] * len(lengths), lengths)}
    save_predictor(args.output, predictor, tokenizer)
    result: dict[str, Any] = {"output": str(args.output), "kind": args.kind, "tokenizer": tokenizer.fingerprint}
    result |= {"trained_on": len(train), "held_out": len(held_out), "measured": measured, "cost": cost}
    result["seconds"] = round(time.perf_counter() - started, 1)
    print_result(result, _text(result), args.json)
    return 0


def _check(args: Namespace) -> None:
    if not 0 < args.held_out < 1:
        raise DataError(
            f"--held-out {args.held_out}: must be between 0 and 1; a predictor that nothing measures is none"
        )
    if not 1 <= args.features <= 1 << 14:
        raise DataError(f"--features {args.features}: must be from 1 to {1 << 14:,}; training needs their square")
    if args.ridge is not None and not 0 < args.ridge < float("inf"):
        raise DataError(f"--ridge {args.ridge}: must be above 0; without it equations may have no solution")
    if args.kind in WITH_MODEL and not args.checkpoint:
        raise DataError(f"--kind {args.kind}: needs the model; name its checkpoint with --checkpoint")
    if not args.checkpoint and not args.tokenizer:
        raise DataError("--tokenizer: prompts need one; name it, or a --checkpoint that has one")
    if args.question is not None and args.kind != "answer":
        raise DataError(f"--question: --kind {args.kind} asks none; leave it out, or use --kind answer")


def _model(args: Namespace) -> "tuple[Checkpoint | None, Tokenizer]":
    """The checkpoint, if there is one, and the tokenizer."""
    from pangu_ms.data.tokenizer import Tokenizer

    if not args.checkpoint:
        return None, Tokenizer.load(args.tokenizer)
    from pangu_ms.checkpoint.store import open_checkpoint
    from pangu_ms.infer.load import load_tokenizer

    checkpoint = open_checkpoint(args.checkpoint)
    return checkpoint, load_tokenizer(checkpoint, args.tokenizer)


Labelled = list[tuple["Prompt", int]]
"""Prompts, each with its label."""


def _split(args: Namespace, tokenizer: "Tokenizer", longest: int | None) -> tuple[Labelled, Labelled]:
    """The labelled prompts to train on, and those to measure with; the model reads at most `longest` tokens."""
    import hashlib

    from pangu_ms.infer.scheduling.length_predictors import Prompt
    from pangu_ms.infer.scheduling.lengths import read_answers

    train: Labelled = []
    held_out: Labelled = []
    for number, line in enumerate(read_answers(args.lines), 1):
        if not line.prompt:
            raise DataError(f"{args.lines}: length {number} has no prompt; a length is predicted from one; add it")
        if args.kind == "template" and not line.template:
            raise DataError(f"{args.lines}: length {number} has no template; use --kind ngrams, or name its template")
        share = int.from_bytes(hashlib.sha256(line.prompt.encode(errors="surrogatepass")).digest()[:6], "big") / 2**48
        # Template means do not look at the text, which is then not encoded.
        ids = () if args.kind == "template" else tuple(tokenizer.encode_prompt(line.prompt))
        if longest and len(ids) > longest:
            raise DataError(
                f"{args.lines}: length {number} has a prompt of {len(ids)} tokens; the model reads at most {longest};"
                " remove it"
            )
        (held_out if share < args.held_out else train).append((Prompt(ids, line.template), line.tokens))
    if not train or not held_out:
        raise DataError(
            f"{args.lines}: {len(train)} prompts to train on and {len(held_out)} held out: both are needed; give more"
            " prompts, or another --held-out"
        )
    return train, held_out


def _trained(
    args: Namespace, train: Labelled, middle: float, tokenizer: "Tokenizer", checkpoint: "Checkpoint | None"
) -> "Predictor":
    """The predictor; `middle` is the median of the lengths."""
    from pangu_ms.infer.scheduling import length_predictors as predictors

    prompts, lengths = [prompt for prompt, _ in train], [length for _, length in train]
    if args.kind == "ngrams":
        return predictors.NgramRidge.fit(prompts, lengths, args.features, args.ridge or 1.0)
    if args.kind == "probe":
        from pangu_ms.infer.prompt_states import PromptStates

        assert checkpoint
        states = PromptStates(checkpoint)
        return predictors.StateProbe.fit(prompts, lengths, states.digest, states, args.ridge or 100.0)
    if args.kind == "answer":
        question = predictors.QUESTION if args.question is None else args.question
        return predictors.OwnAnswer(question, middle, float(max(lengths)), tokenizer.encode)
    predictor = predictors.TemplateMean()
    for prompt, length in train:
        predictor.observe(prompt, length)
    return predictor


def _predicted(
    predictor: "Predictor", prompts: "list[Prompt]", tokenizer: "Tokenizer", checkpoint: "Checkpoint | None"
) -> tuple[list[float], dict[str, Any]]:
    """Predictions for the held-out prompts, and what they cost of the model."""
    from pangu_ms.infer.scheduling.length_predictors import OwnAnswer, StateProbe

    if isinstance(predictor, OwnAnswer):
        assert checkpoint
        return _answers(predictor, prompts, tokenizer, checkpoint)
    if not isinstance(predictor, StateProbe):
        return predictor.predict(prompts), {}
    states: Any = predictor.states
    before = states.passes, states.tokens, states.seconds
    predicted = predictor.predict(prompts)
    after = states.passes, states.tokens, states.seconds
    return predicted, dict(zip(("passes", "prompt_tokens", "seconds"), (b - a for a, b in zip(before, after))))


def _answers(
    predictor: "OwnAnswer", prompts: "list[Prompt]", tokenizer: "Tokenizer", checkpoint: "Checkpoint"
) -> tuple[list[float], dict[str, Any]]:
    """As `_predicted`, from one question for each prompt; `answered` is the share of those that got a number."""
    from pangu_ms.infer.load import load_questions

    ask = load_questions(checkpoint, predictor, [prompt.token_ids for prompt in prompts], tokenizer)
    numbers = dataclasses.replace(predictor, ask=ask).numbers(prompts)
    answered = sum(number is not None for number in numbers) / len(numbers)
    predicted = [predictor.otherwise if number is None else number for number in numbers]
    return predicted, {"steps": ask.steps, "seconds": ask.seconds, "answered": answered}


def _text(result: dict[str, Any]) -> str:
    head = f"{result['output']}: {result['kind']}, trained on {result['trained_on']:,} prompts, {result['seconds']} s"
    rows = []
    for name, row in result["measured"].items():
        rows.append((name, f"{row['mae']:.1f}", f"{row['acc_50']:.1%}", f"{row['acc_100']:.1%}"))
    columns = (f"{result['held_out']:,} held-out prompts", "MAE", "Acc-50", "Acc-100")
    return "\n".join([head, *_cost_text(result["cost"]), *table_lines(columns, rows, "<>>>")])


def _cost_text(cost: dict[str, Any]) -> list[str]:
    """What the held-out predictions cost of the model, as a line."""
    if not cost:
        return []
    if "passes" in cost:
        return [f"cost: {cost['passes']} passes over {cost['prompt_tokens']:,} prompt tokens, {cost['seconds']:.2f} s"]
    numbers = f"{cost['answered']:.1%} of the prompts got a number"
    return [f"cost: {cost['steps']:,} steps, {cost['seconds']:.2f} s; {numbers}, the others the median of all"]
