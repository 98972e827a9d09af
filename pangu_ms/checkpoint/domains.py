"""Checkpoints made of others by domain: `extract` one domain, `add_domain`, and `inherit_base`, a model with domains
that computes what one without them does. No mindspore import."""

import contextlib
import dataclasses
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pangu_ms.checkpoint import store
from pangu_ms.checkpoint.derive import Opened, write_derived
from pangu_ms.config.parallel import ParallelConfig
from pangu_ms.config.schema import OffloadConfig, RunConfig
from pangu_ms.core.errors import CheckpointError, ConfigError
from pangu_ms.data.compress import load_vocab_map
from pangu_ms.data.tokenizer import Tokenizer, require_vocabulary
from pangu_ms.models.common.config import ModelConfig
from pangu_ms.models.common.stacks import COLLECTIONS
from pangu_ms.models.registry import FAMILIES


def require_domains(checkpoint: store.Checkpoint) -> None:
    """Raise ConfigError unless the checkpoint's model tells domains apart."""
    model = checkpoint.config().model
    if not model.domains:
        raise ConfigError(
            f"{checkpoint.path}: model.family={model.family}: has no domains; name the checkpoint of a model that has"
        )


def extract(
    checkpoint: store.Checkpoint,
    domain: str,
    output: Path,
    drop_unused: bool = False,
    tokenizer: Path | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Write the checkpoint of a model that computes for one domain what the checkpoint's model does, and holds nothing
    of other domains.

    Args:
        checkpoint: of a model with domains.
        domain: the name of the domain.
        output: directory of the new checkpoint, which must be empty or not exist.
        drop_unused: leave out experts to which no token of the vocabulary goes; see `extracted` of the family.
        tokenizer: directory of a compact tokenizer with its map to the checkpoint's (`pangu tokenizer compress`), whose
            vocabulary the new model has.
        progress: show a bar.

    Returns:
        A dict with output, domain, num_experts (of a layer) and parameters, the last two as [old, new].

    Raises:
        ConfigError: the model has no such domain.
        DataError: the tokenizer was not made from the checkpoint's.
        CheckpointError: the tensors are not those of the configuration.
        OutputError: `output` has other content, or the disk has not enough room.
    """
    require_domains(checkpoint)
    source = Opened.of(checkpoint)
    vocabulary = _compact_vocabulary(checkpoint, tokenizer) if tokenizer else None
    family = FAMILIES[source.model.family].domains
    derived = family.extracted(source.model, source.tables(), domain, drop_unused, vocabulary)
    state = {"extracted": source.origin() | {"domain": domain}}
    config = _of_one_device(source.config, derived.config)
    tokenizer = tokenizer or checkpoint.tokenizer_path()
    path = write_derived(
        source, derived, output, config, state, step=checkpoint.step, tokenizer=tokenizer, progress=progress
    )
    return _result(path, domain, source.model, derived.config)


@contextlib.contextmanager
def extracted(checkpoint: store.Checkpoint, domain: str | None) -> Iterator[store.Checkpoint]:
    """Open a context with the model of one domain, as `extract` makes it in a temporary directory (TMPDIR); without a
    domain, with the checkpoint itself. Raises as `extract`."""
    if not domain:
        yield checkpoint
        return
    with tempfile.TemporaryDirectory(prefix="pangu-extract-") as directory:
        made = extract(checkpoint, domain, Path(directory))
        yield store.open_checkpoint(Path(made["output"]), digests=False)


def add_domain(
    checkpoint: store.Checkpoint,
    name: str,
    output: Path,
    parent: str | None = None,
    donor: store.Checkpoint | None = None,
    num_experts: int = 0,
    progress: bool = False,
) -> dict[str, Any]:
    """Write the checkpoint of a model with one more domain, of which only experts and embedding slots train.

    Args:
        checkpoint: of a model with domains.
        name: the name of the new domain.
        output: directory of the new checkpoint, which must be empty or not exist.
        parent: domain whose experts the new ones are copies of; None: the default domain.
        donor: checkpoint of another model, from which the experts come: of the same family and with the same shared
            parameters, or of the family's base, whose feed-forward networks become experts.
        num_experts: experts of the new group; 0: as many as the donor's domain has.
        progress: show a bar.

    Returns:
        As for `extract`.

    Raises:
        ConfigError: the model has the domain, or lacks the parent, or the donor does not fit.
        CheckpointError: the tensors are not those of the configuration, or the donor's shared parameters are others.
        OutputError: `output` has other content, or the disk has not enough room.
    """
    require_domains(checkpoint)
    source = Opened.of(checkpoint)
    given = Opened.of(donor) if donor else None
    family = FAMILIES[source.model.family].domains
    derived = family.with_domain(
        source.model, source.tables(), name, _donor(family, source, given, parent), num_experts
    )
    if given and given.model.family == source.model.family:
        _require_same_shared(source, given)
    state = {"added_domain": source.origin() | {"domain": name, "from": given and given.origin(), "parent": parent}}
    config = _of_one_device(source.config, derived.config, {name: 1.0})
    tokenizer = checkpoint.tokenizer_path()
    path = write_derived(source, derived, output, config, state, donor=given, tokenizer=tokenizer, progress=progress)
    return _result(path, name, source.model, derived.config)


def _donor(family: Any, source: Opened, given: Opened | None, parent: str | None) -> Any:
    """The `Donor` of the family: the model of `given`, or else of `source`, and its domain `parent`."""
    of = given or source
    if of.model.family == source.model.BASE_FAMILY:
        if parent:
            raise ConfigError(f"--parent {parent}: the model of --from has no domains; leave one of them out")
        return family.Donor(of.model, {}, None, other=True)
    if of.model.family != source.model.family:
        raise ConfigError(
            f"--from: model.family={of.model.family}: must be {source.model.family} or {source.model.BASE_FAMILY};"
            " name another checkpoint"
        )
    index = family.index_of(of.model, parent or of.model.default_domain or of.model.domains[0])
    return family.Donor(of.model, of.tables(), index, other=given is not None)


def inherit_base(
    checkpoint: store.Checkpoint,
    config: RunConfig,
    output: Path,
    tokenizer: Path | None = None,
    seed: int = 1,
    token_counts: np.ndarray | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Write the first checkpoint of a model with domains that computes, for each of them, what the model of a
    checkpoint without domains computes.

    Args:
        checkpoint: of the base of the family, `ModelConfig.BASE_FAMILY`.
        config: configuration of the new model's run.
        output: directory of the new checkpoint, which must be empty or not exist.
        tokenizer: directory of another tokenizer, if the vocabulary is to be another: rows of word tables whose piece
            both have are copied, the others get initial values.
        seed: seed of these.
        token_counts: see `ModelConfig.initial_tables`.
        progress: show a bar.

    Returns:
        A dict with output; num_experts and parameters as for `extract`; new_rows, the number of rows with initial
        values of each word table.

    Raises:
        ConfigError: the new model would compute something else.
        DataError: the tokenizer does not have the vocabulary of `config`.
        CheckpointError: the tensors are not those of the configuration.
        OutputError: `output` has other content, or the disk has not enough room.
    """
    source = Opened.of(checkpoint)
    rows = _rows(checkpoint, config.model, tokenizer)
    derived = FAMILIES[config.model.family].domains.inherited(source.model, config.model, rows, token_counts)
    new_rows = 0 if rows is None else int((rows < 0).sum())
    path = write_derived(
        source,
        derived,
        output,
        config,
        {"inherited": source.origin() | {"new_rows": new_rows}},
        tokenizer=tokenizer or checkpoint.tokenizer_path(),
        seed=seed,
        progress=progress,
    )
    return {"output": str(path), **_sizes(source.model, config.model), "new_rows": new_rows}


def _rows(checkpoint: store.Checkpoint, model: ModelConfig, tokenizer: Path | None) -> np.ndarray | None:
    """For each id of the new vocabulary the checkpoint's id of the same piece, or -1; None if the vocabulary stays."""
    size = checkpoint.config().model.vocab_size
    if tokenizer is None:
        if model.vocab_size != size:
            raise ConfigError(
                f"model.vocab_size={model.vocab_size}: the checkpoint has {size}: must be equal without --tokenizer;"
                " name the tokenizer of the new vocabulary"
            )
        return None
    new, old = Tokenizer.load(tokenizer), checkpoint.tokenizer()
    require_vocabulary(new, model.vocab_size)
    if old is None:
        raise CheckpointError(
            f"{checkpoint.path}: holds no tokenizer, so that its pieces are unknown; convert it again with one"
        )
    found = [old.id_of(new.piece_of(index)) for index in range(model.vocab_size)]
    return np.array([-1 if index is None else index for index in found], np.int64)


def _compact_vocabulary(checkpoint: store.Checkpoint, tokenizer: Path) -> np.ndarray:
    """The checkpoint's id of each id of a compact tokenizer."""
    found, own = load_vocab_map(tokenizer), checkpoint.tokenizer()
    if own is None:
        raise CheckpointError(
            f"{checkpoint.path}: holds no tokenizer, so that --tokenizer cannot be checked against it; convert it again"
            " with its tokenizer"
        )
    found.require(own, checkpoint.config().model.vocab_size)
    return found.old_ids


def _of_one_device(config: RunConfig, model: ModelConfig, mixture: dict[str, float] | None = None) -> RunConfig:
    """The configuration for a model of other size: without records, whose domains may be others, and without a plan,
    whose degrees need not divide the new sizes."""
    data = dataclasses.replace(config.data, records="", order="", mixture=mixture or {}, samples_per_domain={})
    return dataclasses.replace(config, model=model, data=data, parallel=ParallelConfig(), offload=OffloadConfig())


def _result(path: Path, domain: str, old: ModelConfig, new: ModelConfig) -> dict[str, Any]:
    """What `extract` and `add_domain` return."""
    return {"output": str(path), "domain": domain} | _sizes(old, new)


def _sizes(old: ModelConfig, new: ModelConfig) -> dict[str, list[int]]:
    return {
        "num_experts": [old.num_experts, new.num_experts],
        "parameters": [old.num_parameters(), new.num_parameters()],
    }


def _require_same_shared(source: Opened, donor: Opened) -> None:
    """Raise CheckpointError unless the parameters that all domains share are equal, bit for bit."""
    for name, spec in donor.model.parameters().items():
        if spec.dtype == "int32" or spec.axes[0] in COLLECTIONS or name not in source.stored:
            continue
        if source.spec(name) != donor.spec(name) or source.read(name).tobytes() != donor.read(name).tobytes():
            raise CheckpointError(
                f"{donor.checkpoint.path}: {name} is not that of {source.checkpoint.path}; experts work only with the"
                " shared parameters that they were trained with; train the extracted model with model.trainable=experts"
            )
