"""Log-probabilities of continuations against numpy in float64, and that nothing else changes them."""

import functools
from types import SimpleNamespace

import numpy as np
import pytest

from pangu_ms.core.errors import GenerationError
from pangu_ms.infer import scoring, window_scorer
from pangu_ms.infer.decoder import Decoder
from pangu_ms.infer.domains import Domains
from pangu_ms.infer.scoring import Item, Scorer, ScoringCounts
from pangu_ms.infer.window_scorer import WindowScorer
from pangu_ms.models.common.loss import TokenLogprobs
from tests.infer.common import make_decoder
from tests.models import alpha, pi
from tests.models.logits import model_with
from tests.reference import alpha_numpy, pi_numpy

pytestmark = pytest.mark.usefixtures("mindspore_cpu")
WINDOW, EOD, VOCABULARY = 24, 3, 61


class Tokens:
    """What a Scorer needs of a tokenizer."""

    vocab_size, eod_id = VOCABULARY, EOD


MODELS = {
    "alpha": (alpha.small(num_layers=2), alpha.random_parameters, alpha_numpy.forward),
    "pi": (pi.small(siaf_terms=2, num_kv_heads=2), pi.random_parameters, pi_numpy.forward),
}


class Reference:
    """A Scorer, and the model in float64."""

    def __init__(self, family):
        self.config, random_parameters, self.forward = MODELS[family]
        self.parameters = random_parameters(self.config)
        self.decoder = make_decoder(self.config, self.parameters, 2)
        self.scorer = Scorer(self.decoder, Tokens(), slot=1)

    def logprobs(self, context, continuation):
        """(log-probabilities of the tokens, likeliest tokens), from the whole sequence without a cache."""
        context = (list(context) or [EOD])[-(WINDOW + 1 - len(continuation)) :]
        ids = np.array([[*context, *continuation]])
        logits = self.forward(self.config, self.parameters, ids[:, :-1], None)[0, len(context) - 1 :]
        top = logits.max(-1, keepdims=True)
        logprobs = logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True))
        return logprobs[range(len(continuation)), list(continuation)], logits.argmax(-1)


made = functools.cache(Reference)


@pytest.fixture(params=["alpha", pytest.param("pi", marks=pytest.mark.slow)])
def of_family(request):
    return made(request.param)


@pytest.fixture
def reference():
    return made("alpha")


def draw(random, number):
    return random.integers(4, VOCABULARY, number).tolist()


def make_items(number, seed):
    """Contexts of no token to twice the window, some of which begin alike; continuations of one token to the window."""
    random = np.random.default_rng(seed)
    stem, items = draw(random, 2 * WINDOW), []
    for i in range(number):
        length = int(random.integers(0, 2 * WINDOW if i % 3 == 0 else WINDOW - 4))
        shared = int(random.integers(0, length + 1))
        lengths = (1, int(random.integers(1, 8)), WINDOW if i % 10 == 0 else 2)
        items.append(Item.choice(stem[:shared] + draw(random, length - shared), [draw(random, n) for n in lengths]))
    items[1] = Item.choice((), [pair[1] for pair in items[1].pairs])
    return items


def found(scorer, items):
    scores = dict(scorer.score_all(items))
    return [scores[i] for i in range(len(items))]


def test_500_pairs_equal_the_model_in_float64(of_family):
    items = make_items(170, seed=1)
    pairs = [pair for item in items for pair in item.pairs]
    assert len(pairs) >= 500 and any(not len(context) for context, _ in pairs)
    scores = [score for scores in found(of_family.scorer, items) for score in scores]
    for (context, continuation), score in zip(pairs, scores, strict=True):
        logprobs, best = of_family.logprobs(context, continuation)
        np.testing.assert_allclose(score.logprobs, logprobs, atol=1e-4)
        assert score.total == pytest.approx(logprobs.sum(), abs=1e-4 * len(logprobs))
        assert score.greedy == tuple((best == continuation).tolist()) and score.is_greedy == all(score.greedy)
        assert score.cut_tokens == max(0, max(1, len(context)) + len(continuation) - 1 - WINDOW) and not score.error


def anew(scorer):
    """The scorer as if it had done nothing yet, apart from compiling its graphs."""
    scorer.forget()
    scorer.counts = ScoringCounts()
    return scorer


def assert_equal_scores(found, expected):
    for scores, others in zip(found, expected, strict=True):
        for score, other in zip(scores, others, strict=True):
            np.testing.assert_allclose(score.logprobs, other.logprobs, atol=1e-5)
            assert score.greedy == other.greedy


def test_order_and_company_change_nothing(reference):
    items = make_items(24, seed=2)
    together = found(reference.scorer, items)
    assert_equal_scores(found(reference.scorer, items[::-1])[::-1], together)
    for item, scores in zip(items[::4], together[::4]):
        reference.scorer.forget()
        turned = Item(item.pairs[::-1])
        assert_equal_scores([found(reference.scorer, [turned])[0][::-1]], [scores])
        for (context, continuation), score in zip(item.pairs, scores):
            reference.scorer.forget()
            assert_equal_scores([reference.scorer.score(context, [continuation])], [[score]])


def test_likely_continuations_are_greedy(reference):
    """Of a continuation that greedy search makes, all tokens are the likeliest; with another last token, all but it."""
    context, continuation = [9, 10, 11, 12], []
    for _ in range(4):
        continuation.append(int(reference.logprobs(context, [*continuation, 4])[1][-1]))
    other = [*continuation[:-1], (continuation[-1] + 1) % VOCABULARY]
    first, second = reference.scorer.score(context, [continuation, other])
    assert first.is_greedy and first.greedy == (True,) * 4
    assert not second.is_greedy and second.greedy == (True, True, True, False)


def test_a_shared_prefix_is_computed_once(reference):
    """Items in any order: examples that all share, a question each, four candidates."""
    random = np.random.default_rng(3)
    examples, questions = draw(random, 9), [[20 + i, *draw(random, 3)] for i in range(5)]
    items = [Item.choice(examples + question, [[4, i] for i in range(5, 9)]) for question in questions]
    scorer = anew(reference.scorer)
    list(scorer.score_all([items[i] for i in (3, 0, 4, 1, 2)]))
    # The last token of a prompt is computed with each candidate, because its logits are scored.
    assert scorer.counts.computed_tokens == 9 + 5 * (3 + 4 * 2)
    assert scorer.counts.reused_tokens == 4 * 9 + 5 * 3 * 12
    list(scorer.score_all(items[-1:]))
    assert scorer.counts.computed_tokens == 9 + 5 * (3 + 4 * 2) + 4 * 2, "another call reuses what the slot holds"


def test_what_was_cut_is_counted(reference):
    scorer = anew(reference.scorer)
    long, short = [*range(4, 4 + WINDOW + 5)], [*range(4, 4 + WINDOW)]
    scores = scorer.score(long, [[7], [7, 8]]) + scorer.score(short, [[7], [7, 8]])
    assert [score.cut_tokens for score in scores] == [5, 6, 0, 1]
    assert (scorer.counts.cut_tokens, scorer.counts.cut_contexts) == (12, 3)


def test_each_token_of_a_text_is_scored_once(reference):
    """The first window begins with eod; the last one is as full as the others."""
    text = draw(np.random.default_rng(4), 2 * WINDOW + 5)
    item = Item.text(text, WINDOW)
    assert [len(context) for context, _ in item.pairs] == [0, 1, WINDOW - 4]
    assert sum([list(continuation) for _, continuation in item.pairs], []) == text and item.longest() == WINDOW
    (scores,) = found(reference.scorer, [item])
    for (context, continuation), score in zip(item.pairs, scores, strict=True):
        np.testing.assert_allclose(score.logprobs, reference.logprobs(context, continuation)[0], atol=1e-4)
        assert score.cut_tokens == 0


@pytest.mark.parametrize("first", [(), (1,), (1, 2, 2)])
@pytest.mark.parametrize("number", [1, 21, 22, 23, 24, 25, 47, 48, 49, 200])
def test_windows_of_a_text(first, number):
    """Each is as long as the model reads, if the text is; nothing of it is cut; `first` is context alone."""
    ids = list(range(10, 10 + number))
    item = Item.text(ids, WINDOW, None, first)
    assert sum([continuation for _, continuation in item.pairs], []) == ids and item.is_text
    scored = len(first)
    for context, continuation in item.pairs:
        assert [*first, *ids][:scored][-len(context) :] == context or not context == scored == 0
        sequence = scoring.ScoredSequence.of(context, continuation, WINDOW, EOD)
        scored += len(continuation)
        assert sequence.cut == 0 and len(sequence.inputs) == min(WINDOW, max(scored - 1 + (not first), 1))
    assert item.pairs[0][0] == list(first)


def test_memory_of_logits_bounds_a_batch():
    """Two windows of 1,024 tokens of a vocabulary of 61; one of 153,376."""
    small, large = (SimpleNamespace(vocab_size=size, eod_id=3) for size in (61, 153_376))
    assert [WindowScorer(None, tokenizer, 1024).batch_size for tokenizer in (small, large)] == [2, 1]


def test_texts_without_a_cache(of_family, monkeypatch):
    """Batches of two windows, which several texts share; the items of `choice` too."""
    monkeypatch.setattr(window_scorer, "BATCH_TOKENS", 2 * WINDOW)
    graph = TokenLogprobs(model_with(of_family.config, of_family.parameters))
    windows = WindowScorer(graph, Tokens(), WINDOW)
    random = np.random.default_rng(5)
    items = [Item.text(draw(random, n), WINDOW) for n in (1, WINDOW, WINDOW + 1, 3 * WINDOW - 1)] + make_items(4, 6)
    progress = []
    scores = dict(windows.score_all(items, progress.append))
    pairs = [pair for item in items for pair in item.pairs]
    assert list(scores) == list(range(len(items))) and sum(progress) == len(pairs)
    assert windows.counts.calls == (len(pairs) + 1) // 2
    for (context, continuation), score in zip(pairs, sum(scores.values(), []), strict=True):
        logprobs, best = of_family.logprobs(context, continuation)
        np.testing.assert_allclose(score.logprobs, logprobs, atol=1e-4)
        assert score.greedy == tuple((best == continuation).tolist())
    with pytest.raises(GenerationError, match="item 1: continuation 1 has 25 tokens; it must fit in 24"):
        list(windows.score_all([Item.choice([5], [[6] * 25])]))


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (Item.choice([5], [[6], []]), "item 2: continuation 2 is empty; a score needs at least one token"),
        (Item.text([], WINDOW), "item 2: continuation 1 is empty"),
        (Item.choice([5], [[6] * 25]), "item 2: continuation 1 has 25 tokens; it must fit in 24; shorten it, or score"),
        (Item.choice([61], [[6]]), "item 2: id 61 is no token; ids must be 0 to 60; use the model's own tokenizer"),
        (Item.choice([5], [[-1]]), "item 2: id -1 is no token"),
        (Item.choice([5], [[6]], domain=1), "item 2: domain 1: the model has 0 domains; leave it out"),
    ],
)
def test_what_cannot_be_scored_is_told_before_anything_is_computed(reference, item, message):
    calls = reference.scorer.counts.calls
    with pytest.raises(GenerationError) as error:
        list(reference.scorer.score_all([Item.choice([5], [[6]]), item]))
    assert str(error.value).startswith(message) and reference.scorer.counts.calls == calls


def test_an_unknown_domain_of_a_model_with_domains(reference, monkeypatch):
    monkeypatch.setattr(reference.decoder, "domains", Domains(("a", "b")))
    with pytest.raises(GenerationError, match="item 1: domain 2: the model has 2 domains"):
        reference.scorer.score([5], [[6]], domain=2)


def test_logits_that_are_no_numbers_fail_one_continuation(reference):
    """A position whose embedding is damaged: what reaches it fails; what is scored later in the slot does not."""
    lengths = (3, 17, 20, 19, 18)
    items = [Item.choice(range(4, 4 + length), [[40, 41, 42], [40]]) for length in lengths]
    items.append(Item.choice([50, 51], [[40, 41]]))
    expected = found(reference.scorer, items)
    table = reference.decoder.graph.model.position_embedding.weight
    table.asnumpy()[20] = np.nan
    try:
        scores = found(reference.scorer, items)
    finally:
        table.asnumpy()[:] = reference.parameters["position_embedding.weight"]
    for item, of_item, others in zip(items, scores, expected, strict=True):
        for (context, continuation), score, other in zip(item.pairs, of_item, others, strict=True):
            if len(context) + len(continuation) - 1 > 20:
                assert score.logprobs == () and "the continuation is nan; it must be a number" in score.error
            else:
                assert_equal_scores([[score]], [[other]])
    assert sum(bool(score.error) for of_item in scores for score in of_item) == 2


def test_the_graph_of_a_package_is_refused(reference):
    decoder = Decoder(lambda *arrays: None, reference.decoder.shape)
    with pytest.raises(GenerationError, match="score with the checkpoint that the package was made from"):
        Scorer(decoder, Tokens()).score([5], [[6]])


@pytest.mark.parametrize(
    ("begin", "first", "end", "pieces"),
    [
        (0, 0, 1, [(0, 1, 32, True)]),
        (0, 20, 32, [(0, 32, 32, True)]),
        (0, 20, 33, [(0, 20, 32, False), (20, 33, 32, True)]),
        (5, 70, 80, [(5, 37, 32, False), (37, 69, 32, False), (69, 80, 32, True)]),
        (0, 500, 520, [(0, 256, 256, False), (256, 500, 256, False), (500, 520, 32, True)]),
        (0, 0, 300, [(0, 256, 256, True), (256, 288, 32, True), (288, 300, 32, True)]),
    ],
)
def test_pieces(begin, first, end, pieces):
    """Scored tokens, and those before them where their chunk has room, are computed with logits; others without."""
    assert scoring._pieces(begin, first, end) == [scoring._Piece(*piece) for piece in pieces]


def test_pieces_cover_each_token_once():
    random = np.random.default_rng(0)
    for _ in range(300):
        begin, first, end = np.cumsum(random.integers(0, 400, 3) + (0, 0, 1)).tolist()
        pieces = scoring._pieces(begin, first, end)
        assert [piece.begin for piece in pieces] + [end] == [begin] + [piece.end for piece in pieces]
        assert all(piece.scored == (piece.end > first) and piece.end - piece.begin <= piece.width for piece in pieces)
