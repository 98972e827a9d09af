"""A MindIR package from a trained run: written, verified against the checkpoint, checked again as whoever receives it
does, and run by its own runner, which needs no part of this code base.

    python examples/export_and_verify.py RUN PACKAGE
"""

import subprocess
import sys
from pathlib import Path

from pangu_ms import export
from pangu_ms.core import runtime
from pangu_ms.core.console import guarded
from pangu_ms.export.package import Package

PROMPT = ["--prompt", "On Friday the owl", "--max-new-tokens", "4", "--temperature", "0"]


def main(argv: list[str]) -> str:
    """Export argv[0] to argv[1]; returns what the package's runner prints."""
    run, output = map(Path, argv)
    manifest = export(run, output, batch_size=1, chunk=16)
    verified = manifest["verified"]
    print(
        f"{verified['weights']} weights are the checkpoint's bit for bit; logits of {verified['steps']} steps differ"
        f" by {verified['max_difference']:.2g} at most"
    )

    package = Package.open(output)  # raises ExportError where a file is not what the manifest says
    print(f"{len(package.manifest['files'])} files have the hashes of the manifest")

    command = [sys.executable, str(output / "run.pyz"), *PROMPT]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    print(done.stdout.strip())
    return done.stdout


def command() -> int:
    """The program: a mistake is one line and exit code 2."""
    main(sys.argv[1:])
    return 0


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    runtime.quiet()  # MindSpore's own warnings
    sys.exit(guarded("export_and_verify.py", command))
