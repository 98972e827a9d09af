"""The ranks of a job on Ascend devices, on any number of hosts: barriers and broadcasts by sums over all of them.
Untested on hardware."""

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops

from pangu_ms.core import runtime
from pangu_ms.core.heartbeat import INIT, WAIT, beat
from pangu_ms.core.stop_signals import STOP_SIGNALS
from pangu_ms.parallel.rendezvous import FAILED

MESSAGES = (FAILED, *(number.name for number in STOP_SIGNALS))
"""What ranks can bring to a barrier; of several the first counts."""
TEXT_BYTES = 4096


class DeviceRanks:
    """This process among the ranks of a job, with the interface of `Replicas`. A rank waits for the others as long as
    HCCL_EXEC_TIMEOUT says."""

    def __init__(self, rank: int, world: int):
        self.rank, self.world = rank, world
        self._all_reduce = ops.AllReduce()  # called outside a graph: no plan cuts it

    @classmethod
    def join(cls) -> "DeviceRanks":
        """Find the others; the device has been selected."""
        beat(WAIT)
        ms.communication.init()
        beat(INIT)
        return cls(*runtime.place())

    @property
    def leads(self) -> bool:
        """Whether this is the rank that commits, and writes metrics."""
        return self.rank == 0

    def barrier(self, message: str | None = None) -> str | None:
        """Wait until all ranks are here; returns the first of MESSAGES that any of them brought, the same on all."""
        brought = self._sum([message == known for known in MESSAGES])
        return next((known for known, number in zip(MESSAGES, brought) if number), None)

    def broadcast(self, text: str = "") -> str:
        """Rank 0's text of at most TEXT_BYTES, on all ranks."""
        own = text.encode() if self.leads else b""
        assert len(own) <= TEXT_BYTES, f"{len(own)} bytes"
        return bytes(self._sum([*own, *bytes(TEXT_BYTES - len(own))]).astype(np.uint8)).rstrip(b"\0").decode()

    def _sum(self, values: list[int]) -> np.ndarray:
        """float32, exact: whole numbers below 2^24 on all devices."""
        beat(WAIT)
        return self._all_reduce(Tensor(np.array(values, np.float32))).asnumpy()
