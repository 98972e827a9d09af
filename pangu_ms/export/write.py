"""Exports a checkpoint as a MindIR package, and verifies that the package computes the same."""

import contextlib
import errno
import os
import shutil
import subprocess
import tempfile
import time
import zipapp
from collections.abc import Container, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor

import ascend_ops
import pangu_ms
from ascend_ops import library
from pangu_ms import __version__
from pangu_ms.checkpoint.quantized import not_rounded
from pangu_ms.checkpoint.store import Checkpoint
from pangu_ms.config.load import config_to_dict
from pangu_ms.config.schema import RunConfig
from pangu_ms.core import files, runtime
from pangu_ms.core.errors import ExportError
from pangu_ms.core.isolated import python_command, python_environment
from pangu_ms.export import kernels
from pangu_ms.export.graph_file import GraphFile
from pangu_ms.export.package import FORMAT_VERSION, MANIFEST, encrypted, file_entries, read_key, sealed
from pangu_ms.export.replay import digest, read_replay
from pangu_ms.export.signature import SIGNATURE, read_signing_key, sign
from pangu_ms.infer.cached_model import CachedModel
from pangu_ms.infer.decoder import Decoder, GraphShape
from pangu_ms.infer.load import STORED, cache_dtype_of, domains_of, load_decoder, load_tokenizer, weights_of
from pangu_ms.infer.packed_model import PackedMatrix
from pangu_ms.models.common.config import ModelConfig

RUNNER_PACKAGES = ("mindspore", "numpy", "tqdm")
"""Python packages that every package needs, besides those of its tokenizer."""
VERIFIED_STEPS = 32
"""Decoding steps that are compared between the checkpoint and the package."""
TOLERANCE = {"float32": 1e-4, "float16": 2e-2, "bfloat16": 2e-1}
"""Largest accepted difference of a logit, by compute dtype. On a CPU the checkpoint runs our own kernels, and the
package runs MindSpore's operators, which round differently."""
ROUNDED_TOLERANCE = 0.5
"""The same for MindSpore's operators with int8 weights or a narrower cache, in standard deviations of the logits: where
two graphs round an activation, a key or a value to different numbers, they go on apart by what rounding itself is wrong
by. A wrong graph is above 4."""
ENCRYPTION_MODE = "AES-GCM"
# All modules that running a package needs. None is model code: `models`, `config`, `train` and `checkpoint` stay out.
RUNNER_MODULES = (
    "ascend_ops/__init__.py",
    "ascend_ops/cache.py",
    "ascend_ops/errors.py",
    "ascend_ops/library.py",
    "ascend_ops/table.py",
    "pangu_ms/__init__.py",
    "pangu_ms/cli/__init__.py",
    "pangu_ms/cli/generate.py",
    "pangu_ms/cli/options.py",
    "pangu_ms/cli/run_mindir.py",
    "pangu_ms/cli/run_pyz.py",
    "pangu_ms/core/__init__.py",
    "pangu_ms/core/callable_package.py",
    "pangu_ms/core/cluster_variables.py",
    "pangu_ms/core/compiled_graph.py",
    "pangu_ms/core/console.py",
    "pangu_ms/core/errors.py",
    "pangu_ms/core/files.py",
    "pangu_ms/core/format_version.py",
    "pangu_ms/core/parser.py",
    "pangu_ms/core/progress.py",
    "pangu_ms/core/protobuf.py",
    "pangu_ms/core/runtime.py",
    "pangu_ms/core/small_json.py",
    "pangu_ms/core/table.py",
    "pangu_ms/data/__init__.py",
    "pangu_ms/data/huggingface.py",
    "pangu_ms/data/huggingface_files.py",
    "pangu_ms/data/segment.py",
    "pangu_ms/data/special_tokens.py",
    "pangu_ms/data/tokenizer.py",
    "pangu_ms/export/__init__.py",
    "pangu_ms/export/graph_file.py",
    "pangu_ms/export/kernels.py",
    "pangu_ms/export/package.py",
    "pangu_ms/export/signature.py",
    "pangu_ms/infer/__init__.py",
    "pangu_ms/infer/answers.py",
    "pangu_ms/infer/beam.py",
    "pangu_ms/infer/continuation.py",
    "pangu_ms/infer/decoder.py",
    "pangu_ms/infer/domains.py",
    "pangu_ms/infer/engine.py",
    "pangu_ms/infer/generate.py",
    "pangu_ms/infer/prefix_cache.py",
    "pangu_ms/infer/questions.py",
    "pangu_ms/infer/sampling.py",
    "pangu_ms/infer/scheduling/__init__.py",
    "pangu_ms/infer/scheduling/continuous.py",
    "pangu_ms/infer/scheduling/length_predictors.py",
    "pangu_ms/infer/scheduling/policies.py",
    "pangu_ms/infer/scheduling/slots.py",
    "pangu_ms/infer/scheduling/state.py",
    "pangu_ms/infer/scheduling/static_batches.py",
)


def export_package(
    checkpoint: Checkpoint,
    output: Path,
    shape: GraphShape,
    key_file: Path | None = None,
    tokenizer: Path | str | None = None,
    config: RunConfig | None = None,
    sign_key: Path | None = None,
    weights: str = "",
    with_kernels: bool = True,
    cache_dtype: str = "",
) -> dict[str, Any]:
    """Write a package atomically, after it was verified in a separate process.

    Args:
        checkpoint: the model to export, and its tokenizer.
        output: directory of the package, which must not exist or be empty.
        shape: the static shapes of the graph: batch size, chunk and cache.
        key_file: AES key to encrypt the graph with.
        tokenizer: path of a tokenizer to use instead of the checkpoint's.
        config: device and compute dtype to use instead of the checkpoint's.
        sign_key: PEM file of a private key to sign the manifest with.
        weights: dtype of packed weights, see infer/packed_model.py; empty: they are not packed.
        with_kernels: whether the package gets our kernels' sources and a graph that calls them, if it is for a CPU.
        cache_dtype: see `cache_dtype_of`.

    Returns:
        The manifest.

    Raises:
        OutputError: `output` has other content, or the disk is full.
        ExportError: the exported graph differs from the checkpoint, or a key cannot be used.
    """
    config = config or checkpoint.config()
    runtime.start(config.runtime.device)
    key, loaded_tokenizer = read_key(key_file), load_tokenizer(checkpoint, tokenizer)
    weights = weights_of(checkpoint, config, weights or checkpoint.quantized or STORED)
    if sign_key:
        read_signing_key(sign_key)  # an unusable key fails here, before the slow export
    cache_dtype = cache_dtype_of(config, cache_dtype)
    if cache_dtype == "bfloat16" and config.runtime.device == "CPU":
        raise ExportError(
            "--cache-dtype bfloat16: MindSpore's own operators, which every package has, cannot write to such a cache"
            " on a CPU; use float16"
        )
    decoder = load_decoder(checkpoint, shape, config, weights or STORED, cache_dtype=cache_dtype)
    assert isinstance(decoder.graph, CachedModel), "load_decoder builds one"
    # The trial runs before the export, which could change the model.
    trial = Trial.run(decoder, config.model.vocab_size)
    cells = [cell for _, cell in decoder.graph.model.cells_and_names() if isinstance(cell, PackedMatrix)]
    packed = {parameter.name: digest(parameter.asnumpy()) for cell in cells for parameter in cell.made()}
    held = {name for cell in cells for name in cell.sources}
    with files.new_directory(output) as directory:
        write_graph(decoder.graph, shape, directory, key, bool(decoder.domains.names))
        if with_kernels and config.runtime.device == "CPU":
            write_kernels(decoder.graph, shape, directory, key, bool(decoder.domains.names))
        loaded_tokenizer.save(directory / "tokenizer")
        write_runner(directory / "run.pyz")
        needed = (*RUNNER_PACKAGES, *loaded_tokenizer.packages)
        files.write_text(
            directory / "requirements.txt", "".join(f"{name}=={metadata.version(name)}\n" for name in needed)
        )
        manifest = _description(checkpoint, config, shape, ENCRYPTION_MODE if key else "", weights)
        manifest |= {"cache_dtype": cache_dtype} if cache_dtype else {}
        manifest["files"] = file_entries(directory)
        files.write_json(directory / MANIFEST, sealed(manifest))  # the verifying process opens the package with it
        rounds = weights == "int8" or cache_dtype != ""
        manifest["verified"] = verify(trial, checkpoint, directory, config.model, key_file, packed, held, rounds)
        files.write_json(directory / MANIFEST, sealed(manifest))
        if sign_key:
            files.write_bytes(directory / SIGNATURE, sign((directory / MANIFEST).read_bytes(), sign_key))
    return manifest


def _description(
    checkpoint: Checkpoint, config: RunConfig, shape: GraphShape, encryption: str, weights: str
) -> dict[str, Any]:
    """The manifest of a package without its files."""
    batch_size, vocab_size, domains = shape.batch_size, config.model.vocab_size, domains_of(config.model)
    description: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "model": config_to_dict(config)["model"],
        "graph": vars(shape),
        "inputs": {
            "ids": ["int32", [batch_size + shape.chunk]],
            "positions": ["int32", [batch_size + shape.chunk]],
            "last": ["int32", [batch_size]],
            "chunk_slot": ["int32", [1]],
            "with_chunk": ["bool", []],
        },
        "outputs": {"logits": ["float32", [batch_size, vocab_size]]},
        "encryption": encryption,
        "target": config.runtime.device,
        "weights": weights,
        "versions": {"pangu_ms": __version__, "mindspore": metadata.version("mindspore")},
        "checkpoint": {
            "step": checkpoint.step,
            "manifest_sha256": files.sha256_file(checkpoint.path / "manifest.json"),
        },
    }
    if domains.names:
        description["inputs"]["domain"] = ["int32", [batch_size]]
        description |= {"domains": list(domains.names), "default_domain": domains.names[domains.index()]}
    return description


def write_graph(
    graph: CachedModel, shape: GraphShape, directory: Path, key: bytes | None, has_domains: bool = False
) -> None:
    """Write model.mindir for the static shapes; above 1 GB MindSpore splits it into a graph and files of weights."""
    encryption = {"enc_key": key, "enc_mode": ENCRYPTION_MODE} if key else {}
    # The file stores the content of the caches. They are set to zero, so that it reveals no earlier prompts.
    for cache in graph.caches():
        cache.set_data(Tensor(np.zeros(cache.shape, cache.asnumpy().dtype)))
    try:
        # PORTABLE: a graph refers to our own kernels by the path of this machine's library.
        with ascend_ops.use(ascend_ops.PORTABLE), plain_name(directory) as plain:
            _export(graph, shape, has_domains, f"{plain}/model", **encryption)
    except RuntimeError as error:
        free = shutil.disk_usage(directory).free
        if free < 64 << 20:  # MindSpore hides the system's error: little free space is the only sign of a full disk
            raise OSError(errno.ENOSPC, "No space left on device", str(directory)) from error
        raise
    for path in directory.rglob("model*"):
        path.chmod(0o755 if path.is_dir() else 0o644)  # MindSpore makes them readable for their owner only


def _export(graph: CachedModel, shape: GraphShape, has_domains: bool, file: str, **options: Any) -> None:
    """`ms.export` with inputs of the graph's shapes."""
    # MindSpore would take what it compiled for an earlier export, perhaps with another backend.
    graph.compile_cache.difference_update([phase for phase in graph.compile_cache if "export.mindir" in phase])
    ids, slots = np.zeros(shape.batch_size + shape.chunk, np.int32), np.zeros(shape.batch_size, np.int32)
    arrays = [ids, ids, slots, np.zeros(1, np.int32), np.bool_(True)] + [slots] * has_domains
    ms.export(graph, *map(Tensor, arrays), file_name=file, file_format="MINDIR", **options)


def write_kernels(
    graph: CachedModel, shape: GraphShape, directory: Path, key: bytes | None, has_domains: bool = False
) -> None:
    """Write the graph that calls our kernels, and their sources; nothing where no operator uses a kernel."""
    if all(choice.backend != "cpu" for choice in ascend_ops.explain().values()):
        return
    models: list[bytes] = []

    def take(model: Any) -> None:  # before MindSpore adds the weights, which are in the other graph
        models.append(model.SerializeToString())
        del model.graph.parameter[:]

    with tempfile.TemporaryDirectory() as scratch, plain_name(Path(scratch)) as plain:
        _export(graph, shape, has_domains, f"{plain}/x", custom_func=take)
    model = kernels.with_library(models[0], str(library.build()), kernels.PLACE)
    assert GraphFile.read(model, kernels.PLACE).kernels, "a graph with our operators calls kernels"
    (directory / kernels.DIRECTORY).mkdir()
    files.write_bytes(directory / kernels.GRAPH, encrypted(model, key, ENCRYPTION_MODE))
    for name, text in library.sources().items():
        files.write_text(directory / kernels.DIRECTORY / name, text)


@contextlib.contextmanager
def plain_name(directory: Path) -> Iterator[str]:
    """Yield another path of a directory that has only characters that MindSpore accepts: `ms.export` takes only
    letters, digits and @ _ - . : / in a path."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)


def write_runner(path: Path) -> None:
    """Pack this package's runner into one executable file."""
    root = Path(pangu_ms.__file__).resolve().parents[1]
    with tempfile.TemporaryDirectory() as staging:
        for module in RUNNER_MODULES:
            target = Path(staging) / module
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(root / module, target)
        (Path(staging) / "__main__.py").write_text(
            "import sys\n\nfrom pangu_ms.cli.run_pyz import entry\n\nsys.exit(entry())\n"
        )
        zipapp.create_archive(staging, path)


@dataclass(frozen=True)
class Trial:
    """Random prompts of different lengths, random tokens for up to VERIFIED_STEPS steps, and the checkpoint's logits
    for them."""

    prompts: list[list[int]]
    domains: np.ndarray
    """Index of the domain of each prompt, int32 [B]; 0 if the model has no domains."""
    tokens: np.ndarray
    """int32 [steps, B]"""
    expected: np.ndarray
    """Logits after the prompts and after each token, float32 [steps + 1, B, V]."""

    @classmethod
    def run(cls, decoder: Decoder, vocab_size: int) -> "Trial":
        """Make the prompts and tokens, and compute the logits.

        Args:
            decoder: runs the checkpoint's model, which must not have been exported yet, since an export could change
                it.
            vocab_size: token ids are drawn below it.

        Raises:
            ExportError: the logits are not finite.
        """
        shape, rng = decoder.shape, np.random.default_rng(0)
        steps = min(VERIFIED_STEPS, shape.max_length - 2)
        # Lengths run from one token to the most that leave room for the steps, so that all chunks are used.
        longest = max(1, shape.max_length - steps)
        lengths = np.linspace(longest, 1, shape.batch_size).astype(int).tolist()
        prompts = [rng.integers(0, vocab_size, n).tolist() for n in lengths]
        tokens = rng.integers(0, vocab_size, (steps, shape.batch_size)).astype(np.int32)
        domains = rng.integers(0, len(decoder.domains.names) or 1, shape.batch_size).astype(np.int32)
        expected = np.stack([decoder.prefill(prompts, domains.tolist())] + [decoder.step(row) for row in tokens])
        if not np.isfinite(expected).all():
            raise ExportError(
                "the checkpoint's logits are not finite; its weights are damaged or overflow in this dtype; use"
                " another, or another compute_dtype"
            )
        return cls(prompts, domains, tokens, expected)


def verify(
    trial: Trial,
    checkpoint: Checkpoint,
    directory: Path,
    model: ModelConfig,
    key_file: Path | None,
    packed: dict[str, str],
    held: Container[str],
    rounds: bool,
) -> dict[str, float]:
    """Compare a package with the checkpoint: each weight, bit for bit, and the logits of the trial. The package runs in
    a separate process.

    Args:
        trial: what the checkpoint computed.
        checkpoint: the weights.
        directory: the package.
        model: its configuration.
        key_file: of an encrypted package.
        packed: digests of the weights that are not as in the checkpoint, by name.
        held: names of the checkpoint's tensors that these hold.
        rounds: whether a step rounds activations, keys or values.

    Raises:
        ExportError: a weight is missing or differs, or the difference of a logit exceeds the tolerance.
    """
    dtypes = {name: spec.dtype for name, spec in model.parameters().items()}
    # A checkpoint may store a narrower dtype than the graph's, such as float16.
    expected = {name: digest(array.astype(dtypes[name])) for name, array in not_rounded(checkpoint) if name not in held}
    expected |= packed
    differences, deviation = {}, float(trial.expected.std())
    for graph, (actual, found) in replay_in_fresh_process(directory, trial, key_file).items():
        wrong = [name for name, value in expected.items() if found.get(name) != value]
        if wrong:
            raise ExportError(
                f"{directory}: the exported graph does not hold the checkpoint's {wrong[0]} ({len(wrong)} such"
                " weights); not exported"
            )
        differences[graph] = float(np.abs(actual - trial.expected).max())
        loose = rounds and graph != kernels.DIRECTORY
        most = ROUNDED_TOLERANCE * deviation if loose else TOLERANCE[model.compute_dtype]
        if not differences[graph] <= most:  # `not <=` instead of `>` also refuses NaN
            raise ExportError(
                f"{directory}: the exported graph's logits differ by {differences[graph]:.3g}; at most {most:.3g} is"
                " right; not exported"
            )
    verified = {
        "steps": len(trial.tokens),
        "weights": len(dtypes),
        "max_difference": differences[""],
        "logit_deviation": deviation,
    }
    if kernels.DIRECTORY in differences:
        verified["max_difference_with_kernels"] = differences[kernels.DIRECTORY]
    return verified


def replay_in_fresh_process(
    directory: Path, trial: Trial, key_file: Path | None
) -> dict[str, tuple[np.ndarray, dict[str, str]]]:
    """Run a trial's tokens in a new process, which gets the package but not the checkpoint.

    Returns:
        For the graph "" and, if the package has one, that with `kernels`: logits as in `Trial.expected`, and the digest
        of each parameter by name.
    """
    with tempfile.TemporaryDirectory() as scratch:
        request, answer = Path(scratch) / "tokens.npz", Path(scratch) / "answer.npz"
        prompts = {f"prompt_{i}": np.array(prompt, np.int32) for i, prompt in enumerate(trial.prompts)}
        np.savez(request, tokens=trial.tokens, domains=trial.domains, **prompts)
        command = python_command(
            "pangu_ms.export.replay", str(directory), str(request), str(answer), str(key_file or "")
        )
        done = subprocess.run(command, env=python_environment(), capture_output=True, text=True, check=False)
        if done.returncode:
            raise ExportError(
                f"{directory}: the exported graph does not run:"
                f" {(done.stderr.strip().splitlines() or ['no message'])[-1]}"
            )
        return read_replay(answer)
