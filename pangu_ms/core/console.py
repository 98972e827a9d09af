"""How every command of the project prints to the terminal, and reports a user's mistake: one line and an exit code, no
traceback."""

import errno
import io
import json
import logging
import sys
import unicodedata
from collections.abc import Callable
from typing import Any, TextIO

from pangu_ms.core.errors import UserError

# 2 is argparse's code; the others are 128 + SIGINT and 128 + SIGPIPE, as a shell reports them.
USER_ERROR, INTERRUPTED, READER_GONE = 2, 130, 141
_UNSAFE_CATEGORIES = {"Cc", "Cf", "Cs", "Zl", "Zp"}
"""Unicode categories of characters that control a terminal, or reverse or break a line: C0, C1, bidirectional and other
formats, lone surrogates."""
_HARMLESS = "\u00ad\u200c\u200d"
"""Format characters that are allowed, since they occur inside words: soft hyphen, zero-width non-joiner and zero-width
joiner."""


def printable(text: str, keep: str = "\n\t") -> str:
    r"""Make text from a file, a peer or a model safe for a terminal: characters that would move or hide something there
    are escaped as in JSON, for example as \u009b.

    Args:
        text: any.
        keep: control characters that are not escaped; "" for text that must stay one line.
    """
    return (
        text
        if text.isprintable()
        else "".join(c if c in keep or not _is_unsafe(c) else json.dumps(c)[1:-1] for c in text)
    )


def _is_unsafe(character: str) -> bool:
    return unicodedata.category(character) in _UNSAFE_CATEGORIES and character not in _HARMLESS


def show(text: str) -> None:
    """Print text for people on stdout; it is escaped by `printable`, since it may contain text from files and peers."""
    print(printable(text), flush=True)


def tell(text: str) -> None:
    """Print one line for people on stderr."""
    print(printable(text, keep=""), file=sys.stderr, flush=True)


class TerminalText:
    """A text stream to a terminal; what is written to it goes through `printable`. Its other attributes are the
    stream's."""

    def __init__(self, stream: TextIO):
        self.raw_text = stream
        """The wrapped stream, for a program's own control sequences."""

    def write(self, text: str) -> int:
        """Write `printable(text)`; returns the number of characters of `text`."""
        self.raw_text.write(printable(text))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.raw_text, name)


def guard_streams() -> None:
    """From here on escape what is printed to a terminal, so that it cannot control the terminal; a terminal that is not
    UTF-8 shows escapes. Files and pipes get control characters unchanged."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
            if stream.isatty():
                setattr(sys, name, TerminalText(stream))


def raw(stream: TextIO) -> TextIO:
    """The underlying stream, for the program's own control sequences, such as those of a progress bar."""
    return getattr(stream, "raw_text", stream)


class LogFormatter(logging.Formatter):
    """Formats log lines, which may contain text from files and peers, for a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, printable."""
        return printable(super().format(record))


def user_errors() -> tuple[type[Exception], ...]:
    """Error classes whose text is meant for the user: the project's, and the operators' if ascend_ops is imported."""
    operators = sys.modules.get("ascend_ops.errors")
    return (UserError, operators.OperatorError) if operators else (UserError,)


def guarded(name: str, command: Callable[[], int]) -> int:
    """Run a command and return its exit code; a user's mistake, a file that cannot be used or an interruption is
    reported in one line, not by a traceback."""
    try:
        return command()
    except user_errors() as error:
        tell(f"{name}: {error}")
        return USER_ERROR
    except KeyboardInterrupt:
        tell(f"{name}: interrupted")
        return INTERRUPTED
    except MemoryError as error:
        tell(f"{name}: too little memory{f' ({error})' if str(error) else ''}; use a smaller model or a smaller batch")
        return USER_ERROR
    except BrokenPipeError:  # the reader of our output went away (`pangu ... | head`)
        # When Python ends it flushes stdout again, and would report the same error on stderr.
        sys.stderr.close()
        return READER_GONE
    except OSError as error:
        # Without a file's name there is nothing that the user could mend: our own mistake, which needs its traceback.
        if not (error.filename or error.errno in (errno.ENOSPC, errno.EDQUOT)):
            raise
        tell(f"{name}: {error.filename or 'disk'}: {error.strerror}; mend that and run the same command again")
        return USER_ERROR


def run_verb(program: str, verbs: dict[str, tuple[str, str]], usage: str, argv: list[str]) -> int:
    """Dispatch to a verb's module, which has a `main(argv)`; `verbs` maps a verb to (module, summary). `help VERB` is
    `VERB --help`."""
    import difflib
    import importlib

    if argv[:1] == ["help"]:
        argv = [*argv[1:], "--help"]
    if not argv or argv[0] in ("-h", "--help"):
        print(usage)
        return 0 if argv else USER_ERROR
    if argv[0] not in verbs:
        near = difflib.get_close_matches(argv[0], verbs, 1)
        tell(
            f"{program}: unknown verb {argv[0]!r}; "
            + (f"did you mean {near[0]!r}?" if near else f"see `{program} --help`")
        )
        return USER_ERROR
    return guarded(f"{program} {argv[0]}", lambda: importlib.import_module(verbs[argv[0]][0]).main(argv[1:]) or 0)
