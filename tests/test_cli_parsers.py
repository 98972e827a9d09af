"""The parsers of all commands: shell completion made of them, no MindSpore for a page of help, options defined once."""

import json
import re
import subprocess
import sys

import pytest

from pangu_ms.cli import ops
from pangu_ms.cli.main import VERBS, main
from tests.parsers import commands


@pytest.fixture(scope="module")
def bash_script(tmp_path_factory):
    path = tmp_path_factory.mktemp("completion") / "pangu"
    with path.open("w") as file:
        subprocess.run([sys.executable, "-m", "pangu_ms", "completion", "bash"], stdout=file, check=True)
    return path


def completions(script, *words):
    """What bash offers for the last one of the words."""
    quoted = " ".join(f"'{word}'" for word in words)
    ask = (
        f"source {script}; COMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}; COMP_LINE='{' '.join(words)}'"
        '; COMP_POINT=${#COMP_LINE}; _shtab_pangu; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(["bash", "-c", ask], capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_bash_completes_every_verb_and_options_below_them(bash_script):
    assert subprocess.run(["bash", "-n", bash_script], check=False).returncode == 0
    assert set(VERBS) <= set(completions(bash_script, "pangu", ""))
    assert "--hang-timeout" in completions(bash_script, "pangu", "launch", "--h")
    assert completions(bash_script, "pangu", "plan", "search", "--glo") == ["--global-batch"]
    assert "ascend910b" in completions(bash_script, "pangu", "plan", "estimate", "--chip", "asc")


@pytest.mark.parametrize("shell", ["zsh", "tcsh"])
def test_other_shells_have_a_script(shell, capsys):
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert all(verb in script for verb in VERBS)


def test_without_shtab_completion_is_one_line(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["completion", "bash"]) == 2
    output = capsys.readouterr()
    assert output.out == "" and output.err.count("\n") == 1 and "pangu-ms[completion]" in output.err


def test_parsers_need_neither_mindspore_nor_mindformers():
    code = (
        "import sys, tests.parsers as p; p.commands(); print({'mindspore', 'mindformers', 'torch'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_every_command_has_a_function_to_run_and_describes_its_options():
    for words, parser in commands().items():
        assert parser.prog == " ".join(("pangu", *words))
        assert all(action.help for action in parser._actions), words


def test_help_shows_no_default_of_switches_and_of_options_without_one():
    for words, parser in commands().items():
        assert not re.search(r"default: (False|None|\[\])", parser.format_help()), words


def test_choices_of_operators_are_those_of_ascend_ops():
    from ascend_ops import backend, library, table

    assert tuple(table.FLOATS) == ops.DTYPES and tuple(library.LEVELS) == ops.LEVELS and backend.SOCS == ops.CHIPS


def test_config_iso_tells_json_and_text_the_same(capsys):
    words = ["config", "iso", "--config", "alpha/tiny", "--depths", "2,4"]
    assert main([*words, "--json"]) == main(words) == 0
    result, *lines = capsys.readouterr().out.splitlines()
    assert [row["num_layers"] for row in json.loads(result)["shapes"]] == [2, 4]
    assert [line.lstrip("* ").split()[0] for line in lines[2:4]] == ["2", "4"]
