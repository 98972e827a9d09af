"""Start MindSpore for this process: quiet, on the configured device, in graph mode. No mindspore import until `start`."""

import logging
import os
import warnings

ERRORS_ONLY = "3"  # GLOG level of MindSpore's C++ log


def quiet(verbose: bool = False) -> None:
    """Keep warnings and logs of Python and MindSpore from the terminal unless `verbose`; call before mindspore is imported."""
    if verbose:
        logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
        return
    os.environ.setdefault("GLOG_v", ERRORS_ONLY)
    warnings.filterwarnings("ignore")
    logging.basicConfig(level=logging.WARNING, format="%(message)s")


def start(device: str) -> None:
    """Select the device and graph mode."""
    import mindspore as ms

    ms.set_device(device)
    ms.set_context(mode=ms.GRAPH_MODE)
