"""Compares files with a list in the form of md5sum. No mindspore import."""

import hashlib
import re
from pathlib import Path

from pangu_ms.core import small_json
from pangu_ms.core.errors import CheckpointError
from pangu_ms.core.progress import progress_bar

_LINE = re.compile(r"([0-9a-fA-F]{32}) [ *](.+)")
_BLOCK_BYTES = 1 << 22


def read_list(path: Path) -> dict[tuple[str, ...], str]:
    """The MD5 of each file that a list names, by the parts of the file's path.

    Raises:
        CheckpointError: the file cannot be read or is no such list.
    """
    try:
        lines = small_json.read_bytes(path).decode().splitlines()
    except ValueError as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); name a list that `md5sum FILES` prints") from None
    found: dict[tuple[str, ...], str] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        match = _LINE.fullmatch(line)
        if not match:
            raise CheckpointError(
                f"{path}: line {number} is {line[:60]!r}; must be an MD5, two spaces and a file's name, as"
                " `md5sum FILES` prints them"
            )
        name = Path(match[2]).parts
        if found.setdefault(name, match[1].lower()) != match[1].lower():
            raise CheckpointError(f"{path}: line {number} gives {match[2]} another MD5 than a line before; correct it")
    return found


def listed(path: Path, files: list[Path]) -> dict[Path, str]:
    """The MD5 that each of these files must have; files that the list does not name are left out.

    Raises:
        CheckpointError: see `read_list`; or the list names none of the files.
    """
    entries = read_list(path)
    found = {}
    for file in files:
        parts = file.resolve().parts
        names = (parts[-length:] for length in range(len(parts), 0, -1))
        if name := next((name for name in names if name in entries), None):
            found[file] = entries[name]
    if not found:
        raise CheckpointError(
            f"{path}: names none of the files that are read, such as {files[0].name}; the list must be of the unpacked"
            " files"
        )
    return found


def check(wanted: dict[Path, str], progress: bool = False) -> None:
    """Read files and compare them with what `listed` returned.

    Raises:
        CheckpointError: a file has another MD5.
    """
    total = sum(file.stat().st_size for file in wanted)
    with progress_bar(progress, total=total, unit="B", unit_scale=True, desc="md5") as bar:
        for file, md5 in wanted.items():
            digest = hashlib.md5(usedforsecurity=False)
            with open(file, "rb") as opened:
                while block := opened.read(_BLOCK_BYTES):
                    digest.update(block)
                    bar.update(len(block))
            if digest.hexdigest() != md5:
                raise CheckpointError(f"{file}: has MD5 {digest.hexdigest()}, the list says {md5}; download it again")
