"""Every path of the verbs that only `runtime.device=Ascend` takes on the host, entered with the device stubbed
(tests/stub_ascend).

Found by every branch on the device, the chip, the world and MindSpore's context (grep `"Ascend"`, `"CPU"`,
`runtime.device`, `device_target`, `soc()`). "compiled" is by MindSpore's front end for an Ascend chip; the execution of
compiled graphs is stubbed everywhere, and in brackets what else is.

    runtime.start: DEVICE_ID, graph mode, begun before
        here (every verb), tests/test_runtime.py [mindspore.set_device]
    train, one device: whole step, lazy_inline, cached graph
        here: test_one_device_trains_..., test_every_verb_...
    train, one device: accumulated step, bfloat16
        here: test_every_verb_...
    train, a plan: start, step, log, save, stop, resume
        tests/train/test_ascend.py [sums over ranks (HCCL)]
    train, a plan: slices, messages, refusals
        tests/train/test_planned.py [HCCL]
    launch on Ascend: rank tables, binding, variables
        tests/train/test_ascend.py, tests/run/test_launch.py
    describe: --device ascend, shared records, plan's ranks
        tests/train/test_describe.py, tests/train/test_launch.py
    generate: half-precision cache, both lengths, beams, int8 by MindSpore's own product
        here: test_one_device_trains_..., test_every_verb_..., tests/ascend_ops/test_quantized.py
    export: what travels, target, check in a fresh process
        here: test_every_verb_... [the fresh process, too]
    run-mindir: a package whose target is Ascend
        here: test_every_verb_...
    eval, data losses, analyze, model inherit
        here: test_every_verb_...
    Ascend C kernels in graphs, launchers, no cached graphs
        here: test_kernels_of_ours_... [CANN's headers (one empty file)]
    operators: choice by chip and dtype, built-in attention
        here (float16 and bfloat16), tests/ascend_ops/test_backend.py
    Ascend C kernels themselves
        tests/ascend_ops/ascendc (executed by the host header)
    mindformers: device_target of MindFormers' context
        tests/mindformers/test_settings.py [not executed]
    manifest, doctor
        tests/run [recorded outputs of the tools]
"""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from pangu_ms.checkpoint.store import open_checkpoint
from pangu_ms.config import load_config
from pangu_ms.data.loader import Loader
from pangu_ms.data.records import RecordSet
from pangu_ms.data.resample import BatchLosses
from pangu_ms.data.tokenizer import Tokenizer
from pangu_ms.models.common.init import initial_values
from pangu_ms.models.registry import FAMILIES
from tests.faults.common import ROOT
from tests.stub_ascend.sitecustomize import executed, loss_of

PI = ["model.num_kv_heads=2", "model.siaf_terms=2", "model.aug_shortcut_branches=1", "model.ffn_hidden_size=48"]
PARTS = {"pi": PI, "sigma": ["model.domains=[code, text]", "model.num_experts=4"]}
"""What a family's tiny configuration has besides."""
IN_ONE_PROCESS = """
import contextlib, io, json, sys
sys.path.insert(0, sys.argv.pop(1))
import tests.stub_ascend.sitecustomize
from pangu_ms.cli.main import main
for words in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(io.StringIO()) as out:
        code = main(words)
    print(json.dumps([code, out.getvalue()]))
"""


STUBS = os.pathsep.join(map(str, (Path(__file__).parent / "stub_ascend", ROOT, ROOT / "run")))
"""Where processes that the verbs start find their sitecustomize."""


@pytest.fixture
def verbs(forks, tmp_path):
    """Runs `pangu` verbs in one process with a stubbed device; what each printed."""

    def run(*commands, **variables):
        place = {"PYTHONPATH": STUBS, "ASCEND_STUB": str(tmp_path / "stub")}
        (tmp_path / "verbs.py").write_text(IN_ONE_PROCESS)  # a file, since there is no compile cache without
        words = [tmp_path / "verbs.py", ROOT, json.dumps([[*map(str, words)] for words in commands])]
        (tmp_path / "cwd").mkdir(exist_ok=True)
        done = forks.run(words, tmp_path / "cwd", os.environ | place | variables)
        found = [json.loads(line) for line in done.stdout.splitlines()]
        assert done.returncode == 0 and [code for code, _ in found] == [0] * len(commands), done.stderr[-5000:]
        assert not list((tmp_path / "cwd").iterdir())
        return [out for _, out in found]

    return run


def training(config, records, output, *overrides):
    small = ["runtime.device=Ascend", "train.steps=4", "train.save_every=2", "train.keep_checkpoints=0"]
    return ["train", "--config", config, *small, *overrides, "--data", records, "--output", output, "--json"]


def require_executed(output, records, config, parts=1):
    """Weights and moments are what the stub makes of the initial ones and of each batch."""
    initial, trained = dict(initial_values(config.model, config.train.seed)), config.model.trainable_parameter_shapes()
    expected = {name: initial[name] for name in trained}
    moments = {
        prefix + name: np.zeros_like(value) for prefix in ("adam_m.", "adam_v.") for name, value in expected.items()
    }
    for _, batch in zip(
        range(config.train.steps),
        Loader(RecordSet.open(records, "train"), config.train.batch_size, config.data.seed).batches(),
    ):
        change = sum(loss_of(part.ids, part.loss_mask)[2] for part in batch.split(parts)) / parts
        expected, moments = (
            {name: executed(value, change) for name, value in tensors.items()} for tensors in (expected, moments)
        )
    expected |= {name: value for name, value in initial.items() if name not in trained}
    checkpoint = open_checkpoint(output)
    assert checkpoint.step == config.train.steps
    for group, tensors in (("model", expected), ("optimizer", moments)):
        found = checkpoint.tensors(group)
        assert found.keys() == tensors.keys() and all(np.array_equal(found[name], tensors[name]) for name in tensors)


def require_successors(out, tokenizer, prompt):
    """Greedy text of a stub behind each of whose tokens comes the next one."""
    answer = json.loads(out)
    last = tokenizer.encode_prompt(prompt)[-1]
    assert (
        answer["token_ids"] == [(last + 1 + i) % tokenizer.vocab_size for i in range(len(answer["token_ids"]))]
        and len(answer["token_ids"]) > 2
    )


def test_one_device_trains_resumes_and_generates(records, tiny_overrides, tmp_path, verbs):
    overrides = [*tiny_overrides, "model.compute_dtype=float16", "train.eval_every=0"]
    train = training("alpha/tiny", records, tmp_path / "run", *overrides, "train.steps=4")
    (first,) = verbs([*train, "--stop-at", 2])
    greedy = ["--prompt", "def a", "--temperature", 0, "--max-new-tokens", 4, "--json"]
    last, text, _, of_int8 = verbs(
        [*train, "--resume"],
        ["generate", tmp_path / "run", *greedy],
        ["quantize", tmp_path / "run", "--weights", "int8", "--output", tmp_path / "int8"],
        ["generate", tmp_path / "int8", *greedy],
    )
    assert (
        json.loads(first)["stopped_by"] == "stop_at"
        and json.loads(last)["cache_hit"]  # of the training step
        and json.loads(last)["step"] == 4
        and json.loads(last)["held_out"]["loss"] == pytest.approx(3.0)
    )
    require_executed(tmp_path / "run", records, load_config("alpha/tiny", [*overrides, "train.steps=4"]))
    for answer in (text, of_int8):
        require_successors(answer, Tokenizer.load(records / "tokenizer"), "def a")
    assert set((tmp_path / "stub.devices").read_text().split()) == {"0"}


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_verb_that_opens_a_device(records, tiny_overrides, tmp_path, verbs, family):
    config, extra = f"{family}/tiny", PARTS.get(family, [])
    overrides = [*tiny_overrides, *extra, "model.compute_dtype=bfloat16", "train.accumulation_steps=2", "train.steps=4"]
    run, package, greedy = tmp_path / "run", tmp_path / "package", ["--temperature", 0, "--max-new-tokens", 4, "--json"]
    out = verbs(
        training(config, records, run, *overrides),
        ["eval", run, "--data", records, "--json"],
        ["generate", run, "--prompt", "def a", "--num-beams", 2, "--max-new-tokens", 3, "--json"],
        ["export", run, "--output", package, "--batch-size", 2, "--json"],
        ["run-mindir", package, "--prompt", "def a", *greedy],
        ["data", "losses", run, "--data", records, "--output", tmp_path / "losses.npz"],
        ["analyze", "collapse", run, "--data", records, "--output", tmp_path / "collapse.json"],
        [
            "model",
            "inherit",
            run,
            "model.ffn_hidden_size=40",
            "--neurons",
            "taylor",
            "--data",
            records,
            "--batch-size",
            4,
            "--calibration-batches",
            2,
            "--output",
            tmp_path / "student",
        ],
        DEVICE_ID="3",
    )
    require_executed(run, records, load_config(config, overrides), parts=2)
    assert json.loads(out[1])["loss"] == pytest.approx(3.0)
    require_successors(out[2], Tokenizer.load(records / "tokenizer"), "def a")
    require_successors(out[4], Tokenizer.load(records / "tokenizer"), "def a")
    assert json.loads((package / "manifest.json").read_text())["target"] == "Ascend"
    assert BatchLosses.load(tmp_path / "losses.npz").loss == pytest.approx(3.0)
    assert set((tmp_path / "stub.devices").read_text().split()) == {"3"}


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_kernels_of_ours_stand_in_graphs_but_not_in_what_travels_or_is_kept(records, tiny_overrides, tmp_path, verbs):
    """Their launchers are libraries that MindSpore compiles for a process: a graph that names one is of no use to
    another."""
    for directory in ("kernels/op_api", "cann/opp", "cann/include/acl"):
        (tmp_path / directory).mkdir(parents=True)
    (tmp_path / "cann/include/acl/acl_base.h").write_text("#include <cstdint>\n")
    installed = {
        "ASCEND_CUSTOM_OPP_PATH": str(tmp_path / "kernels"),
        "ASCEND_OPP_PATH": str(tmp_path / "cann/opp"),
        "TMPDIR": str(tmp_path / "temporary"),
    }
    (tmp_path / "temporary").mkdir()
    run, package = tmp_path / "run", tmp_path / "package"
    overrides = [*tiny_overrides, *PI, "model.compute_dtype=float16", "train.steps=4"]
    out = verbs(
        training("pi/tiny", records, run, *overrides),
        ["export", run, "--output", package, "--json"],
        ["generate", run, "--prompt", "def a", "--temperature", 0, "--max-new-tokens", 4, "--json"],
        XDG_CACHE_HOME=str(tmp_path / "cache"),
        **installed,
    )
    require_successors(out[2], Tokenizer.load(records / "tokenizer"), "def a")
    assert not (tmp_path / "cache/pangu_ms/compiled").exists() and not os.listdir(tmp_path / "temporary")
    content = b"".join(path.read_bytes() for path in package.rglob("*.mindir"))
    assert b"MatMul" in content and b"aclnn" not in content and b"callback" not in content
