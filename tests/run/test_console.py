"""What files, peers and models say cannot steer a terminal."""

import io
import json
import os
import pty
import subprocess
import sys
import time

import pytest

from pangu_ms.cli.main import main
from pangu_ms.core import console
from pangu_ms.core.console import TerminalText, guard_streams, printable, raw
from pangu_ms.core.errors import UserError
from pangu_ms.core.parser import Parser
from pangu_run.job_directory import JobDirectory
from pangu_run.supervisor.terminal import Terminal

STEERS = "\u009b31m\u202e\u2066\x1b[2J\x1b]0;title\x07\x85\x7f\u2028\ufeff\U000e0041"
"""C1 and C0 controls, bidirectional override and isolate, a title, line ends of Unicode, characters without a width."""


def is_harmless(text, keep="\n\t"):
    """Whether a terminal does nothing but show it."""
    return all(character.isprintable() or character in keep for character in text)


def on_terminal(monkeypatch, write):
    """What reaches a terminal when `write` prints to stdout and stderr."""
    ours, theirs = pty.openpty()
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(
            sys, name, io.TextIOWrapper(os.fdopen(os.dup(theirs), "wb"), encoding="utf-8", line_buffering=True)
        )
    os.close(theirs)
    guard_streams()
    write()
    sys.stdout.flush()
    shown = os.read(ours, 1 << 16).decode()
    monkeypatch.undo()
    os.close(ours)
    return shown


def test_what_steers_is_shown_as_json_shows_it_and_the_rest_stays():
    assert printable("a\u009bb\u202ec\x1bd\n\te\r") == "a\\u009bb\\u202ec\\u001bd\n\te\\r"
    assert printable("a\nb", keep="") == "a\\nb"
    for text in (
        "\u76d8\u53e4\u3000\u03b1",
        "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",
        "\U0001f469\u200d\U0001f4bb",
        "e\u0301",
        "\xa0",
        "\ue000",
        "\\u009b",
    ):
        assert printable(text) == text
    assert is_harmless(printable(STEERS + "\ud800"))
    assert json.loads(printable(json.dumps({STEERS: "\n"}, ensure_ascii=False))) == {
        STEERS: "\n"
    }  # JSON stays the same JSON


@pytest.mark.parametrize(
    "error", [UserError(f"{STEERS}: is wrong\nTraceback"), FileNotFoundError(2, "No such file", STEERS)]
)
def test_a_message_is_one_line(error, capsys):
    def command():
        raise error

    assert console.guarded("pangu x", command) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and is_harmless(said) and "\\u009b31m\\u202e" in said


def test_too_little_memory_is_one_line(capsys):
    def command():
        raise MemoryError("Unable to allocate 256. GiB")

    assert console.guarded("pangu train", command) == console.USER_ERROR
    said = "pangu train: too little memory (Unable to allocate 256. GiB); use a smaller model or a smaller batch\n"
    assert capsys.readouterr().err == said


def test_words_of_the_command_line_are_shown(capsys):
    assert main([STEERS]) == 2
    parser = Parser(prog="pangu x")
    parser.add_argument("--kind", choices=("a", "b"))
    for words in (["--kind", STEERS + "\n"], ["--" + STEERS], [STEERS]):
        with pytest.raises(SystemExit):
            parser.parse_args(words)
    said = capsys.readouterr().err
    assert said.count("\n") == 4 and is_harmless(said)


@pytest.fixture
def job(tmp_path):
    """The directory of a job whose texts steer, in a form that is read."""
    directory = JobDirectory(tmp_path / "job")
    directory.write_job({"id": STEERS, "world": 1, "time": time.time()})
    failure = {
        "kind": "exit",
        "summary": STEERS,
        "rank": 0,
        "host": STEERS,
        "code": 1,
        "step": 3,
        "phase": STEERS,
        "log": STEERS,
        "words": [STEERS],
    }
    directory.write_event("failure", 0, **failure)
    rank = {
        "rank": 0,
        "host": STEERS,
        "device": 0,
        "pid": 1,
        "state": "ended",
        "phase": STEERS,
        "step": 1,
        "tokens_per_second": None,
        "exit_code": 1,
    }
    directory.write_status(
        {"time": time.time(), "attempt": 0, "state": "ended", "exit_code": 1, "ranks": [rank | {"beat": time.time()}]}
    )
    log = directory.rank_log(0)
    log.parent.mkdir(parents=True)
    log.write_text(f"begin {STEERS}\nRuntimeError: {STEERS} EI0006\n")
    return directory


@pytest.mark.parametrize(
    "words", [["status"], ["logs"], ["logs", "--errors"], ["logs", "--errors", "--json"], ["status", "--json"]]
)
def test_reports_of_a_job_that_steers(words, job, capsys, monkeypatch):
    def report():
        main([*words, str(job.path)])

    assert is_harmless(on_terminal(monkeypatch, report).replace("\r\n", "\n"))
    report()
    printed = "".join(capsys.readouterr())
    assert "u202e" in printed or "--json" in words
    assert is_harmless(printed) or "--json" in words  # JSON in a pipe is for programs


def test_rank_table_that_steers(tmp_path, capsys):
    path = tmp_path / f"table{STEERS.replace('/', '')}.json"
    path.write_text(
        json.dumps({STEERS: STEERS, "status": STEERS, "server_list": [{"server_id": STEERS, "device": []}]})
    )
    for action in ("check", "show"):
        assert main(["ranktable", action, str(path)]) == 2
    printed = "".join(capsys.readouterr())
    assert "u202e" in printed and is_harmless(printed)


def test_a_terminal_shows_text_of_a_model_and_a_pipe_gets_every_byte(monkeypatch, capfdbinary):
    assert is_harmless(on_terminal(monkeypatch, lambda: print(STEERS, end="\n", flush=True)).replace("\r\n", "\n"))
    stream = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    monkeypatch.setattr(sys, "stdout", stream)
    guard_streams()
    assert sys.stdout is stream and not isinstance(stream, TerminalText)
    print(STEERS, end="", flush=True)
    assert stream.buffer.getvalue().decode() == STEERS


def test_a_program_has_its_own_control_sequences(monkeypatch):
    assert (
        on_terminal(monkeypatch, lambda: print("\x1b[2F" + printable("\x1b"), file=raw(sys.stdout), flush=True))
        == "\x1b[2F\\u001b\r\n"
    )
    assert raw(sys.stderr) is sys.stderr


@pytest.mark.parametrize("module", ["pangu_ms", "pangu_run"])
def test_every_program_guards_its_terminal(module, job):
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", module, "status", "--json", str(job.path)]
    child = subprocess.Popen(command, stdout=theirs, stderr=theirs)
    os.close(theirs)
    shown = b""
    try:
        while block := os.read(ours, 1 << 16):
            shown += block
    except OSError:  # the other end is closed
        pass
    child.wait()
    assert json.loads(shown)["id"] == STEERS and is_harmless(shown.decode().replace("\r\n", "\n"))


@pytest.mark.parametrize("is_tty", [True, False])
def test_the_launcher_s_terminal(is_tty, monkeypatch):
    said = {1: b"", 2: b""}
    monkeypatch.setattr(
        "pangu_run.supervisor.terminal._write",
        lambda descriptor, content: said.update({descriptor: said[descriptor] + content}),
    )
    terminal = Terminal(stream_rank=0)
    terminal.is_tty = is_tty
    own = f"\r10%|\u2588| \x1b[A\x1b[K{STEERS} \u76d8\n".encode()
    for byte in own:
        terminal.write_output(0, bytes([byte]), stdout=True)
    terminal.write_output(1, f"RuntimeError: {STEERS}\n".encode(), stdout=False)
    terminal.print_line(f"host {STEERS} was lost\n  -> start it")
    terminal.close()
    assert (
        is_harmless(said[2].decode().replace("\r\x1b[K", "" if is_tty else "\r\x1b[K"))
        and b"[rank 1] RuntimeError: " in said[2]
    )
    assert said[1].decode() == (f"\r10%|\u2588| \x1b[A\x1b[K{printable(STEERS)} \u76d8\n" if is_tty else own.decode())
