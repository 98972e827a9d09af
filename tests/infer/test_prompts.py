"""Where prompts come from."""

import io
import sys

import pytest

from pangu_ms.cli.generate import build_parser, read_prompts
from pangu_ms.cli.options import sampling_config
from pangu_ms.core.errors import GenerationError
from pangu_ms.infer.generate import Prompt
from pangu_ms.infer.sampling import SamplingConfig


def prompts(*words):
    args = build_parser().parse_args(["run", *words])
    return [prompt.text for prompt in read_prompts(args, sampling_config(args))]


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
        ('{"prompt": "a", "domian": "zh"}', "p.jsonl:2: unknown key 'domian'; known: prompt, id, domain, "),
        ('{"promt": "a"}', "p.jsonl:2: unknown key 'promt'; known: prompt, id, domain, "),
        ('{"prompt": "a", "domain": 0}', "p.jsonl:2: domain=0: a domain is named by a JSON string; "),
        ('{"domain": "zh"}', "p.jsonl:2: neither a JSON string nor an object with a prompt key"),
        ('{"prompt": "a", "id": [1]}', "p.jsonl:2: id=[1]: must be a text or a whole number; "),
        ('{"prompt": "a", "top_k": 1.5}', "p.jsonl:2: top_k=1.5: must be a whole number; "),
        ('{"prompt": "a", "seed": true}', "p.jsonl:2: seed=True: must be a whole number; "),
        ('{"prompt": "a", "stop": [""]}', "p.jsonl:2: stop=['']: must be a text, or a list of texts; "),
        (
            '{"prompt": "a", "logit_bias": [1]}',
            "p.jsonl:2: logit_bias=[1]: must be an object of ids and numbers, such as",
        ),
        ('{"prompt": "a", "logit_bias": {"x": 1}}', "p.jsonl:2: logit_bias={'x': 1}: must be an object of ids and"),
        ('{"prompt": "a", "min_new_tokens": 65}', "p.jsonl:2: min_new_tokens=65: must be 0 to max_new_tokens"),
        ('{"prompt": "a", "temperature": -1}', "p.jsonl:2: temperature=-1: must be 0, which is greedy, or"),
        ("[1]", "p.jsonl:2: neither a JSON string nor an object with a prompt key"),
    ],
)
def test_a_line_that_is_not_understood_is_told_by_its_number(line, message, tmp_path):
    file = tmp_path / "p.jsonl"
    file.write_text(f'{{"prompt": "first", "domain": null}}\n{line}\n')
    with pytest.raises(GenerationError) as error:
        prompts("--prompt-file", str(file))
    assert message in str(error.value)


def test_a_line_s_settings_replace_the_options(tmp_path):
    file = tmp_path / "p.jsonl"
    file.write_text(
        '{"prompt": "a", "temperature": 0, "stop": "."}\n"b"\n{"prompt": "c", "max_new_tokens": 3, "id": "x"}\n'
        '{"prompt": "d", "min_new_tokens": 2, "logit_bias": {"17": -100, "3": 0.5}}\n'
    )
    args = build_parser().parse_args(["run", "--prompt-file", str(file), "--max-new-tokens", "7", "--stop", "!"])
    common = SamplingConfig(max_new_tokens=7, stop=("!",))
    assert read_prompts(args, common) == [
        Prompt("a", SamplingConfig(max_new_tokens=7, temperature=0, stop=(".",))),
        Prompt("b", common),
        Prompt("c", SamplingConfig(max_new_tokens=3, stop=("!",)), id="x"),
        Prompt("d", SamplingConfig(7, 2, stop=("!",), logit_bias=((17, -100.0), (3, 0.5)))),
    ]
