"""Small tokenizers, trained once, and a corpus of some 20 blocks."""

import pytest

from pangu_ms.data.tokenizer import train_tokenizer
from tests.data.common import CHINESE, CODE, documents, write_jsonl


@pytest.fixture(scope="session")
def tokenizers():
    texts = CHINESE * 20 + [CODE]
    return {segmenter: train_tokenizer(texts, 600, segmenter) for segmenter in ("jieba", "none")}


@pytest.fixture(scope="session")
def tokenizer_path(tokenizers, tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "none"
    tokenizers["none"].save(path)
    return path


@pytest.fixture(scope="session")
def big_corpus(tmp_path_factory) -> str:
    return write_jsonl(tmp_path_factory.mktemp("corpus") / "big.jsonl", documents(6000))


@pytest.fixture(scope="session")
def prepared(big_corpus, tokenizer_path, tmp_path_factory):
    """(directory, manifest) of an uninterrupted run."""
    from pangu_ms.data.prepare import prepare

    directory = tmp_path_factory.mktemp("prepared") / "out"
    return directory, prepare(
        [big_corpus], tokenizer_path, directory, seq_length=63, held_out=0.1, num_workers=2, progress=False
    )
