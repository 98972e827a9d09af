"""Start MindSpore for this process: quiet, on the configured device, in graph mode. No mindspore import until `start`."""

import atexit
import logging
import os
import sys
import tempfile
import warnings

from pangu_ms.errors import ConfigError
from pangu_run.console import LogFormatter

ERRORS_ONLY = "3"  # GLOG level of MindSpore's C++ log


def quiet(verbose: bool = False) -> None:
    """Keep warnings and logs of Python and MindSpore from the terminal unless `verbose`; call before mindspore is imported."""
    os.environ.setdefault("MS_OM_PATH", os.path.join(tempfile.gettempdir(), "pangu_ms"))  # dumps of failed compilations; else the current directory
    if verbose:
        _log_lines(logging.INFO, "%(name)s: %(message)s")
        return
    os.environ.setdefault("GLOG_v", ERRORS_ONLY)
    warnings.filterwarnings("ignore")
    _log_lines(logging.WARNING, "%(message)s")
    logging.getLogger("ascend_ops").setLevel(logging.INFO)  # the first use builds the CPU kernels, which takes a while


def _log_lines(level: int, form: str) -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(LogFormatter(form))
    logging.basicConfig(level=level, handlers=[handler])


def start(device: str) -> None:
    """Select the device and graph mode.

    Raises:
        ConfigError: MindSpore finds no such device here.
    """
    import mindspore as ms

    try:
        ms.set_device(device, int(os.environ.get("DEVICE_ID", 0)) if device == "Ascend" else None)  # by itself MindSpore takes 0 unless msrun started it
    except (RuntimeError, ValueError) as error:
        advice = "use runtime.device=CPU model.compute_dtype=float32"
        raise ConfigError(f"runtime.device={device}: MindSpore finds no such device on this machine; {advice}") from error
    ms.set_context(mode=ms.GRAPH_MODE)


def place() -> tuple[int, int]:
    """This process's rank and the number of ranks of its job, as whoever started it says: (0, 1) where it stands alone.

    Raises:
        ConfigError: RANK_ID or RANK_SIZE is no number.
    """
    for name in ("RANK_ID", "RANK_SIZE"):
        if not os.environ.get(name, "0").isdecimal():
            raise ConfigError(f"{name}={os.environ[name]!r}: an environment variable that launchers set; must be a whole number; unset or correct it")
    return int(os.environ.get("RANK_ID", 0)), int(os.environ.get("RANK_SIZE", 1))


def join_ranks() -> str:
    """Join the other ranks: afterwards collectives work. Returns a name of the job that no other job of this machine has meanwhile."""
    import mindspore as ms

    if "MS_SCHED_PORT" not in os.environ:
        raise ConfigError("RANK_SIZE: is above 1, but MS_SCHED_PORT is not set; a launcher sets both; unset RANK_SIZE to let `pangu train` start a CPU's ranks")
    ms.communication.init()
    atexit.register(_silence)  # after everything else of ours, before MindSpore's own leave-taking
    return os.environ["MS_SCHED_PORT"]


def _silence() -> None:
    """MindSpore writes lines of its network threads to stderr while the process ends, whatever the log level."""
    sys.stderr.flush()
    with open(os.devnull, "wb") as nothing:
        os.dup2(nothing.fileno(), 2)
