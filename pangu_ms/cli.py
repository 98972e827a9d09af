"""The `pangu` command: a table from verb to module. Each verb is a module with its own `main(argv)`."""

import sys

from pangu_ms import __version__
from pangu_run import cli as run_cli
from pangu_run import console, stop_signals
from pangu_run.console import guarded

VERBS = {
    "quickstart": ("pangu_ms.quickstart", "corpus to verified MindIR package, everything in one go"),
    "tokenizer": ("pangu_ms.data.tokenizer_cli", "train or compress a tokenizer; encode and decode text"),
    "data": (
        "pangu_ms.data.cli",
        "prepare a corpus as records; inspect them; losses of batches, and the next round's order",
    ),
    "train": ("pangu_ms.train.cli", "train or resume a model"),
    "plan": (
        "pangu_ms.parallel.cli",
        "how a run is laid over devices: show, estimate, search, rehearse, execute; strategy files",
    ),
    "eval": ("pangu_ms.eval.cli", "held-out perplexity, beside unigram and bigram"),
    "generate": ("pangu_ms.infer.cli", "continue prompts from a checkpoint"),
    "export": ("pangu_ms.export.cli", "write and verify a MindIR package"),
    "run-mindir": ("pangu_ms.export.run", "continue prompts from a MindIR package"),
    "convert": ("pangu_ms.checkpoint.convert", "official or Hugging Face checkpoint to ours and back"),
    "ckpt": ("pangu_ms.checkpoint.cli", "reshard a checkpoint from any parallel plan to any other"),
    "ops": ("ascend_ops.cli", "operators and the backend that each takes here; build the CPU kernels"),
    "model": ("pangu_ms.inherit.cli", "inherit a smaller model from a larger one; add PanGu-pi's parts to a LLaMA"),
    "analyze": ("pangu_ms.analysis.cli", "feature collapse of a checkpoint, layer by layer"),
    "study": ("pangu_ms.study.cli", "several runs set beside each other: PanGu-pi's ablation, pi Pro's recipe"),
    **run_cli.VERBS,
    "config": ("pangu_ms.config.cli", "show a resolved config, its fields and its size; shapes of equal size"),
}


def usage() -> str:
    """What `--help` shows."""
    lines = [
        f"pangu {__version__}: train, evaluate and export PanGu models on MindSpore",
        "",
        "usage: pangu VERB [options]   (pangu VERB --help)",
        "",
    ]
    return "\n".join(lines + [f"  {verb:<12} {summary}" for verb, (_, summary) in VERBS.items()])


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
