"""Makes MindSpore's compile cache safe: an entry is keyed by everything that its graphs depend on, is copied to a
private directory while in use, and is published atomically.

How MindSpore 2.7 and 2.9 behave, and what this module does about it:

* They compare only source files: the same script with another learning rate or number of layers silently gets the old
  graph. So an entry of this cache is named by the hash of its identity (see `cached_compile`).
* They read the path of the cache once per process. So a process has one private directory; an entry is copied into it
  for the compilation that needs it, and removed afterwards. Two processes never write the same files.
* They number the graphs that a process compiles while the cache is on, and look a graph up by its number only. So an
  entry is published with numbers from 0, and its private copy is renumbered to continue after the graphs that this
  process has already loaded.
* After the first cache miss of a process they load no further graph, but still write every graph. So after a miss
  everything is compiled, entries that the cache lacks are published, and the next start finds them.

An entry is flushed to disk before it gets its final name, and contains the hash of each of its files. An entry that
does not match its hashes is removed with a warning, and its graphs are compiled again. mindspore is imported only
inside `cached_compile`.
"""

import ast
import contextlib
import functools
import json
import logging
import os
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from pangu_ms.core import small_json
from pangu_ms.core.files import sha256_file, sha256_json, sync_path, user_cache

log = logging.getLogger(__name__)
SWITCH, PATH = "MS_COMPILER_CACHE_ENABLE", "MS_COMPILER_CACHE_PATH"
CHECKSUMS = "checksums.json"
KEPT_ENTRIES = 64
_GRAPH = re.compile(r"(\w*compile_cache_)(\d+)\.mindir")
"""The file of a graph. In a cluster of processes the name begins with the role of the process (MS_ROLE)."""
_DEPENDENCIES = "compile_dependency.hash"
"""MindSpore's hash of the program's source files. MindSpore writes it only with the first graph of a process, but looks
for it with every graph."""


@dataclass
class _Process:
    """State of MindSpore's cache in this process."""

    directory: Path | None = None
    """The private directory; it exists while a compilation uses it."""
    num_loaded: int = 0
    """Graphs loaded so far, which is the number of the next one."""
    loads: bool = True
    """Whether MindSpore still loads graphs: no miss yet."""
    usable: bool = True
    """False after a compilation failed: the number of the next graph is then unknown."""
    dependencies: dict[str, bytes] = field(default_factory=dict)
    """Name and content of MindSpore's file with the source hash, to add to entries that MindSpore writes without it."""


_process = _Process()


def cache_root() -> Path:
    """The user's cache directory for compiled graphs; it can be deleted at any time."""
    return user_cache() / "compiled"


@functools.cache
def source_hash() -> str:
    """SHA-256 over the Python files of this package and of the operators."""
    import ascend_ops

    packages = Path(__file__).parents[1], Path(ascend_ops.__file__).parent
    hashes = {}
    for package in packages:
        for path in sorted(package.rglob("*.py")):
            hashes[str(path.relative_to(package.parent))] = sha256_file(path)
    return sha256_json(hashes)


def entry_script() -> Path | None:
    """The program's main file, which MindSpore's cache parses; None where there is no such file, as in `python -c` or a
    notebook: MindSpore would fail there."""
    if not (sys.argv and sys.argv[0]):
        return None
    script = Path(sys.argv[0])
    try:
        ast.parse(script.read_text(encoding="utf-8"))
    except (OSError, ValueError, SyntaxError):
        return None
    return script


@contextlib.contextmanager
def cached_compile(enabled: bool, identity: dict[str, Any]) -> Iterator[bool]:
    """Load the graphs that this block compiles from the cache, or store them in it; yields whether the cache had them.

    A process may enter any number of such blocks, one after another and in any order; a block must contain everything
    that is compiled for one identity. A block does nothing
    * if the program has no file, or the user has set MindSpore's own cache switch;
    * if graphs may contain Ascend C kernels, whose libraries MindSpore makes for each process;
    * inside another such block, and after a block that failed.

    Args:
        enabled: False does nothing.
        identity: JSON values for everything that the graphs depend on besides this package's source and MindSpore's
            version: their kind, the configuration, the shapes.
    """
    script = entry_script()
    if not enabled or not _process.usable or SWITCH in os.environ or script is None:
        yield False
        return
    import mindspore

    from ascend_ops import backend

    # With its own cache switch on, MindSpore also numbers graphs that are compiled outside of such blocks.
    if mindspore.get_context("enable_compile_cache") is not None or backend.has_graphs_of_one_process():
        yield False
        return
    private = _make_private_directory()
    if private is None:
        yield False
        return
    try:
        published = cache_root() / _key(identity, script)[:40]
        found = _process.loads and _copy_if_sound(published, private) and _renumber(private, _process.num_loaded)
        before = _file_states(private)
        os.environ |= {SWITCH: "1", PATH: str(private)}
        try:
            yield found
        except BaseException as error:
            _process.usable = False
            if found and isinstance(error, Exception):  # the cached graph may be the cause
                log.warning(
                    "%s: this compiled graph from the cache was in use when the first call failed; removed: the next"
                    " start compiles",
                    published,
                )
                shutil.rmtree(published, ignore_errors=True)
            raise
        finally:
            del os.environ[SWITCH], os.environ[PATH]
        try:
            _count_or_publish(private, published, found, _file_states(private) == before)
        except OSError as error:
            _process.usable = False
            log.info("compiled graph not kept in %s: %s", published, error)
    finally:
        shutil.rmtree(private.parent, ignore_errors=True)


def _count_or_publish(private: Path, published: Path, found: bool, unchanged: bool) -> None:
    """After a compilation, count the graphs that MindSpore loaded, or publish those that it wrote."""
    _keep_dependencies(private)
    if found and unchanged:
        _process.num_loaded += len(_numbers(private))
        return
    _process.loads = _process.loads and not _numbers(private)  # without a compiled graph no number was used
    if found:  # MindSpore saw other source files than the entry's, or compiled more than the entry holds
        shutil.rmtree(published, ignore_errors=True)
    if not published.is_dir() and _renumber(private, 0):
        _publish(private, published)


def _key(identity: dict[str, Any], script: Path) -> str:
    """Hash of everything that a compiled graph depends on."""
    from ascend_ops import backend

    # "place" is the rank and the number of ranks: MindSpore stores a rank's files under its number, and graphs for
    # another number of ranks may differ.
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
    return sha256_json(identity | platform_key | sources)


def _make_private_directory() -> Path | None:
    """Create a directory that no other user can enter, and return the path in it that MindSpore's cache has in this
    process; None if there is no room for the directory, or somebody else took its name."""
    try:
        if _process.directory is None:
            _process.directory = Path(tempfile.mkdtemp(prefix="pangu-compile-"))
        else:
            _process.directory.mkdir(mode=0o700)
    except OSError as error:
        log.info("compile cache not used: %s", error)
        return None
    return _process.directory / "graphs"


def _file_states(private: Path) -> dict[str, tuple[int, int]]:
    """Size and modification time of each file."""
    states = {name: (private / name).stat() for name in _contents(private)}
    return {name: (state.st_size, state.st_mtime_ns) for name, state in states.items()}


def _numbers(private: Path) -> list[int]:
    """MindSpore's numbers of the graphs in a directory, ascending."""
    found = (_GRAPH.fullmatch(Path(name).name) for name in _contents(private))
    return sorted(int(match.group(2)) for match in found if match)


def _renumber(private: Path, first: int) -> bool:
    """Renumber the graphs in a directory from `first` on, in their order. Returns False if there are none, or if it
    cannot be done; in the second case the directory is removed."""
    numbers = _numbers(private)
    if not numbers:
        return False
    if first == numbers[0]:
        return True
    known = all(_GRAPH.fullmatch(Path(name).name) or name.endswith(_DEPENDENCIES) for name in _contents(private))
    if not known or len(set(numbers)) != numbers[-1] - numbers[0] + 1 or len(numbers) != len(set(numbers)):
        shutil.rmtree(private)  # files of another version of MindSpore or another device, which may contain numbers too
        return False
    # This order never overwrites a file that is still to be renamed.
    for number in numbers if first < numbers[0] else reversed(numbers):
        for path in [*private.rglob(f"*compile_cache_{number}.mindir")]:
            role = path.name.removesuffix(f"{number}.mindir")
            path.rename(path.with_name(f"{role}{number - numbers[0] + first}.mindir"))
    return True


def _keep_dependencies(private: Path) -> None:
    """Remember MindSpore's hash of source files, or add it where MindSpore left it out."""
    if found := {name: (private / name).read_bytes() for name in _contents(private) if name.endswith(_DEPENDENCIES)}:
        _process.dependencies = found
    elif _numbers(private):
        for name, content in _process.dependencies.items():
            (private / name).write_bytes(content)


def _copy_if_sound(published: Path, private: Path) -> bool:
    """Copy a published entry to the private directory. Returns False, with nothing copied, if the entry is missing,
    damaged (it is then removed with a warning) or cannot be copied."""
    if not published.is_dir():
        return False
    try:
        # symlinks=True: never follow a link, which may lead to an endless device; no entry is published with one.
        shutil.copytree(published, private, symlinks=True)
        os.utime(published)  # the entries that were used last are kept
        damage = _describe_damage(private)
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


def _describe_damage(entry: Path) -> str:
    """Describe what in an entry differs from what was published; empty if nothing does."""
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
    """Copy a new entry into the cache; if the cache directory cannot be written, the run continues without it."""
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
            os.rename(copied, published)  # fails if another process published the entry first, which is as good
            sync_path(published.parent)
        entries = sorted(
            (p for p in published.parent.iterdir() if not p.name.startswith(".")), key=lambda p: p.stat().st_mtime
        )
        for old in entries[:-KEPT_ENTRIES]:
            shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        log.info("compiled graph not kept in %s: %s", published, error)
