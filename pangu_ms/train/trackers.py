"""Where a run's metrics can be shown beside metrics.jsonl: TensorBoard, SwanLab, Weights & Biases. No mindspore import.

SwanLab and Weights & Biases were exercised against stand-ins of those names alone, never against their servers. Each
session of a run is an experiment of its own there, named as the output directory: neither takes steps again that it has
seen, and a resumed run repeats some.
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
"""Name of the project that experiments belong to."""


class Tracker(Protocol):
    """Takes the metrics of a run."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Show values of a step (0 is the first)."""

    def finish(self) -> None:
        """The session is over."""


class TensorBoard:
    """Event files in OUTPUT/tensorboard, by tensorboardX. A resumed run hides what lies behind its first step."""

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
    """What a package prints goes to stderr: `--json` promises one line on stdout."""
    return contextlib.redirect_stdout(sys.stderr)


@dataclass(frozen=True)
class _Kind:
    tracker: type[TensorBoard] | type[SwanLab] | type[WeightsAndBiases]
    option: str
    """By which a user asks for it."""
    package: str
    install: str
    """What pip installs."""
    directory: str
    """What it writes in the run's directory."""


TRACKERS = {
    "tensorboard": _Kind(TensorBoard, "--tensorboard", "tensorboardX", '"pangu-ms[tensorboard]"', "tensorboard"),
    "swanlab": _Kind(SwanLab, "--tracker swanlab", "swanlab", "swanlab", "swanlog"),
    "wandb": _Kind(WeightsAndBiases, "--tracker wandb", "wandb", "wandb", "wandb"),
}
DIRECTORIES = {kind.directory for kind in TRACKERS.values()}
"""What trackers write in a run's directory."""


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
        names: of TRACKERS, whose packages are installed.
        output: the run's directory.
        first_step: of the session.
        config: shown beside the metrics.

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
