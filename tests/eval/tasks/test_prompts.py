"""What a model reads of an item: candidates, demonstrations, and how they are drawn."""

import pytest

from pangu_ms.core.errors import ConfigError, DataError
from pangu_ms.eval.tasks.prediction import Gold
from pangu_ms.eval.tasks.prompts import FEW, Candidate, make_prompts
from tests.eval.tasks.common import ASSIGNMENT, CHOICE, DEV, GENERATION, TRAIN, task_of, with_fields


def one(tmp_path, tree, row, **settings):
    return make_prompts(task_of(tmp_path, tree), [row], **settings)[0]


def test_fixed_labels(tmp_path):
    prompt = one(tmp_path, CHOICE, DEV[1])
    red, blue = "skysky is red. ", "skysky is blue. "
    assert prompt.candidates == (Candidate(red, "SKY", "0"), Candidate(blue, "SKY", "1"))
    assert prompt.gold == Gold(choice=1, label="1") and prompt.id == "d1" and prompt.index == 0
    assert prompt.place == "colour: item 1" and prompt.demonstrations == ()


def test_labels_are_templates_and_compare_as_json_does(tmp_path):
    labels = {"true": "{thing} shines", "false": "it does not"}
    prompt = one(tmp_path, with_fields(CHOICE, choices={"labels": labels}), DEV[0] | {"label": True})
    assert [one.context for one in prompt.candidates] == [
        "appleapple is appleapple shines. ",
        "appleapple is it does not. ",
    ]
    assert prompt.gold == Gold(choice=0, label="true")


def test_choices_of_a_field(tmp_path):
    tree = with_fields(CHOICE) | {"choices": {"field": "options"}, "context": "{thing}", "continuation": "{choice}"}
    row = {"thing": "sky", "options": ["a", "b", "c"]}
    for gold in (2, "2", "c"):
        prompt = one(tmp_path, tree, row | {"label": gold})
        assert [candidate.continuation for candidate in prompt.candidates] == ["a", "b", "c"]
        assert prompt.gold == Gold(choice=2, label="2") and prompt.id == 0, "an item without an id is numbered"
    numbers = [one(tmp_path, tree, {"thing": "1 + 1", "options": ["3", "2", "0"], "label": gold}) for gold in ("2", 2)]
    assert [prompt.gold.choice for prompt in numbers] == [1, 2], "a text is a candidate's first, a number its index"


def test_random_wrong_candidates(tmp_path):
    """The right one is always there, each item has others, a seed gives the same ones, and each is equally likely."""
    labels = {str(i): f"colour {i}" for i in range(15)}
    task = task_of(tmp_path, with_fields(CHOICE) | {"choices": {"labels": labels, "random": 3, "seed": 2}})
    rows = [DEV[0] | {"label": i % 15} for i in range(3000)]
    prompts = make_prompts(task, rows)
    drawn = [[int(candidate.label) for candidate in prompt.candidates] for prompt in prompts]
    for i, (prompt, own) in enumerate(zip(prompts, drawn)):
        assert len(set(own)) == 4 and own == sorted(own) and i % 15 in own and own[prompt.gold.choice] == i % 15
    counts = [sum(label in own for own in drawn) for label in range(15)]
    assert all(abs(count - 200 - 2800 * 3 / 14) < 5 * (2800 * 3 / 14) ** 0.5 for count in counts)
    again = make_prompts(task, rows, indices=[7, 2999])
    assert [prompt.candidates for prompt in again] == [prompts[7].candidates, prompts[2999].candidates]
    unlabelled = one(
        tmp_path, with_fields(CHOICE) | {"choices": {"labels": labels, "random": 3}}, {"thing": "x", "text": "y"}
    )
    assert unlabelled.gold is None and len(unlabelled.candidates) == 15


def test_generation(tmp_path):
    prompt = one(tmp_path, GENERATION, {"question": "why", "answers": ["so", "thus"]})
    assert prompt.candidates == (Candidate("Q: why\nA: ", ""),) and prompt.gold == Gold(answers=("so", "thus"))
    assert one(tmp_path, GENERATION, {"question": "why", "answers": "so"}).gold == Gold(answers=("so",))
    assert one(tmp_path, GENERATION, {"question": "why", "answers": []}).gold is None


def test_assignment(tmp_path):
    row = {
        "blanks": [{"left": "a", "right": "b"}, {"left": "c", "right": "d"}],
        "options": ["1", "2", "3"],
        "label": [2, 0],
    }
    prompt = one(tmp_path, ASSIGNMENT, row)
    assert [one.context + one.continuation for one in prompt.candidates] == "a1b a2b a3b c1d c2d c3d".split()
    assert prompt.gold == Gold(assignment=(2, 0)) and prompt.blanks == 2
    (shown,) = make_prompts(task_of(tmp_path, ASSIGNMENT), [row], 1, 0, [row])[0].demonstrations
    assert shown == "a3b\n"


def test_fields_are_made_of_the_row(tmp_path):
    fields = {
        "thing": "a.b",
        "text": {"source": "words", "join": ", "},
        "label": {"source": "answer", "map": {1: "0", "true": "1"}},
        "id": {"source": "text", "delete": " \n", "first_chars": 5, "last_chars": 2},
    }
    row = {"a": {"b": "deep"}, "words": ["x", 2], "answer": True, "text": "k e\ny s t"}
    prompt = one(tmp_path, CHOICE | {"fields": fields}, row)
    assert (
        prompt.candidates[0] == Candidate("deep is red. ", "x, 2", "0")
        and prompt.gold.label == "1"
        and prompt.id == "st"
    )


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "x"}, "colour: item 1: template '{thing} is {choice}. ': no field thing; there are text, choice"),
        ({"thing": "x", "text": "y", "label": 2}, "colour: item 1: label is 2; it must be one of 0, 1"),
        ({"thing": "x", "text": ""}, "colour: item 1: the continuation is empty"),
        ({"thing": ["x"], "text": "y"}, "colour: item 1: field thing is ['x']; a template takes texts and numbers"),
    ],
)
def test_a_wrong_item_is_named(tmp_path, row, message):
    with pytest.raises(DataError) as error:
        one(tmp_path, CHOICE, row)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": [0]}, "label is [0]; it must be a list of 2 numbers from 0 to 2"),
        ({"label": [0, 3]}, "label is [0, 3]; it must be"),
        ({"options": "123"}, "options is '123'; it must be a list"),
        ({"options": ["1"]}, "2 blanks and 1 candidates"),
        ({"blanks": [1, 2]}, "blanks holds 1; its values must be objects"),
    ],
)
def test_a_wrong_assignment_is_told(tmp_path, change, message):
    row = {"blanks": [{"left": "a", "right": "b"}] * 2, "options": ["1", "2", "3"], "label": [2, 0]}
    with pytest.raises(DataError) as error:
        one(tmp_path, ASSIGNMENT, row | change)
    assert message in str(error.value)


def test_demonstrations_have_the_right_candidate(tmp_path):
    task = task_of(tmp_path, CHOICE)
    prompts = make_prompts(task, DEV, FEW, 0, TRAIN)
    known = {f"{row['thing']} is {('red', 'blue')[row['label']]}. {row['text']}\n" for row in TRAIN}
    assert {len(prompt.demonstrations) for prompt in prompts} == {3} and len({*prompts[0].demonstrations}) == 3
    assert {text for prompt in prompts for text in prompt.demonstrations} <= known
    assert len({prompt.demonstrations for prompt in prompts}) == 1, "all prompts begin alike"
    assert make_prompts(task, DEV, 1, 0, TRAIN)[0].demonstrations == prompts[0].demonstrations[:1]
    others = [make_prompts(task, DEV, FEW, seed, TRAIN)[0].demonstrations for seed in range(5)]
    assert len(set(others)) == 5 and make_prompts(task, DEV, 0, 0, TRAIN)[0].demonstrations == ()


def test_demonstrations_of_generation_tasks(tmp_path):
    shown = [{"question": f"q{i}", "answers": [f"a{i}", "other"]} for i in range(2)] + [{"question": "open"}]
    task = task_of(tmp_path, GENERATION)
    assert {*make_prompts(task, shown[:1], FEW, 0, shown)[0].demonstrations} == {
        f"Q: q{i}\nA: a{i}\n\n" for i in range(2)
    }
    task = task_of(tmp_path, with_fields(GENERATION, shots={"template": "{question}={answer}", "separator": ";"}))
    assert {*make_prompts(task, shown[:1], FEW, 0, shown)[0].demonstrations} == {"q0=a0;", "q1=a1;"}


def test_rules_of_drawing(tmp_path):
    def demonstrations(rows=DEV, shown=TRAIN, shots=FEW, **rules):
        task = task_of(tmp_path, with_fields(CHOICE, shots=rules))
        return [prompt.demonstrations for prompt in make_prompts(task, rows, shots, 0, shown)]

    assert len({*demonstrations(draw="item")}) > 1
    assert all(len(text) <= len("sea is blue. aes") + 1 for texts in demonstrations(max_chars=16) for text in texts)
    assert {len(texts) for texts in demonstrations(total_chars=40)} <= {1, 2}
    assert demonstrations(fixed=["one", "two"], shown=(), shots=1) == [("one\n",)] * 6
    assert len(demonstrations(shots=9, shown=TRAIN[:4])[0]) == 4, "no more than there are"
    own = demonstrations(split="dev", shown=DEV, shots=5)
    for row, texts in zip(DEV, own):
        assert len(texts) == 5 and not any(text.startswith(row["thing"]) for text in texts), "none of itself"


def test_a_task_without_demonstrations(tmp_path):
    task = task_of(tmp_path, with_fields(CHOICE, shots={"few": 0}))
    with pytest.raises(ConfigError, match="colour: has no demonstrations; ask for --shots 0"):
        make_prompts(task, DEV, 1, 0, TRAIN)


def test_a_wrong_demonstration_is_named(tmp_path):
    task = task_of(tmp_path, CHOICE)
    with pytest.raises(DataError, match="colour: demonstration from item 1 of train: template"):
        make_prompts(task, DEV, 1, 0, [{"label": 0}])
