"""What every command of the project does with a user's mistake: one line, its exit code, no traceback."""

import errno
import sys
from collections.abc import Callable

from pangu_run.errors import UserError

USER_ERROR, INTERRUPTED, READER_GONE = 2, 130, 141


def guarded(name: str, command: Callable[[], int]) -> int:
    """Run a command; a user's mistake, a file that cannot be used or an interruption is one line, not a traceback."""
    try:
        return command()
    except UserError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output went away (`pangu ... | head`)
        sys.stderr.close()
        return READER_GONE
    except OSError as error:
        if not (error.filename or error.errno in (errno.ENOSPC, errno.EDQUOT)):
            raise
        print(f"{name}: {error.filename or 'disk'}: {error.strerror}; mend that and run the same command again", file=sys.stderr)
        return USER_ERROR


def run_verb(program: str, verbs: dict[str, tuple[str, str]], usage: str, argv: list[str]) -> int:
    """Dispatch to a verb's module, which has a `main(argv)`; `verbs` maps a verb to (module, summary)."""
    import difflib
    import importlib

    if not argv or argv[0] in ("-h", "--help"):
        print(usage)
        return 0 if argv else USER_ERROR
    if argv[0] not in verbs:
        near = difflib.get_close_matches(argv[0], verbs, 1)
        print(f"{program}: unknown verb {argv[0]!r}; " + (f"did you mean {near[0]!r}?" if near else f"see `{program} --help`"), file=sys.stderr)
        return USER_ERROR
    return guarded(f"{program} {argv[0]}", lambda: importlib.import_module(verbs[argv[0]][0]).main(argv[1:]) or 0)
