"""What the pages say holds: commands in their bash blocks parse, relative links and anchors lead somewhere."""

import contextlib
import io
import re
import shlex
from pathlib import Path

import pytest

from pangu_ms.core.errors import UserError
from tests.fences import fenced
from tests.parsers import below, pangu_parser

ROOT = Path(__file__).parent.parent
PAGES = [
    *(page for name in ("README.md", "README_CN.md", "CONTRIBUTING.md") if (page := ROOT / name).exists()),
    *sorted((ROOT / "docs").glob("**/*.md")),
]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
ENDS, REDIRECTIONS = re.compile(r"[;|&()]+"), re.compile(r"[<>]+&?|&>+")
BEFORE_COMMANDS = {"$", "do", "then", "else", "time", "exec", "nohup", "sudo"}
ASSIGNMENT = re.compile(r"[A-Za-z_]\w*=")
LINK = re.compile(r"\]\(([^()\s]+)\)")


def words_of(line):
    """The words of each simple command of a line of bash, without redirections, assignments and what starts them."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    found, skip = [[]], False
    for word in lexer:
        if skip:
            skip = False
        elif REDIRECTIONS.fullmatch(word):
            skip = True
            if found[-1] and found[-1][-1] in ("1", "2"):  # 2>&1
                found[-1].pop()
        elif ENDS.fullmatch(word):
            found.append([])
        elif found[-1] or not (word in BEFORE_COMMANDS or ASSIGNMENT.match(word)):
            found[-1].append(word)
    return found


def pangu_commands(text):
    """(line, words behind `pangu`) of each command of `pangu` in the bash blocks of a page."""
    for first, language, block in fenced(text):
        if language != "bash":
            continue
        number, pending = first, ""
        for offset, line in enumerate(block.splitlines()):
            number = number if pending else first + offset
            pending += line
            if pending.endswith("\\"):
                pending = pending[:-1] + " "
                continue
            for words in words_of(pending):
                if words and words[0].rpartition("/")[2] == "pangu":
                    yield number, words[1:]
            pending = ""


def complaint(words):
    """What the real parsers say of a command; "" if they take it. `launch` starts a verb, which is asked next."""
    parser, verb = pangu_parser(), words
    while verb and verb[0] in below(parser):
        parser, verb = below(parser)[verb[0]], verb[1:]
    if words in (["--help"], ["--version"]) or words[:1] == ["help"]:
        return ""
    if below(parser):
        return f"no such verb: {' '.join(words)}"
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
            launched = words[:1] == ["launch"]
            args = parser.parse_args(verb) if launched else parser.parse_intermixed_args(verb)
    except UserError as error:
        return str(error)
    except SystemExit as end:
        return said.getvalue() if end.code else ""
    return complaint([args.verb, *args.argv]) if launched else ""


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_commands_parse(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the commands make new files and directories
    name, text = page.relative_to(ROOT), page.read_text(encoding="utf-8")
    found = [(number, words, complaint(words)) for number, words in pangu_commands(text)]
    wrong = [f"{name}:{number}: pangu {shlex.join(words)}\n    {said}" for number, words, said in found if said]
    assert not wrong, "\n" + "\n".join(wrong)


def anchors(text):
    """Of the headings of a page, as GitHub makes them, and those that it sets itself."""
    for _, _, block in fenced(text):
        text = text.replace(block, "")
    slugs = {}
    for heading in re.findall(r"^#+ +(.+?) *#*$", text, re.MULTILINE):
        slug = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        slugs[slug] = slugs.get(slug, -1) + 1
        if slugs[slug]:
            slugs[f"{slug}-{slugs[slug]}"] = 0
    return {*slugs, *re.findall(r'(?:id|name)="([^"]+)"|\{#([\w-]+)\}', text)}


def broken_links(page):
    """Relative links and anchors of a page that lead nowhere, each with its line."""
    text = page.read_text(encoding="utf-8")
    inside = {n for first, _, block in fenced(text) for n in range(first, first + block.count("\n") + 1)}
    for number, line in enumerate(text.splitlines(), 1):
        for link in LINK.findall(re.sub(r"`[^`]*`", "", line)) if number not in inside else ():
            if re.match(r"[a-z]+:", link):  # https:, mailto:
                continue
            path, _, anchor = link.partition("#")
            target = page.parent / path if path else page
            if not target.exists():
                yield f"{page.name}:{number}: {link}: no such file"
            elif anchor and target.suffix == ".md" and anchor not in anchors(target.read_text(encoding="utf-8")):
                yield f"{page.name}:{number}: {link}: no such heading"


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_lead_somewhere(page):
    wrong = list(broken_links(page))
    assert not wrong, "\n" + "\n".join(wrong)


MARK = r"[A-H]\d+(?:\.\d+)*"
ASIDE = r"(?:\s*\([^()]*\))?"
CITATION = re.compile(rf"\b[Ss]pec(?:ification)?\s+{MARK}{ASIDE}(?:(?:,| and| to| or|;)\s+{MARK}{ASIDE})*")


def cited_marks(text):
    """The marks of citations such as "spec A1.5 (reset), A1.6", also where a line ends inside."""
    text = re.sub(r"\s*\n\s*(?:(?:#|//)\s*)?", " ", text)
    for citation in CITATION.findall(text):
        yield from re.findall(MARK, re.sub(r"\([^()]*\)", "", citation))


def test_every_mark_that_code_cites_is_among_the_sources():
    known = set(re.findall(rf"^\| ({MARK}) \|", (ROOT / "docs" / "sources.md").read_text("utf-8"), re.MULTILINE))
    folders = ("pangu_ms", "run", "ascend_ops", "configs", "docs", "examples", "tests")
    suffixes = {".py", ".yaml", ".cc", ".cpp", ".h", ".md"}
    files = [path for name in folders for path in sorted((ROOT / name).rglob("*")) if path.suffix in suffixes]
    cited = {mark: path for path in files for mark in cited_marks(path.read_text("utf-8"))}
    assert not {mark: path for mark, path in cited.items() if mark not in known}
    assert {"A1.5", "A1.6", "A3.1", "D2", "E2.4", "F1"} <= cited.keys()
    split = "# Source: spec\n    # A1.5 (reset), A2; spec D2 to\n    D4. No spec of B1."
    assert list(cited_marks(split)) == ["A1.5", "A2", "D2", "D4"]


PAGE = """# Title: a, b
```bash
# pangu comment --wrong
$ pangu train --config alpha/tiny \\
    --output run train.steps=3 2>&1 | tee log   # a comment
A=1 .venv/bin/pangu plan show alpha/13b > plan.txt && pangu eval run --data records
for i in 1 2; do pangu status run; done; pangu launch --smoke train --config alpha/tiny --output run
```
```
pangu --this is no bash
```
[a](#title-a-b) [b](#none) [c](none.md) [d](https://example.org/#x) `[e](f)`
"""


def test_what_is_read_of_a_page(tmp_path):
    commands = list(pangu_commands(PAGE))
    assert [(number, words[0]) for number, words in commands] == [
        (4, "train"), (6, "plan"), (6, "eval"), (7, "status"), (7, "launch"),
    ]  # fmt: skip
    assert commands[0][1][-1] == "train.steps=3" and not any(complaint(words) for _, words in commands)
    for wrong, said in (
        ("trian", "no such verb"),
        ("plan shwo", "no such verb"),
        ("train --config alpha/tiny", "--output"),
        ("launch --smoke train --outptu run", "did you mean --output?"),
        ("eval run records --data x", "records: is no override"),
        ("export run --output p --batch-size x", "invalid int value"),
    ):
        assert said in complaint(wrong.split()), wrong
    (tmp_path / "page.md").write_text(PAGE)
    assert [line.split(": ")[1] for line in broken_links(tmp_path / "page.md")] == ["#none", "none.md"]
