"""What a run directory may hold before a run begins in it. No mindspore import."""

from pathlib import Path

from pangu_ms.config.load import load_config
from pangu_ms.errors import ConfigError, OutputError
from pangu_run import files, job_directory

OWN_DATA = "data"  # records that `pangu train` prepared itself
BEFORE_A_RUN = {OWN_DATA, job_directory.NAME}
OWN_NAMES = BEFORE_A_RUN | {"config.yaml", "metrics.jsonl", "checkpoints", "tensorboard"}


def require_own(output: Path, resume: bool = False) -> None:
    """Raise OutputError unless `output` is new, empty or holds records of its own or a launcher's job; with `resume`, also what a run writes.

    Raises:
        ConfigError: with `resume`, a config.yaml that no run wrote.
    """
    allowed = OWN_NAMES if resume else BEFORE_A_RUN
    if not output.is_dir() or {path.name for path in output.iterdir()} - allowed:
        if not resume and _began_a_run(output):
            raise OutputError(f"{output}: holds a run without a checkpoint; add --resume to begin it again, or name a new --output")
        files.require_free(output)
    if resume and (output / "config.yaml").exists():
        load_config(str(output / "config.yaml"))  # it is about to be replaced: it must be a run's


def _began_a_run(output: Path) -> bool:
    """Whether there is a run that has saved nothing yet, and nothing else: what `--resume` begins again."""
    if not (output / "config.yaml").is_file() or {path.name for path in output.iterdir()} - OWN_NAMES or any(output.glob("checkpoints/*")):
        return False
    try:
        load_config(str(output / "config.yaml"))
    except ConfigError:
        return False
    return True
