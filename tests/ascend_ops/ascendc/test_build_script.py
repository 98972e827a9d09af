"""build.sh: what it says and returns without CANN, and that MindSpore's custom compiler takes our directories (with a
stand-in for CANN)."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys

import pytest

from tests.ascend_ops.ascendc.ascendc_host import ASCENDC_KERNELS, ROOT, snake_case

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")


def build(*arguments, **environment):
    """Run build.sh with no CANN in the environment but what is given."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("ASCEND")}
    env.update({"PYTHON": sys.executable, "GLOG_v": "1"}, **environment)
    return subprocess.run(
        ["bash", str(ROOT / "build.sh"), *map(str, arguments)], env=env, capture_output=True, text=True, check=False
    )


def test_help_names_the_options_and_defaults():
    done = build("--help", ASCEND_HOME_PATH="/opt/cann")
    assert done.returncode == 0
    assert all(
        word in done.stdout
        for word in ("--soc", "ascend910b;ascend910_93", "--vendor", "pangu", "--install", "--cann", "/opt/cann")
    )


def test_without_cann_it_says_so_and_returns_2(tmp_path):
    done = build("--install", tmp_path / "opp")
    assert done.returncode == 2 and "ASCEND_HOME_PATH" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "opp").exists()


@pytest.mark.parametrize(
    "arguments, reason",
    [
        (("--soc", "ascend310"), "--soc ascend310: no such chip"),
        (("--soc",), "--soc needs a value"),
        (("--vendor", "a b"), "only letters"),
        (("--cann", "/no/such/dir"), "/no/such/dir is no directory"),
        (("--fast",), "--fast: no such option"),
    ],
)
def test_wrong_options_return_2(arguments, reason):
    done = build(*arguments)
    assert done.returncode == 2 and reason in done.stderr


@pytest.fixture
def fake_cann(tmp_path):
    """A project template whose build packs op_host and op_kernel into a script that unpacks them, as CANN's does."""
    if importlib.util.find_spec("mindspore") is None or any(shutil.which(t) is None for t in ("cmake", "make", "g++")):
        pytest.skip("needs mindspore, cmake, make and g++ on PATH, which build.sh asks for")
    project = tmp_path / "cann" / "tools" / "op_project_templates" / "ascendc" / "customize"
    for directory in ("op_host", "op_kernel", "../common"):
        (project / directory).mkdir(parents=True)
    variables = {k: {"value": ""} for k in ("ASCEND_COMPUTE_UNIT", "ASCEND_CANN_PACKAGE_PATH", "vendor_name")}
    (project / "CMakePresets.json").write_text(json.dumps({"configurePresets": [{"cacheVariables": variables}]}))
    (project / "build.sh").write_text(
        "test ! -e fail || exit 1\nmkdir build_out\ntar cf build_out/p.tar op_host op_kernel CMakePresets.json\necho"
        ' "mkdir -p \\$ASCEND_CUSTOM_OPP_PATH/vendors/pangu && tar xf $PWD/build_out/p.tar -C'
        ' \\$ASCEND_CUSTOM_OPP_PATH/vendors/pangu" > build_out/p.run\n'
    )
    return project


def test_custom_compiler_takes_our_sources(fake_cann, tmp_path):
    done = build("--cann", fake_cann.parents[3], "--install", tmp_path / "opp")
    assert done.returncode == 0, done.stderr
    package = tmp_path / "opp" / "vendors" / "pangu"
    assert f"export ASCEND_CUSTOM_OPP_PATH={package}" in done.stdout
    for directory in ("op_host", "op_kernel"):
        assert {p.name for p in (package / directory).iterdir()} == {p.name for p in (ROOT / directory).iterdir()}
        assert all((package / directory / f"{snake_case(n)}.cpp").is_file() for n in ASCENDC_KERNELS)
    variables = json.loads((package / "CMakePresets.json").read_text())["configurePresets"][0]["cacheVariables"]
    assert (
        variables["ASCEND_COMPUTE_UNIT"]["value"] == "ascend910b;ascend910_93"
        and variables["vendor_name"]["value"] == "pangu"
    )


@pytest.mark.slow  # the custom compiler imports mindspore
def test_failed_build_returns_1(fake_cann, tmp_path):
    (fake_cann / "fail").touch()
    done = build("--cann", fake_cann.parents[3], "--install", tmp_path / "opp")
    assert done.returncode == 1 and "the build failed" in done.stderr


@pytest.mark.parametrize("code", [0, 1])
def test_a_custom_compiler_that_fails_or_makes_nothing_returns_1_and_its_log_is_shown(fake_cann, tmp_path, code):
    python = tmp_path / "python"
    python.write_text(
        f'#!/bin/sh\n[ "$1" = setup.py ] || exec {sys.executable} "$@"\necho what failed > build.log\nexit {code}\n'
    )
    python.chmod(0o755)
    done = build("--cann", fake_cann.parents[3], "--install", tmp_path / "opp", PYTHON=str(python))
    assert done.returncode == 1 and "what failed\n" in done.stderr and "the build failed" in done.stderr
