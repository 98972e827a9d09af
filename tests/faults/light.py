"""A rank without MindSpore: it meets the others, beats, hears signals, saves and resumes as `pangu train` does, in a
fraction of a second.

    python -m tests.faults.light OUTPUT STEPS [--resume]

What it computes is a list of numbers, each from the one before and a sum over all ranks. A checkpoint,
OUTPUT/step_NNNNNN.json, has all of them. Variables: LIGHT_NAME (the job's, alone on its machine), LIGHT_PAUSE (seconds
a step).
"""

import argparse
import json
import math
import os
import resource
import sys
import time
from pathlib import Path

from pangu_ms.core import files, stop_signals
from pangu_ms.core.exit_codes import EXIT_STOPPED
from pangu_ms.core.heartbeat import DATA, INIT, SAVE, STEP, WAIT, beat
from pangu_ms.parallel.rendezvous import Rendezvous
from pangu_ms.train.stop import StopSignal

SAVE_EVERY = 3


def own_part(rank, step):
    """What a rank adds in a step."""
    return math.sin(1.0 + 3 * step + rank)


def advance(value, parts):
    """The next number; the order of the parts does not matter."""
    return math.fmod(1.1 * value + math.fsum(parts), 10.0)


def expected(world, steps):
    """The numbers of an uninterrupted run."""
    values = []
    for step in range(steps):
        values.append(advance(values[-1] if values else 0.0, [own_part(rank, step) for rank in range(world)]))
    return values


def checkpoints(output):
    """All checkpoints: step -> numbers."""
    return {int(path.stem[5:]): json.loads(path.read_text()) for path in sorted(Path(output).glob("step_*.json"))}


class Light:
    """One rank of a run."""

    def __init__(self, output, steps, resume):
        self.output, self.steps = output, steps
        self.rank, self.world = int(os.environ["RANK_ID"]), int(os.environ["RANK_SIZE"])
        beat(WAIT)
        self.meeting = Rendezvous(os.environ["LIGHT_NAME"], self.rank, self.world)
        beat(INIT)
        found = checkpoints(output)
        if found and not resume:
            raise SystemExit("has a run already")
        self.saved = max(found, default=None)
        self.values = found[self.saved] if found else []

    def total(self, own):
        """The parts of all ranks."""
        return [
            float.fromhex(self.meeting.barrier(own.hex() if rank == self.rank else "")) for rank in range(self.world)
        ]

    def one_step(self):
        """Read, compute, meet."""
        step = len(self.values)
        beat(DATA, step)
        own = own_part(self.rank, step)
        beat(STEP, step)
        time.sleep(float(os.environ["LIGHT_PAUSE"]))
        parts = self.total(own)
        beat(STEP, step)
        self.values.append(advance(self.values[-1] if step else 0.0, parts))

    def save(self):
        """Commit a checkpoint; every rank calls it."""
        self.saved = len(self.values)
        beat(SAVE, self.saved)
        if self.rank == 0:
            files.write_json(self.output / f"step_{self.saved:06d}.json", self.values)
            beat(SAVE, self.saved, saved=self.saved)

    def run(self, stop):
        """Returns the exit code."""
        stopped = self.meeting.barrier(stop.received or "")
        while len(self.values) < self.steps and not stopped:
            self.one_step()
            stopped = self.meeting.barrier(stop.received or "")
            if len(self.values) % SAVE_EVERY == 0:
                self.save()
        if self.saved != len(self.values):
            self.save()
        self.meeting.barrier()
        return EXIT_STOPPED if stopped else 0


if __name__ == "__main__":
    resource.setrlimit(
        resource.RLIMIT_FSIZE, (resource.getrlimit(resource.RLIMIT_FSIZE)[1],) * 2
    )  # the launcher's disk may be full: not this one's
    parser = argparse.ArgumentParser()
    parser.add_argument("output", type=Path)
    parser.add_argument("steps", type=int)
    parser.add_argument("--resume", action="store_true")
    args = parser.parse_args()
    with stop_signals.command(stops=True):
        with StopSignal() as stop:
            beat(INIT)
            code = Light(args.output, args.steps, args.resume).run(stop)
    sys.exit(code)
