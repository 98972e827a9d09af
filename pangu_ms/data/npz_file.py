"""Arrays, numbers and texts in .npz files. No mindspore import."""

import hashlib
import io
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from pangu_ms.errors import DataError
from pangu_run import format_version

FORMAT_VERSION = 1


def to_npz(fields: dict[str, Any]) -> bytes:
    """Arrays, numbers and texts, and the format version, as the bytes of an .npz file."""
    content = io.BytesIO()
    np.savez(content, **fields, **{format_version.KEY: FORMAT_VERSION})
    return content.getvalue()


def read_npz(path: str | Path, names: Iterable[str], advice: str) -> tuple[dict[str, Any], str]:
    """Fields of an .npz file, scalars and texts as Python values, and the file's SHA-256.

    Raises:
        DataError: no such file, not an .npz file, one without some of the names, or one of a newer version of this program.
    """
    try:
        content = Path(path).read_bytes()
        with np.load(io.BytesIO(content), allow_pickle=False) as archive:
            version = archive[format_version.KEY].item() if format_version.KEY in archive else format_version.FIRST
            format_version.require_known(version, FORMAT_VERSION, path, DataError)
            fields = {name: archive[name] if archive[name].ndim else archive[name].item() for name in names}
    except DataError:
        raise
    except (ValueError, OSError, EOFError, KeyError, AttributeError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{path}: not an .npz file with {', '.join(names)} ({reason}); {advice}") from None
    return fields, hashlib.sha256(content).hexdigest()
