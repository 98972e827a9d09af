"""`pangu manifest KIND`: a Slurm script, Kubernetes job, ModelArts boot file or Dockerfile of a run; or a server as a
service."""

import importlib
from typing import Any

from pangu_ms.core.console import run_verb
from pangu_ms.core.parser import Parser

KINDS = {
    "slurm": (
        "pangu_run.cli.manifest_slurm",
        "script for sbatch: one launcher on each server, requeued when stopped with its state saved",
    ),
    "volcano": (
        "pangu_run.cli.manifest_volcano",
        "AscendJob of MindCluster (with a rank table), or a plain Volcano Job, in YAML",
    ),
    "modelarts": ("pangu_run.cli.manifest_modelarts", "boot file of a ModelArts training job"),
    "docker": ("pangu_run.cli.manifest_docker", "Dockerfile: CANN's base image for Ascend, a small one for the CPU"),
    "serve": ("pangu_run.cli.manifest_serve", "`pangu serve` as systemd unit, Dockerfile, or Kubernetes Deployment"),
}
"""For each kind, the module that has its parser and its `main`, and a summary."""


def build_parser() -> Parser:
    """The parser of the verb, with the parsers of all kinds as subparsers. `main` uses only the parser of the kind that
    it runs."""
    parser = Parser(prog="pangu manifest", description=__doc__)
    parser_class: Any = _build  # argparse calls it for each kind with the arguments of add_parser
    kinds = parser.add_subparsers(metavar="KIND", parser_class=parser_class)
    for kind, (module, summary) in KINDS.items():
        kinds.add_parser(kind, help=summary, module=module)
    return parser


def _build(module: str, **_: Any) -> Parser:
    return importlib.import_module(module).build_parser()


def usage() -> str:
    """What `--help` shows."""
    head = [
        (__doc__ or "").strip(),
        "",
        "usage: pangu manifest KIND --config NAME [section.field=value ...] [options]   (pangu manifest KIND --help)",
        "       pangu manifest serve MODEL --kind systemd|docker|kubernetes [options] [-- options of `pangu serve`]",
        "",
    ]
    return "\n".join(head + [f"  {kind:<10} {summary}" for kind, (_, summary) in KINDS.items()])


def main(argv: list[str]) -> int:
    """Entry of the verb; returns the exit code."""
    return run_verb("pangu manifest", KINDS, usage(), argv)
