"""Reading documents: forms, compression, quarantine, errors."""

import gzip
import json
import os
import sys

import pytest
import zstandard

from pangu_ms.core.errors import DataError
from pangu_ms.data import streams
from pangu_ms.data.corpus import Corpus, Document, Quarantine

RECORDS = b'{"text": "a\\n\\nb", "domain": "x"}\n{"text": "c"}\n'
EXPECTED = [Document("a\n\nb", "x"), Document("c")]


@pytest.mark.parametrize(
    "name, pack",
    [("a.jsonl", bytes), ("a.jsonl.gz", gzip.compress), ("a.jsonl.zst", zstandard.ZstdCompressor().compress)],
)
def test_json_lines(tmp_path, name, pack):
    (tmp_path / name).write_bytes(pack(RECORDS))
    corpus = Corpus([tmp_path / name])
    assert list(corpus) == EXPECTED == list(corpus)
    assert corpus.position == corpus.size


@pytest.mark.parametrize(
    "name", ["a.json", "a.ndjson", "wiki_00", "a.txt", "a.json.gz", "array.json", "array.jsonl.gz", "pretty.json"]
)
def test_content_tells_the_form(tmp_path, name):
    array = json.dumps(
        [json.loads(line) for line in RECORDS.splitlines()], indent=2 if "pretty" in name else None
    ).encode()
    content = array if name[0] in "ap" and ("array" in name or "pretty" in name) else RECORDS
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    corpus = Corpus([tmp_path / name])
    assert list(corpus) == EXPECTED
    assert corpus.taken() == {"a JSON array" if content == array else "JSON lines": 1}
    assert list(Corpus([tmp_path / name], plain_text=True)) == [Document(content.decode())]


def test_what_is_no_json_lines_stays_text(tmp_path):
    for name, content in {
        "package.json": '{\n  "text": "a",\n  "b": [1]\n}\n',
        "a.md": 'see\n{"text": "a"}\n',
        "b.py": "[x for x in y]\n",
    }.items():
        (tmp_path / name).write_text(content)
        assert list(Corpus([tmp_path / name])) == [Document(content)]


def test_surprises_are_one_line_a_kind(tmp_path, caplog):
    for number in range(50):
        (tmp_path / f"{number}.json").write_bytes(RECORDS)
    (tmp_path / "a.jsonl").write_bytes(RECORDS)
    Corpus([tmp_path / "*"])
    assert [record.getMessage()[:56] for record in caplog.records] == [
        "corpus: 50 files named .json: taken as JSON lines by con"
    ]


def test_fields(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"data": {"text": "a"}, "id": "7"}\n' * 3)
    with pytest.raises(DataError, match="no field text; there are data.text, id; name one with --text-field"):
        Corpus([path])
    assert list(Corpus([path], text_field="data.text")) == [Document("a")] * 3
    parts = [{"type": "text", "text": "x"}, {"type": "image"}, {"type": "text", "text": "y"}]
    records = [
        {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": parts}]},
        {"messages": ["no"]},
        {"text": "t", "messages": []},
    ]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    corpus = Corpus([path])
    assert [d.text for d in corpus] == ["user: hi\nassistant: xy", "t"]
    assert corpus.quarantine.first.endswith("a.jsonl:2: messages is a list, but not of messages with role and content")


def test_byte_order_mark_in_the_middle_and_deep_nesting(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(
        (b"\xef\xbb\xbf" + RECORDS) * 2 + b"[" * 100_000 + b"\n" + b'{"a":' * 100_000 + b"\n"
    )
    corpus = Corpus([tmp_path / "a.jsonl"])
    assert (
        list(corpus) == EXPECTED * 2 and corpus.quarantine.count == 2 and "nested too deeply" in corpus.quarantine.first
    )


@pytest.mark.parametrize(
    "content",
    [
        '[{"text": "a"}, {"text"',
        '[{"text": "a"} {"text": "b"}]',
        '[{"text": "a"}] []',
        '[{"text": "a"},]',
        '[{"a":' * 50_000,
    ],
)
def test_damaged_arrays(tmp_path, content):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(DataError, match="it begins as a JSON array"):
        list(Corpus([tmp_path / "a.json"]))


def test_bombs_and_long_lines(tmp_path, monkeypatch):
    def require_refused(name, content):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match="text does not shrink to a 200th"):
            list(Corpus([tmp_path / name]))

    require_refused("a.jsonl.gz", gzip.compress(bytes(streams._FREE + (1 << 20))))
    monkeypatch.setattr(streams, "_FREE", 1 << 22)  # else compressing takes seconds
    require_refused("a.txt.gz", gzip.compress(bytes(1 << 23)))
    require_refused("a.txt.zst", zstandard.ZstdCompressor().compress(bytes(1 << 23)))
    (tmp_path / "a.json.gz").write_bytes(gzip.compress(b'[{"text": "a"},' + b" " * (1 << 23) + b'{"text": "b"}]'))
    with pytest.raises(DataError, match=r"text does not shrink to a 200th; look at its content; [^;]*$"):
        list(Corpus([tmp_path / "a.json.gz"]))
    monkeypatch.setattr(streams, "LONGEST", 1000)
    (tmp_path / "a.jsonl").write_bytes(RECORDS + b'{"text": "' + b"x" * 5000 + b'"}\n' + RECORDS)
    corpus = Corpus([tmp_path / "a.jsonl"])
    assert list(corpus) == EXPECTED * 2 and corpus.quarantine.first.endswith("a.jsonl:3: longer than 1,000 bytes")
    text = "\u4f60\u597d\U0001f600" * 500 + "\n\n" + "abc\n" * 400
    (tmp_path / "a.txt").write_text(text)
    parts = [d.text for d in Corpus([tmp_path / "a.txt"])]
    assert "".join(parts) == text and 5 < len(parts) and max(len(part.encode()) for part in parts) <= 1000


def test_devices_are_refused():
    with pytest.raises(DataError, match="no regular file"):
        Corpus(["/dev/zero"])


def test_text_files_patterns_and_paragraphs(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\r\n\n\ntwo\n\n \n")
    (tmp_path / "b.py.gz").write_bytes(gzip.compress(b"x = 1\n"))
    assert [d.text for d in Corpus([tmp_path / "*"])] == ["one\r\n\n\ntwo\n\n \n", "x = 1\n"]
    corpus = Corpus([tmp_path / "a.txt"], split_paragraphs=True)
    assert [d.text for d in corpus] == ["one\r", "\ntwo"] and corpus.quarantine.empty == 1


def test_bad_lines_are_kept_with_their_reason(tmp_path):
    bad = {
        2: b"{",
        3: b"[1]",
        4: b'{"text": 3}',
        5: b'{"text": "\xff"}',
        6: b'{"text": "\\ud800"}',
        7: b'{"text": "a", "domain": 1}',
        10: b'{"x": "a"}',
    }
    reasons = [
        "not JSON",
        "no field text",
        "text is int",
        "not UTF-8",
        "text has a lone surrogate",
        "domain is int",
        "no field text",
    ]
    lines = [bad.get(number, b'{"text": "good"}') for number in range(1, 11)]
    lines[7], lines[8] = b"", b'{"text": " "}'
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines))
    quarantine = Quarantine(tmp_path / "q.jsonl")
    assert list(Corpus([tmp_path / "a.jsonl"], quarantine=quarantine)) == [Document("good")]
    quarantine.close()
    records = [json.loads(line) for line in (tmp_path / "q.jsonl").read_text().splitlines()]
    assert [r["where"] for r in records] == [f"{tmp_path}/a.jsonl:{number}" for number in bad]
    assert all(record["reason"].startswith(reason) for record, reason in zip(records, reasons, strict=True))
    assert records[0]["line"] == "{" and (quarantine.count, quarantine.empty) == (7, 2)


def test_unusable_files(tmp_path, monkeypatch):
    (tmp_path / "gbk.txt").write_bytes("\u4f60\u597d".encode("gbk"))
    whole = gzip.compress(RECORDS * 1000)
    (tmp_path / "cut.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "no.jsonl.gz").write_bytes(b"plain")
    (tmp_path / "no.jsonl.zst").write_bytes(b"plain")
    random_bytes = json.dumps({"text": os.urandom(300_000).hex()}).encode() + b"\n"
    whole = zstandard.ZstdCompressor().compress(RECORDS) + zstandard.ZstdCompressor().compress(random_bytes)
    (tmp_path / "cut.jsonl.zst").write_bytes(whole[:200_000])
    (tmp_path / "whole.jsonl.zst").write_bytes(whole)
    assert len(list(Corpus([tmp_path / "whole.jsonl.zst"]))) == 3  # two frames
    cases = {"cut.jsonl.zst": "cut off"}
    cases |= {
        "gbk.txt": "not UTF-8",
        "cut.jsonl.gz": "cut off",
        "no.jsonl.gz": "damaged",
        "no.jsonl.zst": "damaged",
        "missing": "No such file",
        "": "is a directory",
    }
    for name, text in cases.items():
        with pytest.raises(DataError, match=text):
            list(Corpus([tmp_path / name]))
    with pytest.raises(DataError, match="no file"):
        Corpus([])
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(DataError, match=r'pip install "pangu-ms\[data\]"'):
        list(Corpus([tmp_path / "no.jsonl.zst"]))
