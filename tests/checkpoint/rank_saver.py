"""Child of test_save_ranks.py: the ranks of a plan as processes, each of which saves its slices of the tensors of
reshard_common; no mindspore.

argv: ROOT, STEP, then "RANK:WHAT:N" of what happens to a rank when it is to give its Nth tensor: killed, or full (of
its disk). Each rank's words go to ROOT/../words-RANK; the exit code is 0 when all ranks ended well.
"""

import errno
import os
import signal
import sys
import traceback
from pathlib import Path

from pangu_ms.checkpoint.save_ranks import save_rank
from pangu_ms.config.schema import RunConfig
from pangu_ms.core.errors import UserError
from pangu_ms.parallel.plan import Plan
from pangu_ms.parallel.rendezvous import Rendezvous
from tests.checkpoint.reshard_common import ALPHA, planned, rank_slice, whole_arrays

PLAN = (2, 2, 2, 1, 1, 1, 3)  # 8 ranks, cut by the optimizer and by rows
STATE = {"step": 5, "words": "whole \u9e4f"}


def config():
    """Of the saved run."""
    return planned(ALPHA, PLAN)


def groups(of: RunConfig | None = None) -> dict:
    """What a run saves, this one or another: float32 parameters and moments."""
    model, optimizer = (group for group in whole_arrays(of or config()).values())
    kept = {"model": model, "optimizer": {name: array for name, array in optimizer.items() if name.startswith("adam_")}}
    return {
        group: {name: array.astype("float32") for name, array in tensors.items()} for group, tensors in kept.items()
    }


def save(root: Path, step: int, rank: int, arrays: dict, plan: Plan, mishaps: dict[int, tuple[str, int]]) -> None:
    """Be one rank; slices are cut by other code than the program's own."""
    meeting, given = Rendezvous(f"{os.getppid()}-{root}", rank, 8), 0
    shapes = {group: {name: array.shape for name, array in tensors.items()} for group, tensors in arrays.items()}
    everything = {name: array for tensors in arrays.values() for name, array in tensors.items()}

    def load(name: str):
        nonlocal given
        what, at = mishaps.get(rank, ("", -1))
        given += 1
        if given == at and what == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if given == at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return rank_slice(PLAN, name, everything[name], rank)[0]

    save_rank(
        root,
        step,
        plan,
        rank,
        shapes,
        load,
        STATE,
        lambda word: meeting.barrier(word or "") or None,
        keep=2,
    )


def main() -> int:
    root, step = Path(sys.argv[1]), int(sys.argv[2])
    mishaps = {int(rank): (what, int(at)) for rank, what, at in (text.split(":") for text in sys.argv[3:])}
    arrays, plan = groups(), Plan.of(config())  # once, before there are eight of them
    children = []
    for rank in range(8):
        if child := os.fork():
            children.append(child)
            continue
        try:
            save(root, step, rank, arrays, plan, mishaps)
            os._exit(0)
        except (UserError, SystemExit) as error:
            (root.parent / f"words-{rank}").write_text(f"{type(error).__name__}: {error}")
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(1)
    statuses = [os.waitpid(child, 0)[1] for child in children]  # a list: all are waited for, failed or not
    return int(any(statuses))


if __name__ == "__main__":
    sys.exit(main())
