"""`python -m pangu_ms.export.replay PACKAGE TOKENS.npz ANSWER.npz [KEY_FILE]`: runs given tokens through a package.

`write.verify` starts this program in a process of its own, which gets the package but not the checkpoint.
"""

import hashlib
import sys

import numpy as np

from pangu_ms.core import runtime
from pangu_ms.export.package import Package, read_key


def digest(array: np.ndarray) -> str:
    """Hex SHA-256 of an array: dtype, shape and bytes."""
    return hashlib.sha256(f"{array.dtype} {array.shape} ".encode() + np.ascontiguousarray(array).tobytes()).hexdigest()


def main(package: str, request: str, answer: str, key_file: str = "") -> None:
    """Run the tokens and write the answer: `logits` float32 [steps + 1, B, V], and the `names` and `digests` of the
    parameters that MindSpore loaded."""
    runtime.quiet()
    from mindspore import nn

    opened = Package.open(package)
    runtime.start(opened.manifest["target"])
    decoder = opened.decoder(read_key(key_file or None))
    assert isinstance(decoder.graph, nn.Cell), "a loaded MindIR is a GraphCell"
    digests = {parameter.name: digest(parameter.asnumpy()) for parameter in decoder.graph.get_parameters()}
    given = np.load(request)
    domains = given["domains"].tolist()
    prompts = [given[f"prompt_{i}"].tolist() for i in range(len(domains))]
    logits = np.stack([decoder.prefill(prompts, domains)] + [decoder.step(row) for row in given["tokens"]])
    np.savez(answer, logits=logits, names=np.array(list(digests)), digests=np.array(list(digests.values())))


if __name__ == "__main__":
    main(*sys.argv[1:])
