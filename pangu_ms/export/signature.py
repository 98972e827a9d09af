"""Signs packages and verifies signatures. A signature proves that the owner of a private key made the package.

The Ed25519 signature covers the manifest, and the manifest holds the hashes of all other files. Keys are PEM files, as
`openssl genpkey -algorithm ed25519` and `openssl pkey -pubout` write them. The private key has no password: file
permissions protect it. The module needs the `cryptography` package.
"""

from pathlib import Path
from typing import Any

from pangu_ms.core import small_json
from pangu_ms.core.errors import ExportError

SIGNATURE = "manifest.sig"
"""The file of the package that holds the signature of 64 bytes."""
MAX_PEM_BYTES = 1 << 20
"""A larger key file is not read."""


def sign(content: bytes, key_file: Path | str) -> bytes:
    """Sign bytes with the private key in `key_file`; returns the signature.

    Raises:
        ExportError: the file holds no such key, or the `cryptography` package is not installed.
    """
    return read_signing_key(key_file).sign(content)


def read_signing_key(key_file: Path | str) -> Any:
    """Read the private key of --sign-key; raises ExportError if the file holds none."""
    serialization, ed25519 = _library("--sign-key")
    command = "openssl genpkey -algorithm ed25519 -out PRIVATE.pem"
    return _key(
        key_file,
        lambda pem: serialization.load_pem_private_key(pem, None),
        ed25519.Ed25519PrivateKey,
        "private",
        command,
    )


def read_verifying_key(key_file: Path | str) -> Any:
    """Read the public key of --verify-key; raises ExportError if the file holds none."""
    serialization, ed25519 = _library("--verify-key")
    command = "openssl pkey -in PRIVATE.pem -pubout -out PUBLIC.pem"
    return _key(key_file, serialization.load_pem_public_key, ed25519.Ed25519PublicKey, "public", command)


def require_signed(package: Path, content: bytes, key_file: Path | str) -> None:
    """Verify the signature of a package.

    Args:
        package: directory of the package.
        content: bytes of its manifest.
        key_file: the public key.

    Raises:
        ExportError: there is no signature, or another private key made it.
    """
    key, path = read_verifying_key(key_file), package / SIGNATURE
    from cryptography.exceptions import InvalidSignature  # reading the key has shown that it is installed

    if not path.is_file():
        raise ExportError(
            f"{package}: is not signed; --verify-key asks for {SIGNATURE} in it; export again with --sign-key"
        )
    try:
        with open(path, "rb") as file:
            key.verify(file.read(1024), content)  # a signature has 64 bytes; more cannot be one
    except InvalidSignature:
        raise ExportError(
            f"{path}: is no signature of {package.name}/manifest.json by the key of {key_file}; the package is refused"
        ) from None


def _library(option: str) -> tuple[Any, Any]:
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError:
        raise ExportError(
            f"{option}: signatures need the package cryptography; install it: pip install cryptography"
        ) from None
    return serialization, ed25519


def _key(path: Path | str, load: Any, kind: type, word: str, command: str) -> Any:
    try:
        pem = small_json.read_bytes(Path(path), MAX_PEM_BYTES, pipes=True)
    except ValueError as error:
        raise ExportError(f"{path}: the key cannot be read ({error})") from None
    try:
        key = load(pem)
    except Exception:  # the library's errors have no common class, and their texts do not help a user
        key = None
    if not isinstance(key, kind):
        raise ExportError(f"{path}: is no Ed25519 {word} key in PEM form; make one: {command}")
    return key
