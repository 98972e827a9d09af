"""`pangu convert`: convert weights of other programs to a checkpoint of this package, and back."""

import functools
import math
from argparse import Namespace
from pathlib import Path

from pangu_ms.checkpoint import gguf_export, gguf_file, store
from pangu_ms.checkpoint.convert import Parts, Say, export_file, import_file, import_map
from pangu_ms.cli import options
from pangu_ms.config import RunConfig, load_config
from pangu_ms.core import dtypes
from pangu_ms.core.errors import CheckpointError
from pangu_ms.core.parser import Parser, RawHelp
from pangu_ms.core.runtime import quiet
from pangu_ms.core.size_text import parse_size
from pangu_ms.core.table import print_result, table_lines

_DESCRIPTION = """\
To a checkpoint of this package:
  pangu convert FILE --from official|huggingface|megatron|mindformers --config NAME [model.field=value ...] --output DIR
  pangu convert DIRECTORY --from huggingface --output DIR
  pangu convert DIRECTORY --from megatron|mindformers --config NAME [model.field=value ...] --output DIR
  pangu convert PARTS --from official --strategy FILE --config NAME [parallel.field=value ...] --output DIR
From a checkpoint of this package:
  pangu convert CHECKPOINT --to official|huggingface|megatron|mindformers --output FILE
  pangu convert CHECKPOINT --to huggingface|megatron --output DIRECTORY
  pangu convert CHECKPOINT --to gguf --output FILE.gguf

FILE is one .ckpt, .npz or .safetensors; also a .pt, .pth or .bin of torch.save, of which nothing is executed.
PARTS is a directory with one part for each rank that saved them, as PanGu-alpha was released (filerted_0.ckpt to
filerted_511.ckpt) or as MindSpore saves them (rank_0/NAME.ckpt, ...); the strategy file, which is published with them,
says how they belong together. Tensors are read and written piece by piece. If the command is interrupted, the same one
goes on. If the plan of the configuration has several ranks, the checkpoint is written for them, otherwise as a whole
(from a FILE or DIRECTORY only if you give overrides of parallel.*).
DIRECTORY is what MindFormers wrote (iteration_N, or the output of a run), or a Hugging Face directory with one
.safetensors (or PyTorch's .bin) file, or several with an index. The config.json of the latter says which model it is,
and its tokenizer is converted too. A DIRECTORY that is written also has these files, and generation_config.json.
transformers can load it if the model is a LLaMA; it has no class for alpha, nor for pi with series activations or
augmented shortcuts.
Megatron's DIRECTORY holds tensor-parallel parts (mp_rank_00, ...) or a run with them; --tensor-parallel N writes N.
Names and shapes must be exactly those of the configuration. Nothing is overwritten.
A FILE says nothing about settings that change no shape, so a wrong number of heads (for pi also rope_theta,
rms_norm_eps, siaf_position, ...) is not detected: check the result with a known prompt.
The format "official" is that of the released weights of alpha; "gguf" is that of llama.cpp, which computes pi without
series activation and augmented shortcuts."""


def build_parser() -> Parser:
    """The verb's options."""
    parser = Parser(prog="pangu convert", description=_DESCRIPTION, formatter_class=RawHelp)
    text = "with --from: file or Hugging Face directory of weights; with --to: run, checkpoint or step directory"
    parser.add_argument("input", type=Path, metavar="FILE|DIRECTORY|CHECKPOINT", help=text)
    direction = parser.add_mutually_exclusive_group(required=True)
    text = "naming scheme of the input: official, huggingface, megatron or mindformers"
    direction.add_argument("--from", dest="source", metavar="FORMAT", help=text)
    text = "naming scheme to write: official, huggingface, megatron, mindformers or gguf"
    direction.add_argument("--to", dest="target", metavar="FORMAT", help=text)
    text = "with --from: directory without checkpoints; with --to: new .ckpt, .npz, .safetensors, .gguf or directory"
    parser.add_argument("--output", type=Path, help=text)
    text = "of PARTS: the strategy file, or one for each pipeline stage"
    parser.add_argument("--strategy", type=Path, nargs="+", metavar="FILE", help=text)
    text = (
        "of PARTS: directory with *word_embedding.npy, *position_embedding.npy and *top_query_embedding.npy, which"
        " replace what the parts hold (default: those in PARTS, if there are any)"
    )
    parser.add_argument("--embeddings", type=Path, metavar="DIR", help=text)
    text = "of PARTS: a list as md5sum prints it, with which the files are compared first"
    parser.add_argument("--md5", type=Path, metavar="FILE", help=text)
    text = "with --from: check names and shapes, show what becomes of each tensor, and write nothing"
    parser.add_argument("--dry-run", action="store_true", help=text)
    text = "with --to megatron and a directory: number of tensor-parallel parts (default: 1)"
    parser.add_argument("--tensor-parallel", type=int, metavar="N", help=text)
    which = parser.add_mutually_exclusive_group()
    text = (
        "with --from: tokenizer directory or vocab.model to copy into the checkpoint (default: the tokenizer of the"
        " DIRECTORY, if it has one)"
    )
    which.add_argument("--tokenizer", type=Path, metavar="PATH", help=text)
    text = "with --from: do not copy the DIRECTORY's tokenizer; with --to gguf: write no tokenizer"
    which.add_argument("--no-tokenizer", action="store_true", help=text)
    text = (
        "dtype of the written weights (default: %(default)s, which training needs and which represents float16 and"
        " bfloat16 exactly); values are rounded to nearest, ties to even. q8_0 is of --to gguf"
    )
    parser.add_argument("--dtype", choices=gguf_file.DTYPES, default="float32", help=text)
    text = "with --to DIRECTORY: largest size of a file of weights, such as 2GB or 500MiB (default: 4GiB)"
    parser.add_argument("--max-shard-size", metavar="SIZE", help=text)
    options.add_json(parser)
    options.add_config(parser, default=None)
    parser.set_defaults(run=functools.partial(_run, parser))
    return parser


def main(argv: list[str]) -> int:
    """Entry of the verb."""
    return build_parser().run(argv)


def _run(parser: Parser, args: Namespace) -> int:
    quiet()
    if args.dtype not in dtypes.NAMES and args.target != gguf_export.NAME:
        parser.error(f"--dtype {args.dtype} is of --to gguf; others take {', '.join(dtypes.NAMES)}")
    if args.dry_run:
        return _show_map(parser, args)
    if not args.output:
        parser.error("the following arguments are required: --output")
    notes: list[str] = []
    path = _import(parser, args, notes.append) if args.source else _export(parser, args, notes.append)
    result = {"output": str(path), "format": args.source or args.target, "dtype": args.dtype, "notes": notes}
    done = f"wrote {path} ({'from' if args.source else 'to'} {result['format']}, {args.dtype})"
    print_result(result, "\n".join([*notes, done]), args.json)
    return 0


def _import(parser: Parser, args: Namespace, say: Say) -> Path:
    config, parts = _source(parser, args)
    return import_file(
        args.input,
        args.source,
        config,
        args.output,
        args.tokenizer,
        args.dtype,
        not args.no_tokenizer,
        say,
        sharded=_wants_ranks(config, args),
        parts=parts,
        progress=parts is not None or args.source == "megatron",
    )


def _wants_ranks(config: RunConfig | None, args: Namespace) -> bool:
    """Whether the new checkpoint is written for the ranks of its plan. Conversions of a FILE ignored the plan before
    PARTS could be read, so that there only an override asks for it."""
    asked = args.strategy or any(word.startswith("parallel.") for word in args.overrides)
    return bool(config and asked and config.parallel.world > 1)


def _show_map(parser: Parser, args: Namespace) -> int:
    if not args.source:
        parser.error("--dry-run goes with --from")
    config, parts = _source(parser, args)
    rows = import_map(args.input, args.source, config, args.dtype, parts)
    head = ("name in the files", "shape", "slices", "", "name", "shape", "dtype")
    cells = [
        (
            row["foreign"],
            _shape(row["foreign_shape"]),
            f"{row['slices']:,}",
            "transposed to" if row["transposed"] else "to",
            row["ours"],
            _shape(row["shape"]),
            row["dtype"] if row["dtype"] == row["foreign_dtype"] else f"{row['foreign_dtype']} to {row['dtype']}",
        )
        for row in rows
    ]
    values = sum(math.prod(row["shape"]) for row in rows)
    end = f"{len(rows):,} tensors, {values:,} values; nothing was written"
    result = {"format": args.source, "dtype": args.dtype, "tensors": rows, "values": values}
    print_result(result, "\n".join([*table_lines(head, cells, "<<><<<<"), end]), args.json)
    return 0


def _shape(shape: list[int]) -> str:
    return " x ".join(map(str, shape)) or "scalar"


def _source(parser: Parser, args: Namespace) -> tuple[RunConfig | None, Parts | None]:
    """The model and the files that --from names."""
    if not args.input.exists():
        raise CheckpointError(
            f"{args.input}: no such file or directory; name one file of weights, or a Hugging Face directory"
        )
    if args.config is None and args.overrides:
        parser.error("overrides change a --config NAME, and none is given")
    if args.tensor_parallel is not None:
        parser.error("--tensor-parallel goes with --to: the number of parts that are read is found")
    if args.max_shard_size is not None:
        parser.error("--max-shard-size goes with --to: a checkpoint's files have a size of their own")
    config = load_config(args.config, args.overrides) if args.config else None
    if not args.strategy:
        if args.embeddings or args.md5:
            parser.error("--embeddings and --md5 go with --strategy: they are of a directory of parts")
        return config, None
    if not args.input.is_dir():
        raise CheckpointError(f"{args.input}: is a file; --strategy is of a directory of parts; name that")
    if config is None:
        parser.error("--strategy needs --config NAME: parts do not say which model they are of")
    return config, Parts(args.strategy, args.embeddings, args.md5)


def _export(parser: Parser, args: Namespace, say: Say) -> Path:
    is_gguf = args.target == gguf_export.NAME
    if args.config or args.overrides or args.tokenizer or (args.no_tokenizer and not is_gguf):
        parser.error("--to takes no --config, overrides, --tokenizer or --no-tokenizer: a checkpoint has its own")
    if args.strategy or args.embeddings or args.md5:
        parser.error("--strategy, --embeddings and --md5 go with --from")
    if is_gguf and args.tensor_parallel is not None:
        parser.error("--tensor-parallel goes with --to megatron")
    size = store.MAX_SHARD_BYTES
    if args.max_shard_size is not None:
        if args.output.suffix or is_gguf or args.target == "megatron":
            parser.error("--max-shard-size is of a Hugging Face directory; name one, without a dot, as --output")
        try:
            size = parse_size(args.max_shard_size)
        except ValueError as error:
            parser.error(f"--max-shard-size {error}")
    return export_file(
        args.input,
        args.target,
        args.output,
        args.dtype,
        size,
        say,
        with_tokenizer=not args.no_tokenizer,
        tensor_parallel=args.tensor_parallel,
    )
