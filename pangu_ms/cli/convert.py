"""`pangu convert`: convert weights of other programs to a checkpoint of this package, and back."""

import functools
from argparse import Namespace
from pathlib import Path

from pangu_ms.checkpoint.convert import Say, export_file, import_file
from pangu_ms.cli import options
from pangu_ms.config import load_config
from pangu_ms.core import dtypes
from pangu_ms.core.errors import CheckpointError
from pangu_ms.core.parser import Parser, RawHelp
from pangu_ms.core.runtime import quiet
from pangu_ms.core.table import print_result

_DESCRIPTION = """\
To a checkpoint of this package:
  pangu convert FILE --from official|huggingface|mindformers --config NAME [model.field=value ...] --output DIR
  pangu convert DIRECTORY --from huggingface --output DIR
From a checkpoint of this package:
  pangu convert CHECKPOINT --to official|huggingface|mindformers --output FILE
  pangu convert CHECKPOINT --to huggingface --output DIRECTORY

FILE is one .ckpt, .npz or .safetensors; 512-part releases must first be merged with MindSpore's transform_checkpoints.
DIRECTORY is a Hugging Face directory with one .safetensors file, or several with an index. Its config.json says which
model it is, and its tokenizer is converted too. A DIRECTORY that is written also has these files, and
generation_config.json. transformers can load it if the model is a LLaMA; it has no class for alpha, nor for pi with
series activations or augmented shortcuts.
Names and shapes must be exactly those of the configuration. Nothing is overwritten.
A FILE says nothing about settings that change no shape, so a wrong number of heads (for pi also rope_theta,
rms_norm_eps, siaf_position, ...) is not detected: check the result with a known prompt.
The format "official" is that of the released weights of alpha."""


def build_parser() -> Parser:
    """The verb's options."""
    parser = Parser(prog="pangu convert", description=_DESCRIPTION, formatter_class=RawHelp)
    text = "with --from: file or Hugging Face directory of weights; with --to: run, checkpoint or step directory"
    parser.add_argument("input", type=Path, metavar="FILE|DIRECTORY|CHECKPOINT", help=text)
    direction = parser.add_mutually_exclusive_group(required=True)
    text = "naming scheme of the input: official, huggingface or mindformers"
    direction.add_argument("--from", dest="source", metavar="FORMAT", help=text)
    text = "naming scheme to write: official, huggingface or mindformers"
    direction.add_argument("--to", dest="target", metavar="FORMAT", help=text)
    text = "with --from: directory without checkpoints; with --to: new .ckpt, .npz, .safetensors or directory"
    parser.add_argument("--output", type=Path, required=True, help=text)
    which = parser.add_mutually_exclusive_group()
    text = (
        "with --from: tokenizer directory or vocab.model to copy into the checkpoint (default: the tokenizer of the"
        " DIRECTORY, if it has one)"
    )
    which.add_argument("--tokenizer", type=Path, metavar="PATH", help=text)
    which.add_argument("--no-tokenizer", action="store_true", help="with --from: do not copy the DIRECTORY's tokenizer")
    text = (
        "dtype of the written weights (default: %(default)s, which training needs and which represents float16 and"
        " bfloat16 exactly); values are rounded to nearest, ties to even"
    )
    parser.add_argument("--dtype", choices=dtypes.NAMES, default="float32", help=text)
    options.add_json(parser)
    options.add_config(parser, default=None)
    parser.set_defaults(run=functools.partial(_run, parser))
    return parser


def main(argv: list[str]) -> int:
    """Entry of the verb."""
    return build_parser().run(argv)


def _run(parser: Parser, args: Namespace) -> int:
    quiet()
    notes: list[str] = []
    path = _import(parser, args, notes.append) if args.source else _export(parser, args, notes.append)
    result = {"output": str(path), "format": args.source or args.target, "dtype": args.dtype, "notes": notes}
    done = f"wrote {path} ({'from' if args.source else 'to'} {result['format']}, {args.dtype})"
    print_result(result, "\n".join([*notes, done]), args.json)
    return 0


def _import(parser: Parser, args: Namespace, say: Say) -> Path:
    if not args.input.exists():
        raise CheckpointError(
            f"{args.input}: no such file or directory; name one file of weights, or a Hugging Face directory"
        )
    if args.config is None and args.overrides:
        parser.error("overrides change a --config NAME, and none is given")
    if args.config is None and not args.input.is_dir():
        parser.error("--from needs --config NAME: a file of weights does not say which model it is")
    config = load_config(args.config, args.overrides) if args.config else None
    with_tokenizer = not args.no_tokenizer
    return import_file(args.input, args.source, config, args.output, args.tokenizer, args.dtype, with_tokenizer, say)


def _export(parser: Parser, args: Namespace, say: Say) -> Path:
    if args.config or args.overrides or args.tokenizer or args.no_tokenizer:
        parser.error("--to takes no --config, overrides, --tokenizer or --no-tokenizer: a checkpoint has its own")
    return export_file(args.input, args.target, args.output, args.dtype, say=say)
