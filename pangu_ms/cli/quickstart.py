"""`pangu quickstart`: run all stages from text to a verified MindIR package, and print the command that runs each stage
alone."""

import itertools
import shlex
import subprocess
import sys
import time
from argparse import Namespace
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pangu_ms.cli import options
from pangu_ms.config.load import load_config
from pangu_ms.config.schema import RunConfig
from pangu_ms.core import files, runtime
from pangu_ms.core.compile_cache import cache_root
from pangu_ms.core.errors import ExportError
from pangu_ms.core.isolated import python_environment
from pangu_ms.core.parser import Parser
from pangu_ms.core.table import print_result, table_lines

CODE_PROMPTS = ["def __init__(self", "import os\n"]
PROMPT_CHARACTERS = 12  # a prompt is the beginning of a user's own document
EXPORT_BATCH = 2
"""Batch size that the exported graph is fixed to."""


@dataclass
class Report:
    """What the quickstart did: one row per stage, and the results by name."""

    rows: list[tuple[str, str, str]] = field(default_factory=list)
    results: dict[str, Any] = field(default_factory=dict)

    def add(self, stage: str, where: object, what: str, **results: Any) -> None:
        self.rows.append((stage, str(where), what))
        self.results |= results

    def table(self) -> str:
        return "\n".join(table_lines(None, self.rows, "<<<"))


def build_parser() -> Parser:
    """The verb's options."""
    parser = Parser(prog="pangu quickstart", description=__doc__)
    options.add_config(parser)
    options.add_corpus(parser, "your .txt or .jsonl files (default: the source of Python's standard library)")
    text = "new directory (default: a new one below the user's cache directory)"
    options.add_new_directory(parser, "--output", text)
    options.add_json(parser, "print the results as JSON at the end")
    options.add_verbose(parser)
    parser.set_defaults(run=_run)
    return parser


def main(argv: list[str]) -> int:
    """Entry of the verb."""
    return build_parser().run(argv)


def _run(args: Namespace) -> int:
    config = load_config(args.config, args.overrides)
    output = args.output or cache_root().parent / "quickstart" / time.strftime("%Y-%m-%d-%H%M%S")
    files.require_free(output)
    runtime.quiet(args.verbose)
    began = time.perf_counter()
    report = run(config, args, output)
    report.add("total", output, f"{time.perf_counter() - began:.0f} s", seconds=time.perf_counter() - began)
    print_result(report.results, f"\n{report.table()}", args.json)
    return 0


def run(config: RunConfig, args: Namespace, output: Path) -> Report:
    """Run all stages; each prints the command that runs it alone."""
    from pangu_ms.data.default_corpus import (
        build_records,
        require_corpus_domains,
        standard_library_domains,
        standard_library_files,
    )

    report, named = Report(), [args.config, *args.overrides]
    corpus = args.corpus or standard_library_files()
    domains = standard_library_domains() if config.model.domains and not args.corpus else []
    require_corpus_domains(config, args.corpus, domains)
    prompts = document_beginnings(corpus) if args.corpus else CODE_PROMPTS
    shown = args.corpus or [f"({len(corpus)} files of {Path(corpus[0]).parent})"]
    tokenizer, records, package = output / "tokenizer", output / "records", output / "mindir"

    vocabulary = ("--vocab-size", config.tokenizer.vocab_size, "--segmenter", config.tokenizer.segmenter)
    say(args, "tokenizer", "train", "--corpus", *shown, *vocabulary, "--output", tokenizer)
    shape = ("--seq-length", config.model.seq_length, "--held-out", config.data.held_out)
    named_domains = [f"--domain={name}={pattern}" for name, pattern in domains]
    say(
        args,
        "data",
        "prepare",
        "--corpus",
        *shown,
        *named_domains,
        "--tokenizer",
        tokenizer,
        *shape,
        "--output",
        records,
    )
    output.mkdir(parents=True, exist_ok=True)
    manifest = build_records(config, corpus, output, not args.json, domains)
    splits = manifest["splits"]
    report.add("tokenizer", tokenizer, f"{manifest['vocab_size']} pieces")
    report.add(
        "records",
        records,
        f"{splits['train']['tokens']:,} training and {splits['held_out']['tokens']:,} held-out tokens",
        records=splits,
    )

    say(args, "train", "--config", *named, "--data", records, "--output", output / "run")
    train_stage(config, records, output / "run", args, report)
    say(
        args,
        "generate",
        output / "run",
        *(f"--prompt={p}" for p in prompts),
        "--max-new-tokens",
        48,
        "--temperature",
        0.8,
        "--top-k",
        40,
    )
    generate_stage(output / "run", prompts, args)
    say(args, "export", output / "run", "--output", package, "--batch-size", EXPORT_BATCH)
    export_stage(output / "run", package, args, report)
    say(args, "run-mindir", package, f"--prompt={prompts[0]}", "--max-new-tokens", 24, "--temperature", 0)
    run_stage(package, prompts[0], args)
    return report


def document_beginnings(corpus: list[str]) -> list[str]:
    """The first characters of the first two documents, as prompts."""
    from pangu_ms.data.corpus import Corpus

    return [document.text[:PROMPT_CHARACTERS] for document in itertools.islice(Corpus(corpus), 2)] or CODE_PROMPTS


def say(args: Namespace, *words: object) -> None:
    """Print the command that runs the next stage alone."""
    if not args.json:
        # A remark in parentheses stands for arguments that are too many to show.
        print("\n$ pangu " + " ".join(w if w.startswith("(") else shlex.quote(w) for w in map(str, words)), flush=True)


def train_stage(config: RunConfig, records: Path, output: Path, args: Namespace, report: Report) -> None:
    """Train, and compare the held-out perplexity with that of unigram and bigram models."""
    from pangu_ms.core.exit_codes import EXIT_STOPPED
    from pangu_ms.data.domains import known_domains
    from pangu_ms.data.records import RecordSet
    from pangu_ms.eval.report import baselines
    from pangu_ms.train.loop import train

    result = train(config, records, output, progress=not args.json)
    if result.stopped_by:
        print(f"stopped by {result.stopped_by}; the checkpoint in {output} is committed", file=sys.stderr)
        sys.exit(EXIT_STOPPED)
    report.add(
        "checkpoint",
        output,
        f"step {result.step}, {config.model.num_parameters() / 1e6:.1f} M parameters, {result.tokens_per_second:,.0f}"
        " tokens/s",
    )
    report.results |= {
        "tokens_per_second": result.tokens_per_second,
        "compile_seconds": result.compile_seconds,
        "step": result.step,
    }
    if result.held_out is None:
        return
    sizes = config.model.vocab_size, config.train.batch_size, config.train.eval_batches
    scored = known_domains(RecordSet.require_declared(records, "held_out", config.model), config.model)
    ngrams = baselines(records, "held_out", *sizes, domains=scored)
    scores: dict[str, Any] = {"perplexity": result.held_out.perplexity} | ngrams
    names = {name: name.removesuffix("perplexity").strip("_") or "model" for name in scores}
    line = ", ".join(f"{names[name]} {value:.1f}" for name, value in scores.items())
    report.add("held-out perplexity", "", line)
    report.results |= scores
    if by_domain := {domain: own.perplexity for domain, own in result.held_out.domains.items()}:
        report.add("of each domain", "", ", ".join(f"{name} {value:.1f}" for name, value in by_domain.items()))
        report.results["perplexity_by_domain"] = by_domain
    if not args.json:
        print(f"held-out perplexity: {line}")
    if scores["perplexity"] >= scores["bigram_perplexity"]:
        print("the model does not beat the bigram: train longer (train.steps) or on more text", file=sys.stderr)


def generate_stage(checkpoint: Path, prompts: list[str], args: Namespace) -> None:
    """Generate and print continuations of the prompts."""
    from pangu_ms.checkpoint.store import open_checkpoint
    from pangu_ms.infer.generate import Prompt
    from pangu_ms.infer.load import load_generator
    from pangu_ms.infer.sampling import SamplingConfig

    sampling = SamplingConfig(max_new_tokens=48, temperature=0.8, top_k=40)
    generator = load_generator(open_checkpoint(checkpoint), Prompt.each_of(prompts, sampling))
    for result in generator.generate(prompts, sampling):
        if not args.json:
            print(f"--- {result.prompt}{result.text}")


def export_stage(checkpoint: Path, package: Path, args: Namespace, report: Report) -> None:
    """Export the package, which includes its verification against the checkpoint in a separate process."""
    from pangu_ms.checkpoint.store import open_checkpoint
    from pangu_ms.export.write import export_package
    from pangu_ms.infer.decoder import GraphShape

    opened = open_checkpoint(checkpoint)
    seq_length = opened.config().model.seq_length
    verified = export_package(opened, package, GraphShape.fitting(seq_length, EXPORT_BATCH, seq_length))["verified"]
    line = (
        f"largest logit difference from the checkpoint over {verified['steps']} steps: {verified['max_difference']:.3g}"
    )
    report.add("MindIR package", package, line, mindir=verified)
    if not args.json:
        print(line)


def run_stage(package: Path, prompt: str, args: Namespace) -> None:
    """Generate text with the package's own runner, in a separate process."""
    command = [
        sys.executable,
        str(package / "run.pyz"),
        f"--prompt={prompt}",
        "--max-new-tokens",
        "24",
        "--temperature",
        "0",
    ]
    done = subprocess.run(command, env=python_environment(), capture_output=True, text=True, check=False)
    if done.returncode:
        raise ExportError(f"{package}: its runner failed: {done.stderr.strip().splitlines()[-1:]}")
    if not args.json:
        print(done.stdout.rstrip())
