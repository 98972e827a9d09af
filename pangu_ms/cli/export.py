"""`pangu export`: write a MindIR package from a checkpoint and verify it against the checkpoint."""

from argparse import Namespace
from typing import TYPE_CHECKING, Any

from pangu_ms.cli import options
from pangu_ms.core import runtime
from pangu_ms.core.console import show
from pangu_ms.core.errors import ExportError
from pangu_ms.core.parser import Parser
from pangu_ms.core.table import print_json

if TYPE_CHECKING:
    from pangu_ms.infer.decoder import GraphShape

MIN_LENGTH = 4  # tokens: room for a prompt and some decoding steps, which verify the package


def build_parser() -> Parser:
    """The verb's options."""
    parser = Parser(prog="pangu export", description=__doc__)
    options.add_checkpoint(parser)
    options.add_new_directory(parser, "--output", "new directory of the package", required=True)
    options.add_batch_size(parser, "sequences per call, fixed in the graph", default=4)
    text = "longest sequence (prompt and continuation) in tokens; 0: the model's context"
    parser.add_argument("--max-length", type=int, default=0, help=text)
    parser.add_argument("--chunk", type=int, default=64, help="prompt tokens per call, fixed in the graph")
    text = (
        "pack the matrices in this dtype; it pays only where the package runs with kernels (default: float32 as it is)"
    )
    parser.add_argument("--weights", choices=("float32", "bfloat16", "int8"), default="", help=text)
    options.add_cache_dtype(parser)
    text = "leave out our CPU kernels' source and the graph that calls them, which `run-mindir --allow-kernels` uses"
    parser.add_argument("--no-kernels", action="store_true", help=text)
    options.add_own_tokenizer(parser)
    options.add_domain(parser, "export only the model of this domain, as `pangu sigma extract` makes it (default: all)")
    text = "encrypt the graph with the AES key in this file (16, 24 or 32 bytes)"
    parser.add_argument("--key-file", metavar="FILE", help=text)
    text = "sign the manifest with the Ed25519 private key in this PEM file"
    parser.add_argument("--sign-key", metavar="FILE", help=text)
    options.add_json(parser, "print the manifest")
    options.add_verbose(parser)
    options.add_overrides(parser)
    parser.set_defaults(run=_run)
    return parser


def main(argv: list[str]) -> int:
    """Entry of the verb."""
    return build_parser().run(argv)


def _run(args: Namespace) -> int:
    runtime.quiet(args.verbose)

    from pangu_ms.checkpoint.domains import extracted
    from pangu_ms.checkpoint.model import checkpoint_config
    from pangu_ms.checkpoint.store import open_checkpoint
    from pangu_ms.export.package import read_key
    from pangu_ms.export.signature import read_signing_key
    from pangu_ms.infer.decoder import GraphShape
    from pangu_ms.infer.load import domains_of, load_tokenizer

    read_key(args.key_file)  # mistakes are found here, before MindSpore is imported, which takes seconds
    if args.sign_key:
        read_signing_key(args.sign_key)
    checkpoint = open_checkpoint(args.checkpoint)
    config = checkpoint_config(checkpoint, args.overrides)
    domains_of(config.model).index(args.domain or "")
    load_tokenizer(checkpoint, args.tokenizer)
    seq_length = config.model.seq_length
    if args.max_length and not MIN_LENGTH <= args.max_length <= seq_length:
        raise ExportError(
            f"--max-length {args.max_length}: must be between {MIN_LENGTH} and the model's context of {seq_length}"
        )
    shape = GraphShape.fitting(seq_length, args.batch_size, args.max_length or seq_length, args.chunk)

    from pangu_ms.export.write import export_package

    with extracted(checkpoint, args.domain) as exported:
        config = checkpoint_config(exported, args.overrides)
        manifest = export_package(
            exported,
            args.output,
            shape,
            args.key_file,
            args.tokenizer,
            config,
            args.sign_key,
            args.weights,
            not args.no_kernels,
            args.cache_dtype,
        )
    if args.json:
        print_json(manifest, ensure_ascii=False)
    else:
        show(f"{args.output}: {_text(manifest, shape, bool(args.key_file))}")
    return 0


def _text(manifest: dict[str, Any], shape: "GraphShape", encrypted: bool) -> str:
    """A package in two lines."""
    verified, size = manifest["verified"], sum(entry["bytes"] for entry in manifest["files"].values())
    note = ", encrypted" if encrypted else ""
    with_kernels = verified.get("max_difference_with_kernels")
    return (
        f"{size / 1e6:.1f} MB, batch {shape.batch_size}, {shape.max_length} tokens{note}\n"
        f"largest logit difference from the checkpoint over {verified['steps']} steps: {verified['max_difference']:.3g}"
        + ("" if with_kernels is None else f", with kernels {with_kernels:.3g}")
    )
