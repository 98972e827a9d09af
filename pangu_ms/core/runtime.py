"""Start MindSpore for this process: quiet, on the configured device, in graph mode. No mindspore import until
`start`."""

import atexit
import logging
import os
import sys
import tempfile
import warnings

from pangu_ms.core.cluster_variables import unset_command
from pangu_ms.core.console import LogFormatter
from pangu_ms.core.errors import ConfigError

ERRORS_ONLY = "3"  # GLOG level of MindSpore's C++ log


def quiet(verbose: bool = False) -> None:
    """Keep warnings and logs of Python and MindSpore from the terminal unless `verbose`; call before mindspore is
    imported."""
    # Where MindSpore dumps failed compilations; by default this is the current directory.
    os.environ.setdefault("MS_OM_PATH", os.path.join(tempfile.gettempdir(), "pangu_ms"))
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
    """Select the device and graph mode. Where MindSpore already computes on that device, only graph mode is set.

    Raises:
        ConfigError: MindSpore finds no such device here, or has computed on another one; or DEVICE_ID is not a number.
    """
    import mindspore as ms

    # MindSpore itself would take device 0 unless msrun started the process.
    number = _whole_number("DEVICE_ID", 0) if device == "Ascend" else None
    present = ms.get_context("device_target")
    try:
        ms.set_device(device, number)
    except (RuntimeError, ValueError) as error:
        # The same classes of errors are raised if there is no such device; only their text tells the two apart.
        if not any(words in str(error) for words in ("has been initialized", "can not be modified")):
            advice = "use runtime.device=CPU model.compute_dtype=float32"
            raise ConfigError(
                f"runtime.device={device}: MindSpore finds no such device on this machine; {advice}"
            ) from error
        if present != device or number not in (None, ms.get_context("device_id")):
            where = device if number is None else f"{device} (DEVICE_ID={number})"
            raise ConfigError(
                f"runtime.device={where}: MindSpore has computed on another device of type {present}; a process keeps"
                " its own; start a new one"
            ) from error
    ms.set_context(mode=ms.GRAPH_MODE)


def use_threads(number: int) -> None:
    """Let MindSpore's CPU operators and our kernels compute on at most this many threads; 0 leaves both as they are.
    Call before anything is computed in this process."""
    if number:
        import mindspore as ms

        # More than there are processors would wait for each other: thousands of them compute nothing for minutes.
        number = min(number, len(os.sched_getaffinity(0)))
        os.environ["ASCEND_OPS_NUM_THREADS"] = str(number)
        # The threads within an operator, and those that run operators side by side.
        ms.set_context(runtime_num_threads=number, inter_op_parallel_num=number)


def _whole_number(name: str, default: int) -> int:
    """The value of an environment variable that a launcher sets."""
    value = os.environ.get(name, str(default))
    if not value.isdecimal():
        raise ConfigError(
            f"{name}={value!r}: an environment variable that launchers set; must be a whole number; run `unset {name}`"
        )
    return int(value)


def place() -> tuple[int, int]:
    """This process's rank and the number of ranks of its job, from the launcher's environment variables; (0, 1) without
    a launcher.

    Raises:
        ConfigError: RANK_ID or RANK_SIZE is no number, or the rank is not below their number.
    """
    rank, world = _whole_number("RANK_ID", 0), _whole_number("RANK_SIZE", 1)
    if rank >= world:
        size = os.environ.get("RANK_SIZE", "not set")
        raise ConfigError(
            f"RANK_ID={rank}: RANK_SIZE is {size}, and ranks begin at 0; a launcher sets both; where none did, run"
            f" `{unset_command()}`"
        )
    return rank, world


def require_replicas(wanted: int) -> None:
    """Raise ConfigError unless this job of CPU processes has as many processes as there are replicas."""
    if (world := place()[1]) != wanted:
        advice = (
            f"where no launcher started it, run `{unset_command()}`, and `pangu train` starts a CPU's ranks by itself"
        )
        raise ConfigError(
            f"parallel.data_parallel={wanted}: this job has {world} process(es) (RANK_SIZE); must be equal; {advice}"
        )


def join_ranks() -> str:
    """Connect to the other ranks, so that collectives work. Returns a name of the job that no other job on this machine
    has at the same time."""
    import mindspore as ms

    if "MS_SCHED_PORT" not in os.environ:
        rule = "is above 1, but MS_SCHED_PORT is not set; a launcher sets both"
        raise ConfigError(
            f"RANK_SIZE: {rule}; run `{unset_command()}`, and `pangu train` starts a CPU's ranks by itself"
        )
    ms.communication.init()
    atexit.register(_silence)  # runs after our other exit handlers and before MindSpore's
    # This job's scheduler listens on the port, so no other job on this machine has it.
    return os.environ["MS_SCHED_PORT"]


def _silence() -> None:
    """Discard stderr: MindSpore's network threads write to it while the process ends, whatever the log level."""
    # What this program itself has written must still come out.
    sys.stderr.flush()
    with open(os.devnull, "wb") as nothing:
        os.dup2(nothing.fileno(), 2)
