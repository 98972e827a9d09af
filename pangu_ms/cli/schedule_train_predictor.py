"""`pangu schedule train-predictor`: predict the length of an answer from its prompt."""

import time
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pangu_ms.cli import options
from pangu_ms.core.errors import DataError
from pangu_ms.core.parser import Parser
from pangu_ms.core.table import print_result, table_lines

if TYPE_CHECKING:
    from pangu_ms.infer.scheduling.length_predictors import NgramRidge, Prompt, TemplateMean

DESCRIPTION = """Train a predictor of the length of answers on lines with a prompt and the length of its answer, as
`pangu schedule label` writes them, and measure it on prompts that were held out. Its file belongs to the tokenizer."""


def build_parser() -> Parser:
    """The action's options."""
    parser = Parser(prog="pangu schedule train-predictor", description=DESCRIPTION)
    text = "JSON lines with prompt and tokens, and a template if there are some"
    parser.add_argument("lines", type=Path, metavar="LINES", help=text)
    options.add_tokenizer(parser)
    options.add_new_file(parser, "--output", "new file for the predictor", required=True)
    text = "ngrams: ridge regression on hashed n-grams of the prompt; template: the mean of each template"
    parser.add_argument("--kind", choices=["ngrams", "template"], default="ngrams", help=text)
    text = (
        "share of the prompts that it is measured on; chosen by a hash of the text, so that equal prompts stay together"
    )
    parser.add_argument("--held-out", type=float, default=0.1, metavar="SHARE", help=text)
    text = "number of features that n-grams are hashed to"
    parser.add_argument("--features", type=int, default=2048, metavar="N", help=text)
    parser.add_argument("--ridge", type=float, default=1.0, help="weight of the squared coefficients")
    options.add_json(parser)
    parser.set_defaults(run=_run)
    return parser


def _run(args: Namespace) -> int:
    from pangu_ms.data.tokenizer import Tokenizer
    from pangu_ms.infer.scheduling.length_predictors import save_predictor
    from pangu_ms.infer.scheduling.lengths import accuracy

    _check(args)
    started = time.perf_counter()
    tokenizer = Tokenizer.load(args.tokenizer)
    train, held_out = _split(args, tokenizer)
    predictor = _trained(args, train)
    lengths = [length for _, length in held_out]
    middle = float(sorted(length for _, length in train)[len(train) // 2])
    measured = {
        "predictor": accuracy(predictor.predict([prompt for prompt, _ in held_out]), lengths),
        "median of all": accuracy([middle] * len(lengths), lengths),
    }
    save_predictor(args.output, predictor, tokenizer)
    result: dict[str, Any] = {"output": str(args.output), "kind": args.kind, "tokenizer": tokenizer.fingerprint}
    result |= {"trained_on": len(train), "held_out": len(held_out), "measured": measured}
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
    if not 0 < args.ridge < float("inf"):
        raise DataError(f"--ridge {args.ridge}: must be above 0; without it equations may have no solution")


Labelled = list[tuple["Prompt", int]]
"""Prompts, each with its label."""


def _split(args: Namespace, tokenizer: Any) -> tuple[Labelled, Labelled]:
    """The labelled prompts to train on, and those to measure with."""
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
        ids = tuple(tokenizer.encode_prompt(line.prompt)) if args.kind == "ngrams" else ()
        (held_out if share < args.held_out else train).append((Prompt(ids, line.template), line.tokens))
    if not train or not held_out:
        raise DataError(
            f"{args.lines}: {len(train)} prompts to train on and {len(held_out)} held out: both are needed; give more"
            " prompts, or another --held-out"
        )
    return train, held_out


def _trained(args: Namespace, train: Labelled) -> "NgramRidge | TemplateMean":
    from pangu_ms.infer.scheduling.length_predictors import NgramRidge, TemplateMean

    if args.kind == "ngrams":
        prompts, lengths = [prompt for prompt, _ in train], [length for _, length in train]
        return NgramRidge.fit(prompts, lengths, args.features, args.ridge)
    predictor = TemplateMean()
    for prompt, length in train:
        predictor.observe(prompt, length)
    return predictor


def _text(result: dict[str, Any]) -> str:
    head = f"{result['output']}: {result['kind']}, trained on {result['trained_on']:,} prompts, {result['seconds']} s"
    rows = []
    for name, row in result["measured"].items():
        rows.append((name, f"{row['mae']:.1f}", f"{row['acc_50']:.1%}", f"{row['acc_100']:.1%}"))
    columns = (f"{result['held_out']:,} held-out prompts", "MAE", "Acc-50", "Acc-100")
    return "\n".join([head, *table_lines(columns, rows, "<>>>")])
