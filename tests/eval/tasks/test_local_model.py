"""When a checkpoint is loaded: at most twice for scoring, however the lengths of the tasks grow."""

from types import SimpleNamespace

import pytest

from pangu_ms.eval.tasks import model
from pangu_ms.infer.scoring import Item


@pytest.fixture
def local(monkeypatch):
    """A LocalModel with a window of 1,024 tokens whose scorers do nothing, and the longest item each was made for."""
    made = []

    def load_scorer(checkpoint, items, tokenizer, config, weights):
        made.append(max(item.longest() for item in items))
        return SimpleNamespace(window=made[-1], score_all=lambda items, on_scored: iter(items))

    monkeypatch.setattr(model, "load_scorer", load_scorer)
    local = object.__new__(model.LocalModel)
    local.__dict__.update(checkpoint=None, config=None, weights="", domain=0, window=1024, _scorer=None, _engine=None)
    local.tokenizer = SimpleNamespace(eod_id=3)
    return local, made


def test_the_second_scorer_has_room_for_all(local):
    opened, made = local
    for length in (30, 20, 100, 500, 1023, 4000):
        (item,) = opened.score([Item.choice([5] * length, [[6]])])
        assert item.domain == 0 and len(item.pairs[0][0]) == length, (
            "items get the model's domain, and are not cut here"
        )
    assert made == [30, 1024]


def test_a_scorer_makes_room_before_the_next_one(local):
    opened, made = local
    opened._engine = object()
    opened.score([Item.choice([5], [[6]])])
    assert opened._engine is None and len(made) == 1
