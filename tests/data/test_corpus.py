"""Reading documents: forms, compression, quarantine, errors."""

import gzip
import json
import os
import sys

import pytest
import zstandard

from pangu_ms.data.corpus import Corpus, Document, Quarantine
from pangu_ms.errors import DataError

RECORDS = b'{"text": "a\\n\\nb", "domain": "x"}\n{"text": "c"}\n'
EXPECTED = [Document("a\n\nb", "x"), Document("c")]


@pytest.mark.parametrize("name, pack", [("a.jsonl", bytes), ("a.jsonl.gz", gzip.compress), ("a.jsonl.zst", zstandard.ZstdCompressor().compress)])
def test_json_lines(tmp_path, name, pack):
    (tmp_path / name).write_bytes(pack(RECORDS))
    corpus = Corpus([tmp_path / name])
    assert list(corpus) == EXPECTED == list(corpus)
    assert corpus.position == corpus.size


def test_text_files_patterns_and_paragraphs(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\r\n\n\ntwo\n\n \n")
    (tmp_path / "b.py.gz").write_bytes(gzip.compress(b"x = 1\n"))
    assert [d.text for d in Corpus([tmp_path / "*"])] == ["one\r\n\n\ntwo\n\n \n", "x = 1\n"]
    corpus = Corpus([tmp_path / "a.txt"], split_paragraphs=True)
    assert [d.text for d in corpus] == ["one\r", "\ntwo"] and corpus.quarantine.empty == 1


def test_bad_lines_are_kept_with_their_reason(tmp_path):
    bad = {2: b"{", 3: b"[1]", 4: b'{"text": 3}', 5: b'{"text": "\xff"}', 6: b'{"text": "\\ud800"}', 7: b'{"text": "a", "domain": 1}', 10: b'{"x": "a"}'}
    reasons = ["not JSON", "no field text", "text is int", "not UTF-8", "text has a lone surrogate", "domain is int", "no field text"]
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
    cases |= {"gbk.txt": "not UTF-8", "cut.jsonl.gz": "cut off", "no.jsonl.gz": "damaged", "no.jsonl.zst": "damaged", "missing": "No such file", "": "is a directory"}
    for name, text in cases.items():
        with pytest.raises(DataError, match=text):
            list(Corpus([tmp_path / name]))
    with pytest.raises(DataError, match="no file"):
        Corpus([])
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(DataError, match=r'pip install "pangu-ms\[data\]"'):
        list(Corpus([tmp_path / "no.jsonl.zst"]))
