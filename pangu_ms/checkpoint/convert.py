"""Converts weights of other programs, with their tokenizer, to a checkpoint of this package, and back."""

import contextlib
import logging
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pangu_ms.checkpoint import (
    foreign,
    gguf_export,
    lazy,
    md5_list,
    megatron,
    mindformers_directory,
    official,
    reshard,
    store,
)
from pangu_ms.checkpoint.lazy import Stored
from pangu_ms.checkpoint.partial import Partial, open_partial
from pangu_ms.checkpoint.recognise import fitting
from pangu_ms.config import RunConfig, dump_config
from pangu_ms.config.load import config_from_dict
from pangu_ms.core import dtypes, files
from pangu_ms.core.errors import CheckpointError, ConfigError, DataError
from pangu_ms.data import huggingface_files
from pangu_ms.data.tokenizer import Tokenizer, require_vocabulary
from pangu_ms.models.common.config import ModelConfig
from pangu_ms.models.common.stacks import stack_of
from pangu_ms.models.common.strict import Mismatch
from pangu_ms.models.common.weights import Format
from pangu_ms.models.registry import FAMILIES

_log = logging.getLogger(__name__)
Say = Callable[[str], None]
"""Called with one line that the user should read."""


@dataclass(frozen=True)
class Parts:
    """What belongs to a directory of weights in one part for each rank."""

    strategies: list[Path]
    """The strategy files that say how tensors were cut."""
    embeddings: Path | None = None
    """Directory of .npy files of whole tensors; None takes those beside the parts, if there are any."""
    md5: Path | None = None
    """A list in the form of md5sum, with which the files are compared before anything else is done."""


@dataclass(frozen=True)
class Weights:
    """The weights of another program by their own names; they stay on the disk."""

    where: str
    format: str
    """The name of their format."""
    stored: Stored
    files: list[Path]
    origin: dict[str, Any]
    """What the state of the new checkpoint says of the files."""
    spellings: dict[str, str] = field(default_factory=dict)
    """Names that the files spell otherwise than `stored`."""

    def to_ours(self, naming: Format, config: RunConfig) -> Stored:
        """The tensors by our names; see `Format.to_ours`."""
        try:
            return naming.to_ours(self.where, self.stored, config.model, lazy.Stack.of, lazy.equal)
        except Mismatch as error:
            tables = [f"{name} is {file}" for name, file in self.spellings.items() if file.endswith(".npy")]
            named = "; ".join(table for table in tables if table.split()[0] in str(error))
            raise CheckpointError(f"{error}{self.fitting()}{f' ({named})' if named else ''}") from None

    def fitting(self) -> str:
        """The end of a message: the configuration that the names and shapes belong to, if they are recognised."""
        fits = fitting(self.format, {name: tensor.shape for name, tensor in self.stored.items()})
        return f": {fits}" if fits else ""


def import_file(
    path: Path,
    source: str,
    config: RunConfig | None,
    output: Path,
    tokenizer: Path | None = None,
    dtype: str = "float32",
    with_tokenizer: bool = True,
    say: Say = _log.info,
    sharded: bool = False,
    parts: Parts | None = None,
    progress: bool = False,
) -> Path:
    """Convert one file or directory of weights to OUTPUT/step-00000000. Tensors are read, converted and written piece
    by piece; only .npz files are read as a whole.

    Args:
        path: .ckpt, .npz or .safetensors, a Hugging Face directory, or a directory of one part for each rank.
        source: naming scheme of the weights, such as "official".
        config: the model that the weights belong to; None for a directory with config.json, see `directory_config`.
        output: a directory without checkpoints; made if needed.
        tokenizer: tokenizer directory, or released vocab.model, to copy into the checkpoint; None takes that of the
            directory.
        dtype: dtype of the stored weights: float32 (which training needs), float16 or bfloat16.
        with_tokenizer: False leaves the directory's tokenizer out.
        say: called with lines that say what became of dtypes and tokenizer.
        sharded: write the slices of the ranks of `config.parallel` instead of whole tensors.
        parts: what belongs to a directory of parts. If the conversion of one is interrupted, the same call goes on
            after the last file that it finished.
        progress: show bars.

    Returns:
        The step directory.

    Raises:
        CheckpointError: the file is damaged or does not hold exactly the model's parameters.
        ConfigError: `config` and the directory's config.json differ.
        DataError: the tokenizer cannot be read, or has another number of pieces than the model.
        OutputError: `output` holds checkpoints, or the disk is full.
        PlanError: a strategy file cannot be used, or is of another model.
    """
    path = Path(path)
    config = _config_of(path, source, config, parts)
    naming = _format(config, source)
    store.require_no_checkpoints(output)
    loaded = _tokenizer_of(path, tokenizer, with_tokenizer, config)
    weights = _open(path, source, naming, config.model, parts, progress, say)
    naming = naming.of_names(weights.stored)
    tensors = _announced(str(path), weights.to_ours(naming, config), dtype, _tables(config.model), say)
    none = "none comes along; name one with --tokenizer wherever text is read or written"
    say(f"tokenizer: {_describe_tokenizer(loaded) if loaded else none}")
    state = {"imported": {"file": path.name, "format": source} | weights.origin}
    with contextlib.ExitStack() as stack:
        copy = None
        if loaded:
            loaded.save(copy := Path(stack.enter_context(tempfile.TemporaryDirectory())) / "tokenizer")
        partial = None
        if parts or naming.tensor_parallel:
            identity = {"state": state, "config": dump_config(config), "dtype": dtype, "sharded": sharded}
            identity |= {"files": _stamps(weights.files), "tokenizer": _hashes(copy)}
            partial = stack.enter_context(open_partial(output, identity))
            if parts and parts.md5:
                _check_md5(weights, parts.md5, say, progress, partial)
            if partial.finished:
                say(f"goes on after {len(partial.finished)} files that are there already")
        made = reshard.Source(str(path), 0, {store.MODEL: tensors}, store.state_bytes(state), copy)
        allowed = store.require_no_checkpoints
        return reshard.reshard(made, output, config, not sharded, progress, allowed, partial)


def import_map(
    path: Path, source: str, config: RunConfig | None, dtype: str = "float32", parts: Parts | None = None
) -> list[dict[str, Any]]:
    """What `import_file` would do to each tensor: the same checks of names and shapes, but nothing is written.

    Returns:
        For each tensor of the input its name there, shape, dtype and number of slices, the name and shape that it gets,
        whether it is transposed, and its new dtype.

    Raises:
        CheckpointError, ConfigError, PlanError: as `import_file`.
    """
    path = Path(path)
    config = _config_of(path, source, config, parts)
    naming = _format(config, source)
    weights = _open(path, source, naming, config.model, parts, False, say=_log.info)
    if parts and parts.md5:
        _check_md5(weights, parts.md5, _log.info)
    naming = naming.of_names(weights.stored)
    tensors = lazy.cast(str(path), weights.to_ours(naming, config), dtype, _tables(config.model))
    found = naming.canonical_names(str(path), weights.stored)
    rows = []
    for rule in naming.rules(config.model):
        tensor = weights.stored[found[rule.foreign]]
        whole, _ = stack_of(rule.ours) or (rule.ours, 0)
        rows.append(
            {
                "foreign": weights.spellings.get(found[rule.foreign], found[rule.foreign]),
                "foreign_shape": list(tensor.shape),
                "foreign_dtype": tensor.spec.dtype_name,
                "slices": tensor.num_slices,
                "ours": rule.ours,
                "shape": list(tensor.shape[::-1] if rule.transpose else tensor.shape),
                "transposed": rule.transpose,
                "dtype": tensors[whole if whole in tensors else rule.ours].spec.dtype_name,
            }
        )
    return rows


def _config_of(path: Path, source: str, config: RunConfig | None, parts: Parts | None) -> RunConfig:
    if config:
        _format(config, source)
    else:
        _require_known(source)
    in_parts = parts or any(formats[source].tensor_parallel for formats in _all_formats() if source in formats)
    if path.is_dir() and not in_parts and source != mindformers_directory.NAME:
        return directory_config(path, source, config)
    if config is None:
        fits = "" if in_parts and path.is_dir() else _open_files(path, source).fitting()
        raise ConfigError(
            f"{path}: a file of weights does not say which model it is; name its configuration (--config){fits}"
        )
    return config


def _open(
    path: Path, source: str, naming: Format, model: ModelConfig, parts: Parts | None, progress: bool, say: Say
) -> Weights:
    """Find the weights of a file or directory of the format `source`."""
    if parts:
        return _open_parts(path, source, naming, parts, progress)
    if naming.tensor_parallel:
        weights = Weights(str(path), source, *megatron.open_weights(path, naming, model, say), {})
    else:
        weights = _open_files(path, source)
    names = {file: str(file.relative_to(path)) if path.is_dir() else file.name for file in weights.files}
    weights.origin["sha256"] = {names[file]: files.sha256_file(file) for file in weights.files}
    return weights


def _open_files(path: Path, source: str) -> Weights:
    """Find the weights of a file, or of a directory of whole files."""
    if path.is_dir() and source == mindformers_directory.NAME:
        directory = mindformers_directory.find(path)
        return Weights(str(path), source, *mindformers_directory.open_directory(directory), {})
    read = foreign.weight_files(path) if path.is_dir() else [path]
    return Weights(str(path), source, foreign.open_files(read), read, {})


def _open_parts(path: Path, source: str, naming: Format, parts: Parts, progress: bool) -> Weights:
    if naming.tensor_parallel or naming.model_types:
        raise CheckpointError(
            f"{path}: --strategy is of parts that MindSpore saved, with official names or those of mindformers; name"
            f" one of these formats, or leave --strategy out for {source}"
        )
    release = official.open_release(path, parts.strategies, naming, parts.embeddings, progress)
    read = [*release.parts, *release.tables.values(), *parts.strategies]
    origin = {
        "parts": len(release.parts),
        "bytes": sum(file.stat().st_size for file in release.parts),
        "embeddings": [file.name for file in release.tables.values()],
        "sha256": {file.name: files.sha256_file(file) for file in parts.strategies},
    }
    return Weights(str(path), source, release.stored, read, origin, release.spellings)


def _check_md5(weights: Weights, md5: Path, say: Say, progress: bool = False, partial: Partial | None = None) -> None:
    """Compare the files with a list, unless an interrupted run that `partial` goes on with has done it."""
    wanted = md5_list.listed(md5, weights.files)
    if partial:
        identity = {str(file): digest for file, digest in wanted.items()}
        partial.once("md5", identity, lambda: md5_list.check(wanted, progress))
    else:
        md5_list.check(wanted, progress)
    others = [file.name for file in weights.files if file not in wanted]
    unlisted = f"; the list does not name {', '.join(others[:5])}{', ...' if len(others) > 5 else ''}" if others else ""
    say(f"md5: {len(wanted)} of {len(weights.files)} files are as {md5.name} says{unlisted}")


def _stamps(read: list[Path]) -> list[list[Any]]:
    """Name, size and time of change of each file: whether they are still the same files."""
    return [[str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns] for file in read]


def _hashes(tokenizer: Path | None) -> dict[str, str]:
    """SHA-256 of each file of a tokenizer directory."""
    return {path.name: files.sha256_file(path) for path in sorted(tokenizer.iterdir())} if tokenizer else {}


def _announced(where: str, tensors: Stored, dtype: str, tables: set[str], say: Say) -> Stored:
    """The tensors in another dtype, after the line that says what this does to them; `tables` of integers stay."""
    say(f"weights: {dtypes.change({tensor.spec.dtype_name for tensor in tensors.values()}, dtype)}")
    return lazy.cast(where, tensors, dtype, tables)


def directory_config(directory: Path, source: str, config: RunConfig | None = None) -> RunConfig:
    """The configuration that a Hugging Face directory's config.json describes. If `config` is given, it is returned
    instead; it must describe the same model.

    Raises:
        CheckpointError: there is no config.json, or it describes a model of another kind.
        ConfigError: `config` and config.json differ in a field of the model.
    """
    named = [formats[source] for formats in _all_formats() if source in formats]
    readers = {kind: naming.read_config for naming in named if naming.read_config for kind in naming.model_types}
    if not readers:
        raise CheckpointError(
            f"{directory}: is a directory; {source} weights are one file, or parts with a --strategy; name these"
        )
    tree = foreign.read_config(directory)
    where = str(Path(directory) / foreign.CONFIG)
    kind = tree.get("model_type")
    read_config = readers.get(kind) if isinstance(kind, str) else None
    if read_config is None:
        known = ", ".join(readers)
        raise CheckpointError(
            f"{where}: model_type={kind!r:.80}: must be one of {known}; only these compute what PanGu models do;"
            " convert another model"
        )
    fields = read_config(where, tree)
    own_config = config_from_dict({"model": fields}, where)
    if config is None:
        return own_config
    if config.model.family != own_config.model.family:
        raise ConfigError(
            f"{where}: describes a model of family {own_config.model.family}, --config one of {config.model.family};"
            " leave --config out"
        )
    pairs = {name: (getattr(config.model, name), getattr(own_config.model, name)) for name in fields}
    wrong = [f"model.{name}={given!r} (config.json: {own!r})" for name, (given, own) in pairs.items() if given != own]
    if wrong:
        raise ConfigError(f"{where}: {', '.join(wrong)}: must be equal; correct these, or leave --config out")
    return config


def export_file(
    checkpoint: Path,
    target: str,
    output: Path,
    dtype: str = "float32",
    max_shard_bytes: int = store.MAX_SHARD_BYTES,
    say: Say = _log.info,
    with_tokenizer: bool = True,
    tensor_parallel: int | None = None,
) -> Path:
    """Convert the model of a checkpoint to one file of weights, or to a Hugging Face directory, or one of Megatron's
    parts, if `output` has no suffix.

    Args:
        checkpoint: step directory, checkpoint root or run directory.
        target: naming scheme to write, such as "huggingface".
        output: a new .ckpt, .npz or .safetensors, or a new directory; for "gguf" a new .gguf.
        dtype: dtype of the written weights: float32, float16 or bfloat16; for "gguf" also q8_0.
        max_shard_bytes: weights of a directory that are larger than this are split over several files.
        say: called with lines that say what became of dtypes and tokenizer.
        with_tokenizer: False leaves the tokenizer out of a .gguf.
        tensor_parallel: into how many parts a directory for Megatron is cut; None for one.

    Returns:
        `output`.

    Raises:
        CheckpointError: there is no valid checkpoint, or the naming scheme or suffix is unknown.
        OutputError: `output` exists, or the disk is full.
    """
    output = Path(output)
    if target == gguf_export.NAME:
        return gguf_export.export(store.open_checkpoint(checkpoint), output, dtype, with_tokenizer, say)
    if output.suffix:
        foreign.require_known_suffix(output, dtype)
    files.require_new(output) if output.suffix else files.require_free(output)
    source = store.open_checkpoint(checkpoint)
    config = source.config()
    naming = _format(config, target)
    in_parts = naming.tensor_parallel and not output.suffix
    if tensor_parallel is not None and not in_parts:
        raise CheckpointError(
            f"{output}: --tensor-parallel goes with --to megatron and a directory, a name without a dot; leave it out"
            " or name one"
        )
    if not output.suffix and naming.write_config is None and not in_parts:
        rule = f"{config.model.family} weights have no directory form as {target}"
        raise CheckpointError(f"{output}: has no suffix, and {rule}; name a .safetensors, .npz or .ckpt")
    own = source.tokenizer_path()
    tokenizer = Tokenizer.load(own) if own and not output.suffix else None
    tables = _tables(config.model)
    integers = {rule.foreign for rule in naming.rules(config.model) if rule.ours in tables}
    tensors = naming.to_foreign(str(source.path), source.stored(), config.model)
    tensors = _announced(str(source.path), tensors, dtype, integers, say)
    if in_parts:
        megatron.write_parts(output, tensors, naming, config.model, 1 if tensor_parallel is None else tensor_parallel)
        if own:
            say("tokenizer: stays behind, as Megatron's files have no place for it")
        return output
    if output.suffix or naming.write_config is None:
        foreign.write_file(output, tensors)
        if own:
            say("tokenizer: stays behind, as a file of weights has no room for it; a directory takes it along")
        return output
    tree = naming.write_config(config.model)
    unread = ", which transformers has no class for; `pangu convert --from huggingface` reads it"
    say(f"config.json: model_type={tree['model_type']}{'' if 'architectures' in tree else unread}")
    say(
        f"tokenizer: {_describe_tokenizer(tokenizer, to_transformers=True) if tokenizer else 'the checkpoint has none'}"
    )
    ids = huggingface_files.token_ids(tokenizer) if tokenizer else dict.fromkeys(huggingface_files.TOKEN_IDS)
    contents = huggingface_files.files_of(tokenizer) if tokenizer else {}
    contents[foreign.CONFIG] = files.json_text(tree | ids | {"torch_dtype": dtype}).encode()
    foreign.write_directory(output, tensors, contents, max_shard_bytes)
    return output


def _tables(model: ModelConfig) -> set[str]:
    """Names of the model's tables of integers."""
    return {name for name, spec in model.parameters().items() if spec.dtype == "int32"}


def _tokenizer_of(path: Path, named: Path | None, wanted: bool, config: RunConfig) -> Tokenizer | None:
    """The tokenizer that goes into a checkpoint: the one that the user named, or else that of the directory."""
    found = named or (huggingface_files.find(path) if wanted and path.is_dir() else None)
    if found is None:
        return None
    try:
        tokenizer = Tokenizer.load(found)
        require_vocabulary(tokenizer, config.model.vocab_size)
    except DataError as error:
        raise error if named else DataError(f"{error}, or leave it out with --no-tokenizer") from None
    return tokenizer


def _describe_tokenizer(tokenizer: Tokenizer, to_transformers: bool = False) -> str:
    """A short description of a tokenizer."""
    ids = huggingface_files.token_ids(tokenizer)
    text = f"{tokenizer.vocab_size:,} ids, " + ", ".join(
        f"{name.split('_')[0]} {'none' if value is None else value}" for name, value in ids.items()
    )
    unreadable = to_transformers and not huggingface_files.transformers_reads(tokenizer)
    return text + (
        "; transformers has no class that segments with jieba; `pangu convert --from huggingface` reads it"
        if unreadable
        else ""
    )


def _all_formats() -> list[dict[str, Format]]:
    return [family.formats for family in FAMILIES.values()]


def _require_known(name: str) -> None:
    """Raise CheckpointError unless weights of some family are read in this format."""
    known = list(dict.fromkeys(name for formats in _all_formats() for name in formats))
    if name not in known:
        raise CheckpointError(f"{name}: unknown format; weights are read as {', '.join(known)}; name one of these")


def _format(config: RunConfig, name: str) -> Format:
    formats = FAMILIES[config.model.family].formats
    if name not in formats:
        raise CheckpointError(
            f"{name}: unknown format; {config.model.family} weights are known as {', '.join(formats)}; name one of"
            " these"
        )
    return formats[name]
