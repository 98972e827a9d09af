"""Start MindSpore for this process: quiet, on the configured device, in graph mode. No mindspore import until `start`."""

import logging
import os
import tempfile
import warnings

from pangu_ms.errors import ConfigError

ERRORS_ONLY = "3"  # GLOG level of MindSpore's C++ log


def quiet(verbose: bool = False) -> None:
    """Keep warnings and logs of Python and MindSpore from the terminal unless `verbose`; call before mindspore is imported."""
    os.environ.setdefault("MS_OM_PATH", os.path.join(tempfile.gettempdir(), "pangu_ms"))  # dumps of failed compilations; else the current directory
    if verbose:
        logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
        return
    os.environ.setdefault("GLOG_v", ERRORS_ONLY)
    warnings.filterwarnings("ignore")
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("ascend_ops").setLevel(logging.INFO)  # the first use builds the CPU kernels, which takes a while


def start(device: str) -> None:
    """Select the device and graph mode.

    Raises:
        ConfigError: MindSpore finds no such device here.
    """
    import mindspore as ms

    try:
        ms.set_device(device)
    except (RuntimeError, ValueError) as error:
        advice = "use runtime.device=CPU model.compute_dtype=float32"
        raise ConfigError(f"runtime.device={device}: MindSpore finds no such device on this machine; {advice}") from error
    ms.set_context(mode=ms.GRAPH_MODE)
