"""`pangu analyze experts`: count the tokens that come to each expert, layer by layer. Of a PanGu-Sigma only the tables
are read, since they say where the tokens of the records go. A Pangu Pro MoE computes the choices of its routers for the
first batches of each domain."""

from argparse import Namespace
from typing import Any

from pangu_ms.checkpoint.derive import Opened
from pangu_ms.checkpoint.store import Checkpoint, open_checkpoint
from pangu_ms.cli import options
from pangu_ms.cli.analyze_options import add_analysis
from pangu_ms.core import files, runtime
from pangu_ms.core.errors import ConfigError
from pangu_ms.core.figure import require_plot
from pangu_ms.core.parser import Parser
from pangu_ms.core.table import print_result, table_lines
from pangu_ms.data.domains import require_known
from pangu_ms.data.loader import require_batches
from pangu_ms.data.records import RecordSet
from pangu_ms.data.token_counts import domain_token_counts
from pangu_ms.research.analysis.experts import plot_experts, table_load

MAX_BATCHES_HELP = "number of batches that a model with routers reads, at least one of each domain; 0 reads all"


def build_parser() -> Parser:
    """The action's options."""
    parser = Parser(prog="pangu analyze experts", description=__doc__)
    options.add_checkpoint(parser)
    add_analysis(parser, "to count", "the load of every expert, layer by layer", MAX_BATCHES_HELP)
    parser.set_defaults(run=_run)
    return parser


def _run(args: Namespace) -> int:
    if args.plot:
        require_plot(args.plot)
    runtime.quiet(args.verbose)
    require_batches(args.batch_size, args.max_batches)
    checkpoint = open_checkpoint(args.checkpoint)
    model = checkpoint.config().model
    if not model.num_experts:
        raise ConfigError(
            f"{checkpoint.path}: this {model.family} model has no experts; name the checkpoint of one that has"
        )
    declared = RecordSet.require_declared(args.data, args.split, model, evaluation=True)
    report = {"checkpoint": str(checkpoint.path), "data": str(args.data), "split": args.split}
    if model.domains:
        require_known(args.data, declared, model, leave_out="")
        report |= _load_by_tables(args, checkpoint)
    else:
        report |= _load_by_routers(args)
    if args.output:
        files.write_new(args.output, files.json_text(report))
    if args.plot:
        plot_experts(report, args.plot)
    print_result(report, table(report), args.json)
    return 0


def _load_by_tables(args: Namespace, checkpoint: Checkpoint) -> dict[str, Any]:
    opened = Opened.of(checkpoint)
    records = RecordSet.open(args.data, args.split)
    records.check(opened.model, checkpoint.tokenizer(), evaluation=True)
    return table_load(opened, domain_token_counts(records, opened.model))


def _load_by_routers(args: Namespace) -> dict[str, Any]:
    from pangu_ms.research.analysis.run import Subject, routed_load  # imports MindSpore, which takes seconds

    subject = Subject.open(args.checkpoint, args.data, args.split)
    return routed_load(subject, args.batch_size, args.max_batches, progress=not args.json)


def table(report: dict[str, Any]) -> str:
    """For each layer and domain the load of the busiest expert, divided by the mean."""
    names = [name for name, tokens in report["tokens"].items() if tokens]
    tokens = ", ".join(f"{name} {report['tokens'][name]:,}" for name in names)
    rows = []
    for layer in report["layers"]:
        rows.append((layer["name"], *(_shown(layer["domains"][name]) for name in names)))
    head = f"{report['checkpoint']}: {report['num_experts']} experts a layer; tokens: {tokens}"
    return "\n".join(
        [
            head,
            "busiest expert / mean of those that the domain's tokens can go to",
            *table_lines(("", *names), rows, "<" + ">" * len(names)),
        ]
    )


def _shown(own: dict[str, Any]) -> str:
    return f"{own['max_over_mean']:.3f}" + (f" ({own['unused']} unused)" if own["unused"] else "")
