"""A corpus that every machine has: the source of the running Python's standard library. No mindspore import."""

import sysconfig
from collections.abc import Sequence
from pathlib import Path

from pangu_ms.config.schema import RunConfig
from pangu_ms.core.errors import ConfigError, DataError
from pangu_ms.data.corpus import UNKNOWN_DOMAIN, Corpus
from pangu_ms.data.domains import require_run_domains
from pangu_ms.data.prepare import prepare
from pangu_ms.data.tokenizer import train_tokenizer

SIZE_BYTES = 5_000_000
"""About how much text the corpus has."""
MODULES, PACKAGES = "modules", "packages"
"""The corpus' domains for a model with domains: files at the top of the standard library (2.3 MB in Python 3.11), and
files in its directories (2.7 MB)."""
NOT_CODE = {
    "test",
    "tests",
    "site-packages",
    "dist-packages",
    "__pycache__",
    "lib2to3",
    "idlelib",
    "encodings",
    "pydoc_data",
}


def standard_library_files() -> list[str]:
    """Python files of the standard library in alphabetical order, about SIZE_BYTES in all, without the directories
    NOT_CODE.

    Raises:
        DataError: this Python was installed without its sources.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    chosen, size = [], 0
    for path in sorted(root.rglob("*.py")):
        if size < SIZE_BYTES and not NOT_CODE & set(path.relative_to(root).parts) and _is_utf8(path):
            chosen.append(str(path))
            size += path.stat().st_size
    if not chosen:
        raise DataError(
            f"{root}: holds no Python sources; this Python came without them; name text files with --corpus"
        )
    return chosen


def standard_library_domains() -> list[tuple[str, str]]:
    """The corpus' domains and their files, as `Corpus` takes them."""
    root = sysconfig.get_paths()["stdlib"]
    return [(MODULES, f"{root}/*.py"), (PACKAGES, f"{root}/*/**/*.py")]


def _is_utf8(path: Path) -> bool:
    try:
        path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return False
    return True


def build_default_records(config: RunConfig, directory: Path, progress: bool = True) -> dict:
    """`build_records` from the standard library, in two domains if the model has domains."""
    domains = standard_library_domains() if config.model.domains else []
    require_corpus_domains(config, None, domains)
    return build_records(config, standard_library_files(), directory, progress, domains)


def require_corpus_domains(config: RunConfig, corpus: list[str] | None, domains: Sequence[tuple[str, str]]) -> None:
    """Check, before a tokenizer is trained, that a run can read the domains of the documents.

    Args:
        config: of the run.
        corpus: the user's files, whose documents are read; None for the standard library.
        domains: those of the standard library, as in `Corpus`.

    Raises:
        DataError: the model or the corpus lacks a domain.
    """
    if not (config.model.domains or config.data.mixture or config.data.samples_per_domain):
        return
    if corpus is None:
        source, found = "the standard library's source", [name for name, _ in domains] or [UNKNOWN_DOMAIN]
    else:
        source = ", ".join(corpus) if len(corpus) < 4 else f"{corpus[0]}, ..."
        found = sorted({document.domain for document in Corpus(list(corpus))})
    require_run_domains(source, found, config.data, config.model)


def build_records(
    config: RunConfig,
    corpus_files: list[str],
    directory: Path,
    progress: bool = True,
    domains: Sequence[tuple[str, str]] = (),
) -> dict:
    """Train a tokenizer on a corpus, and prepare records from the corpus, as a run's configuration says.

    Args:
        config: the tokenizer section says how the tokenizer is trained; the model and data sections say how long rows
            are and how much is held out.
        corpus_files: files or patterns.
        directory: `tokenizer/` and `records/` are written here; an existing tokenizer is reused.
        progress: show bars.
        domains: as in `Corpus`.

    Returns:
        The manifest of the records.
    """
    if config.tokenizer.vocab_size != config.model.vocab_size:
        sizes = f"tokenizer.vocab_size={config.tokenizer.vocab_size}, model.vocab_size={config.model.vocab_size}"
        raise ConfigError(f"{sizes}: must be equal where the tokenizer is trained for the model; set both")
    tokenizer, records = directory / "tokenizer", directory / "records"
    if not tokenizer.exists():
        texts = (document.text for document in Corpus(corpus_files))
        train_tokenizer(texts, config.tokenizer.vocab_size, config.tokenizer.segmenter, progress=progress).save(
            tokenizer
        )
    shape = config.model.seq_length, config.data.held_out
    return prepare(corpus_files, tokenizer, records, *shape, progress=progress, domains=domains)
