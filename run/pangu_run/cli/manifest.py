"""`pangu manifest KIND`: a Slurm script, Kubernetes job, ModelArts boot file or Dockerfile of a run."""

from pangu_ms.core.console import run_verb

KINDS = {
    "slurm": (
        "pangu_run.manifest.slurm",
        "script for sbatch: one launcher on each server, requeued when stopped with its state saved",
    ),
    "volcano": (
        "pangu_run.manifest.volcano",
        "AscendJob of MindCluster (with a rank table), or a plain Volcano Job, in YAML",
    ),
    "modelarts": ("pangu_run.manifest.modelarts", "boot file of a ModelArts training job"),
    "docker": ("pangu_run.manifest.docker", "Dockerfile: CANN's base image for Ascend, a small one for the CPU"),
}


def usage() -> str:
    """What `--help` shows."""
    head = [
        __doc__.strip(),
        "",
        "usage: pangu manifest KIND --config NAME [section.field=value ...] [options]   (pangu manifest KIND --help)",
        "",
    ]
    return "\n".join(head + [f"  {kind:<10} {summary}" for kind, (_, summary) in KINDS.items()])


def main(argv: list[str]) -> int:
    """Entry of the verb; returns the exit code."""
    return run_verb("pangu manifest", KINDS, usage(), argv)
