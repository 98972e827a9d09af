"""Of every verb, every option that names a place to write refuses a place with content before the work starts.

The options are found in the parsers that the verbs make, so that a new verb is tested, too.
"""

import argparse
import itertools
import re
from pathlib import Path

import pytest

from pangu_ms.cli.main import VERBS, main
from pangu_ms.core import files
from pangu_ms.core.errors import OutputError
from pangu_ms.core.parser import NewDirectory, NewFile

WRITES = re.compile(
    r"--(output|plot|save|write)|(^| |;|,)(where to |also )?(write(?! nothing)|draw) |\bnew"
    r" (file|directory)\b|\bwritten to\b"
)
"""Of option and help. Options that end in -dir or -files are found by what their help says."""
OTHERWISE = {
    ("train", "--output"): "--resume goes on in it; see test_an_output_directory_with_other_content",
    ("launch", "--output"): "as train's",
    ("study pi-ablation", "--output"): "the same command goes on in it; runs.claim",
    ("study pi-pro", "--output"): "as pi-ablation's",
    ("model inherit", "--output"): "takes a checkpoint more: no step of it may be there",
    ("model upgrade", "--output"): "as inherit's",
    ("convert", "--output"): "a file, a directory or a place of checkpoints; see tests/checkpoint/test_convert.py",
    ("ckpt reshard", "--output"): "empty but for what a killed reshard left; see tests/checkpoint/test_reshard.py",
    ("doctor", "--output"): "looked at; what it writes there has names of its own and is removed",
    **{
        (f"manifest {kind}", "--output-dir"): "a place in the job, not here"
        for kind in ("slurm", "volcano", "modelarts", "docker")
    },
}


class Parsed(BaseException):
    """Carries the parser that a verb would use."""


def parser_of(words):
    """The parser that reads what follows these words; None where they name no verb."""

    def caught(self, file=None):
        raise Parsed(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "print_help", caught)
        try:
            main([*words, "--help"])
        except Parsed as parsed:
            return parsed.args[0]
    return None


def leaves(words, capsys):
    """(words, parser) of a verb or of all verbs below it."""
    capsys.readouterr()
    parser = parser_of(words)
    if parser is None:
        below = re.findall(r"^  ([\w-]+) ", capsys.readouterr().out, re.MULTILINE)  # a usage of its own that lists them
    else:
        first = next((action for action in parser._get_positional_actions()), None)
        below = list(first.choices) if first is not None and first.choices else []
    if not below:
        assert parser is not None, f"{words}: neither parser nor verbs"
        return [(words, parser)]
    return [leaf for word in below for leaf in leaves([*words, word], capsys)]


def writing_options(capsys):
    """(words, parser, action) of each option that writes."""
    found = itertools.chain.from_iterable(leaves([verb], capsys) for verb in VERBS)
    return [
        (w, p, a)
        for w, p in found
        for a in p._actions
        if a.option_strings and a.nargs != 0 and WRITES.search(f"{a.option_strings[0]} {a.help}")
    ]


def value_of(action):
    """Some value that its parser takes."""
    return str(next(iter(action.choices))) if action.choices else "1"


def with_option(words, parser, action, place):
    """A command with that option; what else is required is there, if of no use: the place must be looked at first."""
    required = [a for a in parser._actions if a.option_strings and a.required and a is not action]
    required += [
        next(a for a in group._group_actions if a.nargs != 0)
        for group in parser._mutually_exclusive_groups
        if group.required
    ]
    positional = [value_of(a) for a in parser._get_positional_actions() if a.nargs in (None, "+")]
    given = [word for a in required for word in (a.option_strings[0], value_of(a))]
    return [*words, *positional, *given, action.option_strings[0], str(place)]


@pytest.mark.usefixtures("mindspore_cpu")
def test_options_that_write_refuse_what_is_there(capsys, tmp_path):
    (tmp_path / "mine.png").write_text("mine")
    (tmp_path / "link.png").symlink_to(tmp_path / "nowhere")
    tested, known = set(), set()
    for words, parser, action in writing_options(capsys):
        name = " ".join(words), action.option_strings[0]
        if name in OTHERWISE:
            known.add(name)
            continue
        assert isinstance(action, NewFile | NewDirectory), (
            f"{name}: make it a NewFile or a NewDirectory, or say in OTHERWISE what it does"
        )
        places = (
            (tmp_path / "mine.png", tmp_path / "link.png")
            if isinstance(action, NewFile)
            else (tmp_path, tmp_path / "mine.png")
        )
        for place in places:
            capsys.readouterr()
            assert main(with_option(words, parser, action, place)) == 2, name
            error = capsys.readouterr().err
            assert "nothing is overwritten" in error and name[1] in error and error.count("\n") == 1, (name, error)
        tested.add(name)
    assert (tmp_path / "mine.png").read_text() == "mine" and not (tmp_path / "nowhere").exists()
    assert known == OTHERWISE.keys() - {("launch", "--output")}, "an option that is gone"
    assert {
        ("status", "--plot"),
        ("ranktable order", "--output"),
        ("manifest slurm", "--output"),
        ("analyze collapse", "--output"),
    } <= tested


def test_a_file_that_came_while_the_work_was_done_is_kept(tmp_path):
    files.write_new(tmp_path / "table.json", "first")
    with pytest.raises(OutputError, match="exists; nothing is overwritten"):
        files.write_new(tmp_path / "table.json", "second")
    assert (tmp_path / "table.json").read_text() == "first"
    with pytest.raises(OutputError, match="is no directory"):
        files.require_new(tmp_path / "table.json" / "below")
    files.write_new(tmp_path / "new" / "deep.txt", "made with the directories above it")
    assert sorted(path.name for path in Path(tmp_path).iterdir()) == ["new", "table.json"]
