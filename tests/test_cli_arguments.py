"""Mistakes in options: one line, with the nearest name, exit code 2, no page of usage."""

import pytest

from pangu_ms.cli import main


@pytest.mark.parametrize(
    ("words", "advice"),
    [
        (["data", "inspekt", "x"], "did you mean inspect?"),
        (["data", "inspect", "--verfy", "x"], "did you mean --verify?"),
        (["config", "show", "--fild"], "did you mean --fields?"),
        (["status", "--jsn", "x"], "did you mean --json?"),
        (["eval", "run", "--data", "x", "--jsom"], "did you mean --json?"),
        (["plan", "shwo"], "did you mean show?"),
        (["launch", "--dryrun", "train"], "did you mean --dry-run?"),
        (["ops", "lsit"], "did you mean list?"),
        (["ops", "build", "--levle", "x"], "did you mean --level?"),
        (["manifest", "slurm", "--conifg", "alpha/tiny", "--output-dir", "x"], "--config"),
        (["manifest", "slurm", "--config", "alpha/tiny", "--output-dir", "x", "--graec", "5"], "did you mean --grace?"),
        (["ckpt", "resherd"], "did you mean reshard?"),
        (["doctor", "--outptu", "x"], "did you mean --output?"),
        (["generate"], "CHECKPOINT"),
        (["tokenizer", "encode", "x"], "--tokenizer"),
        (["train", "--output"], "expected one argument"),
    ],
)
def test_one_line_with_the_nearest_name(words, advice, capsys):
    try:
        code = main(words)
    except SystemExit as stop:
        code = stop.code
    error = capsys.readouterr().err
    assert code == 2 and error.count("\n") == 1 and error.startswith(f"pangu {words[0]}") and advice in error, error
