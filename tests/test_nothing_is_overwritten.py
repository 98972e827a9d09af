"""Of every verb, every option that names a place to write refuses a place with content before the work starts.

The options are found in the parsers that the verbs make, so that a new verb is tested, too.
"""

import re
from pathlib import Path

import pytest

from pangu_ms.cli.main import main
from pangu_ms.core import files
from pangu_ms.core.errors import OutputError
from pangu_ms.core.parser import NewDirectory, NewFile
from tests.parsers import commands

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
    ("tasks run", "--output"): "the same command goes on in it; see tests/eval/tasks/test_run.py",
    ("convert", "--output"): "a file, a directory or a place of checkpoints; see tests/checkpoint/test_convert.py",
    ("ckpt reshard", "--output"): "empty but for what a killed reshard left; see tests/checkpoint/test_reshard.py",
    ("doctor", "--output"): "looked at; what it writes there has names of its own and is removed",
    **{
        (f"manifest {kind}", "--output-dir"): "a place in the job, not here"
        for kind in ("slurm", "volcano", "modelarts", "docker")
    },
}


def writing_options():
    """(words, parser, action) of each option that writes."""
    return [
        (list(words), parser, action)
        for words, parser in commands().items()
        for action in parser._actions
        if action.option_strings and action.nargs != 0 and WRITES.search(f"{action.option_strings[0]} {action.help}")
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
    for words, parser, action in writing_options():
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
