"""Kills and full disks at any instant of a save."""

import errno
import os
import random
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pangu_ms.checkpoint import store
from pangu_ms.core.errors import OutputError
from tests.checkpoint.common import assert_is_step, save
from tests.checkpoint.dying import lives
from tests.checkpoint.saver import ROWS

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("kills", [3, pytest.param(30, marks=pytest.mark.slow)])
def test_kill_9_at_random_instants_loses_nothing_committed(tmp_path, kills):
    """A sample; the next test dies before operations on the disk one after the other."""
    randomness = random.Random()
    seed = randomness.randrange(1 << 32)
    randomness.seed(seed)
    print("seed", seed)
    step = 1
    for _ in range(kills):
        child = subprocess.Popen(
            [sys.executable, "-m", "tests.checkpoint.saver", tmp_path, str(step)],
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
        )
        first = child.stdout.readline()  # it is saving now
        time.sleep(randomness.uniform(0, 0.15))
        child.kill()
        committed = int((first + child.communicate()[0]).split()[-1])
        checkpoint, _ = store.latest_valid(tmp_path)
        # The step whose commit was reported, or the one whose report was cut off.
        assert checkpoint.step in (committed, committed + 1)
        assert_is_step(checkpoint, checkpoint.step, ROWS)
        for path in tmp_path.glob("step-*"):  # and no step directory is ever half
            assert_is_step(store.open_checkpoint(path), int(path.name[5:13]), ROWS)
        step = checkpoint.step + 1
    save(tmp_path, step, keep=2)
    assert len(list(tmp_path.iterdir())) == 3, "two steps and the lock: leftovers are gone"


def _save_and_die(event_number: int, *arguments, **options) -> bool:
    """Save in a child that dies before its n-th disk operation; True if it lived to the end."""
    return lives(event_number, lambda: save(*arguments, **options))


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("every", [11, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "step, generation, damaged",
    [(3, 0, False), (2, 1, False), (2, 1, True)],
    ids=["next", "replace", "replace damaged"],
)
def test_death_before_every_single_disk_operation(tmp_path, step, generation, damaged, every):
    """In the default tier before every eleventh, and the rows begin at different ones."""
    for number in range(1 + (step + 2 * damaged) % every, 200, every):
        root = tmp_path / str(number)
        save(root, 1)
        newest = 1 if damaged else 2
        second = save(root, 2)
        if damaged:
            (second / "state.json").unlink()
        lived = _save_and_die(number, root, step, generation, keep=2)
        checkpoint, _ = store.latest_valid(root)
        assert checkpoint.step in (newest, step) and (checkpoint.step == step or not lived)
        assert_is_step(checkpoint, checkpoint.step)
        # A second death at the same place, then a whole save, which leaves only whole steps.
        _save_and_die(number, root, step, generation, keep=2)
        assert_is_step(store.latest_valid(root)[0], store.latest_valid(root)[0].step)
        save(root, step, generation, keep=2)
        assert sorted(path.name for path in root.iterdir()) == [".lock", f"step-{step - 1:08d}", f"step-{step:08d}"]
        if lived:
            return
    raise AssertionError("a save has fewer than 200 disk operations")


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("every", [11, pytest.param(1, marks=pytest.mark.slow)])
def test_death_while_replacing_a_damaged_step_that_has_an_old_one(tmp_path, every):
    for number in range(1, 200, every):
        root = tmp_path / str(number)
        save(root, 1).rename(root / "step-00000001.old")
        (save(root, 2).rename(root / "step-00000001") / "state.json").unlink()
        lived = _save_and_die(number, root, 1, 1)
        assert_is_step(store.latest_valid(root)[0], 1)
        if lived:
            return


def test_a_superseded_old_one_goes_with_the_next_save(tmp_path):
    save(tmp_path, 1).rename(tmp_path / "step-00000001.old")
    save(tmp_path, 2)
    assert_is_step(store.open_checkpoint(tmp_path / "step-00000001.old"), 1)  # alone it is as good as any
    save(tmp_path / "other", 1, generation=1).rename(tmp_path / "step-00000001")
    save(tmp_path, 3)
    assert sorted(path.name for path in tmp_path.glob("*step*")) == ["step-00000001", "step-00000002", "step-00000003"]


def test_everything_is_flushed_before_the_rename_and_the_root_after(tmp_path, monkeypatch):
    root = tmp_path.resolve() / "root"
    events = []
    fsync, rename = os.fsync, os.rename
    monkeypatch.setattr(os, "fsync", lambda fd: (events.append(os.readlink(f"/proc/self/fd/{fd}")), fsync(fd)))
    monkeypatch.setattr(
        os, "rename", lambda source, target: (events.append((str(source), str(target))), rename(source, target))
    )
    path = save(root, 1)
    (moved,) = [event for event in events if isinstance(event, tuple)]
    before, after = events[: events.index(moved)], events[events.index(moved) + 1 :]
    assert before[:-1] == [
        f"{moved[0]}/{name}"
        for name in ("state.json", "config.yaml", "model.safetensors", "optimizer.safetensors", "manifest.json")
    ]
    assert before[-1] == moved[0] and moved[1] == str(path) and after == [str(root)]


def _assert_untouched(root: Path, error: OutputError) -> None:
    assert "free some room" in str(error)
    assert not list(root.glob(".step*")), "no temporary directory stays"
    for step in (1, 2):
        assert_is_step(store.open_checkpoint(root / f"step-{step:08d}"), step)


def test_full_disk_at_every_flush(tmp_path, monkeypatch):
    save(tmp_path, 1)
    save(tmp_path, 2)
    fsync = os.fsync
    for number in range(1, 7):
        calls = iter(range(1, 100))

        def full(descriptor, calls=calls, number=number):
            if next(calls) == number:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            fsync(descriptor)

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(OutputError) as error:
            save(tmp_path, 3, keep=1)
        _assert_untouched(tmp_path, error.value)
        assert not (tmp_path / "step-00000003").exists()


def test_full_disk_in_the_middle_of_a_file(tmp_path):
    """RLIMIT_FSIZE makes real writes fail half-way, without privileges."""
    save(tmp_path, 1)
    save(tmp_path, 2)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, hard))
    try:
        with pytest.raises(OutputError) as error:
            save(tmp_path, 3, rows=ROWS, keep=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    _assert_untouched(tmp_path, error.value)


def test_a_really_full_disk(tmp_path):
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", tmp_path], capture_output=True).returncode:
        pytest.skip("cannot mount a tmpfs here")
    try:
        save(tmp_path, 1)
        save(tmp_path, 2)
        with pytest.raises(OutputError) as error:
            save(tmp_path, 3, rows=ROWS, keep=1)
        _assert_untouched(tmp_path, error.value)
        save(tmp_path, 3, keep=1)
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_a_save_waits_for_another_process(tmp_path):
    from pangu_ms.checkpoint import commit

    save(tmp_path, 1)
    with commit.only_saver(tmp_path) as alone:
        assert alone
        child = subprocess.Popen(
            [sys.executable, "-m", "tests.checkpoint.saver", tmp_path, "2"], cwd=REPOSITORY, stdout=subprocess.PIPE
        )
        with pytest.raises(subprocess.TimeoutExpired):
            child.wait(2)
        assert [path.name for path in tmp_path.glob("*step*")] == ["step-00000001"]
    try:
        assert child.stdout.readline() == b"2\n"
    finally:
        child.kill()
        child.communicate()


def test_a_file_system_without_locks_still_saves_and_removes_nothing_it_cannot_judge(tmp_path, monkeypatch, caplog):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.lockf", no_locks)
    perhaps_under_way = tmp_path / ".step-00000001.0123abcd.tmp"
    perhaps_under_way.mkdir()
    save(tmp_path, 1)
    assert_is_step(store.latest_valid(tmp_path)[0], 1)
    assert perhaps_under_way.exists() and "has no locks" in caplog.text
