"""The program that knows the runs, without a process of its own."""

import contextlib
import io
import subprocess
import sys
from types import SimpleNamespace

import pytest

from pangu_ms.cli import train_describe
from pangu_ms.core.console import guarded
from pangu_run import program


@pytest.fixture
def answering(monkeypatch):
    """The program that the launcher asks answers in this process: a child each time would import mindspore to read
    records."""

    def run(command, stderr=None, capture_output=False, **options):
        words = command[command.index(program.MODULE) + 1 :]
        out, err = io.StringIO(), io.StringIO() if capture_output else sys.stderr
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                code = guarded("pangu train", lambda: train_describe.main(words))
            except SystemExit as refused:
                code = refused.code
        return subprocess.CompletedProcess(command, code, out.getvalue(), capture_output and err.getvalue())

    monkeypatch.setattr(program, "subprocess", SimpleNamespace(run=run, PIPE=subprocess.PIPE))
