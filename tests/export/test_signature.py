"""A package is what was exported, or says in one line why not: signatures, keys of no use, graphs with libraries.
Nothing here is loaded by MindSpore."""

import shutil
import subprocess
import sys

import pytest

from pangu_ms.cli.main import main
from pangu_ms.export.package import Package
from tests.export.common import copy_of, reseal

RUN = ["--prompt", "print(", "--max-new-tokens", "2", "--temperature", "0"]


def refused(capsys, *arguments):
    """The one line of a command that ends with 2."""
    capsys.readouterr()
    assert main([*map(str, arguments)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


@pytest.fixture
def unloaded(monkeypatch, mindspore_cpu):
    """MindSpore must not be handed a graph."""
    import mindspore

    monkeypatch.setattr(mindspore, "load", lambda *arguments, **options: pytest.fail("MindSpore loads the graph"))


def test_a_signed_package_runs_with_its_key_and_without_one(package, keys, capsys):
    assert main(["run-mindir", str(package), *RUN, "--verify-key", str(keys / "public.pem")]) == 0
    signed = capsys.readouterr().out
    assert main(["run-mindir", str(package), *RUN]) == 0 and capsys.readouterr().out == signed != ""


def test_another_key_and_no_signature_are_refused(package, keys, tmp_path, capsys, unloaded):
    line = refused(capsys, "run-mindir", package, *RUN, "--verify-key", keys / "other_public.pem")
    assert "is no signature of package/manifest.json by the key of" in line
    copy = copy_of(package, tmp_path)
    (copy / "manifest.sig").unlink()
    assert "is not signed" in refused(capsys, "run-mindir", copy, *RUN, "--verify-key", keys / "public.pem")
    (copy / "manifest.sig").write_bytes(b"")
    assert "is no signature" in refused(capsys, "run-mindir", copy, *RUN, "--verify-key", keys / "public.pem")


def test_hashes_made_anew_do_not_deceive_the_signature(package, keys, tmp_path, capsys, unloaded):
    copy = copy_of(package, tmp_path)
    (copy / "run.pyz").write_bytes(b"print('something else')\n")
    reseal(copy)
    Package.open(copy)  # the hashes alone are right
    assert "is no signature" in refused(capsys, "run-mindir", copy, *RUN, "--verify-key", keys / "public.pem")


@pytest.mark.parametrize("option", ["--sign-key", "--verify-key"])
def test_keys_that_are_none_are_one_line_with_a_command_that_makes_one(
    option, package, keys, trained_run, tmp_path, capsys, unloaded
):
    command = (
        ["export", trained_run, "--output", tmp_path / "new"]
        if option == "--sign-key"
        else ["run-mindir", package, *RUN]
    )
    kind, other = ("private", "public") if option == "--sign-key" else ("public", "private")
    (tmp_path / "text").write_text("no key")
    for path in (tmp_path / "text", keys / f"{other}.pem"):  # the other half is a mistake that people make
        assert f"{path}: is no Ed25519 {kind} key" in refused(capsys, *command, option, path)
    assert "cannot be read" in refused(capsys, *command, option, tmp_path / "none")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("option", ["--sign-key", "--verify-key"])
def test_without_the_library_there_is_one_line(
    option, package, keys, trained_run, tmp_path, capsys, monkeypatch, unloaded
):
    for name in [name for name in sys.modules if name.partition(".")[0] == "cryptography"] + ["cryptography"]:
        monkeypatch.setitem(sys.modules, name, None)
    command = (
        ["export", trained_run, "--output", tmp_path / "new"]
        if option == "--sign-key"
        else ["run-mindir", package, *RUN]
    )
    line = refused(capsys, *command, option, keys / ("private.pem" if option == "--sign-key" else "public.pem"))
    assert f"{option}: " in line and "pip install cryptography" in line and not (tmp_path / "new").exists()


@pytest.mark.skipif(not shutil.which("openssl"), reason="no openssl")
def test_the_commands_that_messages_advise_make_keys_that_sign_and_verify(tmp_path, keys):
    """As they stand in the messages, with file names for their capital words."""
    from pangu_ms.core.errors import ExportError
    from pangu_ms.export.signature import read_signing_key, read_verifying_key, require_signed, sign

    (tmp_path / "text").write_text("")
    for read in (read_signing_key, read_verifying_key):
        with pytest.raises(ExportError) as caught:
            read(tmp_path / "text")
        advised = str(caught.value).rpartition("make one: ")[2].split()
        subprocess.run(advised, cwd=tmp_path, check=True, capture_output=True)
    (tmp_path / "manifest.sig").write_bytes(sign(b"content", tmp_path / "PRIVATE.pem"))
    require_signed(tmp_path, b"content", tmp_path / "PUBLIC.pem")
    with pytest.raises(ExportError, match="is no signature"):
        require_signed(tmp_path, b"another", tmp_path / "PUBLIC.pem")


def test_a_key_for_a_graph_that_is_not_encrypted_is_refused(package, tmp_path, capsys, unloaded):
    (tmp_path / "key").write_bytes(b"0123456789abcdef")
    assert "the graph is not encrypted" in refused(capsys, "run-mindir", package, *RUN, "--key-file", tmp_path / "key")


def test_a_graph_with_a_library_is_refused_though_all_hashes_are_right(package, tmp_path, capsys, unloaded):
    """A graph that MindSpore wrote: of a cell with one of our CPU kernels, which stands in it by the path of its
    library."""
    import mindspore as ms
    import numpy as np
    from mindspore import Tensor, nn

    import ascend_ops

    class Activation(nn.Cell):
        def construct(self, x):
            return ascend_ops.gelu(x)

    copy = copy_of(package, tmp_path)
    with ascend_ops.use("cpu"):
        ms.export(
            Activation(), Tensor(np.ones((4, 16), np.float32)), file_name=str(tmp_path / "model"), file_format="MINDIR"
        )
    (copy / "model.mindir").unlink()
    shutil.move(tmp_path / "model.mindir", copy / "model.mindir")
    reseal(copy)
    line = refused(capsys, "run-mindir", copy, *RUN)
    assert "model.mindir: holds" in line and "Custom" in line and "libascend_ops.so" in line and "it is refused" in line
