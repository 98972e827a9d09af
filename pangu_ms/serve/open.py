"""Opens what the command line names as models: checkpoints and MindIR packages."""

import functools
from pathlib import Path

from pangu_ms.checkpoint.model import checkpoint_config
from pangu_ms.checkpoint.store import open_checkpoint
from pangu_ms.core import runtime
from pangu_ms.core.console import tell
from pangu_ms.export.kernels import announcement
from pangu_ms.export.package import Package
from pangu_ms.infer.decoder import Decoder, GraphShape
from pangu_ms.infer.load import cache_dtype_of, domains_of, load_decoder, load_tokenizer, weights_of
from pangu_ms.serve.chat_template import load_chat_template
from pangu_ms.serve.models import ServedModel


def is_package(path: Path) -> bool:
    """Whether a directory was written by `pangu export`."""
    return (path / "run.pyz").exists()


def open_model(
    name: str,
    path: Path,
    slots: int,
    chunk: int,
    max_length: int,
    overrides: list[str],
    weights: str,
    tokenizer: str | None,
    chat_template: str,
    cache_dtype: str = "",
) -> ServedModel:
    """A checkpoint that is checked, but not loaded.

    Args:
        name: by which requests ask for it.
        path: of a run or a checkpoint.
        slots: continuations at a time.
        chunk: prompt tokens of a step.
        max_length: longest prompt and continuation; 0: as long as the model's context.
        overrides: of the checkpoint's configuration.
        weights: see `weights_of`.
        tokenizer: its path; by default the checkpoint's own.
        chat_template: see `load_chat_template`.
        cache_dtype: see `cache_dtype_of`.

    Raises:
        UserError: something cannot be used.
    """
    checkpoint = open_checkpoint(path)
    config = checkpoint_config(checkpoint, overrides)
    loaded = load_tokenizer(checkpoint, tokenizer)
    # Dtypes that cannot be had are told before all else.
    weights_of(checkpoint, config, weights)
    cache_dtype_of(config, cache_dtype)
    seq_length = config.model.seq_length
    if max_length > seq_length:
        tell(f"--max-length {max_length}: the model's context has {seq_length} tokens, which is the length")
    shape = GraphShape.fitting(seq_length, slots, max_length or seq_length, chunk)
    load = functools.partial(load_decoder, checkpoint, shape, config, weights, cache_dtype=cache_dtype)
    return ServedModel(name, loaded, shape, domains_of(config.model), load_chat_template(chat_template, loaded), load)


def open_package(
    name: str, path: Path, key: bytes | None, verify_key: str | None, chat_template: str, allow_kernels: bool = False
) -> ServedModel:
    """A MindIR package that is checked, but not loaded; see `open_model`.

    Args:
        key: AES key of an encrypted package.
        verify_key: file with the Ed25519 public key of its signature.
        allow_kernels: see `Package.decoder`.
    """
    opened = Package.open(path, verify_key)
    opened.require_key(key)
    tokenizer = opened.tokenizer()
    if allow_kernels:
        tell(announcement(path, opened.kernels))

    def load() -> Decoder:
        runtime.start(opened.manifest["target"])
        return opened.decoder(key, allow_kernels)

    template = load_chat_template(chat_template, tokenizer)
    return ServedModel(name, tokenizer, opened.shape, opened.domains, template, load)
