"""Hardware data for the memory and time models: published figures, a fitted efficiency, and assumptions. No mindspore
import.

Nothing here was measured by this project, which had no Ascend device.
"""

import functools
import re
from dataclasses import dataclass

from pangu_ms.core.errors import PlanError
from pangu_ms.parallel.mesh import Mesh

GIB = 1 << 30
UNITS = {"GiB": GIB, "MiB": 1 << 20, "GB": 10**9, "MB": 10**6, "": GIB}


@dataclass(frozen=True)
class Chip:
    """One accelerator card and its links. Rates are published peak rates, which no program reaches."""

    name: str
    hbm_bytes: int
    peak_flops: float
    """Floating-point operations per second for any of `dtypes`; a multiply-add counts as two."""
    dtypes: tuple[str, ...]
    """The compute dtypes in which its matrix unit reaches that rate."""
    hbm_bandwidth: float
    """Bytes per second."""
    hccs_bandwidth: float
    """Bytes per second that a card sends to the others of its server."""
    roce_bandwidth: float
    """Bytes per second that a card sends to other servers."""
    flash_attention: bool
    """Whether MindSpore documents flash_attention_score for it; otherwise attention writes its probabilities to
    memory."""
    achievable: float
    """Share of the peak that matrix products and everything between them reach together; see `fitted`."""
    fitted: str
    """The data that `achievable` was fitted on."""
    source: str
    """Source of the published figures."""
    overlap: float = 0.5
    """Share of the communication of gradients, gathered parameters and stages that is hidden behind compute.
    Assumed."""
    message_seconds: float = 20e-6
    """Seconds that a message between two cards costs in addition to its bytes. Assumed."""
    reserve_bytes: int = 2 * GIB
    """Memory for the runtime, streams, kernels and fragmentation. Assumed, since MindSpore 1.x gave programs 30 GB of
    the 910's 32."""


FITTED = (
    "alpha 2.6B at 4075 tokens/s per card on Ascend 910 (spec A9.1), taken as dp 8, mp 1, optimizer_shard, full"
    " recompute"
)
CHIPS = {
    "ascend910": Chip(
        name="ascend910",
        hbm_bytes=32 * GIB,
        peak_flops=256e12,  # the 910A's variants are also quoted with 280 and 320
        dtypes=("float16",),
        hbm_bandwidth=1.2e12,
        hccs_bandwidth=90e9,
        roce_bandwidth=12.5e9,
        flash_attention=False,
        achievable=0.359,
        fitted=FITTED,
        source=(
            "Huawei at Hot Chips 31 (2019): 256 TFLOPS fp16, HBM 1.2 TB/s, three HCCS ports of 240 Gb/s; Atlas 800: 8"
            " cards, 100 Gb/s RoCE each"
        ),
    ),
    "ascend910b": Chip(
        name="ascend910b",
        hbm_bytes=64 * GIB,
        peak_flops=313e12,
        dtypes=("float16", "bfloat16"),
        hbm_bandwidth=1.6e12,
        hccs_bandwidth=196e9,
        roce_bandwidth=25e9,
        flash_attention=True,
        achievable=0.359,
        fitted="nothing: the 910's share",
        source=(
            "third parties on the 910B3 in Atlas 800T A2: 313 TFLOPS fp16, HBM 1.6 TB/s, HCCS 392 GB/s both ways"
            " together, 200 Gb/s RoCE"
        ),
    ),
}

DEFAULT_CHIP = "ascend910"
"""The chip that is assumed if neither the command nor runtime.chip names one."""


def require_dtype(chip: Chip, dtype: str) -> None:
    """Check that the chip's peak rate holds for this compute dtype.

    Raises:
        PlanError: it does not.
    """
    if dtype not in chip.dtypes:
        rate = f"{chip.name} has its published rate in {' and '.join(chip.dtypes)}"
        others = [name for name, other in CHIPS.items() if dtype in other.dtypes]
        or_chip = f", or name a chip that has it: --chip {others[0]} (runtime.chip)" if others else ""
        raise PlanError(f"model.compute_dtype={dtype}: {rate}; set model.compute_dtype={chip.dtypes[0]}{or_chip}")


def parse_bytes(option: str, text: str) -> int:
    """Bytes of a size such as "32GiB", "64GB" or "32" (GiB).

    Raises:
        PlanError: something else.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", text)
    size = float(match[1]) * UNITS.get(match[2], 0) if match else 0
    if size < 1:
        raise PlanError(
            f"{option} {text}: must be a positive size in {', '.join(unit for unit in UNITS if unit)}; for example"
            " 32GiB"
        )
    return int(size)


# Cached: a search asks for the same groups of the same meshes again and again.
@functools.lru_cache(maxsize=4096)
def servers(mesh: Mesh, axes: tuple[str, ...]) -> int:
    """Servers that rank 0's group along these axes spans; `("stage",)` is a stage and the next one."""
    return mesh.servers([0, mesh.stage_size] if axes == ("stage",) else mesh.group(0, *axes))


def bandwidth(chip: Chip, mesh: Mesh, axes: tuple[str, ...]) -> tuple[float, str]:
    """(bytes per second, name) of the slowest link in a group along these axes."""
    return link(chip, servers(mesh, axes))


def link(chip: Chip, num_servers: int) -> tuple[float, str]:
    """(bytes per second, name) of the slowest link among devices in that many servers."""
    return (chip.hccs_bandwidth, "HCCS") if num_servers == 1 else (chip.roce_bandwidth, "RoCE")
