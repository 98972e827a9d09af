"""The ablation of PanGu-pi: its variants, its arithmetic, and the whole of it as a user runs it."""

import dataclasses
import json
import math
import subprocess
import sys

import numpy as np
import pytest

from pangu_ms.config import load_config
from pangu_ms.core.errors import ConfigError
from pangu_ms.research.study.ablation import REMOVED, run_ablation, variant_fields
from pangu_ms.research.study.compare import confidence, paired_difference, ratios
from pangu_ms.research.study.table import ablation_table

SIZES = [
    "vocab_size=384",
    "hidden_size=32",
    "num_layers=1",
    "num_heads=4",
    "ffn_hidden_size=64",
    "aug_shortcut_reduction=4",
    "seq_length=32",
]
OVERRIDES = [*(f"model.{size}" for size in SIZES), "train.batch_size=4", "train.steps=6", "optimizer.warmup_steps=2"]


def parameters_by_hand(fields, hidden=2048, layers=12, vocabulary=100883, reduction=32):
    """Counted from the equations of specification D2 to D4, in the LLaMA form with untied head."""
    width, terms, branches = fields["ffn_hidden_size"], fields["siaf_terms"], fields["aug_shortcut_branches"]
    series = 2 * terms * width if terms > 1 else 0
    layer = 4 * hidden**2 + 3 * hidden * width + 2 * hidden + series + branches * 2 * hidden**2 // reduction
    return layers * layer + 2 * vocabulary * hidden + hidden


@pytest.mark.parametrize("terms", [2, 4])
def test_variants_of_the_1b_model_have_the_parameters_they_claim(terms):
    base = load_config("pi/1b", [f"model.siaf_terms={terms}"]).model
    both = parameters_by_hand({"ffn_hidden_size": 5632, "siaf_terms": terms, "aug_shortcut_branches": 1})
    assert base.num_parameters() == both
    one_multiple = 12 * 8 * (3 * 2048 + 4)
    counts = {name: parameters_by_hand(fields) for name, fields in variant_fields(base).items()}
    assert {name: abs(both - count) <= one_multiple / 2 for name, count in counts.items()} == {
        name: name != "vanilla" for name in REMOVED
    }
    narrow = variant_fields(base, "width")
    assert {name: fields["ffn_hidden_size"] == 5632 for name, fields in narrow.items()} == {
        name: name != "widenet" for name in REMOVED
    }
    parts = {name: (fields["siaf_terms"], fields["aug_shortcut_branches"]) for name, fields in narrow.items()}
    assert parts == {"vanilla": (1, 0), "widenet": (1, 0), "siaf": (terms, 0), "as": (1, 1), "both": (terms, 1)}
    for name, fields in variant_fields(base).items():
        assert dataclasses.replace(base, **fields).num_parameters() == counts[name]


def test_a_base_without_a_part_is_refused():
    with pytest.raises(ConfigError, match="the base of the variants has both parts"):
        variant_fields(load_config("pi/tiny", ["model.siaf_terms=1"]).model)


def test_statistics_by_hand():
    # differences 0.1, 0.3, 0.2: mean 0.2, deviation 0.1, error 0.1 / sqrt(3) = 0.0577
    found = paired_difference([1.1, 5.3, 3.2], [1.0, 5.0, 3.0])
    assert found == {
        "mean": pytest.approx(0.2),
        "standard_error": pytest.approx(0.1 / math.sqrt(3)),
        "distinguishable": True,
    }
    assert paired_difference([1.1, 4.9, 3.1], [1.0, 5.0, 3.0])["distinguishable"] is False  # 0.033 +- 0.067
    assert paired_difference([1.0, 2.0], [1.0, 2.0])["distinguishable"] is False
    assert paired_difference([1.5], [1.0]) == {"mean": 0.5, "standard_error": None, "distinguishable": None}
    # Student's t with 1 and 2 degrees of freedom in closed form: 2 atan(t) / pi and t / sqrt(2 + t^2); with many,
    # the normal's erf(t / sqrt(2)).
    exact = 2 * math.atan(2) / math.pi, 2 / math.sqrt(6), math.erf(math.sqrt(2))
    assert [confidence(2), confidence(3), confidence(10001)] == pytest.approx(exact, abs=1e-4)


def test_ratios_do_not_see_a_machine_that_is_slow_for_a_while():
    rng = np.random.default_rng(0)
    slow = rng.uniform(1, 5, (101, 1))
    found = ratios(slow * [1.0, 1.25, 0.8])
    assert [row["ratio"] for row in found] == pytest.approx([1, 1.25, 0.8])
    assert found[1]["ratio_quartiles"] == pytest.approx([1.25, 1.25])
    times = np.array([[1.0, 2.0], [1.0, 3.0], [2.0, 8.0], [1.0, 5.0], [1.0, 6.0]])
    assert ratios(times)[1] == {"seconds": 5.0, "ratio": 4.0, "ratio_quartiles": [3.0, 5.0]}


@pytest.mark.slow
def test_whole_study(records, tmp_path):
    """Two variants, two seeds; then the same command again, and one seed more."""
    output, plot = tmp_path / "study", tmp_path / "plot.svg"
    words = [
        sys.executable,
        "-m",
        "pangu_ms",
        "study",
        "pi-ablation",
        *OVERRIDES,
        "--data",
        records,
        "--output",
        output,
        "--variants",
        "vanilla,both",
    ]
    words = [*map(str, words), "--seeds", "1,2"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    results = json.loads((output / "results.json").read_text())
    require_honest(results, output)
    assert ablation_table(results) in done.stdout and "2 s.e. of 2 seeds: 70% confidence" in done.stdout
    commands = [line for line in done.stdout.splitlines() if line.startswith("$ pangu ")]
    assert [line.split()[2] for line in commands] == ["train"] * 4 + ["study"]
    times = {path: path.stat().st_mtime_ns for path in output.glob("*/*/result.json")}
    again = run_ablation(
        output, overrides=OVERRIDES, data=str(records), seeds=[1, 2], variants=["vanilla", "both"], progress=False
    )
    assert again == results and times == {path: path.stat().st_mtime_ns for path in output.glob("*/*/result.json")}
    pytest.importorskip("matplotlib")
    from pangu_ms.research.study.plot import plot_ablation

    plot_ablation(results, plot)
    assert plot.read_text().lstrip().startswith("<?xml")


def require_honest(results, output):
    """What the results say is what the runs did."""
    from pangu_ms.checkpoint.store import open_checkpoint

    for name, variant in results["variants"].items():
        for seed in results["seeds"]:
            run = output / name / f"seed-{seed}" / "run"
            last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
            assert variant["losses"][str(seed)] == last["held_out_loss"]
            config = load_config(str(run / "config.yaml"))
            assert (config.train.seed, config.data.seed) == (seed, seed)
            values = sum(value.size for value in open_checkpoint(run).tensors("model").values())
            assert values == variant["parameters"] == config.model.num_parameters()
            assert all(getattr(config.model, field) == value for field, value in variant["fields"].items())
        assert variant["ms_per_token"] > 0 and variant["tokens_per_second"] > 0
    losses = [list(variant["losses"].values()) for variant in results["variants"].values()]
    assert results["variants"]["both"]["difference"]["vanilla"]["mean"] == pytest.approx(
        np.mean(losses[1]) - np.mean(losses[0])
    )
    assert results["variants"]["vanilla"]["latency_ratio"]["median"] == 1.0
    assert len({loss for pair in losses for loss in pair}) == 4


def test_mistakes_are_told_before_the_first_run(records, tmp_path, capsys):
    from pangu_ms.cli.study import main

    def message(*words):
        with pytest.raises(ValueError) as caught:
            main(["pi-ablation", *map(str, words), "--output", str(tmp_path / "study"), "--json"])
        return str(caught.value)

    data = ("--data", records, *OVERRIDES)
    assert "unknown variant 'sief'" in message(*data, "--variants", "vanilla,sief")
    assert "vanilla is missing" in message(*data, "--variants", "both")
    assert "must be whole numbers" in message(*data, "--seeds", "1,x")
    assert "use --seeds" in message(*data, "train.seed=4")
    assert "must end in .png, .svg, .pdf" in message(*data, "--plot", "x.docx")
    assert "use a config of family pi" in message("--config", "alpha/tiny")
    assert "model.seq_length=64" in message(*data, "model.seq_length=64")
    assert "leave one out" in message(*data, "--corpus", "x.txt")
    assert not list((tmp_path / "study").glob("*/*"))
