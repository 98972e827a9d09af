"""The shipped cluster configurations: NAME_DEVICESxMEMORYgib.yaml."""

import json
import re

import pytest

from pangu_ms.cli.main import main
from pangu_ms.config.load import load_config, presets
from pangu_ms.parallel.plan import Plan
from pangu_ms.planner.cluster import CHIPS, GIB
from pangu_ms.planner.estimate import Estimate
from pangu_ms.rehearsal.rehearse import rehearse, sample_ranks, thinned

CLUSTERS = {
    name: [int(n) for n in match.groups()] for name in presets() if (match := re.search(r"_(\d+)x(\d+)gib$", name))
}


def chip(gib: int) -> str:
    """Cards of 32 GiB are the 910's, of 64 GiB the 910B's."""
    return "ascend910" if gib == 32 else "ascend910b"


def test_the_published_clusters_and_all_sizes_are_there():
    assert {"alpha/2_6b_512x32gib", "alpha/13b_1024x32gib", "alpha/200b_2048x32gib"} < CLUSTERS.keys()
    for size in ("alpha/2_6b", "alpha/13b", "pi/7b"):
        assert {f"{size}_{n}x{gib}gib" for n in (8, 16, 64, 128) for gib in (32, 64)} < CLUSTERS.keys()


@pytest.mark.parametrize("name", CLUSTERS)
def test_each_fits_by_the_estimate_that_it_states(name):
    devices, gib = CLUSTERS[name]
    config = load_config(name)
    assert config.runtime.chip == chip(gib)
    found = Estimate.of(Plan.of(config, devices), CHIPS[chip(gib)], gib * GIB)
    assert found.excess <= 0
    stated = float(re.search(r"Predicted ([\d.]+) GiB", presets()[name].read_text())[1])
    assert found.bytes / GIB == pytest.approx(stated, abs=0.051)


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["alpha/13b_16x64gib"], "ascend910b"),
        (["alpha/13b_16x32gib"], "ascend910"),
        (["alpha/13b_16x64gib", "--chip", "ascend910"], "ascend910"),
    ],
)
def test_the_chip_is_the_configurations_unless_given(capsys, words, name):
    code, found = main(["plan", "estimate", "--config", *words, "--json"]), json.loads(capsys.readouterr().out)
    assert found["chip"]["name"] == name and code == (
        "--chip" in words
    )  # what is laid out for 64 GiB does not fit into 32


@pytest.mark.slow  # small plans with stages, sequence parallel, the optimizer's cut and a row table: test_apply.py
@pytest.mark.parametrize("name", CLUSTERS)
def test_mindspores_compiler_agrees_with_the_plan(name):
    """A rank of the last stage, at full width, with one layer on a stage and as few micro-batches as there are
    stages."""
    config = thinned(load_config(name), 1, 2)
    (report,) = rehearse(config, sample_ranks(Plan.of(config), 2)[-1:], soc=chip(CLUSTERS[name][1]), progress=False)
    assert report.differences == []
