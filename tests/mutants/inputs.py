"""A directory with a good input of every kind."""

import gzip
import hashlib
import json
import shutil
from pathlib import Path

import numpy as np

from pangu_ms.checkpoint import convert, foreign, safetensors_file
from pangu_ms.cli import main as cli
from pangu_ms.config import dump_config
from pangu_ms.core import compile_cache, files
from pangu_ms.core.protobuf import message_field, number_field
from pangu_ms.data.blocks import encode_documents
from pangu_ms.data.corpus import Document
from pangu_ms.data.npz_file import to_npz
from pangu_ms.data.resample import BatchLosses, OrderFile
from pangu_ms.data.token_counts import save_counts
from pangu_ms.data.tokenizer import Tokenizer
from pangu_ms.eval.tasks.run import Run, Settings, prepare
from pangu_ms.export import package, signature
from pangu_ms.infer.decoder import GraphShape
from pangu_ms.infer.scheduling.length_predictors import NgramRidge, Prompt, TemplateMean, save_predictor
from pangu_ms.parallel.plan import MOMENTS, Plan
from pangu_ms.parallel.strategy_file import write_parameter_layouts
from pangu_ms.research.study.runs import Stage, claim
from pangu_ms.train.guard import Guard
from tests.checkpoint import torch_writer
from tests.checkpoint.alpha_tensors import foreign_tensors
from tests.checkpoint.common import small_config
from tests.checkpoint.releases import small, to_official, write_release
from tests.checkpoint.reshard_common import ALPHA, planned, rank_slice, save, whole_arrays
from tests.eval.tasks.common import CHOICE, DEV, HashModel, task_of, write_lines
from tests.faults.rank_tables import dump, table
from tests.infer.pi_checkpoint import save_pi_checkpoint
from tests.models.alpha import random_parameters
from tests.mutants.readers import IDENTITY
from tests.parallel.common import OPERATORS, plan_of
from tests.reference.make_tokenizer_golden import GOLDEN, write_files
from tests.run.jobs import rank, write

RANKS = (1, 2, 2, 0, 1, 2, 2)
"""Plan of the checkpoints that are cut: mp 2, two stages of two layers."""
SMALL = [*ALPHA, "model.hidden_size=16", "model.ffn_hidden_size=32", "model.vocab_size=64"]


def make(root: Path, records: Path, corpus: Path) -> Path:
    """Write them; returns `root`."""
    shutil.copytree(records, root / "records")
    shutil.copytree(records / "tokenizer", root / "tokenizer")
    (root / "config.yaml").write_text(dump_config(small_config()))
    _job(root)
    _weights(root)
    _tokenizers(root)
    _corpora(root, corpus)
    _rounds(root)
    _texts_and_keys(root)
    _package(root)
    _caches(root)
    _tasks(root)
    return root


def _job(root):
    (root / "table.json").write_bytes(dump(table(2, 2)))
    (root / "hosts").write_text("# two hosts\n10.0.0.1 192.168.0.1,192.168.0.2\n10.0.0.2  192.168.0.3,192.168.0.4\n")
    (root / "hccn.conf").write_text("address_0=192.168.0.1\nnetmask_0=255.255.0.0\naddress_1=192.168.0.2\n")
    log = write(root, [rank(0), rank(1)], state="ended", exit_code=0).logs / "rank_0" / "output.log"
    log.parent.mkdir(parents=True)
    log.write_text('step 1\nTraceback (most recent call last):\n  File "x.py", line 1\nValueError: no\n' * 20)


def _weights(root):
    checkpoint, _ = save_pi_checkpoint(root / "pi", root / "tokenizer")
    state = {
        "step": 0,
        "guard": Guard().state(),
        "order": "",
        "loss_after": None,
        "bends": [{"step": 0, "changed": ["optimizer.lr=1 (was 2)"]}],
        "graph_batch_size": 4,
    }
    files.write_json(checkpoint.path / "state.json", state)
    _reseal(checkpoint.path, "state.json")
    shutil.copytree(checkpoint.path, root / checkpoint.path.name)
    convert.export_file(checkpoint.path, "huggingface", root / "hf")
    _two_shards(root / "hf")
    weights = foreign_tensors("official")
    torch_writer.save(root / "weights.pt", weights)
    foreign.write_file(root / "weights.npz", weights)
    foreign.write_file(root / "weights.ckpt", weights)
    parts = write_release(root / "release", to_official(random_parameters(small().model)))
    digests = {path.name: hashlib.md5(path.read_bytes()).hexdigest() for path in parts.iterdir()}
    (root / "release/md5").write_text("".join(f"{digest}  {name}\n" for name, digest in digests.items()))
    (root / "released.yaml").write_text(dump_config(small()))
    write_parameter_layouts(plan_of(dp=2, mp=2), 0, root / "layouts.json")
    (root / "strategy.json").write_text(OPERATORS)
    _shards(root)


def _reseal(step, name):
    from tests.mutants.kinds import reseal

    reseal(step, name)


def _two_shards(directory):
    tensors = safetensors_file.read(directory / "model.safetensors")
    names = list(tensors)
    parts = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for file, part in parts.items():
        foreign.write_file(directory / file, {name: tensors[name] for name in part})
    (directory / "model.safetensors").unlink()
    index = {"metadata": {"total_size": 1}, "weight_map": {name: file for file, part in parts.items() for name in part}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))


def _shards(root):
    """A checkpoint of four ranks, of ours and of MindSpore."""
    import mindspore as ms

    config = planned(SMALL, RANKS)
    (root / "planned.yaml").write_text(dump_config(config))
    model = {name: array.astype(np.float32) for name, array in whole_arrays(config)["model"].items()}
    step = save(root / "whole", planned(SMALL, (1, 1, 1, 0, 0, 4)), {"model": model})
    words = ["--config", str(root / "planned.yaml"), "--output", str(root / "cut")]
    assert cli.main(["ckpt", "reshard", str(step), *words]) == 0
    shutil.copytree(root / "cut" / "checkpoints" / "step-00000005", root / "step-00000005")
    for stage in (0, 1):
        write_parameter_layouts(Plan.of(config), stage, root / "strategies" / f"stage{stage}.ckpt")
    ms.merge_pipeline_strategys(str(root / "strategies"), str(root / "strategy.ckpt"))
    for number in range(4):
        held = {name: rank_slice(RANKS, name, array, number) for name, array in model.items()}
        values = [
            {"name": prefix + name, "data": ms.Tensor(np.ascontiguousarray(found[0]))}
            for name, found in held.items()
            if found
            for prefix in ("", *MOMENTS)
        ]
        (root / "ms" / f"rank_{number}").mkdir(parents=True)
        ms.save_checkpoint(values, str(root / "ms" / f"rank_{number}" / "m.ckpt"))


def _tokenizers(root):
    variants = json.loads(GOLDEN.read_text())
    write_files(
        variants["extended"]["files"]
        | {"special_tokens_map.json": variants["llama1"]["files"]["special_tokens_map.json"]},
        root / "llama",
    )
    write_files(variants["llama3"]["files"], root / "llama3")
    tokenizer = Tokenizer.load(root / "tokenizer")
    save_counts(root / "counts.json", np.arange(tokenizer.vocab_size, dtype=np.int64), tokenizer)
    prompts = [Prompt((index, index + 1), "a") for index in range(9)]
    save_predictor(root / "predictor.json", NgramRidge.fit(prompts, [5] * 9, 20), tokenizer)
    means = TemplateMean()
    means.observe(prompts[0], 9)
    save_predictor(root / "means.json", means, tokenizer)
    answers = [{"prompt": "a b", "token_ids": [5, 6], "finish_reason": "stop"}, {"prompt": "c", "tokens": 3}] * 3
    (root / "answers.jsonl").write_text("".join(json.dumps(answer) + "\n" for answer in answers))
    words = ["--counts", str(root / "counts.json"), "--vocab-size", "380", "--output", str(root / "compact")]
    assert cli.main(["tokenizer", "compress", "--tokenizer", str(root / "tokenizer"), *words]) == 0


def _corpora(root, corpus):
    import zstandard

    lines = corpus.read_bytes().splitlines(keepends=True)[:12]
    (root / "corpus.jsonl").write_bytes(b"".join(lines))
    (root / "corpus.json").write_text(json.dumps([json.loads(line) for line in lines]))
    (root / "corpus.txt").write_text("\n\n".join(json.loads(line)["text"] for line in lines))
    (root / "corpus.jsonl.gz").write_bytes(gzip.compress(b"".join(lines)))
    (root / "corpus.jsonl.zst").write_bytes(zstandard.compress(b"".join(lines)))
    work = root / "prepared.partial"
    work.mkdir()
    files.write_json(work / "key.json", {"key": "k" * 64})
    documents = [Document(json.loads(line)["text"], "code") for line in lines]
    (work / "block-000000.npz").write_bytes(encode_documents(Tokenizer.load(root / "tokenizer"), documents).to_bytes())


def _rounds(root):
    losses = np.linspace(1, 2, 8, dtype=np.float32)
    BatchLosses(np.arange(32).reshape(8, 4), losses, "r" * 64, "c" * 64, "{}").save(root / "losses.npz")
    (root / "losses.partial").write_bytes(to_npz({"identity": json.dumps(IDENTITY, sort_keys=True), "losses": losses}))
    (root / "order.npz").write_bytes(to_npz(vars(OrderFile(np.arange(16)[::-1].copy(), 4, "r" * 64, "{}"))))


def _texts_and_keys(root):
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ed25519

    (root / "prompts.txt").write_text("def alpha(x):\nprint(\n\u6625\u7720\n")
    (root / "prompts.jsonl").write_text('"def alpha"\n{"prompt": "print(", "id": 7}\n')
    (root / "text.txt").write_text("def alpha(x):\n    return x\n\u6625\u7720\n")
    (root / "aes.key").write_bytes(b"0123456789abcdef\n")
    private, pem = ed25519.Ed25519PrivateKey.generate(), serialization.Encoding.PEM
    (root / "private.pem").write_bytes(
        private.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    (root / "public.pem").write_bytes(
        private.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
    )


def _package(root):
    """A package whose graph is a few messages of mind_ir.proto: MindSpore is not asked to load it."""
    directory, shape = root / "package", GraphShape(2, 8, 32, 32)
    shutil.copytree(root / "tokenizer", directory / "tokenizer")

    def tensor(name, *dims):
        return b"".join(number_field(1, size) for size in dims) + message_field(7, name.encode())

    cache = message_field(3, tensor("Default:blocks.0.cache.keys", shape.batch_size * (shape.capacity + 1), 8))
    ids = message_field(5, message_field(2, tensor("ids", shape.batch_size + shape.chunk)))
    node = message_field(1, message_field(4, b"MatMul"))
    others = (
        message_field(5, message_field(2, tensor(name))) for name in ("positions", "last", "chunk_slot", "with_chunk")
    )
    (directory / "model.mindir").write_bytes(message_field(7, node + cache + ids + b"".join(others)))
    manifest = {
        "format_version": package.FORMAT_VERSION,
        "graph": vars(shape),
        "encryption": "",
        "target": "CPU",
        "files": package.file_entries(directory),
    }
    files.write_json(directory / "manifest.json", package.sealed(manifest))
    content = (directory / "manifest.json").read_bytes()
    (directory / "manifest.sig").write_bytes(signature.sign(content, root / "private.pem"))


def _caches(root):
    graph = root / "graph" / "rank_0"
    graph.mkdir(parents=True)
    (graph / "graph.mindir").write_bytes(bytes(range(256)) * 4)
    files.write_json(
        root / "graph" / compile_cache.CHECKSUMS, {"rank_0/graph.mindir": files.sha256_file(graph / "graph.mindir")}
    )
    claim(root / "study", "a study")
    stage = Stage(root / "study" / "stage", ("train", "alpha/tiny"), {"steps": 3})
    stage.begin()
    stage.finish({"step": 3, "held_out": {"loss": 2.5}})
    run = root / "run"
    run.mkdir()
    (run / "metrics.jsonl").write_text(
        "".join(json.dumps({"step": step, "loss": 6.0 - step}) + "\n" for step in range(5))
    )


def _tasks(root):
    splits = {name: {"files": "dev.jsonl"} for name in ("dev", "train")}
    task = task_of(root, CHOICE | {"data": {"reader": "clue", "splits": splits}})
    write_lines(root / "task_data" / "dev.jsonl", DEV)
    sections, _ = prepare([task], Settings((0,)), root / "task_data")
    with Run(root / "scores", HashModel(), sections) as run:
        run.ask(progress=False)
        run.results()
