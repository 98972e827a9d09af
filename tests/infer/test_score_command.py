"""`pangu score`: lines of a file in, log-probabilities out."""

import json

import numpy as np
import pytest

from pangu_ms.checkpoint import store
from pangu_ms.cli.main import main
from pangu_ms.data.tokenizer import Tokenizer
from pangu_ms.infer import load
from pangu_ms.infer.scoring import encode_pair
from tests.reference.alpha_numpy import forward

pytestmark = pytest.mark.usefixtures("mindspore_cpu")
LINES = [
    {"prefix": "def alpha_1(", "continuations": ["beta):", "gamma):", "):"], "id": "first"},
    {"text": "def alpha_1(beta):\n    return beta + 1\n" * 3},
    {"prefix": [], "continuations": [[7], [8, 9]]},
    {"prefix": "def alpha_1(", "continuations": ["delta):"]},
]


@pytest.fixture(scope="module")
def checkpoint(trained_run):
    return store.open_checkpoint(trained_run)


@pytest.fixture(scope="module")
def loaded():
    """The scorer of texts alone (True), and that of other items."""
    return {}


@pytest.fixture(autouse=True)
def reuse(loaded, monkeypatch):
    """Commands share compiled scorers."""
    load_scorer = load.load_scorer

    def reused(checkpoint, items, tokenizer, *others):
        key = all(item.is_text for item in items)
        if key not in loaded:
            loaded[key] = load_scorer(checkpoint, items, tokenizer, *others)
        with monkeypatch.context() as patch:
            patch.setattr(load, "load_decoder", lambda *arguments, **options: loaded[False].decoder)
            patch.setattr(load, "_whole_windows", lambda *arguments: loaded[True].graph)
            load_scorer(checkpoint, items, tokenizer, *others)  # checks the items
        if not key:
            loaded[key].forget()
        loaded[key].counts = type(loaded[key].counts)()
        return loaded[key]

    monkeypatch.setattr(load, "load_scorer", reused)


def write(path, lines):
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return str(path)


@pytest.fixture
def file(tmp_path):
    return write(tmp_path / "items.jsonl", LINES)


@pytest.fixture
def scored(trained_run, file, capsys):
    """The lines that the command prints with --json."""
    capsys.readouterr()
    assert main(["score", str(trained_run), "--input", file, "--json"]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def reference(checkpoint, context, continuation):
    """Log-probabilities in float64."""
    ids = np.array([[*context, *continuation]])
    logits = forward(checkpoint.config().model, checkpoint.tensors(), ids[:, :-1], None)[0, len(context) - 1 :]
    logprobs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return logprobs[range(len(continuation)), list(continuation)]


def test_scores_are_those_of_the_reference(checkpoint, scored):
    tokenizer = checkpoint.tokenizer()
    assert [line["index"] for line in scored] == [0, 1, 2, 3] and scored[0]["id"] == "first"
    for line, found in zip(LINES, scored, strict=True):
        for continuation, one in zip(line.get("continuations", ()), found.get("continuations", ()), strict=True):
            if isinstance(continuation, str):
                context, ids = encode_pair(tokenizer, line["prefix"], continuation)
            else:
                context, ids = [tokenizer.eod_id], continuation
            logprobs = reference(checkpoint, context, ids)
            assert one["tokens"] == list(ids) and len(one["greedy"]) == len(ids)
            np.testing.assert_allclose(one["logprobs"], logprobs, atol=1e-4)
            assert one["logprob"] == pytest.approx(logprobs.sum(), abs=1e-3)
    text, ids = scored[1], tokenizer.encode(LINES[1]["text"])
    logprobs, window = [], checkpoint.config().model.seq_length
    for begin in range(0, len(ids), window):
        end = min(begin + window, len(ids))
        context = ids[end - window - 1 : begin] if begin else [tokenizer.eod_id]
        logprobs += reference(checkpoint, context, ids[begin:end]).tolist()
    assert len(ids) > window and text["tokens"] == ids
    np.testing.assert_allclose(text["logprobs"], logprobs, atol=1e-4)
    assert text["perplexity"] == pytest.approx(np.exp(-np.mean(logprobs)), rel=1e-3)
    bits = -np.sum(logprobs) / np.log(2) / len(LINES[1]["text"].encode())
    assert text["bits_per_byte"] == pytest.approx(bits, rel=1e-3)


def test_texts_alone_have_the_same_scores(trained_run, scored, tmp_path, capsys, loaded):
    """Though no cache is made for them."""
    file = write(tmp_path / "texts.jsonl", [LINES[1], {"text": [7, 8]}])
    assert main(["score", str(trained_run), "--input", file, "--json"]) == 0
    text, short = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert text.keys() == scored[1].keys() and loaded[True].counts.calls == 1
    np.testing.assert_allclose(text["logprobs"], scored[1]["logprobs"], atol=1e-5)
    assert len(short["logprobs"]) == 2 and "bits_per_byte" not in short


def test_tokens_of_a_continuation_follow_the_spaces_of_the_prefix(checkpoint):
    tokenizer = checkpoint.tokenizer()
    context, ids = encode_pair(tokenizer, "return  ", "beta")
    assert context == tokenizer.encode_prompt("return")
    assert [*context, *ids] == tokenizer.encode_prompt("return  beta")


def test_people_see_a_line_for_each_score(trained_run, file, scored, capsys):
    assert main(["score", str(trained_run), "--input", file]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["[1]", "[1]", "[1]", "[2]", "[3]", "[3]", "[4]"]
    assert lines[0].startswith(f"[1] {scored[0]['continuations'][0]['logprob']:.4f} (") and lines[0].endswith("beta):")
    assert lines[3].endswith(f" tokens, perplexity {scored[1]['perplexity']:,.4g})")


def test_a_file_of_scores_goes_on_where_it_was_interrupted(trained_run, file, scored, tmp_path, capsys, loaded):
    output, part = tmp_path / "new" / "scores.jsonl", tmp_path / "new" / "scores.jsonl.part"
    command = ["score", str(trained_run), "--input", file, "--output", str(output)]
    scorer = loaded[False]
    score, calls = scorer._score, []

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return score(*arguments)

    scorer._score = interrupted
    try:
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            raise SystemExit(main(command))
    finally:
        del scorer._score
    there = [json.loads(line) for line in part.read_text().splitlines()[1:]]
    assert 0 < len(there) < len(LINES) and not output.exists()
    other = write(tmp_path / "other.jsonl", LINES[:2])
    assert main(["score", str(trained_run), "--input", other, "--output", str(output)]) == 2
    assert "has scores to other items or settings, or of another model" in capsys.readouterr().err
    assert main(command) == 0
    assert f"{output}: 4 scores, {len(there)} of them were there" in capsys.readouterr().out
    found = [json.loads(line) for line in output.read_text().splitlines()]
    assert [line["index"] for line in found] == [0, 1, 2, 3] and not part.exists()
    for line, expected in zip(found, scored):
        ours = line.get("continuations", [line])
        for one, other in zip(ours, expected.get("continuations", [expected]), strict=True):
            np.testing.assert_allclose(one["logprobs"], other["logprobs"], atol=1e-5)


def test_a_long_context_is_cut_and_said(trained_run, tmp_path, capsys):
    file = write(tmp_path / "a.jsonl", [{"prefix": list(range(5, 45)), "continuations": [[7], [7, 8, 9]]}])
    assert main(["score", str(trained_run), "--input", file, "--json"]) == 0
    out, error = capsys.readouterr()
    assert [one["cut_tokens"] for one in json.loads(out)["continuations"]] == [8, 10]
    assert "2 contexts are longer than the window of 32 tokens: 18 tokens were cut off at their beginnings" in error


def test_of_lines_that_fail_the_others_are_there(trained_run, file, tmp_path, capsys, loaded):
    output = tmp_path / "scores.jsonl"
    main(["score", str(trained_run), "--input", file])
    scorer = loaded[False]
    compute = scorer._compute

    def damaged(sequence, domain):
        logprobs, best = compute(sequence, domain)
        return (logprobs * np.nan if sequence.targets[-2:] == [8, 9] else logprobs), best

    scorer._compute = damaged
    capsys.readouterr()
    try:
        assert main(["score", str(trained_run), "--input", file, "--output", str(output)]) == 2
    finally:
        del scorer._compute
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "Traceback" not in error
    assert f"{file}:3: continuation 2: the log-probability behind 0 tokens of the continuation is nan" in error
    part = output.with_name("scores.jsonl.part").read_text().splitlines()[1:]
    assert sorted(json.loads(line)["index"] for line in part) == [0, 1, 3]
    assert main(["score", str(trained_run), "--input", file, "--output", str(output)]) == 0


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "items.jsonl:2: "),
        ("[1]", "items.jsonl:2: "),
        ({"prefix": "a"}, "items.jsonl:2: has the keys prefix; it must have prefix and continuations, or text alone"),
        ({"text": "a", "prefix": "b", "continuations": ["c"]}, "it must have prefix and continuations, or text alone"),
        ({"text": "a", "prefx": "b"}, "items.jsonl:2: unknown key 'prefx'; known: prefix, continuations, text, domain"),
        ({"prefix": "a", "continuations": "b"}, "items.jsonl:2: continuations is 'b'; texts are JSON strings or lists"),
        ({"prefix": "a", "continuations": ["b", 3]}, "items.jsonl:2: continuations[1] is 3; texts are"),
        ({"prefix": [1, True], "continuations": ["b"]}, "items.jsonl:2: prefix"),
        ({"prefix": "a", "continuations": []}, "items.jsonl:2: continuations is empty; give at least one"),
        ({"prefix": "a", "continuations": ["b", ""]}, "items.jsonl:2: continuation 2 is empty; a score needs at least"),
        ({"text": ""}, "items.jsonl:2: continuation 1 is empty; a score needs at least one token"),
        (
            {"prefix": [5], "continuations": [[6] * 33]},
            "items.jsonl:2: continuation 1 has 33 tokens; it must fit in 32",
        ),
        ({"text": [384]}, "items.jsonl:2: id 384 is no token; ids must be 0 to 383; use the model's own tokenizer"),
    ],
)
def test_a_line_that_cannot_be_scored_is_told_by_its_number(trained_run, line, message, tmp_path, capsys):
    file = write(tmp_path / "items.jsonl", [LINES[0], line])
    assert main(["score", str(trained_run), "--input", file]) == 2
    out, error = capsys.readouterr()
    assert out == "" and error.count("\n") == 1 and message in error, error


def test_files_and_options_that_cannot_be_used(trained_run, file, tmp_path, capsys):
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "model.mindir").touch()
    (tmp_path / "empty.jsonl").write_text("\n")
    for words, message in (
        ([tmp_path / "package", "--input", file], "package: is a MindIR package, whose graph computes the logits of"),
        ([trained_run, "--input", tmp_path / "empty.jsonl"], "empty.jsonl: holds nothing to score"),
        ([trained_run, "--input", tmp_path / "none.jsonl"], "none.jsonl: cannot be read"),
        ([trained_run, "--input", file, "--domain", "law"], "items.jsonl:1: domain=law: the model has no domains"),
        ([trained_run, "--input", file, "--output", file], "items.jsonl: exists"),
    ):
        try:
            code = main(["score", *map(str, words)])
        except SystemExit as stop:
            code = stop.code
        error = capsys.readouterr().err
        assert code == 2 and error.count("\n") == 1 and message in error, error


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"prefix": "a", "continuations": ["\ud800"]}, ": text: lone surrogate at character "),
        ({"text": "\ud800"}, ": text: lone surrogate at character "),
        ({"prefix": "def alpha_1(bet", "continuations": ["b", "a"]}, ": continuation 'a' has no token of its own"),
    ],
)
def test_the_line_whose_text_has_no_tokens_is_named(trained_run, tmp_path, capsys, monkeypatch, line, message):
    encode = Tokenizer.encode_prompt
    # "beta" is one token, and so is "bet".
    monkeypatch.setattr(Tokenizer, "encode_prompt", lambda self, text: encode(self, text.replace("beta", "bet")))
    file = write(tmp_path / "items.jsonl", [{"text": "a"}, line])
    assert main(["score", str(trained_run), "--input", file]) == 2
    assert capsys.readouterr().err.startswith(f"pangu score: {file}:2{message}")
