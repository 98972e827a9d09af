"""`python -m pangu_ms.export.replay PACKAGE TOKENS.npz LOGITS.npy [KEY_FILE]`: run given tokens through a package, for `verify`."""

import sys

import numpy as np

from pangu_ms import runtime
from pangu_ms.export.package import Package, read_key


def main(package: str, request: str, answer: str, key_file: str = "") -> None:
    """Write logits float32 [steps + 1, B, V]."""
    runtime.quiet()
    opened = Package.open(package)
    runtime.start(opened.manifest["target"])
    decoder = opened.decoder(read_key(key_file or None))
    given = np.load(request)
    prompts = [given[f"prompt_{i}"].tolist() for i in range(len(given.files) - 1)]
    np.save(answer, np.stack([decoder.prefill(prompts)] + [decoder.step(row) for row in given["tokens"]]))


if __name__ == "__main__":
    main(*sys.argv[1:])
