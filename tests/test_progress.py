"""Progress on terminals of any size, and in logs."""

import io
import os
import pty
import struct
import sys
import termios
from fcntl import ioctl

import pytest

from pangu_ms.core import progress


def run(steps=4, **options):
    """A bar from its beginning to its end."""
    with progress.progress_bar(total=steps, desc="train", unit="step", **options) as bar:
        for step in range(steps):
            bar.set_postfix(loss=f"{step}", refresh=False)
            bar.update()


def test_a_log_has_whole_lines(monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    monkeypatch.setattr(progress, "LOG_INTERVAL_S", 0.0)
    run()
    lines = sys.stderr.getvalue().split("\n")
    assert (
        "\r" not in sys.stderr.getvalue() and lines[-1] == "" and all(line.startswith("train: ") for line in lines[:-1])
    )
    assert lines[-2].startswith("train: 100% 4/4 [") and "loss=3" in lines[-2]
    for _ in progress.progress_bar(iterable=iter(range(3)), desc="of unknown length", leave=False):
        pass
    assert "of unknown length: 0% 3/? [" in sys.stderr.getvalue()


def test_a_log_says_nothing_of_what_is_done_at_once(monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    run()
    run(enabled=False)
    assert sys.stderr.getvalue() == ""


@pytest.mark.parametrize("columns, width", [(0, 80), (120, 120)])
def test_a_terminal_of_no_columns_counts_as_80(columns, width, monkeypatch):
    ours, theirs = pty.openpty()
    ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(os.fdopen(theirs, "wb"), encoding="utf-8"))
    run()
    sys.stderr.flush()
    drawn = ""
    while not drawn.endswith("\n"):  # a busy machine hands over one piece after another
        drawn += os.read(ours, 1 << 16).decode()
    monkeypatch.undo()
    os.close(ours)
    last = drawn.rstrip("\r\n").split("\r")[-1]
    assert last.startswith("train: 100%|\u2588") and "| 4/4 [" in last and width - 4 <= len(last) <= width
