"""The search against brute force over every combination of fields, and what it says of the best, the near and the
impossible."""

import itertools
import json
import re

import pytest
from pydantic import ValidationError

from pangu_ms.cli.main import main
from pangu_ms.config import load_config
from pangu_ms.config.load import replace
from pangu_ms.core.errors import PlanError
from pangu_ms.parallel.plan import Plan
from pangu_ms.planner.cluster import CHIPS, GIB
from pangu_ms.planner.estimate import Estimate
from pangu_ms.planner.search import search

A910 = CHIPS["ascend910"]
THIN = ["model.num_layers=6", "train.batch_size=4"]


def estimate(name, words, hbm=0):
    return Estimate.of(Plan.of(load_config(name, words)), A910, hbm)


def every_plan(config, devices, batch):
    """All values of all fields; the configuration decides what is valid."""
    numbers = [n for n in range(1, max(devices, batch) + 1) if devices % n == 0 or batch % n == 0]
    for dp, mp, pp in itertools.product(numbers, repeat=3):
        if dp * mp * pp != devices or batch % dp:
            continue
        switches = itertools.product(
            (False, True), ("none", "selective", "full"), (False, True), ("replicated", "row"), numbers, numbers
        )
        for shard, recompute, sequence, vocab, micro, accumulation in switches:
            parallel = {
                "data_parallel": dp,
                "model_parallel": mp,
                "pipeline_stage": pp,
                "micro_batch_num": micro,
                "optimizer_shard": shard,
            }
            parallel |= {"recompute": recompute, "sequence_parallel": sequence, "vocab_embedding": vocab}
            try:
                yield Plan.of(
                    replace(
                        config, parallel=parallel, train={"batch_size": batch // dp, "accumulation_steps": accumulation}
                    )
                )
            except (ValidationError, PlanError):
                continue


@pytest.mark.parametrize(("hbm", "devices"), [(12 * GIB, 4), (14 * GIB, 4), (60 * GIB, 4), (20 * GIB, 2)])
def test_nothing_valid_that_fits_is_faster_than_the_best(hbm, devices):
    config = load_config("alpha/13b", THIN)
    found = search(config, devices, A910, hbm, margin=0, progress=False)
    fitting = [e for e in (Estimate.of(plan, A910, hbm) for plan in every_plan(config, devices, 4)) if e.excess <= 0]
    assert fitting and found.ranked[0].seconds == pytest.approx(min(e.seconds for e in fitting))
    degrees = {
        (
            e.plan.config.parallel.data_parallel,
            e.plan.config.parallel.model_parallel,
            e.plan.config.parallel.pipeline_stage,
        )
        for e in fitting
    }
    assert len(found.ranked) == len(degrees)
    assert all(a.seconds <= b.seconds for a, b in itertools.pairwise(found.ranked))


def test_every_plan_keeps_the_batch_the_devices_and_the_margin(capsys):
    assert (
        main(
            [
                "plan",
                "search",
                "--config",
                "alpha/13b",
                "--devices",
                "64",
                "--global-batch",
                "64",
                "--margin",
                "0.5",
                "--top",
                "50",
                "--json",
            ]
        )
        == 0
    )
    found = json.loads(capsys.readouterr().out)
    assert len(found["plans"]) > 5 and found["fitting"] < found["tried"]
    for row in found["plans"]:
        again = estimate("alpha/13b", row["overrides"])
        assert (again.plan.mesh.world, again.plan.config.global_batch_size) == (
            64,
            64,
        ) and again.bytes <= 0.5 * 32 * GIB
        assert again.tokens_per_second == pytest.approx(
            row["tokens_per_second"]
        ) and again.bytes / GIB == pytest.approx(row["gib"])
    assert found["near"]
    for row in found["near"]:
        near = estimate("alpha/13b", row["overrides"], int(0.5 * 32 * GIB))
        assert near.excess / GIB == pytest.approx(row["over_gib"]) and near.excess > 0
        assert near.tokens_per_second > found["plans"][0]["tokens_per_second"]  # why it is worth a word
        if row["change"]:
            assert estimate("alpha/13b", row["overrides"] + row["change"].split()).bytes <= 0.5 * 32 * GIB


def test_the_report_explains_itself_and_can_be_pasted(capsys):
    command = [
        "plan",
        "search",
        "--config",
        "alpha/13b",
        "--devices",
        "16",
        "--global-batch",
        "64",
        "model.num_layers=12",
    ]
    assert main(command) == 0
    out = capsys.readouterr().out
    *_, last = out.strip().splitlines()
    best = estimate("alpha/13b", ["model.num_layers=12", *last.split()])
    assert f"{best.tokens_per_second:,.0f}" in out and "why the first is faster than the second" in out
    terms = re.findall(r"^  ([a-z ]+?) +([\d.]+) +([\d.]+) +([+-][\d.]+)$", out, re.MULTILINE)
    *parts, total = [(name, *map(float, numbers)) for name, *numbers in terms]
    assert total[0] == "total" and total[1] == pytest.approx(best.seconds * 1e3, abs=0.06) and total[3] <= 0
    for column in (1, 2, 3):
        assert sum(part[column] for part in parts) == pytest.approx(total[column], abs=0.1 * len(parts))


def test_when_nothing_fits_three_ways_are_named_and_each_works(capsys):
    assert main(["plan", "search", "--config", "alpha/200b", "--devices", "64", "--global-batch", "64"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    head, ways = error.split("; cheapest ways from there: ")
    least, words = re.search(r"no plan fits in 32 GiB with 5% free; least needs ([\d.]+) GiB: (.*)", head).groups()
    assert estimate("alpha/200b", words.split()).bytes / GIB == pytest.approx(float(least), abs=0.006)
    ways = ways.strip().split("; ")
    assert len(ways) == 3
    for way in ways:
        change, devices, size = re.fullmatch(
            r"(.*) \((\d+) devices, ([\d.]+) GiB(?:, \d+ sequences a step)?\)", way
        ).groups()
        after = estimate("alpha/200b", words.split() + change.split())
        assert (
            after.plan.mesh.world == int(devices) > 64
            and after.bytes / GIB == pytest.approx(float(size), abs=0.006)
            and after.bytes <= 0.95 * 32 * GIB
        )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--devices", "7", "--global-batch", "3"], "search: 7 devices, 3 sequences a step: no plan is valid"),
        (["--devices", "0"], "both must be positive"),
        (["--devices", "8", "--margin", "1"], "margin a share from 0 to below 1"),
        (["--devices", "8", "model.compute_dtype=float32"], "model.compute_dtype=float32"),
        (["--devices", "8", "--hbm", "none"], "--hbm none: must be a positive size"),
    ],
)
def test_mistakes(words, message, capsys):
    assert main(["plan", "search", "--config", "alpha/2_6b", "model.num_layers=6", *words]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
