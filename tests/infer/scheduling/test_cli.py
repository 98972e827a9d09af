"""`pangu schedule`: what it reports, that no MindSpore is needed, and what a user does wrong."""

import importlib.util
import json

import pytest

from pangu_ms.cli.main import main
from pangu_ms.data.tokenizer import train_tokenizer
from pangu_ms.infer.scheduling.policies import POLICIES
from tests.without_mindspore import answers_to

SMALL = ["schedule", "simulate", "--requests", "48", "--max-new-tokens", "64", "--bin", "10"]
HELP = [["schedule", action, "--help"] for action in ("simulate", "label", "train-predictor")]


def result(capsys, *words):
    """What a command prints with --json."""
    capsys.readouterr()
    assert main([*map(str, words), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def fails(capsys, *words):
    """The line of a command that a user got wrong."""
    capsys.readouterr()
    assert main([str(word) for word in words]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith("pangu schedule"), error
    return error


def test_all_policies_are_compared(capsys):
    found = result(capsys, *SMALL)
    assert list(found["policies"]) == list(POLICIES) and found["policies"]["static"]["speed_up"] == 1
    assert {row["requests"] for row in found["policies"].values()} == {48}
    assert len({row["tokens"] for row in found["policies"].values()}) == 1, "useful tokens do not depend on the policy"
    for name, row in found["policies"].items():
        assert row["peak_cache_tokens"] <= found["budget_tokens"] or not row["equal_budget"], name
    assert "a gain means nothing" in found["warning"] and found["lengths"]["share_at_cap"] > 0.05
    assert main(SMALL) == 0
    text = capsys.readouterr().out
    assert "a gain means nothing" in text and "paper *" in text and "####" in text
    assert text.splitlines()[-len(POLICIES)].startswith("static    ")


def test_files_of_lengths_arrivals_and_predictions(capsys, tmp_path):
    lines = [{"tokens": 10, "arrival": 100 * i, "predicted_tokens": 12, "prompt_tokens": 5} for i in range(8)]
    (tmp_path / "lengths.jsonl").write_text("\n".join(map(json.dumps, lines)))
    words = [
        "schedule",
        "simulate",
        "--lengths",
        tmp_path / "lengths.jsonl",
        "--policy",
        "fcfs,sjf",
        "--cost",
        "2,.5,.25",
    ]
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"tokens": 5, "arrival": -1}')
    error = fails(capsys, "schedule", "simulate", "--lengths", bad)
    assert "bad.jsonl:1: arrival is -1;" in error and "predicted_tokens and arrival, which are at least 0" in error
    assert "missing: cannot be read" in fails(capsys, "schedule", "simulate", "--lengths", "missing")
    found = result(capsys, *words)
    assert list(found["policies"]) == ["fcfs", "sjf"] and found["prediction"]["mae"] == 2
    one = found["policies"]["fcfs"]  # a chunk of 5 tokens and 9 decoding steps, alone, with time between them
    assert (
        one["steps"] == 80 and one["wait"]["max"] == 0 and one["latency"]["max"] == pytest.approx(2 * 10 + 4.5 + 1.25)
    )
    assert one["seconds"] == pytest.approx(700 + one["latency"]["max"])
    quick = result(capsys, *words, "--rate", "1000")
    assert quick["policies"]["fcfs"]["wait"]["max"] < 10 and quick["policies"]["fcfs"]["seconds"] < 100
    perfect = result(capsys, *words, "--predictor", "oracle")
    assert perfect["prediction"] == {"mae": 0, "acc_50": 1, "acc_100": 1}


def test_the_budget_is_what_is_equal(capsys):
    found = result(capsys, *SMALL, "--policy", "bins,reserve", "--budget", "1100", "--predictor", "oracle")
    assert found["budget_tokens"] == 1100 and found["slots"] == 16
    assert all(500 < row["peak_cache_tokens"] <= 1100 for row in found["policies"].values())


@pytest.mark.skipif(not importlib.util.find_spec("matplotlib"), reason="needs matplotlib")
def test_a_figure(capsys, tmp_path):
    result(capsys, *SMALL, "--policy", "static,fcfs", "--plot", tmp_path / "a.svg")
    assert b"<svg" in (tmp_path / "a.svg").read_bytes()


def test_from_answers_to_a_predictor(capsys, tmp_path):
    tokenizer = tmp_path / "tokenizer"
    train_tokenizer(["def class import name0: name1: name2:\n" * 50], 290, "none").save(tokenizer)
    for temperature in (0, 7):
        lines = []
        for i in range(120):
            word, length = (("def", 30), ("class", 200), ("import", 90))[i % 3]
            ids = [7] * (length + i % 5 * (temperature > 0))
            lines.append(
                json.dumps({"prompt": f"{word} name{i}:", "text": "", "token_ids": ids, "finish_reason": "stop"})
            )
        (tmp_path / f"{temperature}.jsonl").write_text("\n".join(lines))
    files = [tmp_path / "0.jsonl", tmp_path / "7.jsonl"]
    found = result(capsys, "schedule", "label", *files, "--output", tmp_path / "labels.jsonl")
    labels = [json.loads(line) for line in (tmp_path / "labels.jsonl").read_text().splitlines()]
    assert found["prompts"] == len(labels) == 120 and {row["tokens"] for row in labels} == {50, 100, 200, 250}
    train = ["schedule", "train-predictor", tmp_path / "labels.jsonl", "--tokenizer", tokenizer, "--held-out", "0.3"]
    found = result(capsys, *train, "--features", "256", "--output", tmp_path / "p.json")
    measured = found["measured"]
    assert found["trained_on"] + found["held_out"] == 120 and found["held_out"] > 20
    assert measured["predictor"]["mae"] < 0.5 * measured["median of all"]["mae"]
    answers = ["schedule", "simulate", "--lengths", files[1], "--tokenizer", tokenizer, "--policy", "sjf,fcfs"]
    found = result(capsys, *answers, "--predictor", tmp_path / "p.json")
    assert found["prediction"]["acc_50"] > 0.8 and found["policies"]["sjf"]["steps"] > 120, "chunks of prompts count"
    waits = [found["policies"][name]["wait"]["mean"] for name in ("sjf", "fcfs")]
    assert waits[0] < waits[1]
    other = tmp_path / "other"
    train_tokenizer(["some other text of a tokenizer\n" * 50], 290, "none").save(other)
    answers[answers.index(tokenizer)] = other
    assert "trained with tokenizer" in fails(capsys, *answers, "--predictor", tmp_path / "p.json")
    assert "nothing is overwritten" in fails(capsys, *train, "--output", tmp_path / "p.json")
    assert "has no template" in fails(capsys, *train, "--kind", "template", "--output", tmp_path / "q.json")
    (tmp_path / "t.jsonl").write_text("\n".join(json.dumps(row | {"template": row["prompt"][:3]}) for row in labels))
    train[2] = tmp_path / "t.jsonl"
    found = result(capsys, *train, "--kind", "template", "--output", tmp_path / "q.json")
    assert found["measured"]["predictor"]["acc_50"] > 0.9
    assert not list(tmp_path.glob(".*.tmp"))


WRONG = [
    (["--policy", "fifo"], "fifo: no such policy"),
    (["--slots", "0"], "--slots 0: must be a number from 1"),
    (["--max-rows", "4"], "--max-rows 4: must be at least --slots 16"),
    (["--budget", "1000"], "--budget 1000: is 62 tokens for each of 16 slots"),
    (["--cost", "1"], "--cost 1: must be two or three numbers"),
    (["--cost", "0,1"], "--cost 0,1: must be"),
    (["--cost", "1,nan"], "--cost 1,nan: must be"),
    (["--rate", "0"], "--rate 0.0: must be above 0"),
    (["--lengths", "missing"], "--requests 48: missing has as many as it holds"),
    (["--predictor", "given"], "has no predicted_tokens"),
    (["--predictor", "oracel"], "oracel: is none of given, oracle"),
    (["--tokenizer", "missing"], "a length has no prompt"),
    (["--seed", "-1"], "--seed -1"),
    (["--plot", "a.txt"], "a.txt: the name tells the format"),
]


def test_mistakes_are_one_line_without_mindspore(tmp_path):
    commands = [[*SMALL, *words] for words, _ in WRONG] + HELP + [[*SMALL, "--policy", "sorted"]]
    answers = answers_to(commands, cwd=tmp_path)
    for (code, error), (words, says) in zip(answers, WRONG):
        assert code == 2 and error.count("\n") == 1 and says in error, (words, error)
    assert [code for code, _ in answers[len(WRONG) :]] == [0, 0, 0, 0]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "option, says", [("--held-out=1", "between 0 and 1"), ("--features=0", "from 1 to"), ("--ridge=0", "above 0")]
)
def test_mistakes_of_training(option, says, capsys, tmp_path):
    words = ["schedule", "train-predictor", tmp_path / "none", "--tokenizer", tmp_path, "--output", tmp_path / "p.json"]
    assert says in fails(capsys, *words, option)
    assert "--bin 0" in fails(capsys, "schedule", "label", tmp_path / "none", "--output", tmp_path / "o", "--bin", "0")
