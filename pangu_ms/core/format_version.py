"""The format version in our files: a program refuses a file that a newer version wrote, instead of misreading it.

Files of version 0.1.0 have none and count as FIRST. A format version is raised when older programs could no longer read
the file.
"""

from typing import Any

from pangu_ms.core.errors import UserError

KEY, FIRST = "format_version", 1


def require_known(found: Any, newest: int, where: object, wrong: type[UserError]) -> None:
    """Check the format version that was found in a file.

    Args:
        newest: the version that this program writes; it reads all versions from FIRST to this one.
        where: the file.
        wrong: class of the errors.

    Raises:
        UserError: of the class `wrong`: the version is newer, or is one that no program writes.
    """
    if type(found) is not int or found < FIRST:
        raise wrong(
            f"{where}: format version {found!r:.40}: no version of pangu-ms writes that; restore the file or make it"
            " again"
        )
    if found > newest:
        raise wrong(
            f"{where}: format version {found} was written by a newer version of pangu-ms; this one reads up to"
            f" {newest}; upgrade pangu-ms"
        )
