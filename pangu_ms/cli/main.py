"""The `pangu` command: a table from verb to module. Each verb is a module with its own `main(argv)`."""

import sys

from pangu_ms import __version__
from pangu_ms.core import console, stop_signals
from pangu_ms.core.console import guarded
from pangu_run.cli import main as run_cli

GROUPS = {
    "data": {
        "tokenizer": ("pangu_ms.cli.tokenizer", "train or compress a tokenizer; encode and decode text"),
        "data": (
            "pangu_ms.cli.data",
            "prepare a corpus as records; inspect them; losses of batches, and the next round's order",
        ),
    },
    "train": {
        "quickstart": ("pangu_ms.cli.quickstart", "corpus to verified MindIR package, everything in one go"),
        "train": ("pangu_ms.cli.train", "train or resume a model"),
        "config": ("pangu_ms.cli.config", "show a resolved config, its fields and its size; shapes of equal size"),
        "ops": ("pangu_ms.cli.ops", "operators and the backend that each takes here; build the CPU kernels"),
    },
    "use": {
        "eval": ("pangu_ms.cli.eval", "held-out perplexity, beside unigram and bigram"),
        "generate": ("pangu_ms.cli.generate", "continue prompts from a checkpoint"),
        "export": ("pangu_ms.cli.export", "write and verify a MindIR package"),
        "run-mindir": ("pangu_ms.cli.run_mindir", "continue prompts from a MindIR package"),
        "convert": ("pangu_ms.cli.convert", "official or Hugging Face checkpoint to ours and back"),
        "completion": ("pangu_ms.cli.completion", "a script that completes these commands in a shell"),
    },
    "cluster": {
        "plan": (
            "pangu_ms.cli.plan",
            "how a run is laid over devices: show, estimate, search, rehearse, execute; strategy files",
        ),
        "ckpt": ("pangu_ms.cli.ckpt", "reshard a checkpoint from any parallel plan to any other"),
        **run_cli.VERBS,
    },
    "research": {
        "model": ("pangu_ms.cli.model", "inherit a smaller model from a larger one; add PanGu-pi's parts to a LLaMA"),
        "analyze": ("pangu_ms.cli.analyze", "feature collapse of a checkpoint, layer by layer"),
        "study": ("pangu_ms.cli.study", "several runs set beside each other: PanGu-pi's ablation, pi Pro's recipe"),
    },
}
"""Verbs by what they are for, with their module and a summary."""
VERBS = {verb: row for group in GROUPS.values() for verb, row in group.items()}


def usage() -> str:
    """What `--help` shows."""
    lines = [
        f"pangu {__version__}: train, evaluate and export PanGu models on MindSpore",
        "",
        "usage: pangu VERB [options]   (pangu VERB --help)",
    ]
    for group, verbs in GROUPS.items():
        lines += ["", f"{group}:", *(f"  {verb:<12} {summary}" for verb, (_, summary) in verbs.items())]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Run one verb; returns its exit code. A user's mistake is one line on stderr and exit code 2."""
    return guarded("pangu", lambda: run_verb(sys.argv[1:] if argv is None else argv))


def run_verb(argv: list[str]) -> int:
    """Dispatch to the verb's module."""
    if argv[:1] in (["-V"], ["--version"]):
        print(__version__)
        return 0
    return console.run_verb("pangu", VERBS, usage(), argv)


def entry() -> None:
    """Console script."""
    console.guard_streams()
    with stop_signals.command(stops=sys.argv[1:2] in (["train"], ["launch"])):
        code = main()
    sys.exit(code)


if __name__ == "__main__":
    entry()
