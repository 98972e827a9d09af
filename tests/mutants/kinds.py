"""Every kind of file that the product reads: how it is damaged, which command reads it, how to seal it anew."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.mutants import mutate


@dataclass(frozen=True)
class Kind:
    """One file of one kind of input."""

    source: str
    """Name of the good input in the test's directory: a file, or a directory."""
    file: str
    """Of that directory, the file to damage (a pattern); "" where the input is itself the file."""
    command: tuple[str, ...]
    """Of `pangu`, or the name of a function of readers.py, with a colon; {input}: the damaged copy, {output}: a new
    place, {source}: of good inputs."""
    form: str = "bytes"
    """What damage it takes; see mutate.DAMAGES."""
    exact: bool = False
    """Whether what is taken must give what the good one gives: digests promise so."""
    share: float = 0.0
    """Of the damaged ones, at least so many are taken: refusing all is no way to pass."""
    endless: bool = False
    """Whether it may have any size, such as a log."""
    forgiving: bool = False
    """Whether a damaged one, as a crash may leave it, is done without."""
    steady: bool = True
    """Whether it gives the same each time."""
    waits: bool = False
    """Whether it may be a pipe, as a shell's <(...) gives one: then a pipe that nobody writes to is waited for."""
    optional: bool = False
    """Whether there may be none."""
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
        return mutate.DAMAGES[self.form](content, rng, *([seal] if self.form == "sealed" else []))


def seal(manifest):
    """A manifest with its own digest, as the product makes it."""
    if not isinstance(manifest, dict):
        return manifest
    rest = {key: value for key, value in manifest.items() if key != "sha256"}
    text = json.dumps(rest, sort_keys=True, ensure_ascii=False).encode("utf-8", "surrogatepass")
    return rest | {"sha256": hashlib.sha256(text).hexdigest()}


def reseal(directory: Path, name: str) -> None:
    """Give the damaged file its new size and digest in manifest.json, and seal that; a device or a pipe has size 0."""
    path, file = directory / "manifest.json", directory / name
    manifest, size = json.loads(path.read_bytes()), file.stat().st_size if file.exists() else 0
    if size == mutate.HUGE:  # to be known by its size, not after minutes
        return
    content = file.read_bytes() if file.is_file() else b""
    manifest["files"][name].update(bytes=size, sha256=hashlib.sha256(content).hexdigest())
    path.write_text(json.dumps(seal(manifest), ensure_ascii=False), encoding="utf-8")


def reseal_tokenizer(directory: Path, name: str) -> None:
    """Give tokenizer.json the digest of the damaged model."""
    path = directory / "tokenizer.json"
    if not (directory / name).is_file() or (directory / name).stat().st_size == mutate.HUGE:
        return
    settings = json.loads(path.read_bytes()) | {
        "vocab_model_sha256": hashlib.sha256((directory / name).read_bytes()).hexdigest()
    }
    path.write_text(json.dumps(settings))


def _with(base: Kind, file: str | None = None, form: str = "bytes", share: float = 0.0, **changes) -> Kind:
    """Another file of the same input."""
    return Kind(**(vars(base) | {"file": base.file if file is None else file, "form": form, "share": share} | changes))


_CONFIG = Kind("config.yaml", "", ("config", "show", "--config", "{input}", "--json"), "yaml", share=0.05)
_TABLE = Kind("table.json", "", ("ranktable", "check", "{input}"), "json", starts="  ")
_HOSTS = Kind("hosts", "", ("ranktable", "make", "--hosts", "{input}", "--devices", "2"), share=0.02)
_HCCN = Kind(
    "hccn.conf",
    "",
    ("ranktable", "make", "--hosts", "10.0.0.1", "--devices", "2", "--hccn-tool", "none", "--hccn-conf", "{input}"),
    share=0.2,
)
_STATUS = Kind(
    "job",
    "status.json",
    ("status", "{input}", "--json"),
    "json",
    refusals=(1, 2),
    optional=True,
    steady=False,
    forgiving=True,
)
_LOGS = Kind(
    "job",
    "events.jsonl",
    ("logs", "{input}", "--errors"),
    "lines",
    refusals=(1, 2),
    share=0.3,
    endless=True,
    optional=True,
    forgiving=True,
)

_RESHARD = ("ckpt", "reshard", "{input}", "--whole", "--output", "{output}")
_STEP = Kind("step-00000000", "model.safetensors", _RESHARD, exact=True, product="checkpoints/step-*/*.safetensors")
_RANKS = _with(_STEP, "model-rank-00002.safetensors", source="step-00000005")
_STATE = Kind("step-00000000", "state.json", (":state", "{input}"), "json", share=0.1, after=reseal)
_MS_COMMAND = (
    "ckpt",
    "reshard",
    "--from-mindspore",
    "{input}",
    "--strategy",
    "{source}/strategy.ckpt",
    "--config",
    "{source}/planned.yaml",
    "--whole",
    "--output",
    "{output}",
)
_MS_SHARDS = Kind("ms", "rank_1/m.ckpt", _MS_COMMAND, product="checkpoints/step-*/*.safetensors", share=0.03)

_HF = Kind(
    "hf", "config.json", ("convert", "{input}", "--from", "huggingface", "--output", "{output}"), "json", share=0.02
)
_FOREIGN = ("convert", "{input}", "--from", "official", "--config", "{source}/config.yaml", "--output", "{output}")
_NPZ = Kind("weights.npz", "", _FOREIGN, "npz", share=0.02)

_RELEASED = (
    *("convert", "{input}/parts", "--from", "official", "--strategy", "{input}/pangu_ckpt_strategy.ckpt"),
    *("--embeddings", "{input}/npy", "--config", "{source}/released.yaml", "--output", "{output}"),
)
_PARTS = Kind("release", "parts/filerted_1.ckpt", _RELEASED, product="step-*/model.safetensors", share=0.02)

_ENCODE = ("tokenizer", "encode", "--tokenizer", "{input}", "def alpha(x): \u6625\u7720")
_TOKENIZER = Kind("tokenizer", "tokenizer.json", _ENCODE, "json", exact=True, share=0.05)
_LLAMA = Kind("llama", "tokenizer_config.json", _ENCODE, "json", share=0.05, optional=True)
_FAST = _with(_LLAMA, "tokenizer.json", "json", 0.03, source="llama3", optional=False)
_TEXT = Kind(
    "text.txt",
    "",
    ("tokenizer", "encode", "--tokenizer", "{source}/tokenizer", "--file", "{input}"),
    share=0.2,
    waits=True,
)
_COUNTS_COMMAND = (
    "tokenizer",
    "compress",
    "--tokenizer",
    "{source}/tokenizer",
    "--counts",
    "{input}",
    "--vocab-size",
    "380",
    "--output",
    "{output}",
)
_COUNTS = Kind("counts.json", "", _COUNTS_COMMAND, "json", product="vocab.model")

_ANSWERS_COMMAND = ("schedule", "simulate", "--policy", "sjf", "--max-new-tokens", "8", "--chunk", "65536", "--lengths")
_ANSWERS = Kind("answers.jsonl", "", (*_ANSWERS_COMMAND, "{input}", "--json"), "lines", share=0.1, waits=True)
_PREDICT = (*_ANSWERS_COMMAND, "{source}/answers.jsonl", "--tokenizer", "{source}/tokenizer", "--predictor", "{input}")
_PREDICTOR = Kind("predictor.json", "", _PREDICT, "json", share=0.02)

_CORPUS_COMMAND = (
    "tokenizer",
    "train",
    "--corpus",
    "{input}",
    "--vocab-size",
    "300",
    "--segmenter",
    "none",
    "--output",
    "{output}",
)
_CORPUS = Kind(
    "corpus.jsonl", "", _CORPUS_COMMAND, "lines", share=0.3, endless=True, product="vocab.model", forgiving=True
)
_INSPECT = ("data", "inspect", "{input}", "--rows", "100000", "--json")
_RECORDS = Kind("records", "manifest.json", _INSPECT, "json", share=0.02)
_BLOCKS = Kind("prepared.partial", "key.json", (":blocks", "{input}"), "json", forgiving=True)
_RESAMPLE = ("data", "resample", "--losses", "{input}", "--output", "{output}.npz")

_PACKAGE = Kind("package", "manifest.json", (":package", "{input}"), "json", exact=True)
_SHOW = ("tasks", "show", "colour", "--shots", "0,1", "--task-file")
_TASK = Kind("colour.yaml", "", (*_SHOW, "{input}", "--task-data", "{source}/task_data"), "yaml", share=0.05)
_TASK_DATA = Kind(
    "task_data", "dev.jsonl", (*_SHOW, "{source}/colour.yaml", "--task-data", "{input}"), "lines", share=0.05
)
_SCORES = Kind("scores", "run.json", ("tasks", "table", "{input}", "--json"), "json", share=0.02)
_KEY = Kind("aes.key", "", (":aes_key", "{input}"), share=0.1, waits=True)
_STUDY = Kind("study", "study.json", (":study", "{input}"), "json", optional=True, forgiving=True)

KINDS = {
    "config": _CONFIG,
    "rank table": _TABLE,
    "hosts file": _HOSTS,
    "device addresses": _HCCN,
    "job status": _STATUS,
    "job description": _with(_STATUS, "job.json", "json"),
    "job events": _with(_STATUS, "events.jsonl", "lines", 0.7, endless=True),
    "job events of logs": _LOGS,
    "log": _with(_LOGS, "logs/rank_0/*", share=0.9),
    "strategy file": Kind("strategy.ckpt", "", ("plan", "inspect", "{input}"), share=0.02),
    "operator strategies": Kind("strategy.json", "", ("plan", "inspect", "{input}"), "json", share=0.05),
    "parameter layouts": Kind("layouts.json", "", ("plan", "inspect", "{input}"), "json", share=0.05),
    "losses of batches": Kind("losses.npz", "", _RESAMPLE, "npz", share=0.02),
    "order of rows": Kind("order.npz", "", (":order", "{input}"), "npz", share=0.02),
    "prompts": Kind("prompts.txt", "", (":prompts", "{input}"), share=0.2, waits=True),
    "prompts in JSON": Kind("prompts.jsonl", "", (":prompts", "{input}"), "lines", share=0.1, waits=True),
    "task file": _TASK,
    "data of a task": _TASK_DATA,
    "run of tasks": _SCORES,
    "records of a task": _with(_SCORES, "records/*.jsonl", "lines", 0.02, optional=True),
    "AES key": _KEY,
    "signing key": Kind("private.pem", "", (":signing_key", "{input}"), waits=True),
    "verifying key": Kind("public.pem", "", (":verifying_key", "{input}"), exact=True, waits=True),
    "metrics": Kind(
        "run", "metrics.jsonl", (":metrics", "{input}"), "lines", share=0.7, endless=True, optional=True, forgiving=True
    ),
    "study": _STUDY,
    "study's command": _with(_STUDY, "stage/command.json", "json"),
    "study's result": _with(_STUDY, "stage/result.json", "json"),
    "compile cache": Kind("graph", "checksums.json", (":compiled", "{input}"), "json", exact=True, endless=True),
    "compiled graph": Kind("graph", "rank_0/graph.mindir", (":compiled", "{input}"), exact=True, endless=True),
    "MindIR manifest": _PACKAGE,
    "MindIR manifest, sealed": _with(_PACKAGE, form="sealed", exact=False, share=0.02),
    "MindIR graph": _with(_PACKAGE, "model.mindir", exact=True),
    "MindIR graph, sealed": _with(_PACKAGE, "model.mindir", exact=False, share=0.02, after=reseal),
    "MindIR signature": _with(
        _PACKAGE, "manifest.sig", exact=True, command=(":signature", "{input}", "{source}/public.pem")
    ),
    "checkpoint tensors": _STEP,
    "checkpoint manifest": _with(_STEP, "manifest.json", "json"),
    "checkpoint manifest, sealed": _with(_STEP, "manifest.json", "sealed", 0.1, exact=False),
    "checkpoint tensors, sealed": _with(_STEP, form="safetensors", share=0.05, exact=False, after=reseal),
    "checkpoint of ranks": _RANKS,
    "checkpoint of ranks, sealed": _with(_RANKS, form="safetensors", share=0.05, exact=False, after=reseal),
    "manifest of ranks, sealed": _with(_RANKS, "manifest.json", "sealed", 0.1, exact=False),
    "checkpoint config, sealed": _with(_STEP, "config.yaml", "yaml", 0.03, after=reseal),
    "checkpoint state, sealed": _STATE,
    "Hugging Face config": _HF,
    "PyTorch weights": Kind("weights.pt", "", _FOREIGN, share=0.02, exact=True, product="step-*/model.safetensors"),
    "Hugging Face weights": _with(_HF, "model-2.safetensors", "safetensors", 0.05),
    "Hugging Face index": _with(_HF, "model.safetensors.index.json", "json", 0.02),
    "npz weights": _NPZ,
    "tokenizer settings": _TOKENIZER,
    "tokenizer model": _with(_TOKENIZER, "vocab.model", command=(":tokenizer", "{input}")),
    "tokenizer model, sealed": _with(
        _TOKENIZER, "vocab.model", exact=False, share=0.01, command=(":tokenizer", "{input}"), after=reseal_tokenizer
    ),
    "LLaMA tokenizer settings": _LLAMA,
    "LLaMA tokenizer model": _with(_LLAMA, "tokenizer.model", share=0.01, optional=False),
    "LLaMA special tokens": _with(_LLAMA, "special_tokens_map.json", "json", 0.05),
    "LLaMA generation config": _with(_LLAMA, "generation_config.json", "json", 0.05),
    "tokenizer.json": _FAST,
    "text to encode": _TEXT,
    "counts of pieces": _COUNTS,
    "released parts": _PARTS,
    "strategy of parts": _with(_PARTS, "pangu_ckpt_strategy.ckpt"),
    "embedding table": _with(_PARTS, "npy/*word_embedding.npy", share=0.02),
    "list of MD5": _with(_PARTS, "md5", command=(*_RELEASED, "--md5", "{input}/md5")),
    "lengths of answers": _ANSWERS,
    "length predictor": _PREDICTOR,
    "template means": _with(_PREDICTOR, source="means.json"),
    "vocabulary map": Kind("compact", "vocab_map.json", (":vocab_map", "{input}"), "json"),
    "JSON lines": _CORPUS,
    "JSON array": _with(_CORPUS, source="corpus.json", form="json", share=0.2),
    "plain text": _with(_CORPUS, source="corpus.txt", share=0.3),
    "compressed lines": _with(_CORPUS, source="corpus.jsonl.gz", form="gz", share=0.1),
    "Zstandard lines": _with(_CORPUS, source="corpus.jsonl.zst"),
    "key of encoded blocks": _BLOCKS,
    "encoded blocks": _with(_BLOCKS, "block-000000.npz", "npz", 0.02, optional=True),
    "losses so far": Kind("losses.partial", "", (":partial_losses", "{input}"), "npz", share=0.02, optional=True),
    "ckpt weights": Kind("weights.ckpt", "", _FOREIGN, share=0.02),
    "MindSpore shards": _MS_SHARDS,
    "records manifest": _RECORDS,
    "records": _with(_RECORDS, "*.mindrecord", exact=True, command=(":rows", "{input}")),
    "records index": _with(_RECORDS, "*.mindrecord.db", exact=True, command=(":rows", "{input}"), endless=True),
    "records digests": _with(_RECORDS, "*.digests", exact=True, command=(":rows", "{input}")),
}
"""Those that need mindspore come last: from FIRST_WITH_MINDSPORE on it is in every reading process."""
FIRST_WITH_MINDSPORE = "losses so far"
