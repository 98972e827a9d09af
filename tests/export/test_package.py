"""The MindIR package: equal to its checkpoint, independent of the model code, closed to whoever alters it."""

import json
import os
import shlex
import subprocess
import sys

import numpy as np
import pytest

from pangu_ms.checkpoint.store import open_checkpoint
from pangu_ms.cli import run_mindir
from pangu_ms.cli.main import main
from pangu_ms.core.errors import ExportError, OutputError
from pangu_ms.export.package import Package, read_key
from tests.eager import eager
from tests.export.common import copy_of, export_without_kernels, replay_here, replay_in_this_process, reseal
from tests.infer.pi_checkpoint import reference_logits, save_pi_checkpoint

pytestmark = pytest.mark.usefixtures("mindspore_cpu")
PROMPTS = ("def alpha_1(beta):", "print(")
GREEDY = ["--max-new-tokens", "8", "--temperature", "0", "--json"]


SHAPE = ["--batch-size", "2", "--max-length", "32", "--chunk", "8"]


@pytest.fixture(scope="module")
def shape():
    """SHAPE, which is that of the fixture `package`."""
    from pangu_ms.infer.decoder import GraphShape

    return GraphShape.fitting(32, 2, 32, 8)


@pytest.fixture(scope="module")
def decoder(package, trained_run, shape):
    """The checkpoint's model, for eager mode."""
    from pangu_ms.infer.load import load_decoder

    with eager():  # else its graph would be compiled
        return load_decoder(open_checkpoint(trained_run), shape)


@pytest.fixture
def loaded(decoder, monkeypatch):
    """Exports in this test take that decoder; what they write is a graph nevertheless."""
    monkeypatch.setattr("pangu_ms.export.write.load_decoder", lambda *_, **__: decoder)
    with eager():
        yield


@pytest.fixture(scope="module")
def continued(trained_run, decoder):
    """What the checkpoint continues each of PROMPTS with."""
    from pangu_ms.infer.generate import Generator
    from pangu_ms.infer.load import load_tokenizer
    from pangu_ms.infer.sampling import SamplingConfig

    generator = Generator(decoder, load_tokenizer(open_checkpoint(trained_run)))
    with eager():
        return [result.text for result in generator.generate(list(PROMPTS), SamplingConfig(8, temperature=0))]


@pytest.mark.slow
def test_a_pi_package_computes_the_specification(records, tmp_path, capsys):
    """Shared heads, series activation and augmented shortcuts travel: logits against numpy float64, text against the
    checkpoint."""
    saved, weights = save_pi_checkpoint(tmp_path / "pi", records / "tokenizer")
    assert (
        main(
            ["export", str(saved.path), "--output", str(tmp_path / "p"), "--batch-size", "2", "--chunk", "8", "--json"]
        )
        == 0
    )
    manifest = json.loads(capsys.readouterr().out)
    assert manifest["verified"]["max_difference"] <= 1e-4 and manifest["model"]["family"] == "pi"
    decoder, rows = Package.open(tmp_path / "p").decoder(), [[7, 300, 5, 81, 9, 9, 44, 2, 201, 6], [12]]
    found = decoder.prefill(rows)
    for _ in range(3):
        np.testing.assert_allclose(found, [reference_logits(weights, row) for row in rows], atol=1e-4)
        rows = [[*row, int(logits.argmax())] for row, logits in zip(rows, found)]
        found = decoder.step(np.array([row[-1] for row in rows]))
    run = ["--prompt", PROMPTS[0], *GREEDY]
    assert main(["generate", str(saved.path), *run]) == 0
    expected = capsys.readouterr().out
    done = subprocess.run(
        [sys.executable, str(tmp_path / "p/run.pyz"), *run], capture_output=True, text=True, cwd=tmp_path, check=True
    )
    assert done.stdout == expected and texts(expected)[0]


def texts(output):
    return [json.loads(line)["text"] for line in output.splitlines()]


def test_the_export_equals_its_checkpoint(package):
    verified = json.loads((package / "manifest.json").read_text())["verified"]
    assert verified["max_difference"] <= 1e-4 and verified["logit_deviation"] > 0.01 and verified["steps"] >= 16


def test_the_graph_holds_nothing_of_this_machine(package):
    """Our CPU kernels would stand in it by the path of their library."""
    graph = b"".join(path.read_bytes() for path in package.glob("model*"))
    assert b"Custom" not in graph and b".so" not in graph


def test_package_and_checkpoint_write_the_same_text(package, continued, capsys):
    arguments = [word for prompt in PROMPTS for word in ("--prompt", prompt)] + GREEDY
    assert main(["run-mindir", str(package), *arguments]) == 0
    assert texts(capsys.readouterr().out) == continued and all(continued)


def test_a_server_of_a_package_has_its_engine(package, continued, trained_run):
    from pangu_ms.infer.continuation import Request
    from pangu_ms.infer.sampling import SamplingConfig
    from pangu_ms.serve.open import is_package, open_package

    assert is_package(package) and not is_package(trained_run)
    model = open_package("packed", package, None, None, "auto")
    assert (model.shape.batch_size, model.shape.max_length) == (2, 32)
    engine = model.engine()
    for index, prompt in enumerate(PROMPTS):
        ids = model.encode(prompt)
        engine.submit(Request(ids, SamplingConfig(8, temperature=0), index))
    assert [one.text for _, one in sorted(engine.run())] == continued


def test_the_package_runs_without_this_code_base(package, continued, tmp_path):
    """run.pyz in an isolated interpreter, where nothing is installed that its list does not name: its modules come from
    the archive, and no model code is among them."""
    needed = {line.partition("==")[0] for line in (package / "requirements.txt").read_text().splitlines()}
    assert needed == {"mindspore", "numpy", "tqdm", "sentencepiece"}  # its tokenizer has no segmenter
    moved = copy_of(package, tmp_path)
    probe = (
        "import sys, runpy; sys.argv = sys.argv[1:]; sys.path.insert(0, sys.argv[0])\n"
        "sys.modules.update(dict.fromkeys('jieba tokenizers cryptography pydantic yaml'.split()))\n"
        "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "ours = {n: m.__file__ for n, m in sys.modules.items() if n.partition('.')[0] in ('pangu_ms', 'pangu_run')}\n"
        "assert all('run.pyz' in f for f in ours.values()), ours\n"
        "assert len(ours) > 10 and 'pangu_ms.core.files' in ours, sorted(ours)\n"
        "assert not [n for n in ours if '.models' in n or '.config' in n or '.checkpoint' in n], sorted(ours)\n"
    )
    command = [sys.executable, "-c", probe, str(moved / "run.pyz"), "--prompt", PROMPTS[0], *GREEDY]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert texts(done.stdout) == continued[:1]
    assert os.listdir(tmp_path) == ["copy"]


WITHOUT = (
    "import runpy, sys\n"
    "missing, sys.argv = sys.argv[1].split(','), sys.argv[2:]\n"
    "sys.modules.update(dict.fromkeys(missing)); sys.path.insert(0, sys.argv[0])\n"
    "runpy.run_path(sys.argv[0], run_name='__main__')\n"
)


def run_without(package, missing, where, *options):
    """run.pyz where some Python packages are not installed."""
    command = [
        sys.executable,
        "-c",
        WITHOUT,
        missing,
        str(package / "run.pyz"),
        "--prompt",
        "print(",
        "--max-new-tokens",
        "2",
        *options,
    ]
    return subprocess.run(command, capture_output=True, text=True, cwd=where, check=False)


@pytest.mark.parametrize("name", ["sentencepiece", "numpy", "mindspore", "jieba"])
def test_a_python_package_that_is_not_installed_is_one_line(package, tmp_path, name):
    """It advises a list that is there, also behind a space."""
    (tmp_path / "a b").mkdir()
    copy = copy_of(package, tmp_path / "a b")
    if name == "jieba":
        settings = copy / "tokenizer/tokenizer.json"
        settings.write_text(settings.read_text().replace('"none"', '"jieba"'))
        reseal(copy)
    done = run_without(copy, name, tmp_path)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
    assert f"the Python package {name} is not installed" in done.stderr
    advised = shlex.split(done.stderr.rpartition("needs: ")[2])
    assert advised[:3] == ["pip", "install", "-r"] and open(advised[3]).read().startswith("mindspore==")


def test_a_list_names_what_the_tokenizer_needs(records):
    from pangu_ms.data.tokenizer import Tokenizer

    plain = Tokenizer.load(records / "tokenizer")
    assert plain.packages == ("sentencepiece",) and Tokenizer(plain.model, "jieba").packages == (
        "sentencepiece",
        "jieba",
    )


@pytest.mark.parametrize("name", ["model.mindir", "tokenizer/vocab.model", "run.pyz"])
def test_an_altered_file_is_refused(package, tmp_path, name, capsys):
    copy = copy_of(package, tmp_path)
    content = bytearray((copy / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / name).write_bytes(content)
    assert main(["run-mindir", str(copy), "--prompt", "x"]) == 2
    assert f"{name} was altered" in capsys.readouterr().err


def test_an_altered_manifest_is_refused(package, tmp_path, capsys):
    copy = copy_of(package, tmp_path)
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["graph"]["capacity"] += 8
    (copy / "manifest.json").write_text(json.dumps(manifest))
    assert main(["run-mindir", str(copy), "--prompt", "x"]) == 2
    assert "manifest.json: was altered" in capsys.readouterr().err


def test_beams_of_a_package_are_those_of_the_checkpoint(package, trained_run, capsys, monkeypatch):
    """The hypothesis has the same tokens, and more than one beam changed its slot."""
    words = ["--prompt", "def", "--num-beams", "2", "--max-new-tokens", "12", "--json"]
    found = []
    for verb, model in (("run-mindir", package), ("generate", trained_run)):
        with eager():
            assert main([verb, str(model), *words]) == 0
        found.append(json.loads(capsys.readouterr().out)["token_ids"])
    assert found[0] == found[1]
    monkeypatch.setattr(Package, "decoder", None)  # more beams than slots are told before the graph is loaded
    assert main(["run-mindir", str(package), "--prompt", "x", "--prompt", "y", "--num-beams", "99"]) == 2
    assert "num_beams=99: more than the batch of" in capsys.readouterr().err


@pytest.mark.slow
def test_the_export_takes_another_dtype(trained_run, tmp_path):
    options = ["--output", str(tmp_path / "p"), "--batch-size", "1", "--max-length", "24", "--chunk", "8"]
    assert main(["export", str(trained_run), "model.compute_dtype=float16", *options]) == 0
    assert json.loads((tmp_path / "p/manifest.json").read_text())["model"]["compute_dtype"] == "float16"


def test_missing_and_added_files_are_refused(package, tmp_path):
    copy = copy_of(package, tmp_path)
    (copy / "model.mindir").rename(copy / "other.mindir")
    with pytest.raises(ExportError, match="model.mindir is missing; other.mindir was added"):
        Package.open(copy)


def test_a_program_in_a_package_names_itself_not_a_command_that_is_not_installed(capsys):
    with pytest.raises(SystemExit):
        run_mindir.main(["--chunk", "4"], "package")
    assert "run.pyz: unrecognized arguments: --chunk 4; see `run.pyz --help`" in capsys.readouterr().err


def test_a_directory_that_is_no_package(tmp_path):
    with pytest.raises(ExportError, match="not a MindIR package"):
        Package.open(tmp_path)


def test_an_encrypted_package_needs_its_key(trained_run, loaded, continued, tmp_path, capsys, monkeypatch):
    """With its kernels, in the slow tier: test_kernels.py."""
    replay_in_this_process(monkeypatch)
    export_without_kernels(monkeypatch)
    key, wrong = tmp_path / "key", tmp_path / "wrong"
    key.write_text("0123456789abcdef\n")
    wrong.write_text("0123456789abcdeX\n")
    options = ["--output", str(tmp_path / "package"), "--key-file", str(key)]
    assert main(["export", str(trained_run), *SHAPE, *options]) == 0
    run = ["run-mindir", str(tmp_path / "package"), "--prompt", PROMPTS[0], *GREEDY]
    capsys.readouterr()
    assert main([*run, "--key-file", str(key)]) == 0
    assert texts(capsys.readouterr().out) == continued[:1]
    assert main(run) == 2 and "--key-file" in capsys.readouterr().err
    assert main([*run, "--key-file", str(wrong)]) == 2 and "cannot be decrypted" in capsys.readouterr().err


def test_a_key_of_another_length_is_refused(tmp_path):
    (tmp_path / "key").write_text("short")
    with pytest.raises(ExportError, match="holds 5 bytes"):
        read_key(tmp_path / "key")


def test_an_export_that_differs_is_not_committed(trained_run, loaded, shape, tmp_path, monkeypatch):
    from pangu_ms.export import write

    def shifted(*arguments):
        return {name: (logits + 1e-3, digests) for name, (logits, digests) in replay_here(*arguments).items()}

    monkeypatch.setattr(write, "replay_in_fresh_process", shifted)
    export_without_kernels(monkeypatch)
    with pytest.raises(ExportError, match="logits differ by 0.001"):
        write.export_package(open_checkpoint(trained_run), tmp_path / "package", shape)
    assert os.listdir(tmp_path) == []


def test_the_disk_full_while_exporting_leaves_nothing(trained_run, loaded, shape, tmp_path, monkeypatch):
    import errno

    from pangu_ms.export import write

    def no_room(*arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(write, "write_graph", no_room)
    with pytest.raises(OutputError, match="free some room"):
        write.export_package(open_checkpoint(trained_run), tmp_path / "package", shape)
    assert os.listdir(tmp_path) == []


def test_a_package_whose_weights_are_no_numbers_is_one_line(package, trained_run, tmp_path, capsys):
    """Its hashes are right: the NaN was in the weights that it was made of."""
    copy, weight = copy_of(package, tmp_path), open_checkpoint(trained_run).tensors()["final_norm.weight"].tobytes()
    content = (copy / "model.mindir").read_bytes()
    assert content.count(weight) == 1
    (copy / "model.mindir").write_bytes(
        content.replace(weight, np.full(len(weight) // 4, np.nan, np.float32).tobytes())
    )
    reseal(copy)
    for words in (["--temperature", "0"], ["--top-k", "5"]):
        assert main(["run-mindir", str(copy), "--prompt", "a", "--prompt", "print(", *words]) == 2
        out, error = capsys.readouterr()
        assert (
            out == ""
            and error.count("\n") == 1
            and "prompt 1: the model's logits behind 0 new tokens hold nan; they must be numbers" in error
        )
