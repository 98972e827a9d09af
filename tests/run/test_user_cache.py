"""Where caches of a user lie who has no home, no name, or no right to write there."""

import os
import pwd
import subprocess
import sys
from pathlib import Path

import pytest

from ascend_ops import library
from pangu_ms.core import compile_cache, files
from pangu_ms.core.errors import OutputError


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """A user whom the system does not know, without HOME; a temporary directory of the test."""

    def unknown(uid):
        raise KeyError(uid)

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    for name in ("HOME", "XDG_CACHE_HOME", "ASCEND_OPS_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def test_a_user_without_a_home_has_a_private_place(temporary):
    private = temporary / f"pangu_ms-{os.getuid()}"
    assert compile_cache.cache_root() == private / "compiled" and library.cache_root() == private / "ascend_ops"
    assert private.stat().st_mode & 0o777 == 0o700


def test_a_place_of_others_is_not_used(temporary):
    private = temporary / f"pangu_ms-{os.getuid()}"
    private.mkdir()
    private.chmod(0o777)
    with pytest.raises(OutputError, match="others can write there; .* set XDG_CACHE_HOME"):
        files.user_cache()
    private.rmdir()
    (temporary / "theirs").mkdir()
    private.symlink_to(temporary / "theirs")
    with pytest.raises(OutputError, match="others can write there"):
        files.user_cache()


def test_a_home_is_used_where_it_can_be_written(temporary, monkeypatch):
    monkeypatch.setenv("HOME", str(temporary / "home"))
    assert files.user_cache() == temporary / "home/.cache/pangu_ms"
    monkeypatch.setattr(os, "access", lambda place, mode: False)
    assert files.user_cache() == temporary / f"pangu_ms-{os.getuid()}"
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert files.user_cache() == Path("/x/pangu_ms")


VERBS = [
    "doctor --json",
    "config show",
    "plan show --config alpha/13b",
    "ranktable check x",
    "manifest docker --config alpha/tiny --output-dir o",
]


@pytest.mark.parametrize("first", ["", pytest.param("import mindspore", marks=pytest.mark.slow)])
def test_no_verb_asks_who_the_user_is(tmp_path, first):
    """Nor does MindSpore, which these verbs do not import."""
    code = f"""
import pwd, sys
def unknown(*_): raise KeyError
pwd.getpwuid = pwd.getpwnam = unknown
{first}
from pangu_ms.cli.main import main
for verb in {VERBS!r}:
    print(verb, main(verb.split()), flush=True)
"""
    environment = {
        name: value for name, value in os.environ.items() if name in ("PATH", "LD_LIBRARY_PATH", "PYTHONPATH")
    }
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment | {"TMPDIR": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    assert [line.rpartition(" ")[2] for line in done.stdout.splitlines() if line.rpartition(" ")[0] in VERBS[1:]] == [
        "0",
        "0",
        "2",
        "0",
    ]
