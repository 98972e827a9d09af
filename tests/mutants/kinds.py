"""Every kind of file that the product reads: how to make a good one, which command reads it, how to seal it anew."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.mutants import mutate

Mutator = Callable[[bytes, object], tuple[str, bytes]]


@dataclass(frozen=True)
class Kind:
    """One file of one kind of input."""

    source: str
    """Name of the good input in the test's directory: a file, or a directory."""
    file: str
    """Of that directory, the file to damage (a pattern); "" where the input is itself the file."""
    command: tuple[str, ...]
    """Of `pangu`; {input}: the damaged copy, {output}: a new place."""
    form: str = "bytes"
    """What damage it takes: bytes, json, yaml, or sealed (JSON with its own digest)."""
    exact: bool = False
    """Whether what is taken must give what the good one gives: digests promise so."""
    imports: tuple[str, ...] = ()
    """What the reader imports first, before the reading processes are forked."""
    refusals: tuple[int, ...] = (2,)
    """Exit codes that say no."""
    starts: str = "pangu"
    """How the last line of a refusal begins, where it stands in the output."""
    product: str = ""
    """Where the command writes: compared instead of its output."""
    after: Callable[[Path, str], None] | None = field(default=None, compare=False)
    """What else an attacker would do to the copy after the damage, such as sealing its manifest."""

    def mutants(self, content: bytes, rng) -> tuple[str, bytes]:
        """One damaged content."""
        if self.form == "bytes" or rng.random() < 0.3:
            return mutate.bytes_of(content, rng)
        if self.form == "yaml":
            return mutate.yaml_of(content, rng)
        return mutate.json_of(content, rng, seal if self.form == "sealed" else lambda value: value)


def seal(manifest):
    """A manifest with its own digest, as the product makes it."""
    if not isinstance(manifest, dict):
        return manifest
    rest = {key: value for key, value in manifest.items() if key != "sha256"}
    text = json.dumps(rest, sort_keys=True, ensure_ascii=False).encode("utf-8", "surrogatepass")
    return rest | {"sha256": hashlib.sha256(text).hexdigest()}


def reseal(directory: Path, name: str) -> None:
    """Give the damaged file its new size and digest in manifest.json, and seal that."""
    path = directory / "manifest.json"
    manifest, content = json.loads(path.read_bytes()), (directory / name).read_bytes()
    manifest["files"][name].update(bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
    path.write_text(json.dumps(seal(manifest), ensure_ascii=False), encoding="utf-8")


def _with(base: Kind, **changes) -> Kind:
    return Kind(**(vars(base) | changes))


_CONFIG = Kind("config.yaml", "", ("config", "show", "--config", "{input}", "--json"), "yaml")
_TABLE = Kind("table.json", "", ("ranktable", "check", "{input}"), "json", starts="  ")
_STATUS = Kind("job", "status.json", ("status", "{input}", "--json"), "json", refusals=(1, 2))
_LOGS = Kind("job", "events.jsonl", ("logs", "{input}", "--errors"), refusals=(1, 2))
_RESHARD = ("ckpt", "reshard", "{input}", "--whole", "--output", "{output}")
_CKPT_IMPORTS = ("pangu_ms.checkpoint.reshard_cli", "pangu_ms.checkpoint.reshard")
_STEP = Kind("step-00000000", "model.safetensors", _RESHARD, exact=True, imports=_CKPT_IMPORTS, product="step-00000000/*.safetensors")
_HF = Kind("hf", "config.json", ("convert", "{input}", "--from", "huggingface", "--output", "{output}"), "json")
_FOREIGN = ("convert", "{input}", "--from", "official", "--config", "{source}/config.yaml", "--output", "{output}")
_TOKENIZER = Kind("tokenizer", "tokenizer.json", ("tokenizer", "encode", "--tokenizer", "{input}", "def alpha(x): \u6625\u7720"), "json", exact=True)
_INSPECT = ("data", "inspect", "{input}", "--rows", "100000", "--json")
_RECORDS = Kind("records", "manifest.json", _INSPECT, "json", imports=("mindspore", "mindspore.dataset"))
_PACKAGE = ("run-mindir", "{input}", "--prompt", "def", "--max-new-tokens", "2", "--temperature", "0")

KINDS = {
    "config": _CONFIG,
    "rank table": _TABLE,
    "job status": _STATUS,
    "job description": _with(_STATUS, file="job.json"),
    "job events": _with(_STATUS, file="events.jsonl", form="bytes"),
    "job events of logs": _LOGS,
    "log": _with(_LOGS, file="logs/rank_0/*"),
    "checkpoint tensors": _STEP,
    "checkpoint manifest": _with(_STEP, file="manifest.json", form="json"),
    "checkpoint manifest, sealed": _with(_STEP, file="manifest.json", form="sealed", exact=False),
    "checkpoint tensors, sealed": _with(_STEP, exact=False, after=reseal),
    "checkpoint config, sealed": _with(_STEP, file="config.yaml", form="yaml", after=reseal),
    "checkpoint state, sealed": _with(_STEP, file="state.json", form="json", after=reseal),
    "Hugging Face config": _HF,
    "Hugging Face weights": _with(_HF, file="model.safetensors", form="bytes"),
    "Hugging Face tokenizer settings": _with(_HF, file="tokenizer_config.json"),
    "Hugging Face tokenizer model": _with(_HF, file="tokenizer.model", form="bytes"),
    "Hugging Face ends of texts": _with(_HF, file="generation_config.json"),
    "npz weights": Kind("weights.npz", "", _FOREIGN),
    "ckpt weights": Kind("weights.ckpt", "", _FOREIGN, imports=("mindspore",)),
    "tokenizer settings": _TOKENIZER,
    "tokenizer model": _with(_TOKENIZER, file="vocab.model", form="bytes"),
    "records manifest": _RECORDS,
    "records": _with(_RECORDS, file="*.mindrecord", form="bytes", exact=True),
    "records index": _with(_RECORDS, file="*.mindrecord.db", form="bytes", exact=True),
    "records digests": _with(_RECORDS, file="*.digests", form="bytes", exact=True),
    "losses of batches": Kind("losses.npz", "", ("data", "resample", "--losses", "{input}", "--output", "{output}.npz")),
    "strategy file": Kind("strategy.ckpt", "", ("plan", "inspect", "{input}")),
    "strategy JSON": Kind("strategy.json", "", ("plan", "inspect", "{input}"), "json"),
}
