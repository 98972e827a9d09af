"""`python -m pangu_ms.export.replay PACKAGE TOKENS.npz ANSWER.npz [KEY_FILE]`: runs given tokens through a package.

`write.verify` starts this program in a process of its own, which gets the package but not the checkpoint.
"""

import hashlib
import sys
from pathlib import Path

import numpy as np

from pangu_ms.core import runtime
from pangu_ms.export import kernels
from pangu_ms.export.package import Package, read_key


def digest(array: np.ndarray) -> str:
    """Hex SHA-256 of an array: dtype, shape and bytes."""
    return hashlib.sha256(f"{array.dtype} {array.shape} ".encode() + np.ascontiguousarray(array).tobytes()).hexdigest()


def main(package: str, request: str, answer: str, key_file: str = "") -> None:
    """Run the tokens through the graph and, if there is one, that with kernels, and write the answer; see
    `read_replay`."""
    runtime.quiet()
    from mindspore import nn

    opened, key = Package.open(package), read_key(key_file or None)
    runtime.start(opened.manifest["target"])
    given = np.load(request)
    domains = given["domains"].tolist()
    prompts = [given[f"prompt_{i}"].tolist() for i in range(len(domains))]
    arrays = {}
    loads = {"": opened.decoder} | ({kernels.DIRECTORY: opened.decoder_with_kernels} if opened.kernels else {})
    for name, load in loads.items():
        decoder = load(key)
        assert isinstance(decoder.graph, nn.Cell), "a loaded MindIR is a GraphCell"
        digests = {parameter.name: digest(parameter.asnumpy()) for parameter in decoder.graph.get_parameters()}
        arrays[f"{name}:names"], arrays[f"{name}:digests"] = np.array(list(digests)), np.array(list(digests.values()))
        steps = [decoder.prefill(prompts, domains)] + [decoder.step(row) for row in given["tokens"]]
        arrays[f"{name}:logits"] = np.stack(steps)
        del decoder  # two graphs need not fit into the memory at once
    np.savez(answer, **arrays)


def read_replay(answer: Path) -> dict[str, tuple[np.ndarray, dict[str, str]]]:
    """For each graph, "" and perhaps `kernels`: logits float32 [steps + 1, B, V], and the digest of each parameter that
    MindSpore loaded."""
    found = np.load(answer)
    names = [key.removesuffix(":logits") for key in found if key.endswith(":logits")]
    return {
        name: (
            found[f"{name}:logits"],
            dict(zip(found[f"{name}:names"].tolist(), found[f"{name}:digests"].tolist())),
        )
        for name in names
    }


if __name__ == "__main__":
    main(*sys.argv[1:])
