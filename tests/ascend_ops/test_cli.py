"""`pangu ops`."""

import json

import ascend_ops
from ascend_ops import library
from ascend_ops.table import OPERATORS
from pangu_ms.cli.main import main


def test_list_names_every_operator_with_its_backend_and_reason(capsys):
    assert main(["ops", "list", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert rows.keys() == OPERATORS.keys()
    for name, row in rows.items():
        assert row["backend"] == ascend_ops.choose(name).backend
        assert row["reason"].startswith("builtin: ")


def test_list_follows_the_environment_variable(capsys, monkeypatch):
    monkeypatch.setenv("ASCEND_OPS_BACKEND", "composed")
    assert main(["ops", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "all: asked for"
    assert all(" composed " in line for line in lines[1 : 1 + len(OPERATORS)])


def test_an_unknown_backend_in_the_environment_is_one_line(capsys, monkeypatch):
    monkeypatch.setenv("ASCEND_OPS_BACKEND", "cuda")
    assert main(["ops", "list"]) == 2
    assert (
        capsys.readouterr()
        .err.strip()
        .endswith("ASCEND_OPS_BACKEND: 'cuda': no such backend; use one of builtin, ascendc, cpu, composed")
    )


def test_build_prints_the_library(capsys):
    assert main(["ops", "build"]) == 0
    assert capsys.readouterr().out.strip() == str(library.library_path(library.cpu_level()))
