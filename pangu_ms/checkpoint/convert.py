"""Converts weights of other programs, with their tokenizer, to a checkpoint of this package, and back."""

import logging
import tempfile
from collections.abc import Callable
from pathlib import Path

from pangu_ms.checkpoint import foreign, store
from pangu_ms.config import RunConfig
from pangu_ms.config.load import config_from_dict
from pangu_ms.core import dtypes, files
from pangu_ms.core.errors import CheckpointError, ConfigError, DataError
from pangu_ms.data import huggingface_files
from pangu_ms.data.tokenizer import Tokenizer, require_vocabulary
from pangu_ms.models.common.config import ModelConfig
from pangu_ms.models.common.weights import Format
from pangu_ms.models.registry import FAMILIES

_log = logging.getLogger(__name__)
Say = Callable[[str], None]
"""Called with one line that the user should read."""


def import_file(
    path: Path,
    source: str,
    config: RunConfig | None,
    output: Path,
    tokenizer: Path | None = None,
    dtype: str = "float32",
    with_tokenizer: bool = True,
    say: Say = _log.info,
) -> Path:
    """Convert one file or directory of weights to OUTPUT/step-00000000.

    Args:
        path: .ckpt, .npz or .safetensors, or a Hugging Face directory.
        source: naming scheme of the weights, such as "official".
        config: the model that the weights belong to; None for a directory with config.json, see `directory_config`.
        output: a directory without checkpoints; made if needed.
        tokenizer: tokenizer directory, or released vocab.model, to copy into the checkpoint; None takes that of the
            directory.
        dtype: dtype of the stored weights: float32 (which training needs), float16 or bfloat16.
        with_tokenizer: False leaves the directory's tokenizer out.
        say: called with lines that say what became of dtypes and tokenizer.

    Returns:
        The step directory.

    Raises:
        CheckpointError: the file is damaged or does not hold exactly the model's parameters.
        ConfigError: `config` and the directory's config.json differ.
        DataError: the tokenizer cannot be read, or has another number of pieces than the model.
        OutputError: `output` holds checkpoints, or the disk is full.
    """
    path = Path(path)
    if path.is_dir():
        config = directory_config(path, source, config)
    elif config is None:
        raise ConfigError(
            f"{path}: a file of weights does not say which model it is; name its configuration (--config)"
        )
    naming = _format(config, source)
    store.require_no_checkpoints(output)
    loaded = _tokenizer_of(path, tokenizer, with_tokenizer, config)
    read = foreign.weight_files(path) if path.is_dir() else [path]
    tensors = naming.to_ours(str(path), foreign.read_files(read), config.model)
    state = {"imported": {"file": path.name, "format": source, "sha256": {p.name: files.sha256_file(p) for p in read}}}
    say(f"weights: {dtypes.change({dtypes.name_of(array.dtype) for array in tensors.values()}, dtype)}")
    none = "none comes along; name one with --tokenizer wherever text is read or written"
    say(f"tokenizer: {_describe_tokenizer(loaded) if loaded else none}")
    with tempfile.TemporaryDirectory() as scratch:
        copy = None
        if loaded:
            loaded.save(copy := Path(scratch) / "tokenizer")
        tensors = dtypes.cast(str(path), tensors, dtype, _tables(config.model))
        return store.save(output, 0, {"model": tensors}, state, config, copy, allowed=store.require_no_checkpoints)


def directory_config(directory: Path, source: str, config: RunConfig | None = None) -> RunConfig:
    """The configuration that a Hugging Face directory's config.json describes. If `config` is given, it is returned
    instead; it must describe the same model.

    Raises:
        CheckpointError: there is no config.json, or it describes a model of another kind.
        ConfigError: `config` and config.json differ in a field of the model.
    """
    tree = foreign.read_config(directory)
    where = str(Path(directory) / foreign.CONFIG)
    named = [formats[source] for formats in _all_formats() if source in formats]
    readers = {kind: naming.read_config for naming in named if naming.read_config for kind in naming.model_types}
    if not readers:
        raise CheckpointError(f"{directory}: is a directory; {source} weights are one file; name that")
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
) -> Path:
    """Convert the model of a checkpoint to one file of weights, or to a Hugging Face directory if `output` has no
    suffix.

    Args:
        checkpoint: step directory, checkpoint root or run directory.
        target: naming scheme to write, such as "huggingface".
        output: a new .ckpt, .npz or .safetensors, or a new directory.
        dtype: dtype of the written weights: float32, float16 or bfloat16.
        max_shard_bytes: weights of a directory that are larger than this are split over several files.
        say: called with lines that say what became of dtypes and tokenizer.

    Returns:
        `output`.

    Raises:
        CheckpointError: there is no valid checkpoint, or the naming scheme or suffix is unknown.
        OutputError: `output` exists, or the disk is full.
    """
    output = Path(output)
    if output.suffix:
        foreign.require_known_suffix(output, dtype)
    files.require_new(output) if output.suffix else files.require_free(output)
    source = store.open_checkpoint(checkpoint)
    config = source.config()
    naming = _format(config, target)
    if not output.suffix and naming.write_config is None:
        rule = f"{config.model.family} weights have no directory form as {target}"
        raise CheckpointError(f"{output}: has no suffix, and {rule}; name a .safetensors, .npz or .ckpt")
    own = source.tokenizer_path()
    tokenizer = Tokenizer.load(own) if own and not output.suffix else None
    tensors = naming.to_foreign(str(source.path), source.tensors(), config.model)
    say(f"weights: {dtypes.change({tensor.spec.dtype_name for tensor in source.stored().values()}, dtype)}")
    tables = _tables(config.model)
    integers = {rule.foreign for rule in naming.rules(config.model) if rule.ours in tables}
    tensors = dtypes.cast(str(source.path), tensors, dtype, integers)
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


def _format(config: RunConfig, name: str) -> Format:
    formats = FAMILIES[config.model.family].formats
    if name not in formats:
        raise CheckpointError(
            f"{name}: unknown format; {config.model.family} weights are known as {', '.join(formats)}; name one of"
            " these"
        )
    return formats[name]
