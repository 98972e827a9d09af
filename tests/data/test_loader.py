"""Rows, order, sharding, resume; positions, segments and loss mask against the literal algorithm."""

import hashlib
import itertools
import json
import shutil
import types

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pangu_ms.core.errors import DataError
from pangu_ms.data.loader import Loader, batch_from_ids
from pangu_ms.data.prepare import prepare
from pangu_ms.data.records import RecordSet
from pangu_ms.data.tokenizer import Tokenizer

EOD, PAD = 5, 4


def literal_mask_and_positions(tokens, eod_id):
    """Spec A1.5, left to right, for one row."""
    length = len(tokens)
    mask, positions, previous = np.tril(np.ones((length, length), int)), np.arange(length), 0
    for e in range(length):
        if tokens[e] == eod_id:
            mask[e + 1 :, : e + 1] = 0
            positions[e + 1 :] -= e + 1 - previous
            previous = e + 1
    return mask, positions


@settings(max_examples=200, deadline=None)
@given(rows=st.lists(st.lists(st.sampled_from([PAD, EOD, 6, 7, 8]), min_size=13, max_size=13), min_size=1, max_size=4))
def test_batch_is_the_literal_algorithm(rows):
    ids = np.array(rows, np.int32)
    batch = batch_from_ids(ids, EOD, PAD, eod_reset=True)
    for row, positions, segments, loss_mask in zip(ids, batch.positions, batch.segments, batch.loss_mask):
        mask, expected = literal_mask_and_positions(row[:-1], EOD)
        assert positions.tolist() == expected.tolist()
        assert (np.tril(segments[:, None] == segments[None, :]) == mask).all()
        assert loss_mask.tolist() == [float(t not in (EOD, PAD)) for t in row[:-1]]
    assert batch.segments[:, 0].tolist() == [0] * len(ids)
    assert [a.dtype for a in (batch.ids, batch.positions, batch.segments, batch.loss_mask)] == [
        np.int32,
        np.int32,
        np.int32,
        np.float32,
    ]


def test_batch_without_reset():
    batch = batch_from_ids(np.array([[7, EOD, 7, PAD, 7]], np.int32), EOD, PAD, eod_reset=False)
    assert batch.positions.tolist() == [[0, 1, 2, 3]] and batch.segments.tolist() == [[0, 0, 0, 0]]
    assert batch.loss_mask.tolist() == [[1, 0, 1, 0]]


def write_rows(path, rows, column="input_ids", dtype="int32"):
    from mindspore.mindrecord import FileWriter

    writer = FileWriter(str(path), shard_num=1)
    writer.add_schema({column: {"type": dtype, "shape": [-1]}}, "x")
    writer.write_raw_data([{column: np.array(row, dtype)} for row in rows])
    writer.commit()
    return path


@pytest.fixture(scope="module")
def official(tmp_path_factory):
    """Two files of 7 and 4 rows; row n is [n, n+1, ..., n+8]."""
    directory = tmp_path_factory.mktemp("official")
    write_rows(directory / "a.mindrecord", [range(n, n + 9) for n in range(7)])
    write_rows(directory / "b.mindrecord", [range(n, n + 9) for n in range(7, 11)])
    return directory


def test_official_files_in_any_form(official):
    for source in (
        official,
        str(official / "*.mindrecord"),
        official / "*",
        [official / "a.mindrecord", official / "b.mindrecord"],
    ):
        records = RecordSet.open(source)
        assert (records.num_rows, records.row_length, records.seq_length) == (11, 9, 8)
        assert [rows[:, 0].tolist() for rows in records.rows(4)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10]]
    assert RecordSet.open([official / "b.mindrecord", official / "a.mindrecord"]).read_rows([0, 4])[:, 0].tolist() == [
        7,
        0,
    ]


@pytest.mark.parametrize("wanted", [[10, 0, 5, 5, 9, 10], [3], list(range(10, -1, -1))])
def test_rows_come_in_the_order_asked(official, wanted):
    rows = RecordSet.open(official).read_rows(wanted)
    assert rows.dtype == np.int32 and rows.tolist() == [list(range(n, n + 9)) for n in wanted]


def take(loader, count, start=0):
    return [batch.ids[:, 0].tolist() for batch in itertools.islice(loader.batches(start), count)]


def test_each_epoch_has_every_row_once_in_its_own_order(official):
    seen = sum(take(Loader(RecordSet.open(official), 3, seed=7), 22), [])
    epochs = [seen[start : start + 11] for start in range(0, 66, 11)]
    assert all(sorted(epoch) == list(range(11)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 6
    assert take(Loader(RecordSet.open(official), 3, seed=8), 4) != take(Loader(RecordSet.open(official), 3, seed=7), 4)
    assert take(Loader(RecordSet.open(official), 4, shuffle=False), 3) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 0]]


@pytest.mark.parametrize("shuffle", [True, False])
def test_ranks_share_one_global_batch(official, shuffle):
    records = RecordSet.open(official)
    whole = take(Loader(records, 6, shuffle=shuffle), 9)
    parts = [take(Loader(records, 2, shuffle=shuffle, rank=rank, world=3), 9) for rank in range(3)]
    assert whole == [sum(step, []) for step in zip(*parts)]


def test_an_order_is_all_that_an_epoch_has(official):
    records, order = RecordSet.open(official), np.array([9, 2, 7, 4, 0])
    seen = sum(take(Loader(records, 2, seed=7, order=order), 10), [])
    epochs = [seen[start : start + 5] for start in range(0, 20, 5)]
    assert all(sorted(epoch) == [0, 2, 4, 7, 9] for epoch in epochs) and len({tuple(epoch) for epoch in epochs}) > 1
    assert take(Loader(records, 3, shuffle=False, order=order), 3) == [[9, 2, 7], [4, 0, 9], [2, 7, 4]]
    parts = [take(Loader(records, 1, seed=7, rank=rank, world=2, order=order), 10, start=341) for rank in range(2)]
    assert [sum(step, []) for step in zip(*parts)] == take(Loader(records, 2, seed=7, order=order), 351)[341:]


@pytest.mark.parametrize("start", [1, 5, 340, 341, 342])
def test_resume_is_the_tail(official, start):
    records = RecordSet.open(official)
    assert take(Loader(records, 3), 6, start) == take(Loader(records, 3), start + 6)[start:]


def test_batches_of_prepared_data_use_its_ids(prepared, tokenizers):
    records = RecordSet.open(prepared[0])
    batch = next(Loader(records, 4).batches())
    expected = batch_from_ids(batch.ids, tokenizers["none"].eod_id, tokenizers["none"].pad_id, True)
    assert all(
        np.array_equal(getattr(batch, name), getattr(expected, name)) for name in ("positions", "segments", "loss_mask")
    )
    assert batch.segments.max() > 0


def model(seq_length, vocab_size):
    return types.SimpleNamespace(seq_length=seq_length, vocab_size=vocab_size)


def test_check_compares_with_the_model(prepared, official, tokenizers):
    records = RecordSet.open(prepared[0])
    records.check(model(63, 600), Tokenizer.load(prepared[0] / "tokenizer"))
    cases = [
        (
            records,
            model(64, 600),
            {},
            "rows of 64 ids, model.seq_length=64.*set model.seq_length=63 or prepare with --seq-length 64",
        ),
        (records, model(63, 601), {}, "600 pieces, model.vocab_size=601"),
        (records, model(63, 600), {"tokenizer": tokenizers["jieba"]}, "must be the same"),
        (
            RecordSet.open(official),
            model(8, 700),
            {"tokenizer": tokenizers["none"]},
            "tokenizer: 600 pieces, model.vocab_size=700",
        ),
    ]
    for record_set, config, options, text in cases:
        with pytest.raises(DataError, match=text):
            record_set.check(config, **options)
    records.check(model(64, 600), evaluation=True)
    small = RecordSet.open(official)
    small.check(model(8, 15))
    with pytest.raises(DataError, match=r"id 18: must be in \[0, 15\)"):
        list(small.rows())


def test_check_compares_the_segmenter(prepared, tokenizers, caplog):
    records, jieba = RecordSet.open(prepared[0]), tokenizers["jieba"]
    records.manifest = records.manifest | {"tokenizer": jieba.fingerprint, "segmenter_version": jieba.segmenter_version}
    records.check(model(63, 600), jieba)
    records.manifest |= {"tokenizer": "0" * 64, "segmenter_version": {"jieba": "0.39", "dictionary": "1" * 64}}
    with pytest.raises(
        DataError, match=r"cut into words by jieba 0.39 with dictionary 1{12}, here is jieba .*pip install jieba==0.39"
    ):
        records.check(model(63, 600), jieba)
    settings = b'{"eod": "<eod>", "format": 1, "segmenter": "jieba"}'  # as version 0.1.0 made it
    old = hashlib.sha256(jieba.model + settings).hexdigest()
    del records.manifest["segmenter_version"]
    records.manifest["tokenizer"] = old
    records.check(model(63, 600), jieba)
    assert not caplog.records or old in caplog.text  # told once in a process


@pytest.fixture(scope="session")
def small_records(tokenizer_path, tmp_path_factory):
    from tests.data.common import documents, write_jsonl

    place = tmp_path_factory.mktemp("small")
    corpus = write_jsonl(place / "a.jsonl", documents(60))
    prepare([corpus], tokenizer_path, place / "out", seq_length=15, held_out=0.0, num_workers=1, progress=False)
    return place / "out"


def _damaged(source, target, change, name="train-00000.mindrecord"):
    shutil.copytree(source, target)
    path = target / name
    content = bytearray(path.read_bytes())
    change(content)
    path.write_bytes(content)
    return target


def test_damaged_rows_are_found(small_records, tmp_path):
    """Bits and pages of the rows' own bytes: what is read is what was written, or it is refused."""
    whole = np.concatenate(list(RecordSet.open(small_records).rows()))
    content = np.frombuffer((small_records / "train-00000.mindrecord").read_bytes(), np.uint8)
    used = np.flatnonzero(content)
    used = used[used > 1 << 20]  # behind the header
    refused = []
    for number, at in enumerate(used[:: len(used) // 40]):

        def flip(content, at=at):
            content[at] ^= 4

        def zero(content, at=at):
            content[at : at + 4096] = bytes(len(content[at : at + 4096]))

        damaged = _damaged(small_records, tmp_path / str(number), zero if number % 4 == 0 else flip)
        try:
            assert np.array_equal(np.concatenate(list(RecordSet.open(damaged).rows())), whole)
        except DataError as error:
            refused.append(str(error))
    assert sum("is not as it was written" in text for text in refused) > 3, refused


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("train-00000.mindrecord.db", "SHA-256 differs"),
        ("train.digests", "row [0-9]+ is not as it was written"),
        ("tokenizer/vocab.model", "SHA-256 differs"),
    ],
)
def test_damage_beside_the_rows_is_found(small_records, tmp_path, name, text):
    damaged = _damaged(small_records, tmp_path / "r", lambda content: content.__setitem__(-3, content[-3] ^ 1), name)
    with pytest.raises(DataError, match=text):
        list(RecordSet.open(damaged).rows())
        Tokenizer.load(damaged / "tokenizer")


def test_digests_of_fewer_rows_are_refused(small_records, tmp_path):
    damaged = _damaged(small_records, tmp_path / "r", lambda content: content.__delitem__(slice(8)), "train.digests")
    with pytest.raises(DataError, match="must be a file of 8 bytes for each of [0-9]+ rows"):
        RecordSet.open(damaged)


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m["splits"]["train"].update(files=["/dev/zero"]),
        lambda m: m["splits"]["train"].update(files=["../x"]),
        lambda m: m["splits"]["train"].update(digests="/dev/zero"),
        lambda m: m["splits"].update(train=[]),
        lambda m: m["splits"]["train"].pop("rows"),
        lambda m: m["splits"]["train"].update(tokens="7"),
        lambda m: m["splits"]["train"].update(domains={"zh": []}),
        lambda m: m.update(taken={"text": "7"}),
        lambda m: m.update(segmenter_version={"jieba": "\u009b31m", "dictionary": "1"}),
        lambda m: m.update(vocab_size="600"),
        lambda m: m.pop("tokenizer"),
        lambda m: m.update(files=None),
    ],
)
def test_edited_manifests(small_records, tmp_path, change):
    shutil.copytree(small_records, tmp_path / "r")
    manifest = json.loads((tmp_path / "r/manifest.json").read_text())
    change(manifest)
    (tmp_path / "r/manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DataError, match="not a manifest"):
        RecordSet.open(tmp_path / "r")


def test_records_of_an_earlier_version_have_no_digests(small_records, tmp_path):
    shutil.copytree(small_records, tmp_path / "r")
    manifest = json.loads((tmp_path / "r/manifest.json").read_text())
    for split in manifest["splits"].values():
        split.pop("digests", None)
    (tmp_path / "r/manifest.json").write_text(json.dumps(manifest))
    expected = np.concatenate(list(RecordSet.open(small_records).rows()))
    assert np.array_equal(np.concatenate(list(RecordSet.open(tmp_path / "r").rows())), expected)


def test_unusable_records(official, prepared, tmp_path):
    (tmp_path / "junk").write_bytes(b"junk")
    (tmp_path / "junk.db").write_bytes(b"junk")
    write_rows(tmp_path / "uneven", [[1, 2], [1, 2, 3]])
    write_rows(tmp_path / "other", [[1, 2]], column="tokens")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/manifest.json").write_text("[]")
    opened = lambda source, split="train": lambda: list(RecordSet.open(source, split).rows())  # noqa: E731
    cases = [
        (opened(tmp_path / "missing"), "no MindRecord file"),
        (opened(tmp_path / "junk"), "cannot be read as MindRecord"),
        (opened(tmp_path / "other"), "cannot be read as MindRecord with a column input_ids"),
        (opened(tmp_path / "uneven"), "rows of 2 to 3 ids"),
        (opened([tmp_path / "gone"]), "cannot be read"),
        (opened(official, "held_out"), "have no split 'held_out'"),
        (opened(prepared[0], "test"), "must be one of train, held_out"),
        (opened(tmp_path / "bad"), "not a manifest"),
    ]
    for call, text in cases:
        with pytest.raises(DataError, match=text):
            call()
