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


def to_npz(fields: dict[str, Any]) -> bytes:
    """Arrays, numbers and texts as the bytes of an .npz file."""
    content = io.BytesIO()
    np.savez(content, **fields)
    return content.getvalue()


def read_npz(path: str | Path, names: Iterable[str], advice: str) -> tuple[dict[str, Any], str]:
    """Fields of an .npz file, scalars and texts as Python values, and the file's SHA-256.

    Raises:
        DataError: no such file, not an .npz file, or one without some of the names.
    """
    try:
        content = Path(path).read_bytes()
        with np.load(io.BytesIO(content), allow_pickle=False) as archive:
            fields = {name: archive[name] if archive[name].ndim else archive[name].item() for name in names}
    except (ValueError, OSError, EOFError, KeyError, AttributeError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{path}: not an .npz file with {', '.join(names)} ({reason}); {advice}") from None
    return fields, hashlib.sha256(content).hexdigest()
