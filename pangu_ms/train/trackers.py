"""Experiment trackers for a run's metrics in addition to metrics.jsonl: TensorBoard, SwanLab, Weights & Biases. No
mindspore import.

SwanLab and Weights & Biases were tested only with stand-ins for their packages, never with their servers. In both each
session of a run is a separate experiment with the name of the output directory, because neither accepts a step twice,
and a resumed run repeats some steps.
"""

import contextlib
import importlib
import importlib.util
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from pangu_ms.config.load import config_to_dict
from pangu_ms.config.schema import RunConfig
from pangu_ms.core.errors import OutputError

_log = logging.getLogger(__name__)
PROJECT = "pangu-ms"
"""Name of the project that all experiments belong to."""


class Tracker(Protocol):
    """A destination of a run's metrics."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Show values of a step (0 is the first)."""

    def finish(self) -> None:
        """Close the tracker at the end of the session."""


class TensorBoard:
    """Writes event files in OUTPUT/tensorboard with tensorboardX. A resumed run hides older entries from its first step
    on."""

    def __init__(self, output: Path, first_step: int, config: RunConfig):
        writer: Any = importlib.import_module("tensorboardX").SummaryWriter
        self._writer = writer(str(output / "tensorboard"), purge_step=first_step)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """See Tracker."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def finish(self) -> None:
        """See Tracker."""
        self._writer.close()


class SwanLab:
    """An experiment of SwanLab; its files are in OUTPUT/swanlog."""

    def __init__(self, output: Path, first_step: int, config: RunConfig):
        self._swanlab: Any = importlib.import_module("swanlab")
        with _stdout_is_ours():
            self._swanlab.init(
                project=PROJECT,
                experiment_name=output.name,
                config=config_to_dict(config),
                logdir=str(output / "swanlog"),
            )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """See Tracker."""
        self._swanlab.log(dict(values), step=step)

    def finish(self) -> None:
        """See Tracker."""
        with _stdout_is_ours():
            self._swanlab.finish()


class WeightsAndBiases:
    """A run of Weights & Biases; its files are in OUTPUT/wandb."""

    def __init__(self, output: Path, first_step: int, config: RunConfig):
        wandb: Any = importlib.import_module("wandb")
        with _stdout_is_ours():
            self._run = wandb.init(
                project=PROJECT, name=output.name, config=config_to_dict(config), dir=str(output), reinit=True
            )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """See Tracker."""
        self._run.log(dict(values), step=step)

    def finish(self) -> None:
        """See Tracker."""
        with _stdout_is_ours():
            self._run.finish()


def _stdout_is_ours() -> contextlib.AbstractContextManager[Any]:
    """Send what a package prints to stderr, because `--json` promises one line on stdout."""
    return contextlib.redirect_stdout(sys.stderr)


@dataclass(frozen=True)
class _Kind:
    tracker: type[TensorBoard] | type[SwanLab] | type[WeightsAndBiases]
    option: str
    """Command-line option that selects it."""
    package: str
    install: str
    """Argument of `pip install`."""
    directory: str
    """Name of its directory in the run's directory."""


TRACKERS = {
    "tensorboard": _Kind(TensorBoard, "--tensorboard", "tensorboardX", '"pangu-ms[tensorboard]"', "tensorboard"),
    "swanlab": _Kind(SwanLab, "--tracker swanlab", "swanlab", "swanlab", "swanlog"),
    "wandb": _Kind(WeightsAndBiases, "--tracker wandb", "wandb", "wandb", "wandb"),
}
DIRECTORIES = {kind.directory for kind in TRACKERS.values()}
"""Names of the trackers' directories in a run's directory."""


def require_trackers(names: Sequence[str]) -> None:
    """Raise OutputError unless the packages of the trackers are installed."""
    for kind in (TRACKERS[name] for name in names):
        if importlib.util.find_spec(kind.package) is None:
            raise OutputError(f"{kind.option}: {kind.package} is not installed; run: pip install {kind.install}")


class _Expendable:
    """A tracker whose failure does not end the run: it is left out from then on, which one warning says."""

    def __init__(self, option: str, tracker: Tracker):
        self._option, self._tracker = option, tracker
        self._failed = False

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """See Tracker."""
        self._call(lambda: self._tracker.log(step, values))

    def finish(self) -> None:
        """See Tracker."""
        self._call(self._tracker.finish)

    def _call(self, function: Callable[[], None]) -> None:
        if self._failed:
            return
        try:
            function()
        except Exception as error:  # the packages have no common error, and their servers fail in many ways
            self._failed = True
            _log.warning("%s: failed, and gets no more metrics in this session: %s", self._option, error)


def open_trackers(names: Sequence[str], output: Path, first_step: int, config: RunConfig) -> list[Tracker]:
    """The trackers of a session.

    Args:
        names: keys of TRACKERS, whose packages must be installed.
        output: the run's directory.
        first_step: first step of the session.
        config: configuration to show with the metrics.

    Raises:
        OutputError: a tracker cannot begin, for instance since nobody is logged in.
    """
    opened: list[Tracker] = []
    for kind in (TRACKERS[name] for name in names):
        try:
            opened.append(_Expendable(kind.option, kind.tracker(output, first_step, config)))
        except Exception as error:
            raise OutputError(f"{kind.option}: cannot begin: {error}; mend that, or leave the option out") from error
    return opened
