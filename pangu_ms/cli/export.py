"""`pangu export`: write a MindIR package from a checkpoint and verify it against the checkpoint."""

import argparse
import json

from pangu_ms.cli.config import add_override_arguments
from pangu_ms.core import runtime
from pangu_ms.core.console import show
from pangu_ms.core.parser import NewDirectory, Parser

MIN_LENGTH = 4  # tokens: a prompt and some steps to verify


def main(argv: list[str]) -> int:
    """Entry of the verb."""
    parser = Parser(prog="pangu export", description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument(
        "checkpoint", metavar="CHECKPOINT", help="a run directory, its checkpoints directory, or one step of it"
    )
    parser.add_argument(
        "--output", action=NewDirectory, required=True, metavar="DIR", help="new directory of the package"
    )
    parser.add_argument("--batch-size", type=int, default=4, help="sequences per call, fixed in the graph")
    parser.add_argument(
        "--max-length", type=int, default=0, help="longest prompt and continuation in tokens; 0: the model's context"
    )
    parser.add_argument("--chunk", type=int, default=64, help="prompt tokens per call, fixed in the graph")
    parser.add_argument(
        "--tokenizer", metavar="PATH", help="tokenizer directory or vocab.model; default: the checkpoint's own"
    )
    parser.add_argument(
        "--key-file", metavar="FILE", help="encrypt the graph with the AES key in this file (16, 24 or 32 bytes)"
    )
    parser.add_argument(
        "--sign-key", metavar="FILE", help="sign the manifest with the Ed25519 private key in this PEM file"
    )
    parser.add_argument("--json", action="store_true", help="print the manifest")
    parser.add_argument("--verbose", action="store_true", help="show MindSpore's own messages")
    add_override_arguments(parser)
    args = parser.parse_intermixed_args(argv)
    runtime.quiet(args.verbose)

    from pangu_ms.checkpoint.model import checkpoint_config
    from pangu_ms.checkpoint.store import open_checkpoint
    from pangu_ms.core.errors import ExportError
    from pangu_ms.export.package import read_key
    from pangu_ms.export.signature import read_signing_key
    from pangu_ms.infer.decoder import GraphShape
    from pangu_ms.infer.load import load_tokenizer

    read_key(args.key_file)  # all that can be wrong is found before MindSpore is imported
    if args.sign_key:
        read_signing_key(args.sign_key)
    checkpoint = open_checkpoint(args.checkpoint)
    config = checkpoint_config(checkpoint, args.overrides)
    load_tokenizer(checkpoint, args.tokenizer)
    seq_length = config.model.seq_length
    if args.max_length and not MIN_LENGTH <= args.max_length <= seq_length:
        raise ExportError(
            f"--max-length {args.max_length}: must be between {MIN_LENGTH} and the model's context of {seq_length}"
        )
    shape = GraphShape.fitting(seq_length, args.batch_size, args.max_length or seq_length, args.chunk)

    from pangu_ms.export.write import export_package

    manifest = export_package(checkpoint, args.output, shape, args.key_file, args.tokenizer, config, args.sign_key)
    if args.json:
        print(json.dumps(manifest, ensure_ascii=False))
    else:
        verified, size = manifest["verified"], sum(entry["bytes"] for entry in manifest["files"].values())
        show(
            f"{args.output}: {size / 1e6:.1f} MB, batch {shape.batch_size}, {shape.max_length} tokens"
            + (", encrypted" if args.key_file else "")
        )
        print(
            f"largest logit difference from the checkpoint over {verified['steps']} steps:"
            f" {verified['max_difference']:.3g}"
        )
    return 0
