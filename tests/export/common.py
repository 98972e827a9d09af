"""What the tests of packages share."""

import json
import shutil

from pangu_ms.export.package import MANIFEST, file_entries, sealed


def copy_of(package, tmp_path):
    """A package to alter."""
    return shutil.copytree(package, tmp_path / "copy")


def reseal(package):
    """Make the manifest's hashes those of the files, as whoever alters a package can."""
    manifest = json.loads((package / MANIFEST).read_text())
    del manifest["sha256"]
    (package / MANIFEST).write_text(json.dumps(sealed(manifest | {"files": file_entries(package)})))
