"""Mistakes in paths, prompts and options are told before MindSpore is imported, which takes seconds, and before
anything is compiled."""

from tests.without_mindspore import IMPORTED, answers_to

GENERATE = [
    (["--prompt", "x", "--temperature", "-1"], "temperature=-1.0: must be 0"),
    (["--prompt", "x", "--max-new-tokens", "0"], "max_new_tokens=0: must be at least 1"),
    (["--prompt", "x", "--num-beams", "2", "--top-k", "5"], "top_k=5: beam search does not sample"),
    (["--prompt-file", "/no/file"], "/no/file: cannot be read"),
    (["--prompt", "a", "--prompt", "b", "--stream"], "--stream: 2 continuations"),
    (["--prompt", "x", "--bacth-size", "2"], "did you mean --batch-size?"),
]
CHECKPOINT = [
    (["model.hidden_size=64"], "a checkpoint's model is fixed"),
    (["runtime.devise=CPU"], "runtime.devise: unknown key; did you mean device?"),
]
OF_GENERATE = [
    (["--prompt", ""], "prompt 1: is empty"),
    (["--prompt", "def print " * 40], "prompt and continuation must fit in 32"),
    (["--prompt", "x", "--batch-size", "0"], "batch_size=0: must be at least 1"),
    (["--prompt", "x", "--chunk", "0"], "chunk=0: must be at least 1"),
    (["--prompt", "x", "--tokenizer", "/no/tokenizer"], "/no/tokenizer"),
    (["--prompt", "x", "--domain", "zh"], "domain=zh: the model has no domains"),
]
OF_EVAL = [
    (["--data", "/no/records"], "/no/records: no MindRecord file"),
    (["--data", "RECORDS", "--batch-size", "0"], "batch_size=0: must be at least 1"),
    (["--data", "RECORDS", "--max-batches", "-1"], "max_batches=-1: must be at least 0"),
    (["--data", "RECORDS", "--split", "held-out"], "did you mean held_out?"),
]
OF_EXPORT = [
    (["--output", "FULL"], "exists with other content"),
    (["--output", "NEW", "--batch-size", "0"], "batch_size=0: must be at least 1"),
    (["--output", "NEW", "--max-length", "99999"], "--max-length 99999: must be between 4 and"),
    (["--output", "NEW", "--tokenizer", "/no/tokenizer"], "/no/tokenizer"),
    (["--output", "NEW", "--domain", "zh"], "domain=zh: the model has no domains"),
    (["--output", "NEW", "--key-file", "/no/key"], "/no/key: the key cannot be read"),
    (["--output", "NEW", "--sign-key", "/no/key"], "/no/key: "),
]


def cases(run, full, new, records):
    """(arguments, words of the one line)."""
    named = {"RECORDS": str(records), "FULL": str(full), "NEW": str(new)}
    rest = {"generate": ["--prompt", "x"], "eval": ["--data", str(records)], "export": ["--output", str(new)]}
    for verb, own in (("generate", GENERATE + OF_GENERATE), ("eval", OF_EVAL), ("export", OF_EXPORT)):
        yield [verb, "/no/run", *rest[verb]], "/no/run: no such directory"
        yield from (([verb, str(run), *(named.get(word, word) for word in words)], text) for words, text in own)
        yield from (([verb, str(run), *rest[verb], *words], text) for words, text in CHECKPOINT)
    yield from ((["run-mindir", "/no/package", *words], text) for words, text in GENERATE[:-1])
    yield ["run-mindir", "/no/package", "--prompt", "x", "--key-file", "/no/key"], "/no/key: the key cannot be read"
    yield ["run-mindir", "/no/package", "--prompt", "x"], "/no/package: holds no manifest.json"


def check(expected):
    for (arguments, words), (code, error) in zip(
        expected, answers_to([arguments for arguments, _ in expected]), strict=True
    ):
        assert (code, error.count("\n")) == (2, 1) and words in error, (arguments, code, error)


def test_of_a_checkpoint(trained_run, records, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").write_text("")
    check(list(cases(trained_run, tmp_path / "full", tmp_path / "new", records)))
    assert not (tmp_path / "new").exists()


def test_what_is_right_gets_as_far_as_mindspore(trained_run, records, tmp_path):
    """Else the test above would hold of a program that refuses everything."""
    commands = [["generate", str(trained_run), "--prompt", "x"], ["eval", str(trained_run), "--data", str(records)]]
    commands.append(["export", str(trained_run), "--output", str(tmp_path / "new")])
    for code, error in answers_to(commands):
        assert str(code).rstrip().endswith(IMPORTED) and error == ""
