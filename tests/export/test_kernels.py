"""Our kernels in a package: they compute what the checkpoint does, and only where the user allows it."""

import contextlib
import json
import shutil
import subprocess
import sys

import pytest

from ascend_ops import library
from ascend_ops.errors import OperatorError
from pangu_ms.cli.main import main
from pangu_ms.core.errors import ExportError
from pangu_ms.core.protobuf import content, fields, message_field
from pangu_ms.export import kernels
from pangu_ms.export.graph_file import MODEL_PRIMITIVES, External, GraphFile
from pangu_ms.export.package import Package
from tests.eager import eager
from tests.export.common import attribute, copy_of, replay_in_this_process, reseal

pytestmark = pytest.mark.usefixtures("mindspore_cpu")
RUN = ["--prompt", "def alpha_1(beta):", "--prompt", "print(", "--max-new-tokens", "8", "--temperature", "0", "--json"]
SHAPE = ["--batch-size", "2", "--max-length", "32", "--chunk", "8"]


@pytest.fixture
def package(package):
    if kernels.GRAPH not in Package.open(package).manifest["files"]:
        pytest.skip("kernels cannot be built here")
    return package


@pytest.fixture
def without_kernels(package, tmp_path):
    """As packages of earlier versions were."""
    copy = copy_of(package, tmp_path)
    shutil.rmtree(copy / "kernels")
    reseal(copy)
    return copy


def test_checkpoint_and_package_with_and_without_kernels_write_the_same_text(package, trained_run, capsys):
    found = []
    for words in (["generate", trained_run], ["run-mindir", package], ["run-mindir", package, "--allow-kernels"]):
        with eager():
            assert main([*map(str, words), *RUN]) == 0
        output, error = capsys.readouterr()
        found.append([json.loads(line)["token_ids"] for line in output.splitlines()])
    assert found[0] == found[1] == found[2] and all(found[0])
    line = f"--allow-kernels: {len(library.sources())} files of source in {package}/kernels, SHA-256 "
    assert error.startswith(line) and error.count("\n") == 1 and "those of this installation" in error


def test_the_graph_with_kernels_has_the_bits_of_the_checkpoint(package):
    """They are the same kernels; the other graph differs by rounding."""
    verified = json.loads((package / "manifest.json").read_text())["verified"]
    assert verified["max_difference_with_kernels"] == 0 < verified["max_difference"]


def test_the_weights_are_stored_once_and_nothing_of_this_machine(package):
    content = (package / kernels.GRAPH).read_bytes()
    assert len(content) < (package / "model.mindir").stat().st_size / 2
    found = GraphFile.read(content, kernels.PLACE)
    assert found.kernels and not found.refused and not found.weights and found.parameters
    assert str(library.cache_root()).encode() not in content


def test_the_runner_of_the_package_runs_its_kernels(package, tmp_path, capsys):
    """Where nothing of this project is installed, and no source but the package's is there to compare it with."""
    assert main(["run-mindir", str(package), *RUN]) == 0
    expected = capsys.readouterr().out
    moved = copy_of(package, tmp_path)
    command = [sys.executable, str(moved / "run.pyz"), *RUN, "--allow-kernels"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert (done.returncode, done.stdout) == (0, expected), done.stderr
    assert done.stderr.count("\n") == 1 and "compiles and runs" in done.stderr, done.stderr
    assert "code of whoever made the package (activations.cc, " in done.stderr


@pytest.mark.parametrize("name", ["packed.cc", "graph.mindir"])
def test_an_altered_byte_is_refused(package, tmp_path, capsys, name):
    copy = copy_of(package, tmp_path)
    content = bytearray((copy / "kernels" / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / "kernels" / name).write_bytes(content)
    assert main(["run-mindir", str(copy), *RUN, "--allow-kernels"]) == 2
    assert f"kernels/{name} was altered" in capsys.readouterr().err


def test_source_of_somebody_else_is_named_as_such_and_is_what_is_built(package, tmp_path, capsys, caplog, monkeypatch):
    copy, built = copy_of(package, tmp_path), []
    (copy / "kernels/add.cc").write_text("// another\n")
    reseal(copy)

    def build(level=None, texts=None):
        built.append(texts)
        raise OperatorError("not built")

    monkeypatch.setattr(library, "build", build)
    assert main(["run-mindir", str(copy), *RUN]) == 0 and not built  # without being allowed
    plain = capsys.readouterr().out
    assert main(["run-mindir", str(copy), *RUN, "--allow-kernels"]) == 0
    output, error = capsys.readouterr()
    assert [texts["add.cc"] for texts in built] == ["// another\n"] and output == plain
    assert "compiles and runs" in error and "code of whoever made the package" in error
    assert [line.split(". Until")[0] for line in caplog.messages] == ["not built"]


def test_without_a_compiler_the_package_runs_with_one_warning(package, tmp_path, capsys, caplog, monkeypatch):
    assert main(["run-mindir", str(package), *RUN]) == 0
    expected = capsys.readouterr().out
    monkeypatch.setenv("ASCEND_OPS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert main(["run-mindir", str(package), *RUN, "--allow-kernels"]) == 0
    assert capsys.readouterr().out == expected
    assert len(caplog.messages) == 1 and caplog.messages[0].startswith("no-such-compiler: no such C++ compiler")


def test_a_file_of_answers_says_whether_kernels_computed_it(package, tmp_path, capsys, monkeypatch):
    """One without them goes on without --allow-kernels."""
    made = []
    monkeypatch.setattr("pangu_ms.cli.run_mindir.generate_and_print", lambda *arguments: None)
    monkeypatch.setattr(
        "pangu_ms.cli.run_mindir.open_answers", lambda args, prompts, model: made.append(model) or answers
    )
    answers, words = contextlib.nullcontext(), ["run-mindir", str(package), *RUN, "--allow-kernels"]
    assert main(words) == 0
    monkeypatch.setenv("ASCEND_OPS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert main(words) == 0
    digest = Package.open(package).digest
    assert made == [f"{digest} with kernels", digest]


def test_a_number_of_threads_that_is_none_is_told_before_kernels_are_announced(package, capsys):
    assert main(["run-mindir", str(package), *RUN, "--allow-kernels", "--threads", "-3"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "--threads -3: must be at least 1" in error


def test_a_package_without_kernels_runs_and_says_so_in_one_line(without_kernels, capsys):
    assert main(["run-mindir", str(without_kernels), *RUN, "--allow-kernels"]) == 0
    output, error = capsys.readouterr()
    assert output and error.count("\n") == 1 and "the package has no kernels" in error


def test_a_graph_that_calls_another_library_is_not_loaded(package, tmp_path, capsys, monkeypatch):
    import mindspore

    monkeypatch.setattr(mindspore, "load", lambda *arguments, **options: pytest.fail("MindSpore loads the graph"))
    copy = copy_of(package, tmp_path)
    graph = copy / kernels.GRAPH
    graph.write_bytes(kernels.with_library(graph.read_bytes(), kernels.PLACE, "/evil.so"))
    reseal(copy)
    assert main(["run-mindir", str(copy), *RUN, "--allow-kernels"]) == 2
    assert "holds Custom /evil.so:" in capsys.readouterr().err


def test_weights_of_another_size_are_refused(package, monkeypatch):
    opened = Package.open(package)
    read = Package.require_harmless

    def shorter(package, key=None):
        found = read(package, key)
        name = next(iter(found.weights))
        found.weights[name] = found.weights[name][4:]
        return found

    monkeypatch.setattr(Package, "require_harmless", shorter)
    with pytest.raises(ExportError, match="has not the size that it has in model.mindir"):
        opened.decoder_with_kernels()


@pytest.mark.parametrize(
    "attributes",
    [
        [],
        [attribute("func_type", "aot")],
        [attribute("func_name", "/own.so:Add"), attribute("func_type", "pyfunc")],
        [attribute("func_name", "/own.so:Add"), attribute("func_type", "aot"), attribute("func_type", "tbe")],
        [attribute("func_name", "/own.so:Add"), attribute("func_name", "/evil.so:Add"), attribute("func_type", "aot")],
        [attribute("func_name", "/evil.so:/own.so:Add"), attribute("func_type", "aot")],
        [attribute("func_name", "/own.so:../Add"), attribute("func_type", "aot")],
    ],
)
def test_only_kernels_of_the_one_library_are_allowed(attributes):
    def model(attributes):
        return message_field(12, message_field(2, b"Custom") + b"".join(message_field(3, a) for a in attributes))

    right = [attribute("func_name", "/own.so:Add"), attribute("func_type", "aot")]
    assert GraphFile.read(model(right), "/own.so").kernels == {"Add"}
    assert GraphFile.read(model(right)).refused == ["Custom /own.so:Add"]
    assert len(GraphFile.read(model(attributes), "/own.so").refused) == 1


@pytest.mark.slow
@pytest.mark.parametrize("encrypted", [False, True])
def test_weights_in_files_of_their_own(trained_run, tmp_path, capsys, monkeypatch, encrypted):
    """As MindSpore writes them above 1 GB; the export verifies both graphs and every weight of both."""
    monkeypatch.setattr("mindspore.train.serialization._save_together", lambda *_: False)
    replay_in_this_process(monkeypatch)
    (tmp_path / "key").write_text("0123456789abcdef")
    key = ["--key-file", str(tmp_path / "key")] if encrypted else []
    assert main(["export", str(trained_run), *SHAPE, "--output", str(tmp_path / "p"), *key]) == 0
    assert "with kernels 0" in capsys.readouterr().out and (tmp_path / "p/model_variables/data_0").is_file()
    opened = Package.open(tmp_path / "p")
    assert (opened.manifest["encryption"] != "") == encrypted
    if not encrypted:
        assert all(isinstance(value, External) for value in opened.require_harmless().weights.values())


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [["--weights", "float32"], ["--weights", "bfloat16"], ["--weights", "int8"], ["--cache-dtype", "float16"]],
)
def test_packed_weights_and_narrow_caches_in_a_package(trained_run, tmp_path, capsys, monkeypatch, options):
    replay_in_this_process(monkeypatch)
    assert main(["export", str(trained_run), *SHAPE, "--output", str(tmp_path / "p"), *options]) == 0
    capsys.readouterr()
    assert main(["generate", str(trained_run), *RUN, *options]) == 0
    expected = capsys.readouterr().out
    assert main(["run-mindir", str(tmp_path / "p"), *RUN, "--allow-kernels"]) == 0
    assert capsys.readouterr().out == expected


@pytest.mark.parametrize("name", ["abort", "no_such_function"])
def test_a_graph_that_calls_what_the_source_does_not_define_is_refused(package, tmp_path, capsys, monkeypatch, name):
    """MindSpore would find `abort` of libc in the kernels' library, which depends on it."""
    import mindspore

    monkeypatch.setattr(mindspore, "load", lambda *arguments, **options: pytest.fail("MindSpore loads the graph"))
    copy = copy_of(package, tmp_path)
    graph = copy / kernels.GRAPH
    model, wanted = graph.read_bytes(), sorted(GraphFile.read(graph.read_bytes(), kernels.PLACE).kernels)[-1]
    parts = []
    for number, value, whole in fields(model):
        if number == MODEL_PRIMITIVES:
            other = kernels._with_library(content(value), f"{kernels.PLACE}:{wanted}", f"{kernels.PLACE}:{name}")
            whole = message_field(number, other)
        parts.append(bytes(whole))
    graph.write_bytes(b"".join(parts))
    reseal(copy)
    assert main(["run-mindir", str(copy), *RUN, "--allow-kernels"]) == 2
    error = capsys.readouterr().err
    assert f"graph.mindir: calls {name}, which is no function of the package's source" in error
