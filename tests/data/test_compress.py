"""Compressed vocabularies: what is kept, what can still be encoded, against a BPE of our own, protobuf's reading of the
model, and plain counting."""

import collections
import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from pangu_ms.checkpoint import store
from pangu_ms.cli import main as cli
from pangu_ms.core.errors import DataError
from pangu_ms.data.compress import MAP_FILE, Compressor, load_vocab_map
from pangu_ms.data.piece_table import PieceTable
from pangu_ms.data.tokenizer import SPECIALS, Tokenizer, train_tokenizer
from tests.checkpoint.common import small_config
from tests.data.common import CHINESE, CODE, documents, write_jsonl

SEGMENTERS = ("jieba", "none")
ANY = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\u2581\u2582\u2583"))
HAN = st.text(st.characters(min_codepoint=0x4E00, max_codepoint=0x9FFF))
CODE_PART = st.integers(0, len(CODE)).map(lambda start: CODE[start : start + 60])
MIXED = st.lists(
    st.one_of(ANY, HAN, CODE_PART, st.sampled_from([*CHINESE, "  ", "\n", "\t", "\r\n", "<eot>", "\U0001f600"]))
).map("".join)


def _counts(tokenizer: Tokenizer, texts: list[str]) -> np.ndarray:
    counter = collections.Counter(i for text in texts for i in tokenizer.encode(text))
    return np.array([counter[i] for i in range(tokenizer.vocab_size)])


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return [record["text"] for record in documents(300)]


@pytest.fixture(scope="module")
def compressed(tokenizers, texts):
    return {name: Compressor(full).compress(_counts(full, texts), 400) for name, full in tokenizers.items()}


@pytest.mark.parametrize("segmenter", SEGMENTERS)
@settings(max_examples=200, deadline=None)
@given(text=MIXED)
def test_round_trip_is_exact(compressed, segmenter, text):
    tokenizer = compressed[segmenter].tokenizer
    assert tokenizer.decode(tokenizer.encode(text)) == text


def _bpe(tokenizer: Tokenizer, text: str) -> list[int]:
    """Merge the best pair, the leftmost of equals, until there is none; spell what is no piece in bytes."""
    processor = sentencepiece.SentencePieceProcessor(model_proto=tokenizer.model)
    normal = [
        i
        for i in range(tokenizer.vocab_size)
        if not (processor.is_byte(i) or processor.is_control(i) or processor.is_unknown(i))
    ]
    ids = {tokenizer.piece_of(i): i for i in normal}
    parts = list(text.replace(" ", "\u2581"))
    while True:
        joined = [a + b for a, b in zip(parts, parts[1:])]
        best = max((processor.get_score(ids[pair]) for pair in joined if pair in ids), default=None)
        if best is None:
            break
        at = next(at for at, pair in enumerate(joined) if pair in ids and processor.get_score(ids[pair]) == best)
        parts[at : at + 2] = [joined[at]]
    spelt = [
        [ids[part]] if part in ids else [tokenizer.id_of(f"<0x{byte:02X}>") for byte in part.encode()] for part in parts
    ]
    return [i for part in spelt for i in part]


@settings(max_examples=40, deadline=None)
@given(text=MIXED)
def test_encoding_is_bpe_with_the_pruned_vocabulary(compressed, text):
    tokenizer = compressed["none"].tokenizer
    assert tokenizer.encode(text) == _bpe(tokenizer, text)


@pytest.mark.parametrize("segmenter", SEGMENTERS)
def test_map_specials_bytes_and_settings(tokenizers, compressed, segmenter, tmp_path):
    full, small = tokenizers[segmenter], compressed[segmenter].tokenizer
    compressed[segmenter].save(tmp_path / "t")
    vocab_map = load_vocab_map(tmp_path / "t")
    loaded = Tokenizer.load(tmp_path / "t")
    assert (
        loaded.vocab_size == 400
        and loaded.segmenter == segmenter
        and loaded.fingerprint == small.fingerprint == vocab_map.fingerprint
    )
    assert [loaded.piece_of(new) for new in range(400)] == [full.piece_of(old) for old in vocab_map.old_ids]
    assert vocab_map.old_ids.dtype == np.int64 and (np.diff(vocab_map.old_ids) > 0).all()
    assert [loaded.id_of(special) for special in SPECIALS] == list(range(7))
    assert (
        all(loaded.id_of(f"<0x{byte:02X}>") is not None for byte in range(256)) and loaded.id_of("\u2581") is not None
    )
    assert (loaded.pad_id, loaded.eod_id, loaded.stop_ids) == (full.pad_id, full.eod_id, full.stop_ids)
    kept = compressed[segmenter].kept
    assert kept["special"] == 7 and kept["byte"] == 256 and sum(kept.values()) == 400
    vocab_map.require(full, full.vocab_size)


def test_map_travels_with_checkpoints(compressed, tmp_path):
    compressed["none"].save(tmp_path / "t")
    path = store.save(
        tmp_path / "root", 1, {"model": {"w": np.zeros(2, np.float32)}}, {}, small_config(), tokenizer=tmp_path / "t"
    )
    copy = load_vocab_map(store.open_checkpoint(path).tokenizer_path())
    assert (copy.old_ids == compressed["none"].vocab_map.old_ids).all()


def test_without_closure_the_most_frequent_are_kept(tokenizers, texts):
    full = tokenizers["none"]
    compressor, counts = Compressor(full), _counts(full, texts) // 40  # many ties
    old_ids = compressor.compress(counts, 400, closure=False).vocab_map.old_ids
    free = [i for i in range(full.vocab_size) if not compressor.required[i]]
    room = 400 - compressor.required.sum()
    assert set(old_ids) - set(np.flatnonzero(compressor.required)) == set(
        sorted(free, key=lambda i: (-counts[i], i))[:room]
    )


def test_with_closure_every_kept_piece_is_reachable(tokenizers, texts):
    full = tokenizers["none"]
    compressor, counts = Compressor(full), _counts(full, texts)
    for size in range(compressor.required.sum(), 600, 40):  # every way the last places can be filled
        result = compressor.compress(counts, size)
        normal = [i for i in range(size) if not compressor.required[result.vocab_map.old_ids[i]]]
        assert result.unreachable == [] and result.tokenizer.vocab_size == size
        for i in normal:
            assert _bpe(result.tokenizer, result.tokenizer.piece_of(i)) == [i]


def test_a_frequent_piece_needs_the_pieces_it_is_merged_from():
    full = train_tokenizer(["wxyz\n" * 50 + "wx\n" * 9, "other words\n" * 9], 290, "none")
    compressor = Compressor(full)
    counts = np.zeros(full.vocab_size, np.int64)
    counts[full.id_of("wxyz")] = 9
    needed = {"wx", "wxy"} if full.id_of("wxy") else {"wx", "yz"}
    smallest = int(compressor.required.sum())

    alone = compressor.compress(counts, smallest + 1, closure=False)
    assert alone.tokenizer.id_of("wxyz") is not None and alone.unreachable == ["wxyz"]
    assert alone.tokenizer.id_of("wxyz") not in alone.tokenizer.encode("wxyz")
    passed_over = compressor.compress(counts, smallest + 2)
    assert passed_over.tokenizer.id_of("wxyz") is None and passed_over.unreachable == []
    whole = compressor.compress(counts, smallest + 3)
    assert all(whole.tokenizer.id_of(piece) for piece in needed) and whole.unreachable == []
    assert whole.tokenizer.encode("wxyz") == [whole.tokenizer.id_of("wxyz")]


def _trained(**options) -> Tokenizer:
    model = io.BytesIO()
    fixed = {
        "user_defined_symbols": ["<sep>", "<pad>", "<eod>"],
        "minloglevel": 2,
        "hard_vocab_limit": False,
        "character_coverage": 1.0,
    }
    lines = [
        text.replace(" ", "\u2582").replace("\n", "\u2583") for text in [*CHINESE * 20, *CODE[:9000].split("\n\n")]
    ]
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(lines), model_writer=model, **fixed, **options)
    return Tokenizer(model.getvalue(), eod="<pad>")


@pytest.mark.parametrize("model_type", ["unigram", "bpe"])
def test_without_bytes_every_character_stays(model_type):
    full = _trained(vocab_size=400, model_type=model_type)
    compressor = Compressor(full)
    counts = _counts(full, [CODE[:9000], *CHINESE])
    small = compressor.compress(counts, int(compressor.required.sum()) + 20)
    text = CODE[:3000] + CHINESE[0]
    assert (
        small.tokenizer.decode(small.tokenizer.encode(text)) == full.decode(full.encode(text))
        and small.unreachable == []
    )
    assert full.unk_id not in full.encode(text) and small.tokenizer.unk_id not in small.tokenizer.encode(text)
    assert small.tokenizer.piece_of(small.tokenizer.eod_id) == "<pad>"


_READ = """
import sys
import numpy as np
from pangu_ms.data.compress import Compressor, Tokenizer
full = Tokenizer.load(sys.argv[1])
compressor = Compressor(full)
size = 300 if sys.argv[2] == "none" else int(compressor.required.sum()) + 9
small = compressor.compress(np.arange(full.vocab_size), size)
assert "google.protobuf" not in sys.modules  # mindspore could not be imported any more
from sentencepiece.sentencepiece_model_pb2 import ModelProto
old, new = (ModelProto.FromString(tokenizer.model) for tokenizer in (full, small.tokenizer))
old_ids = small.vocab_map.old_ids.tolist()
kept = [old.pieces[i] for i in old_ids]
assert [(p.piece, p.score, p.type) for p in new.pieces] == [(p.piece, p.score, p.type) for p in kept]
assert new.trainer_spec.vocab_size == len(old_ids)
for name in ("unk_id", "bos_id", "eos_id", "pad_id"):
    index = getattr(old.trainer_spec, name)
    assert getattr(new.trainer_spec, name) == (old_ids.index(index) if index >= 0 else index), name
    setattr(new.trainer_spec, name, index), setattr(old.trainer_spec, name, index)
if sys.argv[2] == "none":  # equal scores: the leftmost pair is merged first
    for piece in old.pieces:
        piece.score = 0
    tied = Compressor(full.with_model(old.SerializeToString()))
    assert [tied.compress(np.arange(full.vocab_size), size).unreachable for size in range(300, 600, 20)] == [[]] * 15
new.trainer_spec.vocab_size = old.trainer_spec.vocab_size
del new.pieces[:], old.pieces[:]
assert new == old
"""


@pytest.mark.parametrize("kind", ["none", "moved specials"])
def test_model_file_as_protobuf_reads_it(tokenizer_path, tmp_path, kind):
    path = tokenizer_path
    if kind != "none":
        full = _trained(vocab_size=400, unk_id=60, eos_id=70)  # <s> at 1 by default, an ordinary piece before it
        full.save(path := tmp_path / "full")
    subprocess.run([sys.executable, "-c", _READ, str(path), kind], check=True, cwd=Path(__file__).parents[2])


def test_self_test_of_the_full_vocabulary_is_dropped(tokenizers):
    full = tokenizers["none"]
    with_samples = full.with_model(
        full.model + bytes([4 << 3 | 2, 2, 1 << 3 | 2, 0])
    )  # ModelProto.self_test_data with one empty sample
    results = [Compressor(tokenizer).compress(np.arange(600), 300) for tokenizer in (full, with_samples)]
    assert results[0].tokenizer.model == results[1].tokenizer.model


def test_corpus_records_and_saved_counts_agree(prepared, big_corpus, tokenizer_path, tokenizers, tmp_path, capfd):
    def run(*arguments: str) -> dict:
        assert cli.main(["tokenizer", "compress", "--tokenizer", str(tokenizer_path), "--json", *arguments]) == 0
        return json.loads(capfd.readouterr().out)

    texts = [record["text"] for record in map(json.loads, open(big_corpus))]
    expected = _counts(tokenizers["none"], texts)
    outputs = [str(tmp_path / name) for name in ("corpus", "records", "counts")]
    saved = [str(tmp_path / name) for name in ("a.json", "b.json")]
    results = [run("--corpus", big_corpus, "--vocab-size", "450", "--output", outputs[0], "--save-counts", saved[0])]
    results.append(
        run("--records", str(prepared[0]), "--vocab-size", "450", "--output", outputs[1], "--save-counts", saved[1])
    )
    results.append(run("--counts", saved[0], "--corpus", big_corpus, "--vocab-size", "450", "--output", outputs[2]))
    assert all(json.load(open(path))["counts"] == expected.tolist() for path in saved)

    small = Tokenizer.load(outputs[0])
    kept = {small.piece_of(i) for i in range(450)}
    coverage = sum(count for i, count in enumerate(expected) if tokenizers["none"].piece_of(i) in kept) / expected.sum()
    assert {Tokenizer.load(output).fingerprint for output in outputs} == {small.fingerprint}
    assert all(
        result["coverage"] == pytest.approx(coverage, rel=1e-12) and result["counted_tokens"] == expected.sum()
        for result in results
    )
    # The sample takes every other chunk of 2,000 characters until it is small enough; these documents are shorter.
    stride = next(s for s in (1, 2, 4, 8) if sum(len(text.encode()) for text in texts[::s]) <= 1_000_000)
    sample = texts[::stride]
    after = sum(len(small.encode(text)) for text in sample) / sum(map(len, sample))
    assert results[0]["after"] == results[2]["after"] and results[0]["after"]["tokens_per_character"] == pytest.approx(
        after, rel=1e-12
    )
    assert results[1]["after"]["tokens_per_character"] == pytest.approx(after, rel=0.02)  # other rows, documents joined
    table = run("--counts", saved[0], "--sizes", "450,500")["sizes"]
    assert [row["vocab_size"] for row in table] == [600, 450, 500] and table[1]["coverage"] == results[0][
        "coverage"
    ] < table[2]["coverage"]


def test_report_for_the_eye(tokenizer_path, tmp_path, capfd):
    corpus = write_jsonl(tmp_path / "a.jsonl", documents(50))
    base = [
        "tokenizer",
        "compress",
        "--tokenizer",
        str(tokenizer_path),
        "--corpus",
        corpus,
        "--no-closure",
        "--num-workers",
        "1",
    ]
    assert cli.main([*base, "--vocab-size", "400", "--output", str(tmp_path / "t")]) == 0
    report = capfd.readouterr().out
    assert (
        "400 of 600 pieces" in report
        and "256 byte" in report
        and "unreachable" in report
        and "tokens per character" in report
    )
    assert cli.main([*base, "--sizes", "300,400"]) == 0
    assert len(capfd.readouterr().out.splitlines()) == 5


def test_errors_name_the_rule(tokenizer_path, tmp_path, compressed, tokenizers, capfd):
    compressed["none"].save(tmp_path / "t")
    corpus = write_jsonl(tmp_path / "a.jsonl", documents(3))
    empty = write_jsonl(tmp_path / "empty.jsonl", [{"text": "  "}])
    (tmp_path / "foreign.json").write_text(json.dumps({"format": 1, "tokenizer": "0" * 64, "counts": [1] * 600}))
    (tmp_path / "short.json").write_text(
        json.dumps({"format": 1, "tokenizer": tokenizers["none"].fingerprint, "counts": [1] * 5})
    )
    new, counted = ["--output", str(tmp_path / "new")], ["--corpus", corpus]
    cases = [
        (["--vocab-size", "600", *new, *counted], "below the 600 pieces"),
        (["--vocab-size", "10", *new, *counted], "must be at least 264"),
        (["--sizes", "400,10", *counted], "must be at least 264"),
        (["--sizes", "400;500", *counted], "whole numbers with commas"),
        (["--sizes", "400", *new, *counted], "--sizes writes no tokenizer"),
        (["--vocab-size", "400", *counted], "--output: missing"),
        (["--vocab-size", "400", *new], "name --corpus, --records or --counts"),
        (["--vocab-size", "400", "--output", str(tmp_path), *counted], "nothing is overwritten"),
        (
            ["--vocab-size", "400", *new, *counted, "--save-counts", corpus],
            "nothing is overwritten; name a new --save-counts",
        ),
        (["--vocab-size", "400", *new, *counted, "--num-workers", "0"], "num_workers=0"),
        (["--vocab-size", "400", *new, "--corpus", empty, "--num-workers", "1"], "hold no text"),
        (["--vocab-size", "400", *new, "--counts", str(tmp_path / "none.json")], "No such file"),
        (["--vocab-size", "400", *new, "--counts", corpus], "not what --save-counts writes"),
        (
            ["--vocab-size", "400", *new, "--counts", str(tmp_path / "foreign.json")],
            "counted with tokenizer 000000000000",
        ),
        (["--vocab-size", "400", *new, "--counts", str(tmp_path / "short.json")], "must hold 600 counts"),
    ]
    for arguments, text in cases:
        assert cli.main(["tokenizer", "compress", "--tokenizer", str(tokenizer_path), *arguments]) == 2
        assert text in capfd.readouterr().err, arguments
    assert not (tmp_path / "new").exists()
    with pytest.raises(DataError, match="compress the tokenizer of the model"):
        compressed["none"].vocab_map.require(tokenizers["jieba"], 600)


def test_foreign_records_are_refused(prepared, tokenizers, tmp_path, capfd):
    tokenizers["jieba"].save(tmp_path / "other")
    arguments = [
        "--tokenizer",
        str(tmp_path / "other"),
        "--records",
        str(prepared[0]),
        "--vocab-size",
        "400",
        "--output",
        str(tmp_path / "new"),
    ]
    assert cli.main(["tokenizer", "compress", *arguments]) == 2
    assert "prepared with tokenizer" in capfd.readouterr().err


def test_damaged_maps_are_refused(compressed, tokenizer_path, tmp_path):
    compressed["none"].save(tmp_path / "t")
    path = tmp_path / "t" / MAP_FILE
    good = json.loads(path.read_text())
    ids = good["old_ids"]
    cases = [
        ({"format": 2}, "a newer version"),
        ({"old_ids": ids[::-1]}, "strictly increasing"),
        ({"old_ids": [*ids[:-1], 600]}, "from 0 to 599"),
        ({"old_ids": [*ids[:-1], 0.5]}, "not a vocabulary map"),
        ({"old_ids": ids[:-1]}, "must be the same"),
        ({"fingerprint": "0" * 64}, "must be the same"),
    ]
    for change, text in cases:
        path.write_text(json.dumps(good | change))
        with pytest.raises(DataError, match=text):
            load_vocab_map(tmp_path / "t")
    path.write_text("{")
    with pytest.raises(DataError, match="not a vocabulary map"):
        load_vocab_map(tmp_path / "t")
    with pytest.raises(DataError, match="pangu tokenizer compress"):
        load_vocab_map(tokenizer_path)


def test_merges_are_those_of_the_full_vocabulary(tokenizers):
    table = PieceTable(tokenizers["none"].model)
    long = max(np.flatnonzero(table.reachable), key=lambda i: len(table.pieces[i]))
    made = [table.pieces[i] for i in table.merges(int(long))]
    assert made[-1] == table.pieces[long] and len(made) == len(made[-1]) - 1 and all(part in made[-1] for part in made)
