"""What all tests share: a quiet MindSpore on the CPU, a private cache directory, small configurations."""

import fcntl
import json
import os
import shutil
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from pangu_ms.core import runtime
from tests import order, thinning
from tests.compiled import compiler_digest

runtime.quiet()
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN and threading.current_thread() is threading.main_thread():
    # A script's background job ignores SIGINT, and so would all that the tests start and interrupt.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def built_files(request, tmp_path_factory):
    """Where libraries that tests compile stay from one run of the tests to the next.

    Whoever puts a file there names it by the hash of all that it is made of, and renames it into its place when it is
    whole: the workers of pytest-xdist share the directory. Without pytest's cache (`-p no:cacheprovider`, a checkout
    that is read-only) it lasts for one run.
    """
    try:
        return request.config.cache.mkdir("built")
    except (AttributeError, OSError):
        base = tmp_path_factory.getbasetemp()
        directory = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "built"
        directory.mkdir(exist_ok=True)
        return directory


@pytest.fixture(scope="session", autouse=True)
def private_cache(tmp_path_factory, built_files):
    """Keep compiled graphs of the tests out of the user's cache. The CPU operators are compiled once for all runs of
    the tests: their directory is named by their sources, and here by the compiler too."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))
    os.environ["ASCEND_OPS_CACHE"] = str(built_files / f"operators-{compiler_digest()}")


@pytest.fixture(scope="session")
def made_once(tmp_path_factory):
    """A function from a name and a function that makes a directory to that directory. The first worker of pytest-xdist
    that asks makes it, the others wait for it: nobody may alter it."""
    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "made"
    shared.mkdir(exist_ok=True)

    def directory(name: str, make: Callable[[Path], None]) -> Path:
        path, done = shared / name, shared / f"{name}.done"
        with (shared / f"{name}.lock").open("w") as lock:  # closing it ends the lock
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not done.exists():
                shutil.rmtree(path, ignore_errors=True)  # what a worker left that failed
                make(path)
                done.touch()
        return path

    return directory


@pytest.fixture(scope="session")
def mindspore_cpu():
    """MindSpore on the CPU in graph mode."""
    runtime.start("CPU")


@pytest.fixture(scope="session")
def forks(tmp_path_factory):
    """Runs programs in processes of their own that find MindSpore imported; see tests/forked.py."""
    from tests.forked import forks_of

    imports = "from pangu_ms.core import runtime; runtime.quiet(); import mindspore"
    with forks_of(imports, tmp_path_factory.mktemp("forks")) as forks:
        yield forks


@pytest.fixture(scope="session")
def text_file(tmp_path_factory):
    """Forty short documents of made-up Python with something to learn in them."""
    path = tmp_path_factory.mktemp("corpus") / "code.jsonl"
    names = ["alpha", "beta", "gamma", "delta"]
    lines = [
        f"def {a}_{i}({b}):\n    return {b} + {i}\n\n\nprint({a}_{i}({i}))\n"
        for i in range(10)
        for a, b in zip(names, names[1:] + names[:1])
    ]
    path.write_text("".join(json.dumps({"text": text * 3, "domain": "code"}) + "\n" for text in lines))
    return path


@pytest.fixture(scope="session")
def records(text_file, made_once):
    """The documents as records of 32 + 1 ids, tokenizer of 384 pieces."""
    from pangu_ms.data.corpus import Corpus
    from pangu_ms.data.prepare import prepare
    from pangu_ms.data.tokenizer import train_tokenizer

    def make(directory):
        train_tokenizer((d.text for d in Corpus([str(text_file)])), 384, "none").save(directory / "tokenizer")
        prepare(
            [str(text_file)],
            directory / "tokenizer",
            directory / "records",
            seq_length=32,
            held_out=0.2,
            num_workers=1,
            progress=False,
        )

    return made_once("data", make) / "records"


@pytest.fixture(scope="session")
def two_domains(text_file, records, tmp_path_factory):
    """The documents as records of the domains a and b; the documents of b have other names and are fewer."""
    import json

    from pangu_ms.data.prepare import prepare

    lines = [json.loads(line) | {"domain": "a"} for line in text_file.read_text().splitlines()]
    lines += [{"text": line["text"].replace("def ", "class "), "domain": "b"} for line in lines[::2]]
    directory = tmp_path_factory.mktemp("two")
    (directory / "corpus.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    corpus, tokenizer = [str(directory / "corpus.jsonl")], records.parent / "tokenizer"
    prepare(corpus, tokenizer, directory / "records", seq_length=32, held_out=0.2, num_workers=1, progress=False)
    return directory / "records"


@pytest.fixture(scope="session")
def tiny_overrides():
    """Overrides that make alpha/tiny as small as the records."""
    model = ["vocab_size=384", "hidden_size=32", "num_layers=2", "num_heads=4", "seq_length=32"]
    return [f"model.{m}" for m in model] + [
        "train.batch_size=4",
        "train.steps=12",
        "train.save_every=3",
        "optimizer.warmup_steps=2",
    ]


@pytest.fixture(scope="session")
def trained_run(records, tiny_overrides, made_once, mindspore_cpu):
    """A finished run of twelve steps."""
    from pangu_ms.config import load_config
    from pangu_ms.train.loop import train
    from tests.reused_models import reused_models

    config = load_config("alpha/tiny", tiny_overrides)
    with reused_models():
        return made_once("run", lambda output: train(config, records, output, progress=False))


@pytest.fixture(scope="module")
def compiled_models(mindspore_cpu):
    """Runs in this process take the compiled model of an earlier run of the same graphs; see tests/reused_models.py."""
    from tests.reused_models import reused_models

    with reused_models():
        yield


def pytest_configure(config):
    """pytest-xdist keeps the order of files that tests/order.py gives them."""
    config.option.loadscopereorder = False


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    """Before pytest looks at `-m`: rows of thinned grids become slow, and slow rows of fast tests are not fast."""
    thinning.mark_slow(items)
    order.longest_first(items)
    if config.option.markexpr == "fast":
        config.option.markexpr = "fast and not slow"
