"""Whatever a crash leaves of a file that the product itself keeps, the next command goes on, or refuses in one line
whose advice works."""

import json
import logging
import os
import threading
import time
from contextlib import suppress

import numpy as np
import pytest

from pangu_ms.checkpoint import save_ranks, store
from pangu_ms.core import files
from pangu_ms.core.errors import UserError
from pangu_ms.data import blocks
from pangu_ms.eval.batch_losses import Partial
from pangu_ms.research.study.runs import claim
from pangu_ms.train.directory import RunLock, require_own
from pangu_ms.train.metrics import MetricsFile
from pangu_run import launcher
from pangu_run.cli.main import main
from pangu_run.doctor import hosts
from pangu_run.job_directory import JobDirectory
from pangu_run.supervisor import scheduler
from tests.checkpoint.common import small_config
from tests.run.jobs import rank, write
from tests.run.launched import SCHEDULER, run

DAMAGE = {
    "empty": lambda content: b"",
    "half": lambda content: content[: len(content) // 2],
    "zeros": lambda content: bytes(len(content)),
    "list": lambda content: b"[1]\n",
    "object": lambda content: b'{"a": {}}\n',
    "types": lambda content: _with_odd_values(content),
    "deep": lambda content: b'{"time":' * 100_000,
    "no text": lambda content: b'{"time": "\xff\xfe"}\n',
}


def _with_odd_values(content):
    """Each value is of another type: numbers become texts, all else becomes a list of nothing."""
    with suppress(ValueError):
        rows = (
            [json.loads(line) for line in content.splitlines()] if content.count(b"\n}") == 0 else [json.loads(content)]
        )
        return b"".join(
            json.dumps({name: str(v) if isinstance(v, (int, float)) else [[]] for name, v in row.items()}).encode()
            + b"\n"
            for row in rows
        )
    return b"a: [[1]]\n"


@pytest.fixture(params=DAMAGE)
def damage(request):
    """Damage a file."""

    def hurt(path):
        assert path.stat().st_size > 1
        path.write_bytes(DAMAGE[request.param](path.read_bytes()))

    return hurt


@pytest.mark.parametrize("damage", ["empty", "types", "deep"], indirect=True)
def test_a_launch_goes_on_where_the_files_of_the_one_before_are_damaged(tmp_path, damage, monkeypatch, caplog, capfd):
    monkeypatch.setattr(scheduler, "PROGRAM", SCHEDULER)
    monkeypatch.setattr(launcher, "TAKEOVER_S", 0.6)
    directory = write(tmp_path, [rank(0)], age=100.0, host="elsewhere", launcher_pid=1, rank_table={"version": "1.0"})
    for name in ("status.json", "job.json", "events.jsonl", "config.yaml", "rank_table.json"):
        damage(directory.path / name)
    assert run(tmp_path, "print('ran')")[0] == 0 and len(caplog.records) <= 1
    assert JobDirectory(directory.path).status()["state"] == "ended"
    capfd.readouterr()
    assert main(["status", str(tmp_path)]) == 0 and capfd.readouterr().err == ""


@pytest.mark.parametrize("damage", ["half"], indirect=True)
def test_a_launcher_that_lives_is_known_though_its_status_was_damaged(tmp_path, damage, monkeypatch):
    monkeypatch.setattr(launcher, "TAKEOVER_S", 20.0)
    directory = write(tmp_path, [rank(0)])
    damage(directory.path / "status.json")
    whole = {"time": time.time(), "attempt": 0, "state": "running", "exit_code": None, "ranks": []}
    other = threading.Timer(0.7, directory.write_status, [whole])
    other.start()
    with pytest.raises(UserError, match="another launcher .* runs a job there"):
        launcher.require_alone(JobDirectory(directory.path))
    other.join()


@pytest.mark.parametrize("name", ["status.json", "job.json", "events.jsonl", "config.yaml"])
def test_reports_of_a_damaged_job(tmp_path, damage, name, capsys, caplog):
    directory = write(tmp_path, [rank(0)])
    directory.write_event(
        "failure", 0, rank=0, ranks=[0], kind="exit", code=1, words=["why"], summary="rank 0 failed", host="a", log=""
    )
    directory.rank_log(0).parent.mkdir(parents=True)
    directory.rank_log(0).write_text("ValueError: no\n")
    damage(directory.path / name)
    for words in (["status", str(tmp_path)], ["logs", str(tmp_path), "--errors"], ["logs", str(tmp_path)]):
        caplog.clear()
        code, said = main(words), capsys.readouterr()
        assert len(caplog.records) <= 1
        if code == 2:
            assert (
                name == "job.json"
                and said.err.count("\n") == 1
                and "`pangu launch` there writes the file anew" in said.err
            )
        else:
            assert said.out


class State:
    """A file that a command keeps in a directory, and how it is used again."""

    refuses = False
    """Whether a damaged one is refused with the advice to remove it, instead of done without."""


class Key(State):
    """Of the blocks of `data prepare`: blocks that nobody knows are not used."""

    def make(self, root):
        with suppress(KeyboardInterrupt), blocks.work_directory(root / "records", "key"):
            (root / "records.partial/block-000000.npz").touch()
            raise KeyboardInterrupt
        return root / "records.partial/key.json"

    def use(self, root):
        with blocks.work_directory(root / "records", "key") as work:
            assert json.loads((work / "key.json").read_bytes()) == {"key": "key"} and not list(work.glob("block-*"))


class Block(State):
    """A block of `data prepare`."""

    def make(self, root):
        one = np.ones(2, np.int64)
        files.write_bytes(
            root / "block.npz",
            blocks.Block(one.astype(np.int32), one, one, one.astype(np.uint64), np.array(["a", "b"])).to_bytes(),
        )
        assert blocks._finished(root / "block.npz") is not None
        return root / "block.npz"

    def use(self, root):
        assert blocks._finished(root / "block.npz") is None


class Metrics(State):
    """Lines before a resumed step."""

    def make(self, root):
        writer = MetricsFile(root, 0)
        for step in range(4):
            writer.log(step, {"loss": 1.0})
        writer.finish()
        return root / "metrics.jsonl"

    def use(self, root):
        writer = MetricsFile(root, 2)
        writer.log(2, {"loss": 2.0})
        writer.finish()
        rows = [json.loads(line) for line in (root / "metrics.jsonl").read_text().splitlines()]
        assert rows in (
            [{"step": 2, "loss": 2.0}],
            [*({"step": step, "loss": 1.0} for step in range(2)), {"step": 2, "loss": 2.0}],
        )


class Study(State):
    """Which study a directory holds; JSON of another kind is not what a crash leaves."""

    def make(self, root):
        claim(root, "pi-pro")
        (root / "stage").mkdir()
        return root / "study.json"

    def use(self, root):
        with suppress(ValueError, RecursionError):
            if (other := json.loads((root / "study.json").read_bytes())) != {"study": "pi-pro"}:
                with pytest.raises(UserError, match="holds .*, not 'pi-pro'; .* name another --output"):
                    claim(root, "pi-pro")
                assert json.loads((root / "study.json").read_bytes()) == other
                return
        claim(root, "pi-pro")
        assert json.loads((root / "study.json").read_bytes()) == {"study": "pi-pro"}


class Losses(State):
    """Of the first batches of `data losses`."""

    refuses = True

    def make(self, root):
        with Partial.open(root / "losses.partial", {"records": "a"}) as partial:
            partial.add(1.0)
        return root / "losses.partial"

    def use(self, root):
        assert Partial.open(root / "losses.partial", {"records": "a"}).losses == []


class Config(State):
    """What a run was, in its directory."""

    refuses = True

    def make(self, root):
        from pangu_ms.config import dump_config

        text = dump_config(small_config())
        half = (
            text.rindex(":") - 1
        )  # within a name: half of a YAML file may be one, and says then whose directory it is
        (root / "config.yaml").write_text(text + "\n" * (2 * half - len(text)))
        return root / "config.yaml"

    def use(self, root):
        require_own(root, resume=True)


class Marker(State):
    """What the doctor of another host left."""

    def make(self, root):
        files.write_json(
            root / "other.json", {"host": "other", "addresses": ["a"], "time": 1.0, "skew_s": 0.0, "versions": {}}
        )
        assert hosts._read(root, "here")[1] == []
        return root / "other.json"

    def use(self, root):
        assert hosts._read(root, "here") == ([], ["other.json"])


class Lock(State):
    """Who trains in a directory."""

    def make(self, root):
        lock = RunLock(root)
        lock.acquire()
        (root / "config.yaml").write_text("a run began")
        lock.release()
        return root / ".lock"

    def use(self, root):
        lock = RunLock(root)
        lock.acquire()
        assert (root / ".lock").read_text().startswith(f"process {os.getpid()} ")
        lock.release()


class Manifest(State):
    """Of a checkpoint: an earlier one is taken."""

    def make(self, root):
        for step in (1, 2):
            store.save(root, step, {"model": {"a": np.ones(2, np.float32)}}, {}, small_config())
        return root / "step-00000002/manifest.json"

    def use(self, root):
        found, passed_over = store.latest_valid(root)
        assert found.step == 1 and len(passed_over) == 1


@pytest.mark.parametrize("state", [Key, Block, Metrics, Study, Losses, Config, Marker, Lock, Manifest])
def test_a_damaged_file_is_done_without_or_may_be_removed(tmp_path, state, damage, caplog):
    path = state().make(tmp_path)
    damage(path)
    caplog.set_level(logging.WARNING)
    if state.refuses:
        with pytest.raises(UserError) as refused:
            state().use(tmp_path)
        assert "\n" not in str(refused.value) and "remove it" in str(refused.value)
        path.unlink()
    state().use(tmp_path)
    assert len(caplog.records) <= 1


@pytest.mark.parametrize("damage", ["empty", "half", "zeros", "list", "deep"], indirect=True)
def test_a_damaged_note_of_a_rank_ends_the_save_in_one_line(tmp_path, damage):
    files.write_json(save_ranks._entries_file(tmp_path, 0), {"model-rank-00000.safetensors": {"bytes": 1}})
    damage(save_ranks._entries_file(tmp_path, 0))
    with pytest.raises(UserError, match="rank-00000.json: is damaged .*`--resume` goes on from the checkpoint before$"):
        save_ranks._collect_entries(tmp_path, ["model"], 1)
