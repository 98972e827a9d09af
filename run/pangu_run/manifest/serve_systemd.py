"""A systemd unit of a server: a user of its own, and no rights but to read the model and answer."""

from pathlib import PurePosixPath

from pangu_ms.core.errors import LaunchError
from pangu_run.manifest.serving import Serving
from pangu_run.manifest.text import fill, systemd_word

CREDENTIAL = "api-keys"
HIDDEN = ("/home", "/root", "/run/user", "/tmp", "/var/tmp", "/dev")
"""What ProtectHome, PrivateTmp and PrivateDevices hide from the service."""


def unit(serving: Serving, executable: str, api_key_file: str | None) -> str:
    """Text of the unit.

    Args:
        serving: the server; its api_key_file is that of the credential.
        executable: absolute path of `pangu`.
        api_key_file: where the keys are; root alone may be able to read it.

    Raises:
        LaunchError: a path that the service would not see.
    """
    for option, path in (("MODEL", serving.model), ("--executable", executable)):
        _require_seen(option, path)
    words = [executable, "serve", *serving.argv()]
    credential = ""
    if api_key_file:
        if not PurePosixPath(api_key_file).is_absolute():
            raise LaunchError(f"--api-key-file {api_key_file}: must be an absolute path; write it from / on")
        escaped = api_key_file.replace("%", "%%")
        credential = f"# The keys: root alone need be able to read them.\nLoadCredential={CREDENTIAL}:{escaped}\n"
    return fill(
        "serve.service.tmpl",
        name=serving.name,
        # %d is the directory of the credentials: a specifier, which must not be escaped.
        command=" ".join(word if word == key_path() else systemd_word(word) for word in words),
        stop=serving.stop_seconds,
        credential=credential,
        memory=f"MemoryMax={serving.memory.removesuffix('i')}\n" if serving.memory else "",
    )


def key_path() -> str:
    """Where the service finds the keys."""
    return f"%d/{CREDENTIAL}"


def _require_seen(option: str, path: str) -> None:
    if not PurePosixPath(path).is_absolute():
        raise LaunchError(f"{option} {path}: must be an absolute path; write it from / on")
    if any(PurePosixPath(path).is_relative_to(hidden) for hidden in HIDDEN):
        raise LaunchError(
            f"{option} {path}: a service does not see homes and temporary directories; must lie elsewhere; put it"
            " below /opt or /srv"
        )
