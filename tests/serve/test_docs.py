"""What docs/serve.md and the README say of the server holds."""

import dataclasses
import re
import shlex
from pathlib import Path

import pytest

from pangu_ms.serve.protocol import IGNORED, REFUSED, ChatRequest, CompletionRequest
from pangu_ms.serve.settings import Limits
from tests.fences import fenced
from tests.serve.common import Toy, running
from tests.serve.models import model_of

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "serve.md").read_text(encoding="utf-8")


def rows(heading):
    """Cells of the tables below a heading."""
    part = PAGE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    lines = [line for line in part.splitlines() if line.startswith("|") and not line.startswith("| ---")]
    return [[cell.strip() for cell in line[1:-1].split("|")] for line in lines]


def test_the_table_of_fields():
    columns = {"completions": {}, "chat": {}}
    for names, completions, chat, *_ in rows("Fields"):
        for name in re.findall(r"`(\w+)`", names):
            columns["completions"][name] = completions
            columns["chat"][name] = chat
    for path, model in (("completions", CompletionRequest), ("chat", ChatRequest)):
        said = columns[path]
        assert {name for name, word in said.items() if word == "supported"} == set(model.model_fields)
        assert {name for name, word in said.items() if word == "ignored"} == set(IGNORED[path])
        # What OpenAI has in chats alone is unknown in completions.
        assert {name for name, word in said.items() if word == "refused"} >= set(REFUSED[path])


def test_the_table_of_limits():
    found = {names.strip("`"): default for names, default, *_ in rows("Limits")[1:]}
    for field in dataclasses.fields(Limits):
        assert found[f"--{field.name.replace('_', '-')}"] in (f"{field.default:g}", f"{field.default:g} s"), field.name


@pytest.fixture(scope="module")
def server(tokenizer):
    with running(model_of(Toy(tokenizer.vocab_size), tokenizer, "run")) as server:
        yield server


def test_the_table_of_metrics(server):
    server.post(model="run", prompt="def", max_tokens=2)
    shown = server.client.get("/metrics").text
    for names, *_ in rows("Metrics")[1:]:
        for name in re.findall(r"`(\w+)`", names):
            assert f"# TYPE {name.removesuffix('_total')}" in shown, name


@pytest.mark.parametrize("page", ["README.md", "README_CN.md", "docs/serve.md"])
def test_lines_with_curl(page, server):
    found = 0
    for _, language, block in fenced((ROOT / page).read_text(encoding="utf-8")):
        lines = block.replace("\\\n", " ").splitlines() if language == "bash" else []
        for words in (shlex.split(line) for line in lines if line.startswith("curl ")):
            url = next(word for word in words if word.startswith("http://127.0.0.1:8000/"))
            name, value = words[words.index("-H") + 1].split(": ")
            body = words[words.index("-d") + 1]
            answer = server.client.post(url.removeprefix("http://127.0.0.1:8000"), content=body, headers={name: value})
            assert answer.status_code == 200, answer.text
            found += 1
    assert found


def test_the_program_with_openais_client(server, capsys):
    (program,) = [block for _, language, block in fenced(PAGE) if language == "python"]
    exec(program.replace("http://127.0.0.1:8000", server.url), {})
    assert capsys.readouterr().out
