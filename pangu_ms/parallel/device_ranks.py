"""The ranks of a job on Ascend devices of any number of hosts. Barriers and broadcasts are all-reduces over all ranks.
Untested on hardware."""

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops

from pangu_ms.core import runtime
from pangu_ms.core.heartbeat import INIT, WAIT, beat
from pangu_ms.core.stop_signals import STOP_SIGNALS
from pangu_ms.parallel.rendezvous import FAILED

MESSAGES = (FAILED, *(number.name for number in STOP_SIGNALS))
"""Messages that a rank can pass to a barrier; if ranks pass several, the first in this order is returned."""
TEXT_BYTES = 4096


class DeviceRanks:
    """This process as one of the ranks of a job, with the interface of `Replicas`. A rank waits for the others for at
    most HCCL_EXEC_TIMEOUT."""

    def __init__(self, rank: int, world: int):
        self.rank, self.world = rank, world
        self._all_reduce = ops.AllReduce()  # it is called outside of graphs, so that no plan shards it

    @classmethod
    def join(cls) -> "DeviceRanks":
        """Connect to the other ranks. The device must have been selected."""
        beat(WAIT)
        ms.communication.init()
        beat(INIT)
        return cls(*runtime.place())

    @property
    def leads(self) -> bool:
        """Whether this is the rank that commits, and writes metrics."""
        return self.rank == 0

    def barrier(self, message: str | None = None) -> str | None:
        """Wait until all ranks have called this; returns the first of MESSAGES that any of them passed, the same on all
        ranks."""
        brought = self._sum([message == known for known in MESSAGES])
        return next((known for known, number in zip(MESSAGES, brought) if number), None)

    def broadcast(self, text: str = "") -> str:
        """Send rank 0's text of at most TEXT_BYTES to all ranks; returns it."""
        own = text.encode() if self.leads else b""  # the other ranks add zeros
        assert len(own) <= TEXT_BYTES, f"{len(own)} bytes"
        return bytes(self._sum([*own, *bytes(TEXT_BYTES - len(own))]).astype(np.uint8)).rstrip(b"\0").decode()

    def _sum(self, values: list[int]) -> np.ndarray:
        """Sum over all ranks, in float32: exact for integers below 2^24."""
        beat(WAIT)
        return self._all_reduce(Tensor(np.array(values, np.float32))).asnumpy()
