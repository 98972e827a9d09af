"""Models with packed weights: what they compute, and that a sequence's bits do not depend on the others."""

import functools
from types import SimpleNamespace

import numpy as np
import pytest

from ascend_ops.packing import pack, unpack
from pangu_ms.checkpoint import store
from pangu_ms.config.load import load_config
from pangu_ms.infer import scoring
from pangu_ms.infer.decoder import GraphShape
from pangu_ms.infer.load import load_decoder, load_scorer
from pangu_ms.infer.scoring import Item, Scorer
from pangu_ms.infer.window_scorer import WindowScorer
from tests.eager import eager
from tests.models.alpha import random_parameters, small
from tests.reference.alpha_numpy import forward

pytestmark = pytest.mark.usefixtures("eagerly")
PROMPT, NEXT = [7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17], [20, 21, 22]


@pytest.fixture(scope="module")
def eagerly(mindspore_cpu):
    """Nine models, each of which runs a few times: no graph is worth compiling. tests/infer/test_engine.py computes the
    same bits in graphs."""
    with eager():
        yield


@pytest.fixture(scope="module")
def parameters():
    return random_parameters(small(num_layers=2))


@pytest.fixture(scope="module")
def checkpoint(parameters, tmp_path_factory):
    fields = {name: value for name, value in vars(small(num_layers=2)).items() if name != "ffn_hidden_size"}
    words = [f"model.{name}={fields[name]}" for name in ("vocab_size", "hidden_size", "num_layers", "num_heads")]
    words += ["model.seq_length=24", "model.hidden_act=gelu"]
    config = load_config("alpha/tiny", words)
    return store.open_checkpoint(store.save(tmp_path_factory.mktemp("p"), 0, {"model": parameters}, {}, config))


def logits(decoder):
    """After the prompt and each further token, beside another sequence in another slot."""
    rows = [decoder.prefill([[5], PROMPT])[1]]
    return np.stack(rows + [decoder.step(np.array([30, token]))[1] for token in NEXT])


@pytest.fixture(scope="module")
def found(checkpoint):
    """The logits of two slots by dtype."""
    return functools.cache(
        lambda dtype: logits(load_decoder(checkpoint, GraphShape.fitting(24, 2, 20, 10), weights=dtype))
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_logits_are_those_of_the_packed_numbers(checkpoint, parameters, found, dtype):
    """Against numpy float64 with the numbers that the packed matrices hold; int8 rounds activations too."""
    tables = ("position_embedding.weight", "query_embedding.weight")
    packed = {
        name: unpack(pack(value, dtype)) if value.ndim == 2 and name not in tables else value
        for name, value in parameters.items()
    }
    config = checkpoint.config().model
    arrays = {name: value.astype(np.float64) for name, value in packed.items()}
    expected = forward(config, arrays, np.array([PROMPT + NEXT]), None)[0, len(PROMPT) - 1 :]
    if dtype == "int8":
        assert np.abs(found(dtype) - expected).std() < 0.03 * expected.std()
    else:
        np.testing.assert_allclose(found(dtype), expected, atol=1e-4)


def test_bits_of_a_sequence_do_not_depend_on_slots_and_chunks(checkpoint, found):
    """Steps of 2, 12, 5 and 10 rows; chunks that cut the prompt elsewhere."""
    other = logits(load_decoder(checkpoint, GraphShape.fitting(24, 5, 20, 5), weights="float32"))
    assert np.array_equal(found("float32"), other)


@pytest.mark.parametrize("position", ["gate", pytest.param("product", marks=pytest.mark.slow)])
def test_gated_network_with_series_and_shortcuts(position, tmp_path):
    """PanGu-pi with packed weights computes what it computes with those that are stored."""
    words = ["model.num_layers=1", "model.seq_length=24", "model.vocab_size=300", f"model.siaf_position={position}"]
    config = load_config("pi/tiny", words)
    random = np.random.default_rng(0)
    shapes = config.model.parameter_shapes()
    weights = {name: 0.2 * random.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}
    opened = store.open_checkpoint(store.save(tmp_path, 0, {"model": weights}, {}, config))
    stored, packed = (
        logits(load_decoder(opened, GraphShape.fitting(24, 2, 20, 10), weights=one)) for one in ("stored", "float32")
    )
    assert np.abs(stored - packed).max() < 1e-5 * np.abs(stored).max()


def test_bits_of_scores_do_not_depend_on_order_and_chunks(checkpoint, monkeypatch):
    """Prefixes that others share, or not; chunks that cut the sequences elsewhere."""
    decoder = load_decoder(checkpoint, GraphShape.fitting(24, 1, 24, 10), weights="float32")
    random = np.random.default_rng(0)
    stem = random.integers(4, 61, 24).tolist()
    items = [
        Item.choice(stem[:n], [random.integers(4, 61, m).tolist() for m in (1, 4)]) for n in (0, 3, 11, 12, 20, 30)
    ]
    tokenizer = SimpleNamespace(vocab_size=61, eod_id=3)
    found = dict(Scorer(decoder, tokenizer).score_all(items))
    monkeypatch.setattr(scoring, "SMALL", 9)
    monkeypatch.setattr(scoring, "LARGE", 18)
    other = Scorer(decoder, tokenizer)
    for index, item in reversed(list(enumerate(items))):
        assert dict(other.score_all([Item(item.pairs[::-1])]))[0][::-1] == found[index]


def test_a_text_has_the_same_scores_with_and_without_a_cache(checkpoint):
    """Windows in batches, one of which is not full; chunks of one sequence, whose attention is another kernel."""
    random, tokenizer = np.random.default_rng(1), SimpleNamespace(vocab_size=61, eod_id=3)
    texts = [Item.text(random.integers(4, 61, n).tolist(), 24) for n in (1, 24, 25, 100)]
    windows = load_scorer(checkpoint, texts, tokenizer, weights="float32")
    assert isinstance(windows, WindowScorer)
    cached = load_scorer(checkpoint, [*texts, Item.choice([5], [[6]])], tokenizer, weights="float32")
    others = dict(cached.score_all(texts))
    for index, scores in windows.score_all(texts):
        for score, other in zip(scores, others[index], strict=True):
            np.testing.assert_allclose(score.logprobs, other.logprobs, atol=1e-5)
            assert score.greedy == other.greedy
