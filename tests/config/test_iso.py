"""Shapes of equal size: against closed formulas and brute force, and what is written of them."""

import dataclasses
import json

import pytest

from pangu_ms.cli.main import main
from pangu_ms.config import load_config
from pangu_ms.config.iso import Search, Shape, default_depths, find_shapes

PLAIN = [
    "model.siaf_terms=1",
    "model.aug_shortcut_branches=0",
]  # what pi Pro's released configuration has: LLaMA (spec E1)


def llama_size(L, d, f, V, kv=1.0):
    """Untied LLaMA; `kv` is the share of key/value heads."""
    return L * (2 * d * d + 2 * kv * d * d + 3 * d * f + 2 * d) + 2 * V * d + d


def alpha_size(L, d, f, V, S):
    return L * (4 * d * d + 4 * d + 2 * d * f + f + d + 4 * d) + V * d + 2 * S * d + 2 * d


def find(name, overrides=(), target=None, depths=None, expansions=None, **search):
    model = load_config(name, overrides).model
    search = Search(**{"target": target or model.num_parameters(), "head_dim": model.head_dim} | search)
    return find_shapes(
        model, search, depths or [model.num_layers], expansions or [model.ffn_hidden_size / model.hidden_size]
    )


def fields(shape, *names):
    return tuple(getattr(shape.model, name) for name in names)


def test_the_share_that_pi_pro_is_quoted_with():
    (shape,) = find("pi/1b_pro", PLAIN, target=952_000_000, depths=[20])
    assert fields(shape, "hidden_size", "num_heads", "num_kv_heads", "ffn_hidden_size") == (
        1792,
        14,
        14,
        4864,
    )  # the paper's width (spec E1)
    assert round(100 * shape.table_share, 2) == 18.07 and round(shape.num_parameters / 1e9, 3) == 0.952
    assert round(100 * find("pi/1b_pro", PLAIN)[0].table_share, 2) == 17.36  # with the 21 layers of the paper's table


@pytest.mark.parametrize("name", ["pi/1b_pro", "pi/openpangu_7b", "alpha/tiny", "alpha/13b"])
def test_a_model_finds_itself_and_its_neighbours_have_its_size(name):
    own = load_config(name).model
    shapes = find(name, depths=default_depths(own.num_layers))
    assert own in [shape.model for shape in shapes] and len(shapes) >= 6
    for shape in shapes:
        assert shape.within_tolerance and abs(shape.model.num_parameters() / own.num_parameters() - 1) <= 0.01
        assert shape.model.ffn_hidden_size % 8 == 0 and shape.model.head_dim == own.head_dim
        assert (
            dataclasses.replace(shape.model, **{f: getattr(own, f) for f in shape.row() if f in own.field_names()})
            == own
        )


def test_no_hidden_size_comes_closer_than_the_one_found():
    V, head, target = 1024, 16, 3_000_000
    for L in (2, 7, 19):
        for expansion in (1.0, 2.77, 6.0):
            (shape,) = find("pi/tiny", PLAIN, target, [L], [expansion], head_dim=head)
            best = min(
                range(head, 3000, head), key=lambda d: abs(llama_size(L, d, 8 * round(d * expansion / 8), V) - target)
            )
            nominal = llama_size(L, best, 8 * round(best * expansion / 8), V)
            closest = min(range(8, 8000, 8), key=lambda f: abs(llama_size(L, best, f, V) - target))
            ffn = 8 * round(best * expansion / 8) if abs(nominal / target - 1) <= 0.01 else closest
            assert fields(shape, "hidden_size", "num_heads", "ffn_hidden_size") == (best, best // head, ffn)
            assert shape.num_parameters == llama_size(L, best, ffn, V)


def test_sizes_and_operations_by_hand():
    (shape,) = find("alpha/tiny", target=5_000_000, depths=[6])
    model = shape.model
    L, d, f, V, S = fields(shape, "num_layers", "hidden_size", "ffn_hidden_size", "vocab_size", "seq_length")
    assert shape.num_parameters == alpha_size(L, d, f, V, S) and shape.difference == pytest.approx(
        shape.num_parameters / 5e6 - 1
    )
    assert shape.table_share == pytest.approx((V + 2 * S) * d / shape.num_parameters)
    assert (
        shape.flops_per_token == 2 * (L * (4 * d * d + 2 * d * f) + V * d) + 4 * L * S * d
    )  # the head shares the word table and costs all the same
    siaf = Shape.of(load_config("pi/tiny", ["model.aug_shortcut_branches=0"]).model, Search(1, 32))
    model = siaf.model
    matrices = model.num_layers * (4 * model.hidden_size**2 + 3 * model.hidden_size * model.ffn_hidden_size)
    attention = 4 * model.num_layers * model.seq_length * model.hidden_size
    assert (
        siaf.flops_per_token == 2 * (matrices + 1024 * model.hidden_size) + attention
    )  # scales and shifts of the series are no matrices


def test_grouped_heads_and_the_family_s_own_rules_hold():
    shapes = find("pi/openpangu_7b", depths=[20, 50], head_dim=64)
    assert [s.model.num_heads / s.model.num_kv_heads for s in shapes] == [4, 4] and all(
        s.model.hidden_size == 64 * s.model.num_heads for s in shapes
    )
    for shape in shapes:
        L, d, f = fields(shape, "num_layers", "hidden_size", "ffn_hidden_size")
        biases = L * (d + 2 * d // 4 + d)
        assert shape.num_parameters == llama_size(L, d, f, 153376, kv=0.25) + biases
    for shape in find("pi/tiny", depths=[2, 9], head_dim=24):  # aug_shortcut_reduction=32 must divide the hidden size
        assert shape.model.hidden_size % 96 == 0 and shape.within_tolerance


def test_attention_narrower_than_the_stream_stays_so():
    for shape in find("pi/tiny", ["model.num_heads=3", "model.head_dim=32"], depths=[2, 8]):
        assert shape.model.num_heads * 32 * 2 == shape.model.hidden_size and shape.within_tolerance


def test_a_shape_that_misses_is_shown(capsys):
    command = ["config", "iso", "--config", "pi/tiny", "--depths", "4,400"]
    assert main(command) == 0
    lines = capsys.readouterr().out.splitlines()
    assert (
        lines[2].split()[:3] == ["*", "4", "192"]
        and lines[3].split()[:2] == ["400", "32"]
        and lines[3].endswith("outside the tolerance")
    )
    assert main([*command, "--json"]) == 0
    assert [row["within_tolerance"] for row in json.loads(capsys.readouterr().out)["shapes"]] == [True, False]


def test_the_given_config_is_shown_where_the_search_passes_it_by(capsys):
    assert main(["config", "iso", "--config", "pi/tiny", "--depths", "3", "--parameters", "3e6"]) == 0
    rows = capsys.readouterr().out.splitlines()[2:4]
    assert rows[0].split()[:3] == ["*", "4", "192"] and rows[1].split()[0] == "3"


def test_written_configs_load_back_to_the_stated_size(tmp_path, capsys, monkeypatch):
    (tmp_path / "mine.yaml").write_text("base: pi/tiny\noptimizer:\n  lr: 1.0e-3\n")
    monkeypatch.chdir(tmp_path)
    command = [
        "config",
        "iso",
        "--config",
        "mine.yaml",
        "--depths",
        "2,8,400",
        "--write",
        "out",
        "model.siaf_terms=3",
        "train.steps=7",
    ]
    assert main([*command, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert len(result["written"]) == len(list((tmp_path / "out").iterdir())) == 2  # the third misses the tolerance
    monkeypatch.chdir(tmp_path.parent)
    for name, row in zip(result["written"], result["shapes"]):
        config = load_config(str(tmp_path / "out" / name), ["train.batch_size=3"])
        assert config.model.num_parameters() == row["num_parameters"] and config.model.siaf_terms == 3
        assert all(
            getattr(config.model, key) == row[key]
            for key in ("num_layers", "hidden_size", "num_heads", "head_dim", "ffn_hidden_size")
        )
        assert (config.train.steps, config.train.batch_size, config.optimizer.lr) == (7, 3, 1e-3)
        assert (tmp_path / "out" / name).read_text().startswith(f"# {row['num_parameters']:,} parameters")
    before = sorted(p.read_bytes() for p in (tmp_path / "out").iterdir())
    monkeypatch.chdir(tmp_path)
    assert main(command) == 2 and "out: exists with other content" in capsys.readouterr().err
    assert sorted(p.read_bytes() for p in (tmp_path / "out").iterdir()) == before


def test_shipped_bases_keep_their_name(tmp_path):
    assert main(["config", "iso", "--config", "alpha/tiny", "--depths", "3", "--write", str(tmp_path / "out")]) == 0
    (path,) = (tmp_path / "out").iterdir()
    assert "\nbase: alpha/tiny\n" in path.read_text() and load_config(str(path)).model.num_layers == 3


def test_a_width_that_the_base_computes_is_written(tmp_path):
    """alpha/tiny's 768 stands for 4 * 192: twice as wide a model with 768 must say so."""
    own = load_config("alpha/tiny").model
    size = alpha_size(own.num_layers, 384, 768, own.vocab_size, own.seq_length)
    options = [
        "--depths",
        str(own.num_layers),
        "--expansions",
        "2",
        "--parameters",
        str(size),
        "--write",
        str(tmp_path / "out"),
    ]
    assert main(["config", "iso", "--config", "alpha/tiny", *options]) == 0
    (path,) = (tmp_path / "out").iterdir()
    model = load_config(str(path)).model
    assert (own.ffn_hidden_size, model.hidden_size, model.ffn_hidden_size, model.num_parameters()) == (
        768,
        384,
        768,
        size,
    )


@pytest.mark.parametrize(
    "options, message",
    [
        (["--parameters", "1000"], "--parameters=1000: the smallest shape at these depths has "),
        (["--parameters", "1.5"], "--parameters: found '1.5'; it takes positive whole numbers"),
        (["--depths", "4,x"], "--depths=4,x: found 'x'; it takes positive whole numbers, separated by commas"),
        (["--depths", "4,,8"], "--depths=4,,8: found ''"),
        (["--depths", "4,-1"], "--depths=4,-1: found '-1'"),
        (["--expansions", "1.0,nan"], "--expansions=1.0,nan: found 'nan'; it takes positive numbers"),
        (["--multiple", "0"], "--multiple: found '0'"),
        (["--tolerance", "inf"], "--tolerance: found 'inf'"),
        (["--head-dim", "3"], "--head-dim=3: no multiple of it up to 2,"),
        (["--head-dim", "9999"], "--head-dim=9999: no multiple of it up to 2,"),
        (["--config", "alpha/tiny", "--depths", "1"], "model.num_layers=1: must be at least 2"),
        (["--depths", "400", "--write", "out"], "--write: no shape is within the tolerance"),
    ],
)
def test_a_mistake_is_one_line(options, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["config", "iso", "--config", "pi/tiny", *options]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"pangu config: {message}") and error.count("\n") == 1 and not list(tmp_path.iterdir())
