"""Small tokenizers, trained once, and a corpus of some 20 blocks."""

import json

import pytest

from pangu_ms.data.tokenizer import Tokenizer, train_tokenizer
from tests.data.common import CHINESE, CODE, documents, write_jsonl


@pytest.fixture(scope="session")
def tokenizer_paths(made_once):
    """The directory that has jieba/ and none/."""

    def make(directory):
        texts = CHINESE * 20 + [CODE]
        for segmenter in ("jieba", "none"):
            train_tokenizer(texts, 600, segmenter).save(directory / segmenter)

    return made_once("tokenizers", make)


@pytest.fixture(scope="session")
def tokenizers(tokenizer_paths):
    return {segmenter: Tokenizer.load(tokenizer_paths / segmenter) for segmenter in ("jieba", "none")}


@pytest.fixture(scope="session")
def tokenizer_path(tokenizer_paths):
    return tokenizer_paths / "none"


@pytest.fixture(scope="session")
def big_corpus(made_once) -> str:
    def make(directory):
        directory.mkdir()
        write_jsonl(directory / "big.jsonl", documents(6000))

    return str(made_once("corpus", make) / "big.jsonl")


@pytest.fixture(scope="session")
def prepared(big_corpus, tokenizer_path, made_once):
    """(directory, manifest) of an uninterrupted run."""
    from pangu_ms.data.prepare import prepare

    def make(directory):
        output = directory / "prepared" / "out"
        options = {"seq_length": 63, "held_out": 0.1, "num_workers": 2, "progress": False}
        returned = prepare([big_corpus], tokenizer_path, output, **options)
        (directory / "returned.json").write_text(json.dumps(returned))

    directory = made_once("prepared", make)
    return directory / "prepared/out", json.loads((directory / "returned.json").read_text())
