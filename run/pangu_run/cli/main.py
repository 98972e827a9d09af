"""`python -m pangu_run VERB`: the verbs of the launch layer, which are also verbs of `pangu`."""

import sys

from pangu_ms.core.console import guarded, run_verb

VERBS = {
    "launch": (
        "pangu_run.cli.launch",
        "start a verb on all devices of a cluster or on CPU processes; watch it to its end",
    ),
    "ranktable": (
        "pangu_run.cli.ranktable",
        "rank tables: make, merge, check, show, convert, wait for one, order it by a plan",
    ),
    "doctor": ("pangu_run.cli.doctor", "what is wrong with this host, its devices, network and disks, and the fix"),
    "manifest": ("pangu_run.cli.manifest", "Slurm script, Volcano job, ModelArts command or Dockerfile of a run"),
    "status": ("pangu_run.cli.status", "the ranks of a job: state, step, speed, last heartbeat"),
    "logs": ("pangu_run.cli.logs", "logs of a job's ranks; the distinct errors of all of them, explained"),
}


def usage(program: str = "python -m pangu_run") -> str:
    """What `--help` shows."""
    head = [
        "The launch layer of the PanGu toolkit",
        "",
        f"usage: {program} VERB [options]   ({program} VERB --help)",
        "",
    ]
    return "\n".join(head + [f"  {verb:<12} {summary}" for verb, (_, summary) in VERBS.items()])


def main(argv: list[str] | None = None) -> int:
    """Run one verb; returns its exit code."""
    arguments = sys.argv[1:] if argv is None else argv
    return guarded("pangu_run", lambda: run_verb("pangu_run", VERBS, usage(), arguments))
