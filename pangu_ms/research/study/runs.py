"""Stages of a study: `pangu` commands, each of which runs once, in a process and a directory of its own. No mindspore
import.

OUTPUT/study.json          which study this is
OUTPUT/STAGE/command.json  what the stage does
OUTPUT/STAGE/log.txt       what its process wrote to stderr; locked while the process lives
OUTPUT/STAGE/result.json   what it printed with --json; exists when the stage is done
"""

import contextlib
import fcntl
import json
import logging
import os
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from pangu_ms.config.schema import RunConfig
from pangu_ms.core import files, small_json
from pangu_ms.core.errors import OutputError, UserError
from pangu_ms.core.exit_codes import EXIT_STOPPED
from pangu_ms.core.isolated import python_command, python_environment
from pangu_ms.core.progress import progress_bar
from pangu_ms.train.stop import StopSignal

_log = logging.getLogger(__name__)
PROGRAM = tuple(python_command("pangu_ms"))
POLL_S = 0.3
"""Seconds between looks at a running stage, in which a stop signal is passed on and the bar is updated."""
_DIGEST = "result_sha256"
SHOWN_ARGUMENTS = 60
"""A command with more arguments is shortened on the terminal; command.json holds all of it."""


class StudyStopped(Exception):
    """A signal ended the study; the same command resumes it."""


@dataclass(frozen=True)
class Stage:
    """One command of a study.

    A command that was killed is run again in the same directory, so it must be able to resume from what it left there,
    as `pangu train --resume` does.
    """

    directory: Path
    """Where command, log and result are written; the command's own outputs belong in it too."""
    argv: tuple[str, ...]
    """The arguments of `pangu`: the verb and the verb's arguments, without --json."""
    identity: Any = None
    """A JSON value with everything that the result depends on besides the arguments, such as the content of a
    configuration file."""
    product: Path | None = None
    """An output that must not exist when the command starts. It is removed before the command runs again, since a
    killed process may have left it."""

    @property
    def name(self) -> str:
        """The last two components of the directory's path."""
        return "/".join(self.directory.parts[-2:])

    def result(self) -> dict[str, Any] | None:
        """What the command printed; None if the stage is not done yet.

        Raises:
            OutputError: the directory belongs to another command.
        """
        begun = _read_json(self.directory / "command.json")
        if begun is None:
            return None  # without command.json it is unknown which command a result.json belongs to
        if begun != self._command():
            rule = "its result would not be this one's; name a new --output, or remove the directory to do it anew"
            raise OutputError(
                f"{self.directory}: was begun by another command or configuration (see command.json in it); {rule}"
            )
        path = self.directory / "result.json"
        result = _read_json(path)
        if not isinstance(result, dict):
            return None
        digest = result.pop(_DIGEST, None)
        if digest not in (None, files.sha256_json(result)):  # None: version 0.1.0 wrote no digest
            raise OutputError(f"{path}: was changed after it was written; remove it to do the stage anew")
        return result

    def finish(self, result: dict[str, Any]) -> None:
        """Write result.json: what the command printed, with its digest."""
        files.write_json(self.directory / "result.json", result | {_DIGEST: files.sha256_json(result)})

    def begin(self) -> None:
        """Write command.json, and remove a product that a killed process left. The other files of that process are
        kept."""
        files.write_json(self.directory / "command.json", self._command())
        if self.product and self.product.is_dir():
            shutil.rmtree(self.product)
        elif self.product:
            self.product.unlink(missing_ok=True)

    def _command(self) -> dict[str, Any]:
        """The content of command.json, after a round trip through JSON, so that tuples have become lists."""
        return json.loads(json.dumps({"words": self.argv, "identity": self.identity}))

    def shown(self) -> str:
        """The command as it is shown to the user."""
        if len(self.argv) <= SHOWN_ARGUMENTS:
            return "$ pangu " + shlex.join(self.argv)
        rest = f"...({len(self.argv) - 4} more words: {self.directory / 'command.json'})"
        return f"$ pangu {shlex.join(self.argv[:4])} {rest}"


def claim(output: Path, study: str) -> None:
    """Make `output` the directory of a study, unless it already is.

    Raises:
        OutputError: `output` has other content, or is the directory of another study.
    """
    path, whole = output / "study.json", {"study": study}
    found = _read_json(path)
    if found is None:
        if not path.exists():
            files.require_free(output)
        files.write_json(path, whole)
    elif found != whole:
        held = (
            f"the study {found['study']!r}"
            if isinstance(found, dict) and "study" in found
            else "a study.json of something else"
        )
        raise OutputError(
            f"{output}: holds {held}, not {study!r}; a study needs a directory of its own; name another --output"
        )


def tokenizer_stage(tokenizer: Path, config: RunConfig, corpus: Sequence[str]) -> Stage:
    """The stage that trains a tokenizer of the model's vocabulary size in a new directory `tokenizer`."""
    shape = "--vocab-size", str(config.model.vocab_size), "--segmenter", config.tokenizer.segmenter
    argv = ("tokenizer", "train", *shape, "--output", str(tokenizer), "--corpus", *corpus)
    return Stage(tokenizer.parent, argv, product=tokenizer)


def records_stage(records: Path, config: RunConfig, corpus: Sequence[str], tokenizer: Path) -> Stage:
    """The stage that prepares records of the model's sequence length in a new directory `records`. The blocks of a
    killed process are kept beside it."""
    shape = "--seq-length", str(config.model.seq_length), "--held-out", str(config.data.held_out)
    argv = ("data", "prepare", "--tokenizer", str(tokenizer), *shape, "--output", str(records), "--corpus", *corpus)
    return Stage(records.parent, argv, product=records)


def run_stages(stages: Sequence[Stage], progress: bool = True) -> list[dict[str, Any]]:
    """Run the stages that are not done yet, one after the other; returns the result of every stage.

    SIGINT and SIGTERM are passed on to the running stage, and the study ends when the stage has ended; a second SIGINT
    kills the stage.

    Args:
        progress: show a bar of stages, and the command and time of each stage.

    Raises:
        OutputError: a stage's directory belongs to another command (found before the first stage starts), or another
            process works in it.
        UserError: a stage failed; the message has the last line of its stderr.
        StudyStopped: a signal ended the study.
    """
    # All results are read first, so that the directory of another command is found before any stage runs.
    found = [stage.result() for stage in stages]
    done = sum(result is not None for result in found)
    # miniters=0 lets the elapsed time advance within a stage. smoothing=0 keeps these updates without progress from
    # spoiling the estimate of the remaining time.
    bar_options: dict[str, Any] = {"total": len(stages), "initial": done, "unit": "stage", "desc": "study"}
    results = []
    with StopSignal() as stop, progress_bar(progress, **bar_options, miniters=0, smoothing=0) as bar:
        for stage, result in zip(stages, found):
            if result is None:
                say = bar.write if progress else _silent
                say(stage.shown())
                began = time.monotonic()
                result = _run(stage, stop, lambda: bar.update(0))
                say(f"{stage.name}: {time.monotonic() - began:.0f} s")
                bar.update()
            results.append(result)
            if stop.received:
                raise StudyStopped(stop.received)
    return results


def _silent(line: str) -> None:
    pass


def _run(stage: Stage, stop: StopSignal, tick: Callable[[], Any]) -> dict[str, Any]:
    """Run one stage to its end; returns what its command printed. See `run_stages` for the errors."""
    with files.writing(stage.directory):
        stage.directory.mkdir(parents=True, exist_ok=True)
        log_path = stage.directory / "log.txt"
        with open(log_path, "ab") as log:
            _lock(log, stage)
            stage.begin()
            before = log.tell()
            code, printed = _execute([*PROGRAM, *stage.argv, "--json"], log, stop, tick)
    if code == 0:
        result = json.loads(printed.splitlines()[-1])
        stage.finish(result)
        return result
    if stop.received or code == EXIT_STOPPED:
        raise StudyStopped(stop.received or f"a signal to {stage.name}")
    lines = log_path.read_bytes()[before:].decode(errors="replace").split("\n")
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"failed with exit code {code}"
    said = next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")
    raise UserError(
        f"{log_path}: `pangu {stage.argv[0]}` {how}: {said}; mend that and run the same command again: stages that are"
        " done are kept"
    )


def _lock(log: IO[bytes], stage: Stage) -> None:
    """Lock a stage's log file.

    The child inherits the lock with its stderr, so the lock is held as long as either process lives. A study that is
    restarted after kill -9 therefore does not run a stage while its orphaned process still runs.
    """
    try:
        fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        rule = "one at a time; wait for it, or end it, then run the same command again"
        raise OutputError(f"{stage.directory}: another process works on this stage; {rule}") from None


def _execute(command: list[str], log: IO[bytes], stop: StopSignal, tick: Callable[[], Any]) -> tuple[int, str]:
    """Run a command; returns its exit code and stdout.

    The child gets a session of its own, so that it receives Ctrl-C only once, passed on from here, and not also from
    the terminal.
    """
    process = subprocess.Popen(
        command,
        env=python_environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
        start_new_session=True,
    )
    passed_on = False
    try:
        while True:
            try:
                printed, _ = process.communicate(timeout=POLL_S)
                return process.returncode, printed
            except subprocess.TimeoutExpired:
                tick()
            if stop.received and not passed_on:
                process.send_signal(signal.Signals[stop.received])
                passed_on = True
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise


def _read_json(path: Path) -> Any:
    """The JSON value of a file; None if there is no file or if a crash has damaged it. The work that it records is then
    done again."""
    try:
        return small_json.parse(small_json.read_bytes(path), finite=False)
    except small_json.Missing:
        return None
    except ValueError as error:
        _log.warning("%s: is damaged (%s), as a crash may leave it; taken as not there", path, error)
        return None
