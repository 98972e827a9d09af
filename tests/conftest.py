"""What all tests share: a quiet MindSpore on the CPU, a private cache directory, small configurations."""

import os

import pytest

from pangu_ms.core import runtime
from tests import thinning
from tests.compiled import compiler_digest

runtime.quiet()


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
def mindspore_cpu():
    """MindSpore on the CPU in graph mode."""
    runtime.start("CPU")


@pytest.fixture(scope="session")
def text_file(tmp_path_factory):
    """Forty short documents of made-up Python with something to learn in them."""
    import json

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
def records(text_file, tmp_path_factory):
    """The documents as records of 32 + 1 ids, tokenizer of 384 pieces."""
    from pangu_ms.data.corpus import Corpus
    from pangu_ms.data.prepare import prepare
    from pangu_ms.data.tokenizer import train_tokenizer

    directory = tmp_path_factory.mktemp("data")
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
def trained_run(records, tiny_overrides, tmp_path_factory, mindspore_cpu):
    """A finished run of twelve steps."""
    from pangu_ms.config import load_config
    from pangu_ms.train.loop import train
    from tests.reused_models import reused_models

    output = tmp_path_factory.mktemp("runs") / "run"
    with reused_models():
        train(load_config("alpha/tiny", tiny_overrides), records, output, progress=False)
    return output


@pytest.fixture(scope="module")
def compiled_models(mindspore_cpu):
    """Runs in this process take the compiled model of an earlier run of the same graphs; see tests/reused_models.py."""
    from tests.reused_models import reused_models

    with reused_models():
        yield


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    """Before pytest looks at `-m`: rows of thinned grids become slow, and slow rows of fast tests are not fast."""
    thinning.mark_slow(items)
    if config.option.markexpr == "fast":
        config.option.markexpr = "fast and not slow"
