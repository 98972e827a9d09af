"""The `pangu` command: maps each verb to a module, which has its own `main(argv)`."""

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
            "prepare and inspect records; score batches, and draw those of the next training round",
        ),
    },
    "train": {
        "quickstart": ("pangu_ms.cli.quickstart", "run all stages, from a corpus to a verified MindIR package"),
        "train": ("pangu_ms.cli.train", "train or resume a model"),
        "config": ("pangu_ms.cli.config", "show a resolved config, its fields and its size; find shapes of equal size"),
        "ops": ("pangu_ms.cli.ops", "list operators and the backend of each on this machine; build the CPU kernels"),
    },
    "use": {
        "eval": ("pangu_ms.cli.eval", "held-out perplexity, compared with unigram and bigram models"),
        "tasks": ("pangu_ms.cli.tasks", "benchmark tasks: scores beside those of the PanGu-alpha paper"),
        "harness": ("pangu_ms.cli.harness", "tasks of lm-eval for models of ours, and tasks of ours for lm-eval"),
        "generate": ("pangu_ms.cli.generate", "continue prompts from a checkpoint"),
        "score": ("pangu_ms.cli.score", "log-probabilities of given continuations and texts"),
        "chat": ("pangu_ms.cli.chat", "a chat with a model in the terminal"),
        "serve": ("pangu_ms.cli.serve", "an HTTP server with OpenAI's API"),
        "schedule": (
            "pangu_ms.cli.schedule",
            "compare policies of batching without a model; train predictors of the length of answers",
        ),
        "quantize": ("pangu_ms.cli.quantize", "write a checkpoint with matrices in int8 or bfloat16, and compare both"),
        "export": ("pangu_ms.cli.export", "write and verify a MindIR package"),
        "run-mindir": ("pangu_ms.cli.run_mindir", "continue prompts from a MindIR package"),
        "convert": (
            "pangu_ms.cli.convert",
            "convert official, Hugging Face or MindFormers weights to a checkpoint and back",
        ),
        "completion": ("pangu_ms.cli.completion", "print a script that completes these commands in a shell"),
    },
    "cluster": {
        "plan": (
            "pangu_ms.cli.plan",
            "parallel plans: show, estimate, search, rehearse and execute them; inspect strategy files",
        ),
        "ckpt": ("pangu_ms.cli.ckpt", "reshard a checkpoint from any parallel plan to any other"),
        **run_cli.VERBS,
    },
    "research": {
        "model": (
            "pangu_ms.cli.model",
            "derive a smaller model from a larger one; add PanGu-pi's parts to a LLaMA, domains to a PanGu-alpha",
        ),
        "sigma": ("pangu_ms.cli.sigma", "cut the model of one domain out of a PanGu-Sigma; add a domain to it"),
        "analyze": ("pangu_ms.cli.analyze", "measure the feature collapse of a checkpoint, or the load of its experts"),
        "study": ("pangu_ms.cli.study", "compare several runs: PanGu-pi's ablation, pi Pro's recipe, latency"),
    },
}
"""The verbs, grouped by purpose; each with its module and a summary."""
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
    """Run one verb; returns its exit code. A user's mistake gives one line on stderr and exit code 2."""
    return guarded("pangu", lambda: run_verb(sys.argv[1:] if argv is None else argv))


def run_verb(argv: list[str]) -> int:
    """Dispatch to the verb's module."""
    if argv[:1] in (["-V"], ["--version"]):
        print(__version__)
        return 0
    return console.run_verb("pangu", VERBS, usage(), argv)


def entry() -> None:
    """The entry point of the `pangu` console script."""
    console.guard_streams()
    # Only these two stop cleanly, with their state saved; see stop_signals.handled.
    with stop_signals.command(stops=sys.argv[1:2] in (["train"], ["launch"])):
        code = main()
    sys.exit(code)


if __name__ == "__main__":
    entry()
