"""`pangu study pi-pro`: run PanGu-pi Pro's recipe on your own text."""

from argparse import Namespace
from collections.abc import Callable
from typing import Any

from pangu_ms.cli import options
from pangu_ms.cli.study_options import add_study, parse_seeds
from pangu_ms.core.parser import Parser
from pangu_ms.core.table import table_lines
from pangu_ms.data.default_corpus import standard_library_files
from pangu_ms.research.inherit.scores import CRITERIA
from pangu_ms.research.study.compare import require_seeds
from pangu_ms.research.study.pi_pro import MEANING, make_plan, run_pi_pro
from pangu_ms.research.study.plot import plot_chain
from pangu_ms.research.study.table import with_error

DESCRIPTION = """Train a baseline, then apply the recipe step by step: compact vocabulary, a deeper shape of equal size,
weights inherited from a larger teacher, a second round on the batches with high loss. Each step is scored in bits per
byte on the same held-out documents, with several seeds. After an interruption, the same command resumes the study."""


def build_parser() -> Parser:
    """The action's options."""
    parser = Parser(prog="pangu study pi-pro", description=DESCRIPTION)
    options.add_config(parser, "pi/tiny")
    options.add_corpus(parser, "text or .jsonl files (default: the source of Python's standard library)")
    text = "number of pieces of the compact vocabulary; 0: half of model.vocab_size"
    parser.add_argument("--compact-size", type=int, default=0, metavar="N", help=text)
    text = "number of layers of the deeper shape; 0: twice the baseline's"
    parser.add_argument("--depth", type=int, default=0, metavar="N", help=text)
    text = "number of layers of the teacher; 0: one and a half times those of the deeper shape"
    parser.add_argument("--teacher-layers", type=int, default=0, metavar="N", help=text)
    text = "training steps of the teacher; 0: train.steps"
    parser.add_argument("--teacher-steps", type=int, default=0, metavar="N", help=text)
    text = "share of the batches that the second round reads"
    parser.add_argument("--keep", type=float, default=0.5, metavar="SHARE", help=text)
    text = "learning rate of the second round as a share of the first round's"
    parser.add_argument("--second-lr", type=float, default=0.5, metavar="SHARE", help=text)
    text = "criterion by which neurons, heads and channels of the teacher are chosen"
    parser.add_argument("--criterion", choices=CRITERIA, default="taylor", help=text)
    add_study(parser, _study, chain_table, plot_chain)
    return parser


def _study(args: Namespace) -> Callable[[], dict[str, Any]]:
    teacher = {"num_layers": args.teacher_layers} if args.teacher_layers else None
    numbers = args.compact_size, args.depth, teacher, args.teacher_steps, args.keep, args.second_lr, args.criterion
    corpus, seeds = args.corpus or [str(path) for path in standard_library_files()], parse_seeds(args.seeds)
    require_seeds(seeds, args.overrides)
    plan = make_plan(args.config, args.overrides, *numbers)
    return lambda: run_pi_pro(plan, args.config, corpus, args.output, seeds, progress=not args.json)


def chain_table(results: dict[str, Any]) -> str:
    """The steps of the chain as a table."""
    columns = ("step", "parameters", "vocab", "layers", "hidden", "bits per byte")
    head = (*columns, "difference to the step it starts from")
    rows = []
    for step, row in results["chain"].items():
        sizes = f"{row['parameters']:,}", f"{row['vocab_size']:,}", row["num_layers"], row["hidden_size"]
        rows.append((step, *sizes, with_error(format(row["mean"], ".4f"), row["deviation"]), _difference(row)))
    lines = table_lines(head, rows, "<>>>>><")
    teacher = results["teacher"]
    lines.append(
        f"teacher: {teacher['parameters']:,} parameters, {teacher['num_layers']} layers, {teacher['bits_per_byte']:.4f}"
        " bits per byte"
    )
    return "\n".join([*lines, "", *(f"{step}: {meaning}" for step, meaning in MEANING.items())])


def _difference(row: dict[str, Any]) -> str:
    if "difference" not in row:
        return ""
    difference = row["difference"]
    noise = " (not distinguishable)" if difference["distinguishable"] is False else ""
    return (
        f"{with_error(format(difference['mean'], '+.4f'), difference['standard_error'])} to"
        f" {row['compared_with']}{noise}"
    )
