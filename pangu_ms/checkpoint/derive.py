"""Writes the checkpoint of a model that is made of the parameters of others (models/common/derived.py), one parameter
after the other: no stack is in memory as a whole. No mindspore import."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pangu_ms.checkpoint import reshard, safetensors_file, store
from pangu_ms.checkpoint.lazy import Stored
from pangu_ms.checkpoint.safetensors_file import Spec
from pangu_ms.config.schema import RunConfig
from pangu_ms.core import files
from pangu_ms.core.progress import progress_bar
from pangu_ms.models.common.config import ModelConfig, ParameterSpec
from pangu_ms.models.common.derived import Copy, Derived, single_parameters
from pangu_ms.models.common.init import initial_value
from pangu_ms.models.common.stacks import stack_of
from pangu_ms.models.common.strict import check_names_and_shapes


@dataclass(frozen=True)
class Opened:
    """The model of a checkpoint, whose parameters stay on the disk."""

    checkpoint: store.Checkpoint
    config: RunConfig
    stored: Stored

    @classmethod
    def of(cls, checkpoint: store.Checkpoint) -> "Opened":
        """Open a checkpoint's model.

        Raises:
            CheckpointError: names or shapes of the tensors are not those of the configuration.
        """
        config, stored = checkpoint.config(), checkpoint.stored()
        check_names_and_shapes(str(checkpoint.path), stored, config.model.parameter_shapes())
        return cls(checkpoint, config, stored)

    @property
    def model(self) -> ModelConfig:
        """The configuration of the model."""
        return self.config.model

    def tables(self) -> dict[str, np.ndarray]:
        """The tables of integers by name."""
        specs = self.model.parameters()
        return {name: self.stored[name].values() for name, spec in specs.items() if spec.dtype == "int32"}

    def spec(self, name: str) -> Spec:
        """dtype and shape of a parameter, or of a member of a stack."""
        whole, index = stack_of(name) or (name, None)
        spec = self.stored[whole].spec
        return spec if index is None else Spec(spec.code, spec.shape[1:])

    def read(self, name: str) -> np.ndarray:
        """Read a parameter, or a member of a stack, in the dtype that it is stored in (`Spec.dtype`)."""
        whole, index = stack_of(name) or (name, None)
        tensor = self.stored[whole]
        if index is None:
            return tensor.read(tensor.all)
        return tensor.read((slice(index, index + 1), *tensor.all[1:]))[0]

    def origin(self) -> dict[str, Any]:
        """What the state of a derived checkpoint says of this one."""
        return {
            "checkpoint": str(self.checkpoint.path),
            "step": self.checkpoint.step,
            "manifest_sha256": files.sha256_json(self.checkpoint.manifest),
        }


@dataclass(frozen=True)
class LazyTensor:
    """A tensor to write."""

    spec: Spec
    load: Callable[[], np.ndarray]


def write_derived(
    source: Opened,
    derived: Derived,
    root: Path,
    config: RunConfig,
    state: dict[str, Any],
    *,
    step: int = 0,
    donor: Opened | None = None,
    tokenizer: Path | None = None,
    seed: int = 1,
    progress: bool = False,
) -> Path:
    """Write the checkpoint of a derived model, atomically. Its files hold the copied parameters in the dtype of the
    source.

    Args:
        source: the first model.
        derived: how the parameters are made.
        root: directory of the new checkpoint, which must be empty or not exist.
        config: the configuration of its run; the model is that of `derived`.
        state: JSON values that say how it was made.
        step: optimizer steps done.
        donor: the second model, if there is one.
        tokenizer: directory of the tokenizer; None writes none.
        seed: seed of rows with initial values.
        progress: show a bar.

    Returns:
        The new step's directory.

    Raises:
        OutputError: `root` has other content, or the disk has not enough room.
    """
    assert config.model == derived.config
    models = {False: source, True: donor or source}
    tensors = {}
    for name, _, _, spec in single_parameters(config.model):
        value = derived.parameters[name]
        opened = models[value.donor] if isinstance(value, Copy) else source
        tensors[name] = _tensor(opened, config.model, spec, name, value, seed)
    return write_tensors(root, step, tensors, state, config, tokenizer, progress)


def write_tensors(
    root: Path,
    step: int,
    tensors: dict[str, LazyTensor],
    state: dict[str, Any],
    config: RunConfig,
    tokenizer: Path | None = None,
    progress: bool = False,
    kind: dict[str, Any] | None = None,
) -> Path:
    """Write the checkpoint of tensors that are made one after the other; see `write_derived`.

    Args:
        tensors: by name, those of a stack member by member.
        kind: see `step_directory.write_step`.
    """
    store.require_unused(root)
    reshard.require_room(root, sum(tensor.spec.nbytes for tensor in tensors.values()))
    contents = store.description(state, config, tokenizer)
    groups: dict[str, list[str]] = {store.MODEL: []}
    for name, tensor in tensors.items():
        groups.setdefault(store.ROUTING if tensor.spec.code == "I32" else store.MODEL, []).append(name)
    with progress_bar(progress, total=len(tensors), desc="write", unit="tensor") as bar:

        def load(name: str) -> np.ndarray:
            bar.update()
            return tensors[name].load()

        for group, names in groups.items():
            for file, own in store.shards(group, {name: tensors[name].spec.nbytes for name in names}):
                specs = {name: tensors[name].spec for name in own}
                contents[file] = safetensors_file.encode_lazily(specs, load)
        numbers = {group: len(names) for group, names in groups.items()}
        return store.write(root, step, contents, numbers, kind=kind, allowed=store.require_unused)


def _tensor(
    opened: Opened, model: ModelConfig, spec: ParameterSpec, name: str, value: Copy | np.ndarray, seed: int
) -> LazyTensor:
    if isinstance(value, np.ndarray):
        return LazyTensor(safetensors_file.spec_of(name, value), lambda: value)
    copied = value
    if copied.rows is None:
        return LazyTensor(opened.spec(copied.name), lambda: opened.read(copied.name))
    sizes = model.axis_sizes()
    shape = tuple(sizes[axis] for axis in spec.axes)
    if (copied.rows >= 0).all():
        return LazyTensor(Spec(opened.spec(copied.name).code, shape), lambda: opened.read(copied.name)[copied.rows])
    return LazyTensor(Spec("F32", shape), lambda: _with_rows(opened, copied, initial_value(spec, name, shape, seed)))


def _with_rows(opened: Opened, copied: Copy, value: np.ndarray) -> np.ndarray:
    """`value`, with the copied rows in place of its own."""
    assert copied.rows is not None
    known = copied.rows >= 0
    source = opened.spec(copied.name).values(opened.read(copied.name))
    value[known] = source[copied.rows[known]]
    return value
