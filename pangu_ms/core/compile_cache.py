"""MindSpore's compile cache made safe: keyed by everything a graph depends on, private while in use, published in one
step.

MindSpore numbers the graphs of a process and compares source files alone: the same script with another learning rate or
number of layers gets the old graph without a word, and two processes write the same files. So each graph has a
directory named by the hash of its identity, a process uses the cache for one graph (MindSpore fixes the path at the
first use), on a copy of its own. What is published is on the disk before it has its name, beside the hash of each file;
an entry that is not what its hashes say is removed with a line, and compiled anew. No mindspore import.
"""

import ast
import contextlib
import functools
import json
import logging
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from pangu_ms.core import small_json
from pangu_ms.core.files import sha256_file, sha256_json, sync_path, user_cache

log = logging.getLogger(__name__)
SWITCH, PATH = "MS_COMPILER_CACHE_ENABLE", "MS_COMPILER_CACHE_PATH"
CHECKSUMS = "checksums.json"
KEPT_GRAPHS = 32
_used = False


def cache_root() -> Path:
    """The user's cache directory for compiled graphs; it can be deleted at any time."""
    return user_cache() / "compiled"


@functools.cache
def source_hash() -> str:
    """SHA-256 over the Python files of this package and of the operators."""
    import ascend_ops

    packages = Path(__file__).parents[1], Path(ascend_ops.__file__).parent
    return sha256_json(
        {
            str(p.relative_to(package.parent)): sha256_file(p)
            for package in packages
            for p in sorted(package.rglob("*.py"))
        }
    )


def entry_script() -> Path | None:
    """The program's file, which MindSpore parses for its cache; it fails where there is none, as in `python -c` or a
    notebook."""
    script = Path(sys.argv[0]) if sys.argv and sys.argv[0] else None
    try:
        ast.parse(script.read_text(encoding="utf-8"))
    except (AttributeError, OSError, ValueError, SyntaxError):
        return None
    return script


@contextlib.contextmanager
def cached_compile(enabled: bool, identity: dict[str, Any]) -> Iterator[bool]:
    """Let the one graph compiled in this block come from the cache, or go to it; yields whether it was found.

    `identity` names all that the graph depends on beside this package's source and MindSpore's version: its kind, the
    configuration, the shapes. The second use in a process does nothing, nor does one without a program file, where the
    user set MindSpore's own switch, or with Ascend C kernels.
    """
    global _used
    script = entry_script()
    if not enabled or _used or SWITCH in os.environ or script is None:
        yield False
        return
    from ascend_ops import backend

    if backend.has_graphs_of_one_process():
        yield False
        return
    _used = True
    # "place": MindSpore puts a rank's files under the rank's number, and what it made for another number of ranks
    # may differ
    place = [os.environ.get(name, "") for name in ("RANK_ID", "RANK_SIZE")]
    platform_key = {
        "place": place,
        "machine": platform.machine(),
        "python": sys.version_info[:2],
        "mindspore": metadata.version("mindspore"),
    }
    sources = {
        "source": source_hash(),
        "script": sha256_file(script),
        "operators": backend.identity(),
        "cann": os.environ.get("ASCEND_HOME_PATH", ""),
    }
    key = sha256_json(identity | platform_key | sources)
    published = cache_root() / key[:40]
    with tempfile.TemporaryDirectory(prefix="pangu-compile-", ignore_cleanup_errors=True) as directory:
        private = Path(directory) / "graphs"
        found = _copy_if_sound(published, private)
        os.environ |= {SWITCH: "1", PATH: str(private)}
        try:
            yield found
        except Exception:
            if found:  # perhaps it was this graph
                log.warning(
                    "%s: this compiled graph from the cache was in use when the first call failed; removed: the next"
                    " start compiles",
                    published,
                )
                shutil.rmtree(published, ignore_errors=True)
            raise
        finally:
            del os.environ[SWITCH], os.environ[PATH]
        if not found:
            _publish(private, published)


def _copy_if_sound(published: Path, private: Path) -> bool:
    """Copy a published graph; False, and nothing copied, when it is missing, damaged (then it is removed, with a line)
    or cannot be copied."""
    if not published.is_dir():
        return False
    try:
        shutil.copytree(published, private, symlinks=True)  # a link to a device has no end; none is published
        os.utime(published)  # the newest are kept
        damage = _damage(private)
    except (OSError, shutil.Error) as error:  # half deleted by another process, or no room for a copy: compile
        log.info("compiled graph not taken from %s: %s", published, error)
        damage = None
    if damage == "":
        (private / CHECKSUMS).unlink()
        return True
    if damage:
        log.warning(
            "%s: this compiled graph in the cache is damaged (%s); removed and compiled again", published, damage
        )
        shutil.rmtree(published, ignore_errors=True)
    shutil.rmtree(private, ignore_errors=True)
    return False


def _damage(entry: Path) -> str:
    """What in an entry is not as it was published; empty where all is."""
    try:
        digests = small_json.read_object(entry / CHECKSUMS)
    except (OSError, ValueError) as error:
        return f"{CHECKSUMS}: {error}"
    found = {name for name in _contents(entry) if name != CHECKSUMS}
    if not digests or found != digests.keys():
        return (
            f"{min(found ^ digests.keys(), default=CHECKSUMS)}: in one of directory and {CHECKSUMS} alone, or nothing"
            " in both"
        )
    return next(
        (f"{name} has another hash" for name, digest in digests.items() if sha256_file(entry / name) != digest), ""
    )


def _contents(directory: Path) -> list[str]:
    return [str(path.relative_to(directory)) for path in sorted(directory.rglob("*")) if path.is_file()]


def _publish(private: Path, published: Path) -> None:
    """Move a new graph to its place; without a writable cache directory the run goes on without one."""
    names = _contents(private)
    if not names:
        return
    try:
        (private / CHECKSUMS).write_text(json.dumps({name: sha256_file(private / name) for name in names}))
        published.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=published.parent, prefix=".new-") as staging:
            copied = Path(shutil.copytree(private, Path(staging) / "graphs"))
            for path in (*copied.rglob("*"), copied):
                sync_path(path)
            os.rename(copied, published)  # fails if another process was first: theirs is as good
            sync_path(published.parent)
        entries = sorted(
            (p for p in published.parent.iterdir() if not p.name.startswith(".")), key=lambda p: p.stat().st_mtime
        )
        for old in entries[:-KEPT_GRAPHS]:
            shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        log.info("compiled graph not kept in %s: %s", published, error)
