"""Where prompts come from."""

import io
import sys

import pytest

from pangu_ms.cli.generate import build_parser, read_prompts
from pangu_ms.core.errors import GenerationError


def prompts(*words):
    args = build_parser().parse_args(["run", *words])
    return read_prompts(args.prompt, args.prompt_file)[0]


@pytest.mark.parametrize(
    "content, prompt",
    [
        (b"def f(x):\n", "def f(x):"),
        (b"\xef\xbb\xbfdef f(x):\r\n    return\r\n", "def f(x):\n    return"),
        ("\ufeff\u76d8\u53e4".encode(), "\u76d8\u53e4"),
        (b"100 %\rdone\n", "100 %\rdone"),
    ],
)
def test_standard_input_is_one_prompt_without_marks_of_its_encoding(content, prompt, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    assert prompts() == [prompt]


def test_a_file_of_windows_has_the_same_prompts(tmp_path):
    (tmp_path / "p.txt").write_bytes(b"\xef\xbb\xbffirst\r\n\r\nsecond\r\n")
    (tmp_path / "p.jsonl").write_bytes(b'\xef\xbb\xbf"first"\r\n{"prompt": "second"}\r\n')
    assert (
        prompts("--prompt-file", str(tmp_path / "p.txt"))
        == prompts("--prompt-file", str(tmp_path / "p.jsonl"))
        == ["first", "second"]
    )


@pytest.mark.parametrize(
    "line, message",
    [
        ('{"prompt": "a", "domian": "zh"}', "p.jsonl:2: unknown key 'domian'; known: prompt, domain; "),
        ('{"promt": "a"}', "p.jsonl:2: unknown key 'promt'; known: prompt, domain; "),
        ('{"prompt": "a", "domain": 0}', "p.jsonl:2: domain=0: a domain is named by a JSON string; "),
        ('{"domain": "zh"}', "p.jsonl:2: neither a JSON string nor an object with a prompt key"),
        ("[1]", "p.jsonl:2: neither a JSON string nor an object with a prompt key"),
    ],
)
def test_a_line_that_is_not_understood_is_told_by_its_number(line, message, tmp_path):
    file = tmp_path / "p.jsonl"
    file.write_text(f'{{"prompt": "first", "domain": null}}\n{line}\n')
    with pytest.raises(GenerationError) as error:
        prompts("--prompt-file", str(file))
    assert message in str(error.value)
