"""Libraries that tests compile are compiled once for each content, and never found half made."""

import threading

import pytest

from tests.compiled import compiled_once, digest_of


def test_who_asks_at_once_gets_one_compilation(tmp_path):
    calls = []

    def compile_to(path):
        calls.append(path)
        assert path.name != "a.so"  # it has its name only when it is whole
        path.write_text("whole")

    threads = [threading.Thread(target=compiled_once, args=(tmp_path / "a.so", compile_to)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1 and (tmp_path / "a.so").read_text() == "whole"


def test_a_compilation_that_fails_leaves_nothing_and_the_next_one_works(tmp_path):
    def fails(path):
        path.write_text("half")
        raise RuntimeError("does not compile")

    with pytest.raises(RuntimeError, match="does not compile"):
        compiled_once(tmp_path / "a.so", fails)
    assert [path.name for path in tmp_path.iterdir()] == ["a.lock"]
    assert compiled_once(tmp_path / "a.so", lambda path: path.write_text("whole")).read_text() == "whole"


def test_another_content_flag_name_or_compiler_is_another_digest(tmp_path, monkeypatch):
    first, second = tmp_path / "a.h", tmp_path / "b.h"
    first.write_text("int a;")
    second.write_text("int a;")
    digests = [digest_of("-O1", files=[first]), digest_of("-O2", files=[first]), digest_of("-O1", files=[second])]
    first.write_text("int b;")
    digests.append(digest_of("-O1", files=[first]))
    monkeypatch.setattr("tests.compiled.compiler_digest", lambda: "another")
    digests.append(digest_of("-O1", files=[first]))
    assert len(set(digests)) == len(digests)
