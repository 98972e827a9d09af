"""Every verb works where a path has spaces, Chinese and what shells, command lines and file formats take for something
else."""

import shutil

import pytest

from pangu_ms.cli.main import main
from tests.eager import eager

ODD = "a b(1)=x,\u76d8\u53e4'q\"$HOME;&*?[z]{y}%s#~:-"


@pytest.fixture(scope="module")
def place(trained_run, records, text_file, tmp_path_factory):
    """A directory of an odd name with a run, its records and tokenizer and the corpus."""
    place = tmp_path_factory.mktemp("odd") / ODD
    shutil.copytree(trained_run, place / "run=1")
    shutil.copytree(records, place / "records,2")
    shutil.copyfile(text_file, place / "corpus (3).jsonl")
    return place


TOKENIZER = ["--tokenizer", "@/records,2/tokenizer"]
CORPUS = ["--corpus", "@/corpus (3).jsonl"]
COMMANDS = [
    ["tokenizer", "train", *CORPUS, "--vocab-size", "384", "--segmenter", "none", "--output", "@/new,tokenizer="],
    ["tokenizer", "encode", *TOKENIZER, "--file", "@/corpus (3).jsonl"],
    [
        "data",
        "prepare",
        *CORPUS,
        *TOKENIZER,
        "--seq-length",
        "32",
        "--held-out",
        "0.2",
        "--num-workers",
        "1",
        "--output",
        "@/new,records=",
    ],
    ["data", "inspect", "@/records,2", "--verify"],
    ["data", "losses", "@/run=1", "--data", "@/records,2", "--output", "@/losses,="],
    ["train", "--config", "@/run=1/config.yaml", "--data", "@/records,2", "--output", "@/run=1", "--resume"],
    ["eval", "@/run=1", "--data", "@/records,2"],
    ["generate", "@/run=1", "--prompt", "def", "--max-new-tokens", "3", *TOKENIZER],
    *(
        ["convert", "--to", to, "@/run=1", "--output", f"@/new,=(.{suffix}"]
        for to, suffix in (("huggingface", "safetensors"), ("mindformers", "ckpt"))
    ),
    ["ckpt", "reshard", "@/run=1", "--output", "@/resharded,="],
    ["analyze", "collapse", "@/run=1", "--data", "@/records,2", "--max-batches", "1", "--output", "@/collapse,=.json"],
    ["config", "show", "--config", "@/run=1/config.yaml"],
    ["plan", "show", "--config", "@/run=1/config.yaml"],
    [
        "manifest",
        "slurm",
        "--config",
        "@/run=1/config.yaml",
        "runtime.device=Ascend",
        "--output-dir",
        "@/run=1",
        "--output",
        "@/slurm,=.sh",
    ],
]


@pytest.mark.parametrize(
    "words", COMMANDS, ids=lambda words: f"{words[0]}-{words[1].strip('@/')}-{words[2].strip('@/')}"[:30]
)
def test_a_verb(words, place, capsys):
    with eager():
        code = main([word.replace("@", str(place)) for word in words])
    assert code == 0, capsys.readouterr().err
    capsys.readouterr()


@pytest.mark.slow
def test_export_and_run(place, capsys):
    assert (
        main(
            [
                "export",
                str(place / "run=1"),
                "--output",
                str(place / "package,="),
                "--batch-size",
                "1",
                "--max-length",
                "8",
            ]
        )
        == 0
    )
    assert main(["run-mindir", str(place / "package,="), "--prompt", "d", "--max-new-tokens", "3"]) == 0
    assert capsys.readouterr().out
