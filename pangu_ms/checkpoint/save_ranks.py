"""One step saved by all ranks of a plan, each its own slices, into a directory on a file system that they share. No
mindspore import.

    ROOT/.step-00000100.ranks.tmp/model-rank-00007.safetensors      written by rank 7, see sharded.py
                                  rank-00007.json                   sizes and digests of its files; removed before the
                                  commit

The ranks meet three times: when rank 0 has made the directory, when all have written their files, and when rank 0 has
added the manifest and committed by one rename. Whoever fails tells the others there; where a rank dies nothing is
committed, and the next save removes what it left.
"""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pangu_ms.checkpoint import safetensors_file, sharded, step_files, store
from pangu_ms.checkpoint.safetensors_file import Spec
from pangu_ms.checkpoint.sharded import Slices
from pangu_ms.core import files, small_json
from pangu_ms.core.errors import CheckpointError
from pangu_ms.parallel.plan import Plan
from pangu_ms.parallel.rendezvous import FAILED

Agree = Callable[[str | None], str | None]
"""Waits until all ranks are there; returns the first word that any of them brought, the same on all."""


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
    """This rank's part of committing one step; every rank calls it. The result is what `reshard` makes for the plan;
    see `store.save` for the rest.

    Args:
        root: directory of the run's checkpoints, the same for all ranks.
        shapes: of the whole tensors by name, for each group.
        load: slice that this rank holds of a tensor; called for those that it stores, one after the other.
        agree: the meeting of the ranks.

    Returns:
        The step's directory.

    Raises:
        OutputError: this rank cannot write.
        CheckpointError: another rank could not; or the ranks do not share a file system; or `tokenizer` is not a
            directory.
    """
    target, leads = store.step_path(root, step), rank == 0
    shared = target.with_name(f".{target.name}.ranks.tmp")
    with contextlib.ExitStack() as new_step:

        def begin() -> None:
            if leads:
                new_step.enter_context(store.new_step(root, step, keep, shared)).mkdir()

        def write() -> None:
            with files.writing(target):
                _write_part(shared, plan, rank, shapes, load)

        def finish() -> None:
            if leads:
                written = _taken(shared, list(shapes), plan.mesh.world)
                step_files.write_step(
                    shared,
                    store.description(state, plan.config, tokenizer),
                    step,
                    {g: len(shapes[g]) for g in shapes},
                    written,
                )
                new_step.close()

        for part in (begin, write, finish):
            _together(part, agree, target)
    return target


def _together(part: Callable[[], None], agree: Agree, target: Path) -> None:
    try:
        part()
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
    entries = {}
    for group, tensors in shapes.items():
        if own := dict(sharded.rank_tensors(plan, tensors)).get(rank):
            file = sharded.rank_file(group, rank)
            entries[file] = step_files.write_file(shared / file, _encoded(plan, own, load))
    files.write_json(_note(shared, rank), entries)


def _encoded(plan: Plan, own: dict[str, Slices], load: Callable[[str], np.ndarray]) -> Iterator[Any]:
    dtypes = {
        name: spec.dtype for name, spec in plan.config.model.parameters().items()
    }  # moments, which are not in it, are float32
    codes = {name: safetensors_file.code_of(np.dtype(dtypes.get(name, "float32"))) for name in own}
    specs = {name: Spec(codes[name], tuple(s.stop - s.start for s in part)) for name, part in own.items()}

    def checked(name: str) -> np.ndarray:
        array = load(name)
        assert array.shape == specs[name].shape, f"{name}: {array.shape}, not a slice of the plan"
        return array

    return safetensors_file.encode_lazily(specs, checked)


def _note(shared: Path, rank: int) -> Path:
    return shared / f"rank-{rank:05d}.json"


def _taken(shared: Path, groups: list[str], world: int) -> dict[str, Any]:
    """What the ranks noted, the notes removed: their files in the order of a manifest."""
    noted = {}
    for rank in range(world):
        note = _note(shared, rank)
        try:
            noted |= small_json.read_object(note)
        except small_json.Missing:
            rule = "the run's directory must lie on a file system that all hosts share"
            raise CheckpointError(
                f"{shared}: rank {rank} has written nothing there; {rule}; name such an --output"
            ) from None
        except ValueError as error:
            rule = "ranks write it whole; mend that disk, then `--resume` goes on from the checkpoint before"
            raise CheckpointError(f"{note}: is damaged ({error}); {rule}") from None
        note.unlink()
    names = (sharded.rank_file(group, rank) for group in groups for rank in range(world))
    return {name: noted[name] for name in names if name in noted}
