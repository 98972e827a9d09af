"""Round trips, specials, released files, streaming, training and its errors."""

import functools
import hashlib
import io
import json
import marshal
import os
import subprocess
import sys
from math import log
from pathlib import Path

import jieba
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

import pangu_ms.data.tokenizer as tokenizer_module
from pangu_ms.cli import main as cli
from pangu_ms.core.errors import DataError
from pangu_ms.data.segment import best_ends, frequencies, make_segmenter
from pangu_ms.data.tokenizer import (
    StreamDecoder,
    Tokenizer,
    sample_chunks,
    train_tokenizer,
)
from tests.data.common import CHINESE, CODE, documents

SEGMENTERS = ("jieba", "none")
HAN = st.text(st.characters(min_codepoint=0x4E00, max_codepoint=0x9FFF))
ANY = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\u2581\u2582\u2583"))
MIXED = st.lists(
    st.one_of(ANY, HAN, st.sampled_from([*CHINESE, " ", "  ", "\n", "\t", "\r\n", "<eot>", "\U0001f600", CODE[:80]]))
).map("".join)


@pytest.mark.parametrize("segmenter", SEGMENTERS)
@settings(max_examples=200, deadline=None)
@given(text=MIXED)
def test_round_trip_is_exact_and_streaming_agrees(tokenizers, segmenter, text):
    tokenizer = tokenizers[segmenter]
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    stream = StreamDecoder(tokenizer)
    parts = [stream.push(i) for i in ids]
    assert "".join(parts) + stream.flush() == text
    assert "\ufffd" in text or not any("\ufffd" in part for part in parts)  # never half a character
    assert not set(ids) & {tokenizer.pad_id, tokenizer.eod_id, tokenizer.eot_id}


@settings(max_examples=300, deadline=None)
@given(text=st.one_of(MIXED, HAN, st.text("\u7684\u4e86\u4eba\u4e0d\u4e00\u4e8c1.a%\u3400 ", max_size=30)))
def test_segmenter_gives_jieba_words(text):
    assert list(_ours()(text)) == list(jieba.cut(text, cut_all=False))


def test_segmenter_gives_jieba_words_on_prose():
    for text in [*CHINESE, CODE, *(record["text"] for record in documents(50))]:
        assert list(_ours()(text)) == list(jieba.cut(text, cut_all=False))


def test_segmenter_takes_the_longer_word_on_a_tie():
    reference = jieba.Tokenizer()
    reference.FREQ, reference.total, reference.initialized = (
        {"\u4e00": 2, "\u4e8c": 2, "\u4e00\u4e8c": 1},
        4,
        True,
    )  # log 1/4 = 2 log 2/4
    assert reference.lcut("\u4e00\u4e8c", HMM=False) == ["\u4e00\u4e8c"]
    assert best_ends("\u4e00\u4e8c", reference.FREQ, log(4)) == [2, 2]


@functools.cache
def _ours():
    return make_segmenter([])


@functools.cache
def _jiebas_dictionary():
    """As jieba itself reads it, without its cache: it takes most of a second."""
    return jieba.Tokenizer().gen_pfdict(jieba.Tokenizer().get_dict_file())


def test_jieba_mode_is_the_official_recipe(tokenizers):
    text = CHINESE[1] + "\r\n a\tb"
    joined = " ".join(word.replace(" ", "\u2582").replace("\n", "\u2583") for word in jieba.cut(text, cut_all=False))
    processor = sentencepiece.SentencePieceProcessor(model_proto=tokenizers["jieba"].model)
    ids = tokenizers["jieba"].encode(text)
    assert ids == processor.encode(joined)
    assert tokenizers["jieba"].decode(ids) == processor.decode(ids).replace(" ", "").replace("\u2582", " ").replace(
        "\u2583", "\n"
    )


_ENCODE = """
import sys
from pangu_ms.data.tokenizer import Tokenizer
tokenizer = Tokenizer.load(sys.argv[1])
print(tokenizer.fingerprint, tokenizer.encode(sys.argv[2]))
"""


def test_ids_do_not_depend_on_jiebas_cache_in_the_shared_directory(tokenizers, tmp_path):
    tokenizers["jieba"].save(tmp_path / "t")
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    poison = marshal.dumps(({CHINESE[0][:5]: 1013, CHINESE[0][:2]: 1, "\u5929\u6c14\u4e0d": 100000}, 101014))
    (temporary / "jieba.cache").write_bytes(poison)
    environment = {name: value for name, value in os.environ.items() if name not in ("HOME", "XDG_CACHE_HOME")} | {
        "TMPDIR": str(temporary)
    }
    command = [sys.executable, "-c", _ENCODE, str(tmp_path / "t"), CHINESE[0]]
    shown = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=120).stdout
    processor = sentencepiece.SentencePieceProcessor(model_proto=tokenizers["jieba"].model)
    reference = jieba.Tokenizer()
    reference.FREQ, reference.total = _jiebas_dictionary()
    reference.initialized = True
    assert shown == f"{tokenizers['jieba'].fingerprint} {processor.encode(' '.join(reference.cut(CHINESE[0])))}\n"
    assert [path.name for path in temporary.iterdir()] == ["jieba.cache"] and (
        temporary / "jieba.cache"
    ).read_bytes() == poison


def test_dictionary_is_read_as_jieba_reads_it():
    assert frequencies(Path(jieba.__file__).with_name("dict.txt").read_bytes()) == _jiebas_dictionary()
    with pytest.raises(DataError, match="line 2: .*install jieba again"):
        frequencies("\u4e00 2 m\n\u4e8c x m\n".encode())


def test_fingerprint_tells_of_the_segmenter(tokenizers, monkeypatch):
    before = {name: tokenizer.fingerprint for name, tokenizer in tokenizers.items()}
    monkeypatch.setattr(
        tokenizer_module, "segmenter_version", lambda: {"jieba": jieba.__version__, "dictionary": "0" * 64}
    )
    assert tokenizers["jieba"].fingerprint != before["jieba"] and tokenizers["none"].fingerprint == before["none"]
    assert not tokenizers["jieba"].made(before["jieba"], "records")


def test_older_fingerprint_is_accepted_with_one_warning(tokenizers, caplog):
    settings = json.dumps({"eod": "<eod>", "format": 1, "segmenter": "jieba"})
    old = hashlib.sha256(tokenizers["jieba"].model + settings.encode()).hexdigest()
    assert tokenizers["jieba"].made(old, "records") and tokenizers["jieba"].made(old, "records")
    assert [old in record.getMessage() for record in caplog.records] == [True]
    assert not tokenizers["none"].made(old, "records")


def test_special_words_do_not_reach_jieba_itself(tokenizers):
    tokenizers["jieba"].encode("x")
    assert "<eot>" not in jieba.dt.FREQ


def test_byte_pieces_are_held_until_the_character_is_whole(tokenizers):
    ids = tokenizers["none"].encode("\U0001f600")
    stream = StreamDecoder(tokenizers["none"])
    assert len(ids) == 4 and [stream.push(i) for i in ids] == ["", "", "", "\U0001f600"]
    stream.push(ids[0])
    assert stream.flush() == "\ufffd"


@pytest.mark.parametrize("segmenter", SEGMENTERS)
def test_save_and_load(tokenizers, segmenter, tmp_path):
    tokenizers[segmenter].save(tmp_path / "t")
    loaded = Tokenizer.load(tmp_path / "t")
    assert loaded.fingerprint == tokenizers[segmenter].fingerprint
    assert (loaded.unk_id, loaded.bos_id, loaded.eos_id, loaded.pad_id, loaded.eod_id, loaded.eot_id) == (
        0,
        1,
        2,
        4,
        5,
        6,
    )
    assert loaded.stop_ids == (5, 6) and loaded.segmenter == segmenter


def _model(**options) -> bytes:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CHINESE * 20),
        model_writer=model,
        vocab_size=400,
        minloglevel=2,
        hard_vocab_limit=False,
        byte_fallback=True,
        **options,
    )
    return model.getvalue()


def test_released_file_ends_documents_with_pad(tmp_path):
    path = tmp_path / "vocab.model"
    path.write_bytes(_model(user_defined_symbols=["<sep>", "<cls>", "x", "<pad>", "<eod>", "y", "<eot>"]))
    tokenizer = Tokenizer.load(path)
    assert (tokenizer.segmenter, tokenizer.pad_id, tokenizer.eod_id, tokenizer.eot_id, tokenizer.stop_ids) == (
        "jieba",
        6,
        6,
        9,
        (6, 7, 9),
    )
    assert tokenizer.decode(tokenizer.encode(CHINESE[0])) == CHINESE[0].replace("\uff0c", ",").replace(
        "\uff01", "!"
    )  # its NFKC is its own
    tokenizer.save(tmp_path / "copy")  # a copy keeps the rule
    copy = Tokenizer.load(tmp_path / "copy")
    assert copy.eod_id == 6 and copy.fingerprint == tokenizer.fingerprint


@pytest.mark.parametrize(
    "control, expected", [(["<pad>"], (3, 3, 3)), (["<eod>"], (3, 3, 3)), (["<eod>", "<eot>"], (3, 3, 4))]
)
def test_missing_specials_fall_back(control, expected):
    tokenizer = Tokenizer(_model(control_symbols=control))
    assert (tokenizer.pad_id, tokenizer.eod_id, tokenizer.eot_id) == expected


def test_errors_name_the_rule(tmp_path):
    cases = [
        (lambda: Tokenizer.load(tmp_path / "none"), "No such file"),
        (lambda: Tokenizer(b"junk"), "not a SentencePiece model"),
        (lambda: Tokenizer(_model()), "neither <eod> nor <pad>"),
        (lambda: Tokenizer(_model(control_symbols=["<eod>"]), "none"), "lossless"),
        (lambda: train_tokenizer([], 600), "has no text"),
        (lambda: train_tokenizer(["\n \n"], 600), "has no text"),
        (lambda: train_tokenizer(["a"], 100), "at least 272"),
        (lambda: train_tokenizer(["hello world " * 9], 600, "none"), "vocab_size of at most 2"),
    ]
    for call, text in cases:
        with pytest.raises(DataError, match=text):
            call()


def test_ids_and_texts_out_of_range(tokenizers):
    with pytest.raises(DataError, match="must be 0 to 599"):
        tokenizers["none"].decode([600])
    with pytest.raises(DataError, match="must be 0 to 599"):
        StreamDecoder(tokenizers["none"]).push(-1)
    for segmenter in SEGMENTERS:
        with pytest.raises(DataError, match="lone surrogate"):
            tokenizers[segmenter].encode("a\ud800")


@pytest.mark.parametrize("segmenter", SEGMENTERS)
def test_training_is_repeatable(segmenter):
    texts = CHINESE * 5 + [CODE[:20000]]
    assert train_tokenizer(iter(texts), 500, segmenter).model == train_tokenizer(iter(texts), 500, segmenter).model


def test_lossless_without_a_space_in_the_sample():
    tokenizer = train_tokenizer([text.replace(" ", "") for text in CHINESE] * 20, 400, "none")
    assert tokenizer.decode(tokenizer.encode("a b  " + CHINESE[1])) == "a b  " + CHINESE[1]


def test_many_characters_fit_a_small_vocabulary():
    text = "".join(map(chr, range(0x4E00, 0x5E00))) + "\0" + CODE[:5000]
    assert train_tokenizer([text], 300, "none").vocab_size == 300


def test_sample_is_bounded_and_spread():
    texts = [str(number) * 100 for number in range(1000)]
    sample = sample_chunks(texts, 10_000)
    assert 5_000 <= sum(map(len, sample)) <= 10_000
    assert int(sample[0][0]) == 0 and texts.index(sample[-1]) > 900
    assert sample_chunks(texts, 10**9) == texts


def test_command_line(tmp_path, capfd):
    source = tmp_path / "a.txt"
    source.write_text(CODE)
    path = str(tmp_path / "t")
    assert (
        cli.main(
            [
                "tokenizer",
                "train",
                "--corpus",
                str(source),
                "--output",
                path,
                "--vocab-size",
                "500",
                "--segmenter",
                "none",
                "--json",
            ]
        )
        == 0
    )
    out, err = capfd.readouterr()
    assert json.loads(out)["vocab_size"] == 500 and err == ""  # SentencePiece is quiet
    assert cli.main(["tokenizer", "encode", "--tokenizer", path, "if x:\n  y"]) == 0
    ids = capfd.readouterr().out.split()
    assert cli.main(["tokenizer", "decode", "--tokenizer", path, *ids]) == 0
    assert capfd.readouterr().out == "if x:\n  y\n"
    assert cli.main(["tokenizer", "train", "--corpus", str(source), "--output", path]) == 2
    assert "nothing is overwritten" in capfd.readouterr().err
    assert cli.main(["tokenizer", "decode", "--tokenizer", path, "x"]) == 2
