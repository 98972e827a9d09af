"""The mistakes a user will make: one line that says where and what to do, exit code 2, nothing lost."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from pangu_ms.cli.main import VERBS, main
from tests.forked import forks_of

pytestmark = pytest.mark.usefixtures("mindspore_cpu")


def fails(capsys, *words):
    """The message of a command that must end with exit code 2 and one line."""
    capsys.readouterr()
    assert main([str(w) for w in words]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith(f"pangu {words[0]}: "), error
    return error


@pytest.fixture
def train(records, tiny_overrides, tmp_path):
    """A training command with some overrides changed."""

    def command(*overrides, data=records, output=tmp_path / "run", options=()):
        return [
            "train",
            "--config",
            "alpha/tiny",
            *tiny_overrides,
            *overrides,
            "--data",
            data,
            "--output",
            output,
            *options,
        ]

    return command


def test_records_of_another_length_or_vocabulary(train, capsys, tmp_path):
    assert "rows of 33 ids, model.seq_length=64" in fails(capsys, *train("model.seq_length=64"))
    assert "prepared with 384 pieces, model.vocab_size=400" in fails(capsys, *train("model.vocab_size=400"))
    assert not (tmp_path / "run").exists()


def test_records_made_with_another_tokenizer(train, trained_run, text_file, capsys, tmp_path):
    (tmp_path / "other.txt").write_text("".join(f"while x{i} < {i * i}: pass  # {i:b}\n" for i in range(2000)))
    other = [
        "--corpus",
        str(tmp_path / "other.txt"),
        "--vocab-size",
        "384",
        "--segmenter",
        "none",
        "--output",
        str(tmp_path / "t"),
    ]
    assert main(["tokenizer", "train", *other]) == 0
    prepare = [
        "--corpus",
        str(text_file),
        "--tokenizer",
        str(tmp_path / "t"),
        "--seq-length",
        "32",
        "--held-out",
        "0.2",
        "--num-workers",
        "1",
    ]
    assert main(["data", "prepare", *prepare, "--output", str(tmp_path / "r")]) == 0
    assert "must be the same" in fails(capsys, "eval", trained_run, "--data", tmp_path / "r")
    copy = shutil.copytree(trained_run, tmp_path / "run")
    assert "must be the same" in fails(
        capsys, *train("train.eval_batches=13", data=tmp_path / "r", output=copy, options=["--resume"])
    )


def test_missing_records_and_checkpoints(train, capsys, tmp_path):
    assert "no MindRecord file" in fails(capsys, *train(data=tmp_path / "none"))
    assert "no such directory" in fails(capsys, "generate", tmp_path / "none", "--prompt", "x")
    (tmp_path / "empty").mkdir()
    assert "no valid checkpoint" in fails(capsys, "export", tmp_path / "empty", "--output", tmp_path / "package")


def test_a_checkpoint_of_another_shape(train, trained_run, capsys, tmp_path):
    message = fails(capsys, *train("model.ffn_hidden_size=64", options=["--init-from", trained_run]))
    assert "ffn.up.weight (128, 32) instead of (64, 32)" in message
    assert "model.num_layers=3 (was 2)" in fails(
        capsys, *train("model.num_layers=3", output=trained_run, options=["--resume"])
    )


def test_prompts_that_cannot_be_continued(trained_run, capsys, tmp_path):
    assert "must fit in 32; shorten the prompt" in fails(capsys, "generate", trained_run, "--prompt", "x" * 500)
    assert "prompt 1: is empty" in fails(capsys, "generate", trained_run, "--prompt", "")
    assert "none.txt: cannot be read" in fails(capsys, "generate", trained_run, "--prompt-file", tmp_path / "none.txt")
    assert "top_p=2.0" in fails(capsys, "generate", trained_run, "--prompt", "x", "--top-p", "2")
    (tmp_path / "p.jsonl").write_text('"fine"\n{"prompt": 1}\n')
    assert "p.jsonl:2: neither" in fails(capsys, "generate", trained_run, "--prompt-file", tmp_path / "p.jsonl")
    assert "--stream: 2 continuations" in fails(
        capsys, "generate", trained_run, "--prompt", "x", "--prompt", "y", "--stream"
    )


@pytest.mark.parametrize(
    "options, message",
    [
        (["--batch-size", "0"], "batch_size=0: must be at least 1"),
        (["--chunk", "-1"], "chunk=-1: must be at least 1"),
        (["--seed", "-1"], "seed=-1: must not be negative"),
        (["--frequency-penalty", "nan"], "frequency_penalty=nan: must be a number"),
        (["--temperature", "1e-310"], "temperature=1e-310: must be 0"),
        (["--num-beams", "3", "--top-k", "5"], "top_k=5: beam search does not sample"),
        (["--stream", "--json"], "exclude each other"),
        (["train.steps=3"], "only runtime.* and model.compute_dtype"),
        (["runtime.device=Ascend"], "runtime.device=Ascend: MindSpore finds no such device"),
    ],
)
def test_options_that_make_no_sense(trained_run, capsys, options, message):
    assert message in fails(capsys, "generate", trained_run, "--prompt", "x", *options)


def test_numbers_that_make_no_sense_elsewhere(train, trained_run, capsys, tmp_path):
    assert "--stop-at 0: must be at least 1" in fails(capsys, *train(options=["--stop-at", "0"]))
    assert "--max-length 1: must be between" in fails(
        capsys, "export", trained_run, "--output", tmp_path / "p", "--max-length", "1"
    )
    assert "batch_size=0: must be at least 1" in fails(
        capsys, "export", trained_run, "--output", tmp_path / "p", "--batch-size", "0"
    )
    assert "tokenizer.vocab_size=1024, model.vocab_size=2048" in fails(
        capsys, "train", "model.vocab_size=2048", "--output", tmp_path / "r"
    )
    (tmp_path / "empty.txt").write_text("")
    assert "holds no prompt" in fails(capsys, "generate", trained_run, "--prompt-file", tmp_path / "empty.txt")
    assert "not a MindIR package" in fails(capsys, "run-mindir", tmp_path / "empty.txt", "--prompt", "x")
    assert "is a file" in fails(capsys, *train(output=tmp_path / "empty.txt"))


def test_resume_does_not_take_over_another_directory(train, trained_run, capsys, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/config.yaml").write_text("my: settings\n")
    assert "my: unknown key" in fails(capsys, *train(output=tmp_path / "mine", options=["--resume"]))
    (tmp_path / "mine/notes.txt").write_text("mine")
    assert "exists with other content" in fails(capsys, *train(output=tmp_path / "mine", options=["--resume"]))
    assert (tmp_path / "mine/config.yaml").read_text() == "my: settings\n"
    message = fails(capsys, *train("train.steps=24", output=trained_run, options=["--resume"]))
    assert "would end at step 24" in message and "add optimizer.decay_steps=12" in message


def test_an_output_directory_with_other_content(train, trained_run, records, text_file, capsys, tmp_path):
    (tmp_path / "mine").write_text("mine")
    for words in (
        ["tokenizer", "train", "--corpus", text_file, "--vocab-size", "384", "--output", tmp_path],
        ["data", "prepare", "--corpus", text_file, "--tokenizer", records / "tokenizer", "--output", tmp_path],
        train(output=tmp_path),
        ["export", trained_run, "--output", tmp_path],
        ["quickstart", "--output", tmp_path],
    ):
        assert "exists with other content" in fails(capsys, *words)
    assert os.listdir(tmp_path) == ["mine"]


def test_verbs_that_do_not_exist(capsys):
    assert main(["trian"]) == 2
    assert "did you mean 'train'" in capsys.readouterr().err


SECOND_WORDS = {
    "tokenizer": "train",
    "data": "prepare",
    "config": "show",
    "ops": "list",
    "analyze": "collapse",
    "model": "inherit",
    "sigma": "add-domain",
    "study": "pi-ablation",
    "plan": "rehearse",
    "ckpt": "reshard",
    "ranktable": "make",
    "manifest": "slurm",
    "schedule": "simulate",
    "tasks": "run",
    "harness": "run",
}


@pytest.fixture(scope="module")
def verb_forks(tmp_path_factory):
    """Processes that have imported no verb, but what belongs to others."""
    with forks_of("import pangu_ms.cli.main, numpy, yaml, pydantic", tmp_path_factory.mktemp("forks")) as forks:
        yield forks


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_defaults(verb, verb_forks, tmp_path):
    words = [verb, SECOND_WORDS[verb]] if verb in SECOND_WORDS else [verb]
    done = verb_forks.run(["-m", "pangu_ms", *words, "--help"], tmp_path, os.environ)
    assert done.returncode == 0 and "usage: pangu" in done.stdout
    assert "default:" in done.stdout or verb == "completion"  # which has no option


BOTH = """
import json, sys
from pangu_ms.cli.main import main
for words in json.loads(sys.argv[1]):
    assert main(words) == 0
"""


def test_nothing_is_written_where_the_user_is(trained_run, records, tmp_path, forks):
    """Evaluate and generate in an empty directory; see test_quickstart.py for the other verbs."""
    here, program = tmp_path / "here", tmp_path / "both.py"
    here.mkdir()
    program.write_text(BOTH)
    commands = [
        ["eval", str(trained_run), "--data", str(records)],
        ["generate", str(trained_run), "--prompt", "def", "--max-new-tokens", "3"],
    ]
    done = forks.run([program, json.dumps(commands)], here, os.environ)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr + done.stdout and "perplexity" in done.stdout
    assert os.listdir(here) == []


def test_a_reader_that_goes_away_is_no_error():
    done = subprocess.run(
        f"{sys.executable} -u -m pangu_ms --help | head -1", shell=True, capture_output=True, text=True, check=False
    )
    assert done.stdout.startswith("pangu ") and done.stderr == ""
