"""What the tests of packages share."""

import json
import shutil
import subprocess
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from pangu_ms.core.protobuf import message_field
from pangu_ms.export import replay
from pangu_ms.export.package import MANIFEST, Package, file_entries, sealed
from pangu_ms.infer.decoder import Decoder


def attribute(name, value):
    """A string attribute of a node of a MindIR graph."""
    return message_field(1, name.encode()) + message_field(5, value.encode())


def copy_of(package, tmp_path):
    """A package to alter."""
    return shutil.copytree(package, tmp_path / "copy")


def reseal(package):
    """Make the manifest's hashes those of the files, as whoever alters a package can."""
    manifest = json.loads((package / MANIFEST).read_text())
    del manifest["sha256"]
    (package / MANIFEST).write_text(json.dumps(sealed(manifest | {"files": file_entries(package)})))


_loaded: dict[tuple[str, bytes | None], Decoder] = {}


def load_packages_once(monkeypatch):
    """In this test, packages that are equal but for "verified" have one decoder for each key, which was perhaps loaded
    in an earlier test. Graphs that call kernels are loaded anew."""
    load = Package.decoder

    def decoder(package, key=None, allow_kernels=False):
        if allow_kernels:
            return load(package, key, allow_kernels)
        described = {field: value for field, value in package.manifest.items() if field not in ("verified", "sha256")}
        name = json.dumps(described, sort_keys=True), key
        if name not in _loaded:
            _loaded[name] = load(package, key)
        _loaded[name].lengths[:] = 0
        return _loaded[name]

    monkeypatch.setattr(Package, "decoder", decoder)


def replay_in_this_process(monkeypatch):
    """In this test, exports start no process to verify: its program runs here, which has imported MindSpore."""

    from pangu_ms.export import write

    def run(command, **_):
        *_, module, package, request, answer, key_file = command
        assert module == "pangu_ms.export.replay"
        replay.main(package, request, answer, key_file)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(write, "subprocess", SimpleNamespace(run=run))


def replay_here(directory, trial, key_file):
    """What pangu_ms.export.write.replay_in_fresh_process does, in this process, which has imported MindSpore."""
    with tempfile.TemporaryDirectory() as scratch:
        request, answer = Path(scratch) / "tokens.npz", Path(scratch) / "answer.npz"
        prompts = {f"prompt_{i}": np.array(ids, np.int32) for i, ids in enumerate(trial.prompts)}
        np.savez(request, tokens=trial.tokens, domains=trial.domains, **prompts)
        replay.main(str(directory), str(request), str(answer), str(key_file or ""))
        return replay.read_replay(answer)


def export_without_kernels(monkeypatch):
    """In this test, packages have no second graph, which calls our kernels; test_kernels.py has those that do."""
    monkeypatch.setattr("pangu_ms.export.write.write_kernels", lambda *_: None)


def export_unverified(monkeypatch):
    """In this test, exports trust what they have written; test_package.py has those that run it."""
    export_without_kernels(monkeypatch)
    monkeypatch.setattr("pangu_ms.export.write.VERIFIED_STEPS", 1)
    verified = {"steps": 1, "weights": 1, "max_difference": 0.0, "logit_deviation": 1.0}
    monkeypatch.setattr("pangu_ms.export.write.verify", lambda *_: verified)
