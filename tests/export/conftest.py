"""One package for all tests of packages, of all workers; each alters a copy of its own."""

import pytest

from pangu_ms.cli.main import main
from tests.export.common import load_packages_once


@pytest.fixture(scope="session")
def keys(made_once):
    """PEM files private.pem and public.pem, and other_private.pem and other_public.pem."""
    pytest.importorskip("cryptography")
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    def make(directory):
        directory.mkdir()
        pem = serialization.Encoding.PEM
        for name in ("", "other_"):
            key = Ed25519PrivateKey.generate()
            private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
            (directory / f"{name}private.pem").write_bytes(private)
            public = key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
            (directory / f"{name}public.pem").write_bytes(public)

    return made_once("keys", make)


@pytest.fixture(autouse=True)
def loaded_once(monkeypatch):
    """Loading the graph takes longer than what a test does with it."""
    load_packages_once(monkeypatch)


@pytest.fixture(scope="session")
def package(made_once, trained_run, request):
    """Of the trained run, batch 2, 32 tokens; signed with private.pem where signatures can be made."""
    options = ["--batch-size", "2", "--max-length", "32", "--chunk", "8"]
    try:
        options += ["--sign-key", str(request.getfixturevalue("keys") / "private.pem")]
    except pytest.skip.Exception:  # no cryptography
        pass

    def make(directory):
        from tests.reused_models import reused_models

        with reused_models():  # the compiled decoder is left to tests of this process
            assert main(["export", str(trained_run), "--output", str(directory), *options]) == 0

    return made_once("package", make)
