"""Readers of files that no command of `pangu` reads before it computes for seconds: the product's own functions, called
as their commands call them."""

import json
from pathlib import Path


def prompts(file):
    """As `pangu generate` before it loads the checkpoint."""
    from pangu_ms.cli.generate import build_parser, read_prompts
    from pangu_ms.cli.options import sampling_config

    args = build_parser().parse_args(["run", "--prompt-file", file])
    print(read_prompts(args, sampling_config(args)))


def state(step):
    """As `pangu train --resume`."""
    from pangu_ms.checkpoint.store import open_checkpoint
    from pangu_ms.train.state import RunState

    print(RunState.of(open_checkpoint(step)))


def metrics(run):
    """As `pangu train --resume`."""
    from pangu_ms.train.metrics import MetricsFile

    writer = MetricsFile(Path(run), 3)
    writer.log(3, {"loss": 1.0})
    writer.finish()
    print([json.loads(line)["step"] for line in writer.path.read_bytes().splitlines()])


IDENTITY = {"records": "r" * 64, "batch_size": 4}


def partial_losses(file):
    """As `pangu data losses`, continued."""
    from pangu_ms.eval.batch_losses import Partial

    print(Partial.open(Path(file), IDENTITY).losses)


def order(file):
    """As `pangu train data.order=FILE`, but for the records."""
    from pangu_ms.data.resample import OrderFile

    print(OrderFile.load(file)[0])


def vocab_map(tokenizer):
    """As `pangu model inherit`."""
    from pangu_ms.data.compress import load_vocab_map

    print(load_vocab_map(tokenizer))


def tokenizer(directory):
    """As every command that has a tokenizer."""
    from pangu_ms.data.tokenizer import Tokenizer

    loaded = Tokenizer.load(directory)
    print(loaded.fingerprint, loaded.encode_prompt("def alpha(x): \u6625\u7720"))


def rows(records):
    """As `pangu train`, which reads all of them in time."""
    from pangu_ms.data.records import RecordSet

    for split in ("train", "held_out"):
        for part in RecordSet.open(records, split).rows():
            print(part.tolist())


def blocks(work):
    """As `pangu data prepare`, continued."""
    from pangu_ms.data import blocks
    from pangu_ms.data.pack import DocumentTable

    output = Path(work).with_suffix("")
    with blocks.work_directory(output, "k" * 64) as directory:
        paths = [path for path in sorted(directory.glob("block-*.npz")) if blocks._finished(path)]
        print(len(paths) and DocumentTable.of(paths))


def study(output):
    """As `pangu study`, continued: the result of a stage that is done."""
    from pangu_ms.research.study.runs import Stage, claim

    claim(Path(output), "a study")
    print(Stage(Path(output) / "stage", ("train", "alpha/tiny"), {"steps": 3}).result())


def compiled(published):
    """As every command that compiles: what is not sound is compiled again."""
    from pangu_ms.core.compile_cache import _copy_if_sound
    from pangu_ms.core.errors import UserError

    private = Path(published).with_name("private")
    if not _copy_if_sound(Path(published), private):
        raise UserError("compiles")
    print({str(path.relative_to(private)): path.read_bytes() for path in sorted(private.rglob("*")) if path.is_file()})


def package(directory):
    """As `pangu run-mindir` before it starts MindSpore."""
    from pangu_ms.export.package import Package

    opened = Package.open(directory)
    opened.require_key(None)
    opened.require_harmless()
    print(opened.shape, opened.tokenizer().encode_prompt("def alpha(x):"))


def signature(directory, key):
    """As `pangu run-mindir --verify-key`."""
    from pangu_ms.export.package import Package

    print(Package.open(directory, key).shape)


def aes_key(file):
    """As `pangu export --key-file`."""
    from pangu_ms.export.package import read_key

    print(len(read_key(file)))


def signing_key(file):
    """As `pangu export --sign-key`."""
    from pangu_ms.export.signature import read_signing_key

    print(len(read_signing_key(file).sign(b"")))


def verifying_key(file):
    """As `pangu run-mindir --verify-key`."""
    from pangu_ms.export.signature import read_verifying_key

    print(read_verifying_key(file).public_bytes_raw())
