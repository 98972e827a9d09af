"""YAML of a user or a crash: one line says what is wrong, in bounded memory and time."""

import resource
import time

import pytest
import yaml

from pangu_ms.cli.main import main
from pangu_ms.config import load_config
from pangu_ms.core import yaml_file
from pangu_ms.core.errors import ConfigError
from pangu_ms.core.yaml_file import YamlError, parse
from pangu_ms.mindformers.train import load_yaml, override

BOMB = "l0: &l0 [x]\n" + "".join(f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 9)}]\n" for i in range(1, 25))
REFUSED = {
    "a section twice": (
        "train:\n  steps: 1\nmodel: {}\ntrain:\n  steps: 2\n",
        4,
        "'train' is given here and in line 1",
    ),
    "a key twice": ("train:\n  steps: 1\n  seed: 2\n  steps: 3\n", 4, "'steps' is given here and in line 2"),
    "a key twice in one line": ("a: {b: 1, b: 1}", 1, "'b' is given here and in line 1"),
    "an alias bomb": (BOMB, 6, "more than 100,000 values"),
    "merges that multiply": (
        "a: &a {x: 1}\nb: &b [*a, *a]\n" + BOMB.replace("l24", "z"),
        8,
        "more than 100,000 values",
    ),
    "an alias of itself": ("a: &a [*a]\n", 1, "alias of what it stands in"),
    "brackets": ("[" * 200_000, 1, "nested deeper"),
    "braces": ('{"a":' * 50_000, 1, "nested deeper"),
    "dashes": ("- " * 100_000, 1, "nested deeper"),
    "a large number": (f"a: {10**400}", 1, "more than 64 bits"),
    "a number beyond Python": (f"a: 1\nb: {'9' * 5000}", 2, "no whole number of at most 64 bits"),
    "no number": ("a: 0b_", 1, "'0b_' begins no whole number"),
    "a large binary number": (f"a: 0b{'1' * 100_000}", 1, "more than 64 bits"),
    "a tag that runs code": (
        "a: 1\nb: !!python/object/apply:os.system ['exit 3']\n",
        2,
        "python/object/apply:os.system",
    ),
    "bytes": ("a: !!binary aGVsbG8=\n", 1, "binary"),
    "a control character": ("a: 1\nb: \x1b[2J\n", None, "special characters are not allowed"),
    "a list as a key": ("? [1, 2]\n: 3\n", 1, "keys are texts"),
    "two documents": ("a: 1\n---\nb: 2\n", 2, "another document"),
    "no end": ("a: [1,\n", 2, "expected the node content"),
}


@pytest.mark.parametrize("text, line, problem", REFUSED.values(), ids=REFUSED)
def test_what_is_refused(text, line, problem):
    begun, peak = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(YamlError) as error:
        parse(text)
    assert problem in str(error.value) and error.value.line == line and "\n" not in str(error.value)
    assert time.process_time() - begun < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 200 << 10


def test_what_is_read_is_what_pyyaml_reads():
    text = (
        "a: &a {x: 1, y: [1.5, ~, 'yes', yes, 2024-01-02]}\nb:\n  <<: *a\n  x: 2\nc: [*a, *a]\nd:"
        " 18446744073709551615\n"
    )
    assert parse(text) == yaml.safe_load(text)
    assert parse(text)["b"] == {"x": 2, "y": parse(text)["a"]["y"]}
    assert parse("") is None


def test_files_that_are_no_files(tmp_path):
    (tmp_path / "large.yaml").write_text("# " + "x" * yaml_file.MAX_BYTES)
    for path, problem in (
        ("/dev/zero", "not an ordinary file"),
        (tmp_path, "not an ordinary file"),
        (tmp_path / "large.yaml", "more than 262,144 bytes"),
    ):
        with pytest.raises(ConfigError, match=problem):
            yaml_file.read(path, ConfigError)


def test_every_reader_refuses(tmp_path, capsys):
    path = tmp_path / "c.yaml"
    path.write_text("model:\n  family: alpha\nmodel:\n  family: pi\n")
    for load in (lambda: load_config(str(path)), lambda: load_yaml(str(path))):
        with pytest.raises(ConfigError, match=r"c.yaml:3: not YAML: 'model' is given here and in line 1"):
            load()
    with pytest.raises(ConfigError, match="pangu.x=\\[: the value is not YAML"):
        override({}, "pangu.x=[")
    path.write_text(
        f"base: alpha/tiny\nunheard_of: [{', '.join('12345' for _ in range(9000))}]\ntrain:\n  steps:"
        f" [{', '.join('12345' for _ in range(9000))}]\n"
    )
    assert main(["config", "show", "--config", str(path)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and len(error) < 1000
