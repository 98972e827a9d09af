"""`python -m pangu_run VERB`: the verbs of the launch layer, which `pangu` has, too."""

import sys

from pangu_run.console import guarded, run_verb

VERBS = {
    "launch": (
        "pangu_run.launch.cli",
        "start a verb on all devices of a cluster or on CPU processes; watch it to its end",
    ),
    "ranktable": (
        "pangu_run.rank_table.cli",
        "rank tables: make, merge, check, show, convert, wait for one, order it by a plan",
    ),
    "doctor": ("pangu_run.doctor.cli", "what is wrong with this host, its devices, network and disks, and the fix"),
    "manifest": ("pangu_run.manifest.cli", "Slurm script, Volcano job, ModelArts command or Dockerfile of a run"),
    "status": ("pangu_run.report.status_cli", "the ranks of a job: state, step, speed, last heartbeat"),
    "logs": ("pangu_run.report.logs_cli", "logs of a job's ranks; the distinct errors of all of them, explained"),
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
    words = sys.argv[1:] if argv is None else argv
    return guarded("pangu_run", lambda: run_verb("pangu_run", VERBS, usage(), words))
