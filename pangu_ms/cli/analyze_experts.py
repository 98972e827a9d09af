"""`pangu analyze experts`: count the tokens that come to each expert of a PanGu-Sigma, layer by layer. Its tables and
records are read; nothing is computed with the model."""

from argparse import Namespace
from typing import Any

from pangu_ms.checkpoint.derive import Opened
from pangu_ms.checkpoint.domains import require_domains
from pangu_ms.checkpoint.store import open_checkpoint
from pangu_ms.cli import options
from pangu_ms.core import files, runtime
from pangu_ms.core.errors import ConfigError
from pangu_ms.core.figure import require_plot
from pangu_ms.core.parser import Parser
from pangu_ms.core.table import print_result, table_lines
from pangu_ms.data.domains import require_known
from pangu_ms.data.records import RecordSet
from pangu_ms.data.token_counts import domain_token_counts
from pangu_ms.research.analysis.experts import expert_load, plot_experts


def build_parser() -> Parser:
    """The action's options."""
    parser = Parser(prog="pangu analyze experts", description=__doc__)
    options.add_checkpoint(parser)
    options.add_data(parser, required=True)
    options.add_split(parser, "which records to count; MindRecord files without a manifest are `train`")
    options.add_new_file(parser, "--plot", "new .png, .svg or .pdf: the load of every expert, layer by layer")
    options.add_new_file(parser, "--output", "also write the JSON into this new file")
    options.add_json(parser)
    options.add_verbose(parser)
    parser.set_defaults(run=_run)
    return parser


def _run(args: Namespace) -> int:
    if args.plot:
        require_plot(args.plot)
    runtime.quiet(args.verbose)
    checkpoint = open_checkpoint(args.checkpoint)
    require_domains(checkpoint)
    opened = Opened.of(checkpoint)
    if not opened.model.num_experts:
        raise ConfigError(f"{checkpoint.path}: model.num_experts=0: no layer has experts; name another checkpoint")
    declared = RecordSet.require_declared(args.data, args.split, opened.model, evaluation=True)
    require_known(args.data, declared, opened.model, leave_out="")
    records = RecordSet.open(args.data, args.split)
    records.check(opened.model, checkpoint.tokenizer(), evaluation=True)
    report = {"checkpoint": str(checkpoint.path), "data": str(args.data), "split": args.split}
    report |= expert_load(opened, domain_token_counts(records, opened.model))
    if args.output:
        files.write_new(args.output, files.json_text(report))
    if args.plot:
        plot_experts(report, args.plot)
    print_result(report, table(report), args.json)
    return 0


def table(report: dict[str, Any]) -> str:
    """For each layer and domain the load of the busiest expert, divided by the mean of its group."""
    names = [name for name, tokens in report["tokens"].items() if tokens]
    tokens = ", ".join(f"{name} {report['tokens'][name]:,}" for name in names)
    rows = []
    for layer in report["layers"]:
        rows.append((layer["name"], *(_shown(layer["domains"][name]) for name in names)))
    head = f"{report['checkpoint']}: {report['num_experts']} experts a layer; tokens: {tokens}"
    return "\n".join(
        [head, "busiest expert / mean of its group", *table_lines(("", *names), rows, "<" + ">" * len(names))]
    )


def _shown(own: dict[str, Any]) -> str:
    return f"{own['max_over_mean']:.3f}" + (f" ({own['unused']} unused)" if own["unused"] else "")
