"""Saves one step from all ranks of a plan into one directory, on a file system that they share. No mindspore import.

    ROOT/.step-00000100.ranks.tmp/
        model-rank-00007.safetensors    the slices of rank 7, see sharded.py
        rank-00007.json                 sizes and digests of the files of rank 7; removed before the commit

The ranks wait for each other three times: when rank 0 has made the directory, when all have written their files, and
when rank 0 has added the manifest and committed the step by one rename. A rank that fails reports it to the others at
the next of these points, and nothing is committed. If a rank dies, nothing is committed either; the next save removes
the directory.
"""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pangu_ms.checkpoint import safetensors_file, sharded, step_directory, store
from pangu_ms.checkpoint.safetensors_file import Buffer, Spec
from pangu_ms.checkpoint.sharded import Slices
from pangu_ms.core import files, small_json
from pangu_ms.core.errors import CheckpointError
from pangu_ms.parallel.plan import Plan
from pangu_ms.parallel.rendezvous import FAILED

Agree = Callable[[str | None], str | None]
"""Waits until all ranks have called it. Each passes a message or None; all get the first message that is not None."""


def save_rank(
    root: Path,
    step: int,
    plan: Plan,
    rank: int,
    shapes: dict[str, dict[str, tuple[int, ...]]],
    load: Callable[[str], np.ndarray],
    state: dict[str, Any],
    agree: Agree,
    tokenizer: Path | None = None,
    keep: int = 0,
) -> Path:
    """Write this rank's slices, and commit the step together with all other ranks. Every rank calls this function.

    The result is the same checkpoint that `reshard` would make for the plan; see `store.save` for the rest.

    Args:
        root: directory of the run's checkpoints, the same for all ranks.
        step: optimizer steps done.
        plan: says which slices each rank holds and stores.
        rank: this rank.
        shapes: shapes of the whole tensors by name, for each group.
        load: returns this rank's slice of a tensor, given the tensor's name. It is called once for each tensor that
            this rank stores.
        state, tokenizer, keep: as in `store.save`.
        agree: how the ranks wait for each other.

    Returns:
        The step's directory.

    Raises:
        OutputError: this rank cannot write.
        CheckpointError: another rank cannot write; or the ranks do not share a file system; or `tokenizer` is not a
            directory.
    """
    target, is_leader = store.step_path(root, step), rank == 0
    shared = target.with_name(f".{target.name}.ranks.tmp")
    with contextlib.ExitStack() as new_step:

        def begin() -> None:
            if is_leader:
                new_step.enter_context(store.new_step(root, step, keep, shared)).mkdir()

        def write() -> None:
            with files.writing(target):
                _write_part(shared, plan, rank, shapes, load)

        def finish() -> None:
            if is_leader:
                written = _collect_entries(shared, list(shapes), plan.mesh.world)
                step_directory.write_step(
                    shared,
                    store.description(state, plan.config, tokenizer),
                    step,
                    {g: len(shapes[g]) for g in shapes},
                    written,
                )
                new_step.close()

        for phase in (begin, write, finish):
            _run_together(phase, agree, target)
    return target


def _run_together(phase: Callable[[], None], agree: Agree, target: Path) -> None:
    """Run a phase of the save, then wait until all ranks have run it; raise if any rank failed."""
    try:
        phase()
    except Exception:
        agree(FAILED)
        raise
    if agree(None) == FAILED:
        raise CheckpointError(
            f"{target}: another rank could not write its part; a step is committed by all ranks or not; see that rank's"
            " log, then resume"
        )


def _write_part(
    shared: Path,
    plan: Plan,
    rank: int,
    shapes: dict[str, dict[str, tuple[int, ...]]],
    load: Callable[[str], np.ndarray],
) -> None:
    """Write the files of this rank's slices, and the file with their manifest entries."""
    entries = {}
    for group, tensors in shapes.items():
        if own := dict(sharded.rank_tensors(plan, tensors)).get(rank):
            file = sharded.rank_file(group, rank)
            entries[file] = step_directory.write_file(shared / file, _encoded(plan, own, load))
    files.write_json(_entries_file(shared, rank), entries)


def _encoded(plan: Plan, own: dict[str, Slices], load: Callable[[str], np.ndarray]) -> Iterator[Buffer]:
    """The bytes of a safetensors file with a rank's own slices."""
    dtypes = {name: spec.dtype for name, spec in plan.config.model.parameters().items()}
    specs = {}
    for name, part in own.items():
        dtype = np.dtype(dtypes.get(name, "float32"))  # the optimizer's moments are not parameters; they are float32
        specs[name] = Spec(safetensors_file.require_code(name, dtype), tuple(s.stop - s.start for s in part))

    def checked(name: str) -> np.ndarray:
        array = load(name)
        assert array.shape == specs[name].shape, f"{name}: {array.shape}, not a slice of the plan"
        return array

    return safetensors_file.encode_lazily(specs, checked)


def _entries_file(shared: Path, rank: int) -> Path:
    """The temporary file in which a rank passes its manifest entries to rank 0."""
    return shared / f"rank-{rank:05d}.json"


def _collect_entries(shared: Path, groups: list[str], world: int) -> dict[str, Any]:
    """Read and remove the entries files of all ranks; returns the manifest entries in the order of a manifest."""
    entries: dict[str, Any] = {}
    for rank in range(world):
        path = _entries_file(shared, rank)
        try:
            entries |= small_json.read_object(path)
        except small_json.Missing:
            rule = "the run's directory must lie on a file system that all hosts share"
            raise CheckpointError(
                f"{shared}: rank {rank} has written nothing there; {rule}; name such an --output"
            ) from None
        except ValueError as error:
            rule = "ranks write it whole; mend that disk, then `--resume` goes on from the checkpoint before"
            raise CheckpointError(f"{path}: is damaged ({error}); {rule}") from None
        path.unlink()
    names = (sharded.rank_file(group, rank) for group in groups for rank in range(world))
    return {name: entries[name] for name in names if name in entries}
