"""pi Pro's recipe: its models, its commands, and the whole chain on little text."""

import json

import pytest

from pangu_ms.cli.main import main
from pangu_ms.cli.study_pi_pro import chain_table
from pangu_ms.config import load_config
from pangu_ms.core.errors import ConfigError
from pangu_ms.research.study.pi_pro import PREVIOUS, STEPS, Chain, make_plan

SIZES = [
    "model.vocab_size=800",
    "model.hidden_size=64",
    "model.num_heads=2",
    "model.num_layers=2",
    "model.ffn_hidden_size=160",
    "model.seq_length=32",
]
SHORT = ["train.steps=8", "train.batch_size=4", "train.save_every=0", "optimizer.warmup_steps=2"]
SEGMENTER = ["tokenizer.segmenter=none", "tokenizer.vocab_size=800"]


def chain(tmp_path, **options) -> Chain:
    return Chain(make_plan("pi/tiny", [*SIZES, *SHORT], **options), "pi/tiny", ["corpus.txt"], tmp_path)


def test_all_students_have_the_baselines_parameters():
    plan = make_plan("pi/tiny", [], compact_size=300, depth=10)
    wanted = load_config("pi/tiny").model.num_parameters()
    for model in (plan.compact, plan.tweaked):
        assert abs(model.num_parameters() / wanted - 1) <= 0.01 and model.vocab_size == 300
    assert (plan.compact.num_layers, plan.tweaked.num_layers) == (
        4,
        10,
    ) and plan.tweaked.hidden_size < plan.compact.hidden_size
    assert plan.teacher.num_layers >= plan.tweaked.num_layers and plan.teacher.vocab_size == 1024
    for field in ("hidden_size", "num_heads", "ffn_hidden_size"):
        assert getattr(plan.teacher, field) >= getattr(plan.tweaked, field), field
    assert {m.head_dim for m in (plan.base.model, plan.teacher, plan.compact, plan.tweaked)} == {32}


def test_every_command_trains_the_model_of_the_plan(tmp_path):
    """The arguments of a stage, read as the verb reads them."""
    made = chain(tmp_path, keep=0.25)
    models = {"teacher": made.plan.teacher, "baseline": made.plan.base.model, "compact": made.plan.compact}
    trained = {}
    for stage in [*made.teach(), *made.student(7)]:
        if stage.argv[0] == "train":
            config = load_config("pi/tiny", [word for word in stage.argv if "=" in word])
            step = stage.directory.parent.name
            assert config.model == models.get(step, made.plan.tweaked), step
            trained[step] = config
            size = "full" if step in ("teacher", "baseline") else "compact"
            assert stage.argv[stage.argv.index("--data") + 1] == str(made.records[size])
    assert list(trained) == ["teacher", *STEPS]
    assert {(c.train.seed, c.data.seed) for name, c in trained.items() if name != "teacher"} == {(7, 7)}
    for name, config in trained.items():
        second = name.startswith("second_round")
        assert config.train.steps == (2 if second else 8) and bool(config.data.order) == second
        assert config.optimizer.lr == pytest.approx(1e-3 if second else 2e-3)


@pytest.mark.parametrize(
    "config, options, message",
    [
        ("alpha/tiny", {}, "model.family=alpha: the recipe is PanGu-pi's"),
        ("pi/tiny", {"compact_size": 5000}, "--compact-size 5000: must be above 0 and at most 1023"),
        ("pi/tiny", {"keep": 0.0}, "--keep 0.0: must be above 0"),
        ("pi/tiny", {"compact_size": 1024}, "--compact-size 1024: must be above 0 and at most 1023"),
        ("pi/tiny", {"depth": 400}, "--depth 400: the nearest shape of 400 layers has"),
        ("pi/tiny", {"teacher_fields": {"num_layers": 3}}, "model.num_layers=8: must not exceed the teacher's 3"),
        ("pi/tiny", {"teacher_fields": {"num_layers": -1}}, "model.num_layers=-1: must be positive"),
        ("pi/tiny", {"teacher_steps": -5}, "--teacher-steps -5: must be above 0"),
    ],
)
def test_mistakes_are_told_before_the_work(config, options, message):
    with pytest.raises(ConfigError, match=message):
        make_plan(config, [], **options)


@pytest.mark.parametrize(
    "words, message",
    [
        (["--seeds", "1,1"], "--seeds 1,1: must be different whole numbers"),
        (["train.seed=3"], "train.seed=3: a study sets the seeds itself"),
        (["data.held_out=0"], "data.held_out=0: the steps are compared on held-out documents"),
    ],
)
def test_settings_that_make_no_study(tmp_path, capsys, words, message):
    assert main(["study", "pi-pro", "--output", str(tmp_path / "study"), *words]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "study").exists()


def test_a_width_that_the_base_computes_is_stated(tmp_path):
    """The planned width may be the base's while the command, without it, would compute another from the new hidden
    size."""
    sizes = "hidden_size: 128\n  num_heads: 4\n  num_layers: 3\n  vocab_size: 2048\n  seq_length: 32\n"
    (tmp_path / "mine.yaml").write_text(f"model:\n  family: pi\n  {sizes}")
    base = str(tmp_path / "mine.yaml")
    made = Chain(make_plan(base), base, ["corpus.txt"], tmp_path)
    for model in (made.plan.teacher, made.plan.compact, made.plan.tweaked):
        assert load_config(base, made._fields(model)).model == model


def test_a_missing_corpus_is_told_before_the_work(tmp_path, capsys):
    assert main(["study", "pi-pro", "--corpus", str(tmp_path / "none.txt"), "--output", str(tmp_path / "study")]) == 2
    assert "none.txt" in capsys.readouterr().err and not (tmp_path / "study").exists()


@pytest.mark.slow
def test_the_chain_end_to_end_and_again(text_file, tmp_path, capsys):
    command = [
        "study",
        "pi-pro",
        "--corpus",
        str(text_file),
        "--output",
        str(tmp_path / "study"),
        "--seeds",
        "3",
        "--json",
        *SIZES,
        *SHORT,
        *SEGMENTER,
    ]
    command += ["--compact-size", "400", "data.held_out=0.2"]
    assert main(command) == 0
    first = json.loads(capsys.readouterr().out)
    assert list(first["chain"]) == list(STEPS)
    for step, row in first["chain"].items():
        assert 0 < row["bits_per_byte"]["3"] < 10 and row.get("compared_with") == PREVIOUS.get(step)
    starts = json.loads((tmp_path / "study/seed-3/inherited/start/result.json").read_text())
    assert (
        starts["criteria"]["channels"] == "taylor"
        and starts["parameters"][1] == first["chain"]["inherited"]["parameters"]
    )
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "study").rglob("*.safetensors")}
    assert main(command) == 0  # all stages are done
    assert json.loads(capsys.readouterr().out) == first
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "study").rglob("*.safetensors")} == written
    assert "inherited" in chain_table(first)
