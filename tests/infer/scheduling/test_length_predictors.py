"""Predictors: what they learn, what is written and refused, and how lengths are read, described and labelled."""

import dataclasses
import json

import numpy as np
import pytest

from pangu_ms.core.errors import DataError, OutputError
from pangu_ms.infer.scheduling import lengths as lengths_module
from pangu_ms.infer.scheduling.length_predictors import (
    COLD_START_TOKENS,
    LengthPredictor,
    NgramRidge,
    Oracle,
    OwnAnswer,
    Prompt,
    StateProbe,
    TemplateMean,
    _features,
    first_number,
    load_predictor,
    save_predictor,
)
from pangu_ms.infer.scheduling.lengths import accuracy, describe, labels, lognormal_lengths, noisy, read_answers
from tests.infer.scheduling.common import generator

WORDS = {"translate": 40, "summarize": 150, "list": 320}


class FakeTokenizer:
    """All that predictors ask of a tokenizer."""

    def __init__(self, fingerprint):
        self.fingerprint = fingerprint

    def made(self, fingerprint, where):
        return fingerprint == self.fingerprint

    def encode(self, text):
        return [ord(letter) for letter in text]


OURS, OTHER = FakeTokenizer("a" * 64), FakeTokenizer("b" * 64)
PROBE = {"format_version": 1, "tokenizer": "a" * 64, "kind": "probe", "checkpoint": "c" * 64, "longest": 9.0}


def samples(number, seed=0):
    """Prompts whose template word decides the length of the answer, up to some noise."""
    rng = generator(seed)
    found = []
    for identity in range(number):
        template = str(rng.choice(list(WORDS)))
        ids = (list(WORDS).index(template), *rng.integers(10, 500, 12).tolist())
        found.append((Prompt(ids, template, identity), max(1, int(WORDS[template] + rng.normal() * 15))))
    return found


def test_a_template_mean_is_right_within_fifty_answers():
    predictor = TemplateMean()
    assert predictor.predict([Prompt(template="list")]) == [COLD_START_TOKENS]
    for prompt, length in samples(50):
        predictor.observe(prompt, length)
    prompts, true = zip(*samples(300, seed=1))
    assert accuracy(predictor.predict(prompts), true)["acc_50"] >= 0.9
    overall = predictor.predict([Prompt(template="never seen")])[0]
    assert 40 < overall < 320 and accuracy([overall] * 300, true)["acc_50"] < 0.6


def test_a_template_mean_follows_what_changes():
    predictor = TemplateMean(weight=0.1)
    for length in [100] * 50 + [300] * 50:
        predictor.observe(Prompt(template="a"), length)
    assert predictor.predict([Prompt(template="a")])[0] == pytest.approx(300 - 200 * 0.9**50)
    few = TemplateMean()
    for length in (10, 20, 60):
        few.observe(Prompt(template="a"), length)
    assert few.predict([Prompt(template="a")])[0] == pytest.approx(30), "the plain mean of the first ones"


def test_ngrams_learn_the_word_without_being_told_the_template():
    train, test = samples(600), samples(200, seed=1)
    prompts, true = zip(*[(Prompt(prompt.token_ids), length) for prompt, length in test])
    predictor = NgramRidge.fit([prompt for prompt, _ in train], [length for _, length in train])
    found = accuracy(predictor.predict(prompts), true)
    assert found["acc_50"] > 0.7 and found["mae"] < 0.4 * accuracy([150] * 200, true)["mae"]
    shifted = [Prompt(prompt.token_ids[1:]) for prompt in prompts]
    assert accuracy(predictor.predict(shifted), true)["mae"] > 2 * found["mae"], "it is the word that tells"
    assert predictor.predict([Prompt()])[0] >= 1 and max(predictor.predict(prompts)) <= predictor.longest


def test_ridge_solves_its_normal_equations():
    """Against least squares with a row for each penalty."""
    train = samples(80)
    prompts, true = [prompt for prompt, _ in train], np.array([length for _, length in train])
    predictor = NgramRidge.fit(prompts, true.tolist(), num_features=64, ridge=0.7)
    penalties = np.sqrt(0.7) * np.eye(66)[:-1]
    rows = np.vstack([[_features(prompt, 64) for prompt in prompts], penalties])
    wanted = np.linalg.lstsq(rows, np.concatenate([np.log(true), np.zeros(65)]), rcond=None)[0]
    assert np.allclose(predictor.weights, wanted, atol=1e-8)


class PlantedStates:
    """Hidden states of which two of twelve numbers tell the length; one never changes."""

    digest, size, checkpoint = "c" * 64, 12, type("Checkpoint", (), {"path": "run/checkpoints/step-00000003"})

    def __call__(self, prompts):
        rows = []
        for ids in prompts:
            noise = np.random.default_rng(list(ids)).standard_normal(12)
            rows.append([noise[0] * 1e-3, *(noise[1:10] * 50), ids[0], 7.0])
        return np.array(rows, np.float32)


def test_a_probe_solves_its_normal_equations_on_scaled_states():
    """Against least squares on features of the variance 1, with a row for each penalty."""
    train, states = samples(150), PlantedStates()
    prompts, true = [prompt for prompt, _ in train], np.array([length for _, length in train])
    probe = StateProbe.fit(prompts, true.tolist(), states.digest, states, ridge=3.0)
    raw = np.hstack([states([one.token_ids for one in prompts]), np.full((150, 1), np.log1p(13))])
    scaled = (raw - raw.mean(0)) / np.maximum(raw.std(0), 1e-9)
    rows = np.vstack([np.hstack([scaled, np.ones((150, 1))]), np.sqrt(3.0) * np.eye(14)[:-1]])
    wanted = np.linalg.lstsq(rows, np.concatenate([np.log(true), np.zeros(13)]), rcond=None)[0]
    expected = np.exp(np.hstack([scaled, np.ones((150, 1))]) @ wanted)
    assert np.allclose(probe.predict(prompts), np.clip(expected, 1, true.max()), rtol=1e-6)


def test_a_probe_reads_the_length_from_the_state():
    train, test, states = samples(400), samples(200, seed=1), PlantedStates()
    prompts, true = zip(*test)
    probe = StateProbe.fit([one for one, _ in train], [length for _, length in train], states.digest, states, 1.0)
    assert accuracy(probe.predict(prompts), true)["acc_50"] > 0.8 > accuracy([150] * 200, true)["acc_50"]
    assert max(probe.predict(prompts)) <= probe.longest and probe.predict([]) == []


def test_the_first_number_of_an_answer_counts():
    said = {"about 120 tokens, or 130": 120, "0": 1, "9" * 400: 512, "none": None, "": None, "1,200": 1, " 37.5": 37}
    assert {text: first_number(text, 512.0) for text in said} == said


def test_a_model_that_says_no_number_has_the_median():
    asked = []

    def ask(prompts):
        asked.extend(prompts)
        return ["40", "many"]

    predictor = OwnAnswer("how long?", 99.0, 512.0, lambda text: [len(text)], ask)
    assert predictor.predict([Prompt((1, 2)), Prompt((3,))]) == [40.0, 99.0] and asked == [(1, 2, 9), (3, 9)]


def test_features_tell_order_and_stay_as_they_are():
    first = _features(Prompt((5, 9, 5000)), 32)
    assert not np.array_equal(first, _features(Prompt((9, 5, 5000)), 32))
    assert np.linalg.norm(first[:-2]) == pytest.approx(1) and first[-1] == 1 and first[-2] == pytest.approx(np.log(4))
    # The files of predictors depend on these places: a change needs another format version.
    assert np.flatnonzero(first[:-2]).tolist() == [0, 7, 13, 19, 31]


@pytest.mark.parametrize("kind", ["ngrams", "template", "probe", "answer"])
def test_a_predictor_is_written_and_belongs_to_its_tokenizer(kind, tmp_path):
    train = samples(60)
    states, known = PlantedStates(), ([prompt for prompt, _ in train], [length for _, length in train])
    predictor = {
        "ngrams": lambda: NgramRidge.fit(*known, 64),
        "template": TemplateMean,
        "probe": lambda: StateProbe.fit(*known, states.digest, states),
        "answer": lambda: OwnAnswer("how long?", 99.0, 300.0, OURS.encode, lambda prompts: ["x"] * len(prompts)),
    }[kind]()
    for prompt, length in train:
        predictor.observe(prompt, length)
    path = tmp_path / "predictor.json"
    save_predictor(path, predictor, OURS)
    again = load_predictor(path, OURS, states)
    if kind == "answer":
        again = dataclasses.replace(again, ask=predictor.ask)
    prompts = [prompt for prompt, _ in samples(40, seed=5)]
    assert again == predictor if kind == "answer" else again.predict(prompts) == predictor.predict(prompts)
    with pytest.raises(DataError, match="trained with tokenizer aaaaaaaaaaaa, given bbbbbbbbbbbb"):
        load_predictor(path, OTHER)
    with pytest.raises(OutputError, match="nothing is overwritten"):
        save_predictor(path, predictor, OURS)


def test_a_probe_belongs_to_its_checkpoint(tmp_path):
    path, states = tmp_path / "probe.json", PlantedStates()
    path.write_text(json.dumps(PROBE | {"weights": [0.0] * 14}))
    assert load_predictor(path, OURS, states).states is states
    with pytest.raises(DataError, match="probe.json: is a probe of hidden states, which need their checkpoint; give"):
        load_predictor(path, OURS)
    states.digest = "d" * 64
    says = r"trained on checkpoint cccccccccccc, given dddddddddddd \(run/checkpoints/step-00000003\): must be the same"
    with pytest.raises(DataError, match=says):
        load_predictor(path, OURS, states)
    states.digest, states.size = "c" * 64, 16
    with pytest.raises(DataError, match="14 weights; a hidden size of 16 needs 18; train again"):
        load_predictor(path, OURS, states)


GOOD = {
    "probe": PROBE | {"weights": [0.0] * 14},
    "answer": {"format_version": 1, "tokenizer": "a" * 64, "kind": "answer", "question": "?", "longest": 9.0}
    | {"otherwise": 4.0},
    "ngrams": {"format_version": 1, "tokenizer": "a" * 64, "kind": "ngrams", "longest": 9.0, "weights": [0.0] * 5},
    "template": {"format_version": 1, "tokenizer": "a" * 64, "kind": "template", "weight": 0.1, "templates": []},
}


@pytest.mark.parametrize(
    "kind, change",
    [
        ("ngrams", {"weights": [0.0, "x"]}),
        ("ngrams", {"weights": [0.0]}),
        ("ngrams", {"longest": 0}),
        ("ngrams", {"format_version": 2}),
        ("ngrams", {"format_version": None}),
        ("ngrams", {"tokenizer": None}),
        ("ngrams", {"kind": "other"}),
        ("ngrams", {"kind": ["x"]}),
        ("template", {"templates": [["a", 1.0]]}),
        ("template", {"templates": [["a", "b", 1]]}),
        ("template", {"templates": [[7, 1.0, 1]]}),
        ("template", {"weight": 2}),
        ("probe", {"checkpoint": 7}),
        ("probe", {"weights": [0.0]}),
        ("answer", {"question": None}),
        ("answer", {"otherwise": 0}),
    ],
)
def test_damaged_predictors_are_one_line(kind, change, tmp_path):
    path = tmp_path / "predictor.json"
    path.write_text(json.dumps(GOOD[kind]))
    load_predictor(path, OURS, PlantedStates())
    path.write_text(json.dumps(GOOD[kind] | change))
    with pytest.raises(DataError, match="predictor.json: .+; .+") as error:
        load_predictor(path, OURS)
    assert "\n" not in str(error.value)
    path.write_text("{")
    with pytest.raises(DataError, match="not JSON"):
        load_predictor(path, OURS)
    with pytest.raises(DataError, match="No such file"):
        load_predictor(tmp_path / "none.json", OURS)


def test_predictors_have_one_protocol():
    for predictor in (Oracle({3: 7}), TemplateMean(), NgramRidge(np.zeros(5), 9.0)):
        checked: LengthPredictor = predictor
        checked.observe(Prompt(id=3), 5)
        assert all(isinstance(value, float) for value in checked.predict([Prompt((1, 2), "a", 3)] * 2))
    assert Oracle({3: 7}).predict([Prompt(id=3)]) == [7.0]


def test_lognormal_lengths_have_the_percentiles_that_are_asked_for():
    drawn = lognormal_lengths(100_000, 0, least=1, most=100_000)
    assert np.percentile(drawn, [50, 90]) == pytest.approx([100, 276], rel=0.02)
    assert lognormal_lengths(1000, 0).min() >= 5 and lognormal_lengths(1000, 0).max() == 512
    assert np.array_equal(lognormal_lengths(9, 1), lognormal_lengths(9, 1))
    assert abs(np.mean(noisy([256] * 20_000, 0) - 256)) < 2


def test_the_share_at_the_cap_is_told():
    found = describe([10] * 90 + [100] * 6 + [300] * 4, 100)
    assert found["share_at_cap"] == 0.1 and sum(found["histogram"]["counts"]) == 100 and found["p50"] == 10
    assert "10.0% of the answers" in lengths_module.cap_warning(found["share_at_cap"])
    assert "a gain means nothing" in lengths_module.cap_warning(0.05) and lengths_module.cap_warning(0.049) == ""


def written(path, *values):
    path.write_text("\n".join(json.dumps(value) for value in values) + "\n")
    return path


def test_lengths_are_read_in_every_form(tmp_path):
    generated = {"prompt": "p", "text": "t", "token_ids": [4, 5, 6], "finish_reason": "length"}
    labelled = {"tokens": 50, "prompt": "q", "at_cap": False, "template": "b", "predicted_tokens": 40, "arrival": 2.5}
    found = read_answers(written(tmp_path / "a", 7, generated, labelled))
    assert [one.tokens for one in found] == [7, 3, 50] and [one.at_cap for one in found] == [False, True, False]
    assert (found[2].predicted_tokens, found[2].arrival, found[2].template, found[1].prompt) == (40, 2.5, "b", "p")
    (tmp_path / "b").write_text("[3, 4,\n 5]")
    assert [one.tokens for one in read_answers(tmp_path / "b")] == [3, 4, 5]


@pytest.mark.parametrize(
    "content, says",
    [
        ("", "is empty"),
        ("[]", "is empty"),
        ("7\nx", ":2: not JSON"),
        ("7\n0", ":2: tokens is 0"),
        ("7\n-3", ":2: tokens is -3"),
        ("7\n1.5", ":2: it is 1.5"),
        ("true", ":1: it is True"),
        ('{"text": "a"}', ":1: no tokens"),
        ('{"tokens": "7"}', ":1: tokens is '7'"),
        ('{"tokens": 7, "prompt_tokens": -1}', ":1: prompt_tokens is -1"),
        ('{"tokens": 7, "arrival": -1}', ":1: arrival is -1"),
        ("[3, null]", ": item 2: it is None"),
        ("[3", "not JSON"),
    ],
)
def test_wrong_lengths_are_one_line(content, says, tmp_path):
    (tmp_path / "lengths").write_text(content)
    with pytest.raises(DataError) as error:
        read_answers(tmp_path / "lengths")
    assert says in str(error.value) and "\n" not in str(error.value), error.value


def test_a_label_is_the_longest_answer_rounded_up(tmp_path):
    def answer(prompt, length, reason="stop"):
        return {"prompt": prompt, "text": "", "token_ids": [1] * length, "finish_reason": reason}

    cold = written(tmp_path / "0", answer("a", 50), answer("b", 120), answer("c", 1))
    warm = written(tmp_path / "7", answer("b", 101, "length"), answer("a", 51), answer("c", 2), answer("c", 3))
    assert labels([cold, warm], 50) == [
        {"prompt": "a", "tokens": 100, "at_cap": False},
        {"prompt": "b", "tokens": 150, "at_cap": True},
        {"prompt": "c", "tokens": 50, "at_cap": False},
    ]
    assert [row["tokens"] for row in labels([cold, warm], 1)] == [51, 120, 3]
    with pytest.raises(DataError, match="prompt 'c' is not in every file"):
        labels([cold, written(tmp_path / "x", answer("a", 1), answer("b", 1))], 50)
    with pytest.raises(DataError, match="has no prompt"):
        labels([written(tmp_path / "y", 7)], 50)


def test_a_prompt_that_the_model_cannot_read_is_named_by_its_line(tmp_path):
    from types import SimpleNamespace

    from pangu_ms.cli.schedule_train_predictor import _split

    lines = [{"prompt": "a" * n, "tokens": 3} for n in (1, 9, 2)]
    (tmp_path / "lines").write_text("".join(json.dumps(line) + "\n" for line in lines))
    args = SimpleNamespace(lines=tmp_path / "lines", kind="probe", held_out=0.1)
    with pytest.raises(DataError, match="lines: length 2 has a prompt of 9 tokens; the model reads at most 8"):
        _split(args, SimpleNamespace(encode_prompt=lambda text: [1] * len(text)), 8)
