"""`pangu convert`: weights of other programs to a checkpoint of ours, and back."""

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np

from pangu_ms.checkpoint import foreign, store
from pangu_ms.checkpoint.names import Format
from pangu_ms.config import RunConfig, load_config
from pangu_ms.config.cli import add_config_arguments
from pangu_ms.config.load import config_from_dict
from pangu_ms.config.registry import FAMILIES, load_object
from pangu_ms.data.tokenizer import Tokenizer, require_vocabulary
from pangu_ms.errors import CheckpointError, ConfigError
from pangu_ms.runtime import quiet
from pangu_run import files
from pangu_run.arguments import Parser
from pangu_run.console import show

_DESCRIPTION = """\
Into our format:   pangu convert FILE --from official|huggingface|mindformers --config NAME [model.field=value ...] --output DIR
                   pangu convert DIRECTORY --from huggingface --output DIR        its config.json says which model it is
Out of it:         pangu convert CHECKPOINT --to official|huggingface|mindformers --output FILE
                   pangu convert CHECKPOINT --to huggingface --output DIRECTORY   with config.json (pi)

FILE is one .ckpt, .npz or .safetensors; 512-part releases must first be merged with MindSpore's transform_checkpoints.
Names and shapes must be exactly those of the configuration. Nothing is overwritten.
A FILE does not tell what changes no shape, so a wrong number of heads (pi: rope_theta, rms_norm_eps, siaf_position, ...) cannot be noticed:
check a known prompt. official: the released weights of alpha."""


def import_file(path: Path, source: str, config: RunConfig | None, output: Path, tokenizer: Path | None = None, dtype: str = "float32") -> Path:
    """Convert one file or directory of weights to OUTPUT/step-00000000.

    Args:
        path: .ckpt, .npz or .safetensors, or a Hugging Face directory.
        source: its naming, such as "official".
        config: the model that the weights belong to; None for a directory with config.json, see `directory_config`.
        output: a directory without checkpoints; made if needed.
        tokenizer: tokenizer directory, or released vocab.model, to copy into the checkpoint.
        dtype: of the stored weights; training needs float32.

    Returns:
        The step directory.

    Raises:
        CheckpointError: the file is damaged or does not hold exactly the model's parameters.
        ConfigError: `config` and the directory's config.json differ.
        DataError: the tokenizer has another number of pieces than the model.
        OutputError: `output` holds checkpoints, or the disk is full.
    """
    path = Path(path)
    if path.is_dir():
        config = directory_config(path, source, config)
    elif config is None:
        raise ConfigError(f"{path}: a file of weights does not say which model it is; name its configuration (--config)")
    naming = _format(config, source)
    store.require_no_checkpoints(output)
    with tempfile.TemporaryDirectory() as scratch:
        copy = tokenizer and _copy_tokenizer(tokenizer, config, Path(scratch) / "tokenizer")
        read = foreign.weight_files(path) if path.is_dir() else [path]
        tensors = naming.to_ours(str(path), foreign.read_files(read), config.model)
        state = {"imported": {"file": path.name, "format": source, "sha256": {p.name: files.sha256_file(p) for p in read}}}
        return store.save(output, 0, {"model": _cast(str(path), tensors, dtype)}, state, config, copy)


def directory_config(directory: Path, source: str, config: RunConfig | None = None) -> RunConfig:
    """The configuration that a Hugging Face directory's config.json describes; with `config`, that one, which must describe the same model.

    Raises:
        CheckpointError: no config.json, or a model that is not ours.
        ConfigError: `config` differs from it in a field of the model.
    """
    tree = foreign.read_config(directory)
    where = str(Path(directory) / foreign.CONFIG)
    described = [formats[source].read_config for formats in _all_formats() if source in formats and formats[source].read_config]
    if not described:
        raise CheckpointError(f"{directory}: is a directory; {source} weights are one file; name that")
    fields = described[0](where, tree)
    own_config = config_from_dict({"model": fields}, where)
    if config is None:
        return own_config
    if config.model.family != own_config.model.family:
        raise ConfigError(f"{where}: describes a model of family {own_config.model.family}, --config one of {config.model.family}; leave --config out")
    pairs = {name: (getattr(config.model, name), getattr(own_config.model, name)) for name in fields}
    wrong = [f"model.{name}={given!r} (config.json: {own!r})" for name, (given, own) in pairs.items() if given != own]
    if wrong:
        raise ConfigError(f"{where}: {', '.join(wrong)}: must be equal; correct these, or leave --config out")
    return config


def export_file(checkpoint: Path, target: str, output: Path, dtype: str = "float32") -> Path:
    """Convert the model of a checkpoint to one file of weights, or to a Hugging Face directory where `output` has no suffix.

    Args:
        checkpoint: step directory, checkpoint root or run directory.
        target: naming to write, such as "huggingface".
        output: a new .ckpt, .npz or .safetensors, or a new directory.
        dtype: of the written weights.

    Returns:
        `output`.

    Raises:
        CheckpointError: no valid checkpoint, or an unknown naming or suffix.
        OutputError: `output` exists, or the disk is full.
    """
    output = Path(output)
    if output.suffix:
        foreign.require_known_suffix(output)
    files.require_new(output) if output.suffix else files.require_free(output)
    source = store.open_checkpoint(checkpoint)
    config = source.config()
    naming = _format(config, target)
    if not output.suffix and naming.write_config is None:
        rule = f"{config.model.family} weights have no directory form as {target}"
        raise CheckpointError(f"{output}: has no suffix, and {rule}; name a .safetensors, .npz or .ckpt")
    tensors = _cast(str(source.path), naming.to_foreign(str(source.path), source.tensors(), config.model), dtype)
    if output.suffix:
        foreign.write_file(output, tensors)
    else:
        foreign.write_directory(output, tensors, naming.write_config(config.model) | {"torch_dtype": dtype})
    return output


def main(argv: list[str]) -> int:
    """Entry of the verb."""
    quiet()
    parser = _parser()
    args = parser.parse_intermixed_args(argv)  # the overrides may stand anywhere
    if args.source:
        if not args.input.exists():
            raise CheckpointError(f"{args.input}: no such file or directory; name one file of weights, or a Hugging Face directory")
        if args.config is None and args.overrides:
            parser.error("overrides change a --config NAME, and none is given")
        if args.config is None and not args.input.is_dir():
            parser.error("--from needs --config NAME: a file of weights does not say which model it is")
        config = load_config(args.config, args.overrides) if args.config else None
        path = import_file(args.input, args.source, config, args.output, args.tokenizer, args.dtype)
    else:
        if args.config or args.overrides or args.tokenizer:
            parser.error("--to takes no --config, overrides or --tokenizer: a checkpoint has its own")
        path = export_file(args.input, args.target, args.output, args.dtype)
    result = {"output": str(path), "format": args.source or args.target, "dtype": args.dtype}
    show(json.dumps(result) if args.json else f"wrote {path} ({'from' if args.source else 'to'} {result['format']}, {args.dtype})")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="pangu convert", description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter)
    input_help = "file or Hugging Face directory of weights; --to: run, checkpoint or step directory"
    parser.add_argument("input", type=Path, metavar="FILE|DIRECTORY|CHECKPOINT", help=input_help)
    direction = parser.add_mutually_exclusive_group(required=True)
    direction.add_argument("--from", dest="source", metavar="FORMAT", help="official | huggingface | mindformers: names in the input")
    direction.add_argument("--to", dest="target", metavar="FORMAT", help="official | huggingface | mindformers: names to write")
    parser.add_argument("--output", type=Path, required=True, help="--from: directory without checkpoints; --to: new .ckpt, .npz, .safetensors or directory")
    parser.add_argument("--tokenizer", type=Path, metavar="PATH", help="--from: tokenizer directory or vocab.model to copy into the checkpoint")
    dtype_help = "of the weights written (default: %(default)s; training needs it, and it holds float16 and bfloat16 files exactly)"
    parser.add_argument("--dtype", choices=["float32", "float16"], default="float32", help=dtype_help)
    parser.add_argument("--json", action="store_true", help="machine-readable output")
    add_config_arguments(parser, default=None)
    return parser


def _copy_tokenizer(path: Path, config: RunConfig, directory: Path) -> Path:
    tokenizer = Tokenizer.load(path)
    require_vocabulary(tokenizer, config.model.vocab_size)
    tokenizer.save(directory)
    return directory


def _all_formats() -> list[dict[str, Format]]:
    return [load_object(family.names) for family in FAMILIES.values()]


def _format(config: RunConfig, name: str) -> Format:
    formats = load_object(FAMILIES[config.model.family].names)
    if name not in formats:
        raise CheckpointError(f"{name}: unknown format; {config.model.family} weights are known as {', '.join(formats)}; name one of these")
    return formats[name]


def _cast(where: str, tensors: dict[str, np.ndarray], dtype: str) -> dict[str, np.ndarray]:
    """Floating-point tensors as `dtype`.

    Raises:
        CheckpointError: a tensor of another kind, or a value that is not finite or not representable.
    """
    cast = {}
    for name, array in tensors.items():
        if array.dtype.kind != "f":
            raise CheckpointError(f"{where}: {name} has dtype {array.dtype}; weights are floating-point; convert it first")
        with np.errstate(over="ignore"):  # reported by the next line
            cast[name] = array.astype(dtype, copy=False)
        if not np.isfinite(cast[name]).all():
            raise CheckpointError(f"{where}: {name} has values that are not finite in {dtype}; use float32, or another file if it holds NaN or Inf itself")
    return cast
