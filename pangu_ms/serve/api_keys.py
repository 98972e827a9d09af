"""Files of API keys, for a server and for its clients."""

import re
import stat
from pathlib import Path

from pangu_ms.core import small_json
from pangu_ms.core.errors import GenerationError


def read_api_keys(path: Path) -> list[str]:
    """The keys of a file, one a line; empty lines and those that begin with # are left out.

    Raises:
        GenerationError: the file cannot be read, or holds no key, or one that no header can carry.
    """
    try:
        lines = [line.strip() for line in small_json.read_bytes(path, pipes=True).decode("utf-8-sig").splitlines()]
    except ValueError as error:
        raise GenerationError(f"--api-key-file {path}: cannot be read ({error}); write one key a line") from None
    keys = [line for line in lines if line and not line.startswith("#")]
    if not keys:
        raise GenerationError(f"--api-key-file {path}: holds no key; write one a line")
    for number, line in enumerate(lines, 1):
        if line in keys and not re.fullmatch(r"[!-~]+", line):
            raise GenerationError(
                f"--api-key-file {path}:{number}: is no key; a key has no spaces and only ASCII characters"
            )
    return keys


def readable_by_others(path: Path) -> bool:
    """Whether a regular file may be read by other users than its owner and its group."""
    mode = path.stat().st_mode
    return stat.S_ISREG(mode) and bool(mode & stat.S_IROTH)
