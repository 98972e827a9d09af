"""A plain wheel, built from the source distribution, in a virtual environment of its own: all that is shipped is in it,
and it works far from any checkout."""

import json
import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SHIPPED = ("pangu_ms", "ascend_ops", "run", "configs")
PLACES = {
    "run/": "",
    "configs/": "pangu_ms/configs/",
}  # where a folder of the checkout lies in the wheel, if not in the same place
NOT_INSTALLED = {"run/train.sh"}  # starts a checkout; an installed package has `pangu launch`
METADATA = ("LICENSE", "NOTICE")
GENERATED = shutil.ignore_patterns("__pycache__", "*.egg-info", "opp")
BUILD = "import sys; from setuptools import build_meta; print(getattr(build_meta, sys.argv[1])(sys.argv[2]))"
WHERE = "import pangu_ms, pangu_run, ascend_ops; print(*(m.__file__ for m in (pangu_ms, pangu_run, ascend_ops)))"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def run(*command, cwd, **options):
    done = subprocess.run(list(map(str, command)), cwd=cwd, capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, (command, done.stdout[-2000:], done.stderr[-2000:])
    return done.stdout


def built(kind, source, target):
    return target / run(sys.executable, "-c", BUILD, f"build_{kind}", target, cwd=source).splitlines()[-1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel of the source distribution of a copy of this checkout: a build writes where its source lies."""
    directory = tmp_path_factory.mktemp("build")
    for name in SHIPPED:
        shutil.copytree(ROOT / name, directory / "copy" / name, ignore=GENERATED)
    for name in ("setup.py", "README.md", *METADATA):
        shutil.copy(ROOT / name, directory / "copy")
    shutil.unpack_archive(built("sdist", directory / "copy", directory), directory / "unpacked")
    return built("wheel", next((directory / "unpacked").iterdir()), directory)


@pytest.fixture(scope="module")
def user(wheel, tmp_path_factory):
    """`run` in an environment that has the wheel; what it needs is taken from this interpreter's packages, which come
    after its own."""
    here = tmp_path_factory.mktemp("user")
    venv.create(here / "venv", with_pip=True)
    python = here / "venv/bin/python"
    run(python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel, cwd=here)
    own = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=here).strip())
    (own / "shared.pth").write_text(
        "\n".join(p for p in sys.path if Path(p).name in ("site-packages", "dist-packages"))
    )
    (here / "work").mkdir()
    private = {"HOME": str(here), "XDG_CACHE_HOME": str(here / "cache"), "ASCEND_OPS_CACHE": str(here / "operators")}
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")} | private

    def start(program, *words):
        return run(here / "venv/bin" / program, *words, cwd=here / "work", env=environment)

    return start


@pytest.fixture(scope="module")
def trained(user, records, tiny_overrides):
    """A run of twelve steps, by name in the user's working directory."""
    user("pangu", "train", "--config", "alpha/tiny", "--data", records, "--output", "run", *tiny_overrides)
    return "run"


def test_all_that_is_shipped_is_in_it(wheel):
    ours = {str(p.relative_to(ROOT)) for name in SHIPPED for p in (ROOT / name).rglob("*") if p.is_file()}
    ours = {
        name for name in ours if not {"__pycache__", "opp"} & set(Path(name).parts) and ".egg-info" not in name
    } - NOT_INSTALLED
    expected = {
        next((name.replace(old, new, 1) for old, new in PLACES.items() if name.startswith(old)), name) for name in ours
    }
    packed = set(zipfile.ZipFile(wheel).namelist())
    assert {name for name in packed if ".dist-info/" not in name} == expected
    assert {Path(name).name for name in packed if ".dist-info/licenses/" in name} == set(METADATA)


def test_it_is_the_wheel_that_runs_and_it_says_what_there_is(user):
    places = user("python", "-c", WHERE).split()
    assert len(places) == 3 and all("/venv/lib/" in place for place in places)
    assert "quickstart" in user("pangu", "--help")
    shown = {line.split()[0] for line in user("pangu", "config", "show", "--list").splitlines()}
    assert shown == {
        str(path.relative_to(ROOT / "configs").with_suffix("")) for path in (ROOT / "configs").glob("*/*.yaml")
    }
    assert "family: pi" in user("pangu", "config", "show", "--config", "pi/7b_8x64gib")
    assert json.loads(user("pangu", "ops", "list", "--json"))["gelu"]["backend"] == "cpu"


def test_a_launch_and_the_manifests_of_every_kind(user, records, tiny_overrides):
    train = ("train", "--config", "alpha/tiny", "--data", records, "--output", "launched", *tiny_overrides)
    assert "rank 1: " in user("pangu", "launch", "--device", "cpu", "--num-ranks", "2", "--dry-run", *train)
    job = ("--config", "alpha/13b_64x32gib", "--output-dir", "/shared/run", "--data", "/shared/records")
    for kind, *options in (("slurm",), ("volcano", "--mount", "/disk:/shared"), ("modelarts",), ("docker",)):
        assert "alpha/13b_64x32gib" in user("pangu", "manifest", kind, *job, *options)


def test_training_and_a_package_that_needs_it_no_more(user, trained):
    """Last: it removes what it tests. The package's runner then finds its modules in run.pyz alone."""
    assert user("pangu", "generate", trained, "--prompt", "def", "--max-new-tokens", "4").startswith("def")
    user("pangu", "export", trained, "--output", "package")
    user("python", "-m", "pip", "uninstall", "--quiet", "--yes", "pangu-ms")
    assert user("python", "package/run.pyz", "--prompt", "def", "--max-new-tokens", "4").startswith("def")
