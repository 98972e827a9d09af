"""Packing against a plain implementation, splits, interruption, errors, full disk."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest

import pangu_ms.data.blocks as blocks
import pangu_ms.data.pack as pack
from pangu_ms.cli import main as cli
from pangu_ms.core import files
from pangu_ms.core.errors import DataError, OutputError, UserError
from pangu_ms.data.prepare import prepare
from pangu_ms.data.records import RecordSet
from pangu_ms.data.tokenizer import Tokenizer
from tests.data.common import documents, write_jsonl


def run(corpus, tokenizer_path, output, **options):
    options = {"seq_length": 15, "held_out": 0.0, "num_workers": 1, "progress": False} | options
    return prepare([corpus] if isinstance(corpus, str) else corpus, tokenizer_path, output, **options)


def all_rows(directory, split="train"):
    return np.concatenate(list(RecordSet.open(directory, split).rows()))


def plain_rows(records, tokenizer, row_length, held_out, side):
    """The specification, one token at a time: the rows of each domain."""
    streams = {}
    for record in records:
        share = int(hashlib.sha256(record["text"].encode()).hexdigest()[:16], 16) / 2**64
        if (share < held_out) == side:
            stream = streams.setdefault(record["domain"], [])
            stream += tokenizer.encode(record["text"]) + [tokenizer.eod_id]
    for stream in streams.values():
        while len(stream) % row_length:
            stream.append(tokenizer.pad_id)
    return {
        domain: [streams[domain][start : start + row_length] for start in range(0, len(streams[domain]), row_length)]
        for domain in sorted(streams)
    }


@pytest.mark.parametrize("split, side", [("train", False), ("held_out", True)])
def test_rows_follow_the_specification(prepared, tokenizer_path, split, side):
    directory, manifest = prepared
    tokenizer, records = Tokenizer.load(tokenizer_path), documents(6000)
    expected = plain_rows(records, tokenizer, 64, 0.1, side)
    record_set = RecordSet.open(directory, split)
    assert {name: record_set.read_rows(rows).tolist() for name, rows in record_set.domains.items()} == expected
    numbers = np.arange(record_set.num_rows)
    domains = [name for name, rows in expected.items() for _ in rows]
    assert record_set.domain_names == ["code", "zh"] and len(domains) == len(numbers)
    assert [record_set.domain_names[domain] for domain in record_set.domain_of(numbers)] == domains
    counts = manifest["splits"][split]
    assert counts["rows"] == len(numbers) and counts["rows"] * 64 == counts["tokens"] + counts["pad_tokens"]
    assert sum(d["tokens"] for d in counts["domains"].values()) == counts["tokens"]


def test_manifest_accounts_for_everything(prepared, big_corpus, tokenizer_path):
    directory, manifest = prepared
    records = documents(6000)
    splits = manifest["splits"].values()
    assert sum(split["documents"] for split in splits) == len(records)
    assert sum(split["bytes"] for split in splits) == sum(len(record["text"].encode()) for record in records)
    assert sum(split["domains"]["zh"]["documents"] for split in splits) == sum(
        record["domain"] == "zh" for record in records
    )
    assert 0.08 < manifest["splits"]["held_out"]["documents"] / len(records) < 0.12
    assert manifest["inputs"] == [
        {"path": big_corpus, "size": os.path.getsize(big_corpus), "sha256": files.sha256_file(big_corpus)}
    ]
    on_disk = {
        str(p.relative_to(directory)): files.sha256_file(p)
        for p in directory.rglob("*")
        if p.is_file() and p.name != "manifest.json"
    }
    assert manifest["files"] == on_disk
    assert json.loads((directory / "manifest.json").read_text()) == manifest
    assert (
        Tokenizer.load(directory / "tokenizer").fingerprint
        == manifest["tokenizer"]
        == Tokenizer.load(tokenizer_path).fingerprint
    )
    assert os.listdir(directory.parent) == ["out"]


def test_killed_run_goes_on_where_it_was(prepared, big_corpus, tokenizer_path, tmp_path, monkeypatch):
    child = subprocess.Popen(
        [sys.executable, "-m", "tests.data.slow_prepare", big_corpus, str(tokenizer_path), str(tmp_path / "out")]
    )
    work = tmp_path / "out.partial"
    _wait(lambda: len(list(work.glob("block-*"))) >= 5)
    workers = psutil.Process(child.pid).children(recursive=True)
    child.send_signal(signal.SIGKILL)
    child.wait()
    _wait(lambda: not any(worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE for worker in workers))
    assert len(workers) >= 2 and not (tmp_path / "out").exists()

    kept = {path.name: path.stat().st_mtime_ns for path in work.glob("block-*")}
    encoded = []
    submit = blocks.Workers.submit
    monkeypatch.setattr(blocks.Workers, "submit", lambda *a, **k: encoded.append(a[3].name) or submit(*a, **k))
    remove = shutil.rmtree  # the work directory stays to be looked at
    monkeypatch.setattr(shutil, "rmtree", lambda path, **options: None if path == work else remove(path, **options))
    (tmp_path / ".out.0123abcd.tmp").mkdir()  # as a kill during packing leaves it
    manifest = run(big_corpus, tokenizer_path, tmp_path / "out", seq_length=63, held_out=0.1, num_workers=2)
    assert 5 <= len(kept) < len(kept) + len(encoded) == len(list(work.glob("block-*")))
    assert not set(encoded) & set(kept) and all((work / name).stat().st_mtime_ns == when for name, when in kept.items())
    assert manifest["files"] == prepared[1]["files"]  # byte for byte
    assert sorted(os.listdir(tmp_path)) == ["out", "out.partial"]


def _wait(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def test_number_of_workers_changes_nothing(prepared, big_corpus, tokenizer_path, tmp_path):
    assert (
        run(big_corpus, tokenizer_path, tmp_path / "out", seq_length=63, held_out=0.1, num_workers=1)["files"]
        == prepared[1]["files"]
    )


def test_several_files_per_split(prepared, big_corpus, tokenizer_path, tmp_path, monkeypatch):
    monkeypatch.setattr(pack, "_FILE_BYTES", 1000 * 64 * 4)
    manifest = run(big_corpus, tokenizer_path, tmp_path / "out", seq_length=63, held_out=0.1)
    assert len(manifest["splits"]["train"]["files"]) == -(-manifest["splits"]["train"]["rows"] // 1000) > 3
    assert np.array_equal(all_rows(tmp_path / "out"), all_rows(prepared[0]))


def test_copies_fall_on_one_side_and_one_is_held_out(tokenizer_path, tmp_path):
    records = [{"text": f"document {number % 3} " * 20} for number in range(30)]
    manifest = run(write_jsonl(tmp_path / "a.jsonl", records), tokenizer_path, tmp_path / "out", held_out=1e-9)
    assert manifest["splits"]["held_out"]["documents"] == 10 and manifest["splits"]["held_out"]["rows"] >= 1
    same = write_jsonl(tmp_path / "b.jsonl", records[:1] * 9)
    manifest = run(same, tokenizer_path, tmp_path / "out2", held_out=1e-9)
    assert manifest["splits"]["held_out"] | {"domains": {}} == {
        "documents": 0,
        "tokens": 0,
        "bytes": 0,
        "domains": {},
        "files": [],
        "rows": 0,
        "pad_tokens": 0,
    }


def test_quarantine_is_delivered(tokenizer_path, tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "%s"}\n{\n{"text": ""}\n' % ("x = 1; " * 30))
    manifest = run(str(tmp_path / "a.jsonl"), tokenizer_path, tmp_path / "out")
    assert (manifest["quarantined"], manifest["empty"]) == (1, 1) and "quarantine.jsonl" in manifest["files"]
    assert json.loads((tmp_path / "out/quarantine.jsonl").read_text())["where"].endswith("a.jsonl:2")


def test_paragraphs_are_documents(tokenizer_path, tmp_path):
    (tmp_path / "a.txt").write_text("\n\n".join(f"paragraph {n} of the text" for n in range(9)))
    assert run(str(tmp_path / "a.txt"), tokenizer_path, tmp_path / "one")["splits"]["train"]["documents"] == 1
    assert (
        run(str(tmp_path / "a.txt"), tokenizer_path, tmp_path / "nine", split_paragraphs=True)["splits"]["train"][
            "documents"
        ]
        == 9
    )


def test_too_little_text(tokenizer_path, tmp_path):
    tokens = len(Tokenizer.load(tokenizer_path).encode("short")) + 1
    corpus = write_jsonl(tmp_path / "a.jsonl", [{"text": "short"}])
    with pytest.raises(
        DataError, match=f"{tokens} tokens in 1 training documents; one sequence needs seq_length . 1 = 16"
    ):
        run(corpus, tokenizer_path, tmp_path / "out")
    (tmp_path / "b.jsonl").write_text('{"text": ""}\n{')
    with pytest.raises(DataError, match=r"no document with text \(1 empty, 1 bad, first .*b.jsonl:2: not JSON"):
        run(str(tmp_path / "b.jsonl"), tokenizer_path, tmp_path / "out")
    assert sorted(os.listdir(tmp_path)) == ["a.jsonl", "b.jsonl"]  # no work directory in the way of the next try


def test_exactly_one_row_suffices(tokenizer_path, tmp_path):
    tokens = len(Tokenizer.load(tokenizer_path).encode("short")) + 1
    manifest = run(
        write_jsonl(tmp_path / "a.jsonl", [{"text": "short"}]), tokenizer_path, tmp_path / "out", seq_length=tokens - 1
    )
    assert (manifest["splits"]["train"]["rows"], manifest["splits"]["train"]["pad_tokens"]) == (1, 0)


def test_bad_settings_and_places(tokenizer_path, tmp_path, monkeypatch):
    corpus = write_jsonl(tmp_path / "a.jsonl", documents(50))
    cases = [
        ({"held_out": 1.0}, "held_out=1.0"),
        ({"seq_length": 0}, "seq_length=0"),
        ({"num_workers": 0}, "num_workers=0"),
    ]
    for options, text in cases:
        with pytest.raises(DataError, match=text):
            run(corpus, tokenizer_path, tmp_path / "out", **options)
    (tmp_path / "full").mkdir()
    (tmp_path / "full/x").touch()
    with pytest.raises(OutputError, match="nothing is overwritten"):
        run("missing.jsonl", tokenizer_path, tmp_path / "full")  # before anything else is looked at
    with blocks.work_directory(tmp_path / "out", "a"):
        with pytest.raises(OutputError, match="another `pangu data prepare`"):
            run(corpus, tokenizer_path, tmp_path / "out")
    files.write_json(tmp_path / "out.partial/key.json", {"key": "other"})
    with pytest.raises(OutputError, match="interrupted run with another corpus"):
        run(corpus, tokenizer_path, tmp_path / "out")


def test_a_worker_that_dies(tokenizer_path, tmp_path, monkeypatch):
    corpus = write_jsonl(tmp_path / "a.jsonl", documents(50))
    submit = blocks.Workers.submit
    monkeypatch.setattr(blocks.Workers, "submit", lambda pool, function, *arguments: submit(pool, os._exit, 1))
    with pytest.raises(UserError, match="a worker process died"):
        run(corpus, tokenizer_path, tmp_path / "out")
    assert (tmp_path / "out.partial").is_dir()


def test_a_worker_that_dies_is_noticed_while_an_earlier_one_is_silent(tokenizer_path, tmp_path, monkeypatch):
    corpus = write_jsonl(tmp_path / "a.jsonl", documents(3000))
    monkeypatch.setattr(blocks, "_SMALLEST", 1 << 12)
    submit, functions = blocks.Workers.submit, iter([(time.sleep, 600), (os._exit, 1)])
    monkeypatch.setattr(
        blocks.Workers,
        "submit",
        lambda pool, function, *arguments: submit(pool, *next(functions, (function, *arguments))),
    )
    began = time.monotonic()
    with pytest.raises(UserError, match="a worker process died"):
        run(corpus, tokenizer_path, tmp_path / "out", num_workers=2)
    assert time.monotonic() - began < 120


def test_full_disk_while_packing(tokenizer_path, tmp_path, monkeypatch):
    from mindspore.mindrecord import FileWriter

    corpus = write_jsonl(tmp_path / "a.jsonl", documents(50))
    with monkeypatch.context() as patch:
        # What MindRecord says on a full tmpfs.
        patch.setattr(
            FileWriter,
            "write_raw_data",
            _raiser(RuntimeError("[ERROR] No free disk to be used while writing mindrecord files")),
        )
        with pytest.raises(OutputError, match="no space left on the disk; the encoded blocks are kept"):
            run(corpus, tokenizer_path, tmp_path / "out")
    assert sorted(os.listdir(tmp_path)) == ["a.jsonl", "out.partial"]
    monkeypatch.setattr(blocks.Workers, "submit", _raiser(AssertionError("nothing is encoded again")))
    assert run(corpus, tokenizer_path, tmp_path / "out")["splits"]["train"]["documents"] == 50


def _raiser(error):
    def fail(*args, **kwargs):
        raise error

    return fail


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
@pytest.mark.parametrize("size", ["200k", "1500k"])
def test_really_full_disk(prepared, big_corpus, tokenizer_path, tmp_path, size):
    """200k: blocks do not fit; 1500k is too little for blocks or records."""
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(tmp_path)], capture_output=True
    ).returncode:
        pytest.skip("mount is not allowed here")
    try:
        with pytest.raises(OutputError, match="(?i)no space left"):
            run(big_corpus, tokenizer_path, tmp_path / "out", seq_length=63, held_out=0.1)
        assert os.listdir(tmp_path) == ["out.partial"]
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_command_line(prepared, big_corpus, tokenizer_path, tmp_path, capfd):
    directory = str(tmp_path / "out")
    argv = ["data", "prepare", "--corpus", big_corpus, "--tokenizer", str(tokenizer_path), "--output", directory]
    assert cli.main([*argv, "--seq-length", "63", "--held-out", "0.1"]) == 0
    assert "train" in capfd.readouterr().out
    assert cli.main(["data", "inspect", directory, "--verify", "--json"]) == 0
    shown = json.loads(capfd.readouterr().out)
    assert shown["manifest"]["files"] == prepared[1]["files"] and shown["rows"]["train"][0].startswith("0 ")
    assert cli.main(["data", "inspect", directory, "--rows", "0"]) == 0
    with open(f"{directory}/train-00000.mindrecord", "r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x01")
    assert cli.main(["data", "inspect", directory, "--verify"]) == 2
    assert "SHA-256 differs" in capfd.readouterr().err
    assert cli.main(argv) == 2
    assert "nothing is overwritten" in capfd.readouterr().err


def test_what_was_taken_as_what_is_said_and_each_form_gives_its_text(tokenizer_path, tmp_path, capfd):
    """Ways in which people keep text, each with its own words; what the records hold is read back with the tokenizer
    alone."""
    (tmp_path / "wiki_00").write_text(json.dumps({"doc": {"text": "from a nested field"}}) + "\n")
    (tmp_path / "list.json").write_text(json.dumps([{"doc": {"text": "from an array"}}]))
    chat = [{"role": "user", "content": "from a"}, {"role": "assistant", "content": "chat"}]
    (tmp_path / "chat.ndjson").write_text(json.dumps({"doc": {"text": chat}}) + "\n")
    (tmp_path / "note.txt").write_text("from plain text")
    names = [str(tmp_path / name) for name in ("wiki_00", "list.json", "chat.ndjson", "note.txt")]
    texts, tokenizer = (
        [
            "from a nested field",
            "from an array",
            "user: from a\nassistant: chat",
            "from plain text",
        ],
        Tokenizer.load(tokenizer_path),
    )
    length = sum(len(tokenizer.encode(text)) + 1 for text in texts) - 1  # one row
    words = [
        "--tokenizer",
        tokenizer_path,
        "--output",
        tmp_path / "out",
        "--seq-length",
        length,
        "--held-out",
        0,
        "--num-workers",
        1,
    ]
    assert cli.main(["data", "prepare", "--corpus", *names, "--text-field", "doc.text", *map(str, words)]) == 0
    assert "files taken as JSON lines: 2, a JSON array: 1, plain text: 1" in capfd.readouterr().out
    (row,) = RecordSet.open(tmp_path / "out").read_rows([0])
    read = np.split(row, np.flatnonzero(row == tokenizer.eod_id) + 1)[:-1]
    assert [tokenizer.decode(document[:-1].tolist()) for document in read] == texts
