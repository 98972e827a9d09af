"""MindSpore's compile cache made safe: keyed by everything a graph depends on, private while in use, published in one step.

MindSpore numbers the graphs of a process and compares source files alone: the same script with another learning rate or number of layers gets
the old graph without a word, and two processes write the same files. So each graph has a directory named by the hash of its identity, a
process uses the cache for one graph (MindSpore fixes the path at the first use), on a copy of its own. No mindspore import.
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

from pangu_ms.runtime import place
from pangu_run import small_json
from pangu_run.files import sha256_file, sha256_json, user_cache

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

    packages = Path(__file__).parent, Path(ascend_ops.__file__).parent
    return sha256_json({str(p.relative_to(package.parent)): sha256_file(p) for package in packages for p in sorted(package.rglob("*.py"))})


def entry_script() -> Path | None:
    """The program's file, which MindSpore parses for its cache; it fails where there is none, as in `python -c` or a notebook."""
    script = Path(sys.argv[0]) if sys.argv and sys.argv[0] else None
    try:
        ast.parse(script.read_text(encoding="utf-8"))
    except (AttributeError, OSError, ValueError, SyntaxError):
        return None
    return script


@contextlib.contextmanager
def cached_compile(enabled: bool, identity: dict[str, Any]) -> Iterator[bool]:
    """Let the one graph compiled in this block come from the cache, or go to it; yields whether it was found.

    `identity` names all that the graph depends on beside this package's source and MindSpore's version: its kind, the configuration, the shapes.
    The second use in a process does nothing, nor does one without a program file or where the user set MindSpore's own switch.
    """
    global _used
    script = entry_script()
    if not enabled or _used or SWITCH in os.environ or script is None:
        yield False
        return
    from ascend_ops.backend import identity as backend_identity

    _used = True
    # "place": MindSpore puts a rank's files under the rank's number, and what it made for another number of ranks may differ
    platform_key = {"place": place(), "machine": platform.machine(), "python": sys.version_info[:2], "mindspore": metadata.version("mindspore")}
    sources = {"source": source_hash(), "script": sha256_file(script), "operators": backend_identity(), "cann": os.environ.get("ASCEND_HOME_PATH", "")}
    key = sha256_json(identity | platform_key | sources)
    published = cache_root() / key[:40]
    with tempfile.TemporaryDirectory(prefix="pangu-compile-", ignore_cleanup_errors=True) as directory:
        private = Path(directory) / "graphs"
        found = _copy_if_sound(published, private)
        os.environ |= {SWITCH: "1", PATH: str(private)}
        try:
            yield found
        except Exception:
            if found:  # perhaps it was this graph: let the next start compile
                shutil.rmtree(published, ignore_errors=True)
            raise
        finally:
            del os.environ[SWITCH], os.environ[PATH]
        if not found:
            _publish(private, published)


def _copy_if_sound(published: Path, private: Path) -> bool:
    """Copy a published graph; False, and nothing copied, when it is missing or altered (then it is removed) or cannot be copied."""
    try:
        shutil.copytree(published, private, symlinks=True)  # a link to a device has no end; none is published
        os.utime(published)  # the newest are kept
        checksums = small_json.read_object(private / CHECKSUMS)
        (private / CHECKSUMS).unlink()
        if checksums and checksums == _checksums(private):
            return True
        shutil.rmtree(published, ignore_errors=True)
    except (OSError, ValueError, AttributeError, shutil.Error) as error:  # not there, half deleted, or no room for a copy: compile
        log.debug("no usable compiled graph in %s: %s", published, error)
    shutil.rmtree(private, ignore_errors=True)
    return False


def _checksums(directory: Path) -> dict[str, str]:
    return {str(path.relative_to(directory)): sha256_file(path) for path in sorted(directory.rglob("*")) if path.is_file()}


def _publish(private: Path, published: Path) -> None:
    """Move a new graph to its place; without a writable cache directory the run goes on without one."""
    if not any(path.is_file() for path in private.rglob("*")):
        return
    try:
        (private / CHECKSUMS).write_text(json.dumps(_checksums(private)))
        published.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=published.parent, prefix=".new-") as staging:
            shutil.copytree(private, Path(staging) / "graphs")
            os.rename(Path(staging) / "graphs", published)  # fails if another process was first: theirs is as good
        entries = sorted((p for p in published.parent.iterdir() if not p.name.startswith(".")), key=lambda p: p.stat().st_mtime)
        for old in entries[:-KEPT_GRAPHS]:
            shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        log.info("compiled graph not kept in %s: %s", published, error)
