"""A tokenizer, and a compiled model, for all tests of the server."""

import pytest

from pangu_ms.checkpoint.store import open_checkpoint
from pangu_ms.data.tokenizer import Tokenizer
from pangu_ms.infer.decoder import GraphShape
from pangu_ms.infer.load import load_decoder
from tests.serve.checkpoint import SEQ_LENGTH, save_checkpoint


@pytest.fixture(scope="session")
def tokenizer(records):
    return Tokenizer.load(records.parent / "tokenizer")


@pytest.fixture(scope="session")
def checkpoint(records, made_once):
    return made_once("served", lambda path: save_checkpoint(path, records.parent / "tokenizer"))


@pytest.fixture(scope="session")
def decoder(checkpoint, mindspore_cpu):
    """One server at a time may have it."""
    return load_decoder(open_checkpoint(checkpoint), GraphShape(8, 16, SEQ_LENGTH, SEQ_LENGTH))
