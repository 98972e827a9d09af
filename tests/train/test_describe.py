"""What a launcher is told of a run before ranks start, and cluster configurations made small enough for a CPU."""

import json
import os
import subprocess
import sys

import pytest

from pangu_ms.cli import train_describe as describe
from pangu_ms.config.load import load_config, presets
from pangu_ms.core.errors import UserError
from pangu_ms.parallel.mesh import Mesh
from pangu_ms.train.smoke import smoke_overrides

CLUSTER = "alpha/200b_2048x32gib"


@pytest.fixture
def told(capsys, records, tiny_overrides, tmp_path):
    """The description for launch options, and a run of the tiny records with more words."""

    def ask(*options, words=(), config="alpha/tiny"):
        everything = [
            "--config",
            config,
            *tiny_overrides,
            "--data",
            str(records),
            "--output",
            str(tmp_path / "run"),
            *words,
        ]
        assert describe.main([*options, "--", *everything]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found.get("words", everything)[: len(everything)] == everything
        return found

    return ask


@pytest.fixture
def refused(told):
    def ask(*options, words=(), config="alpha/tiny"):
        with pytest.raises(UserError) as error:
            told(*options, words=words, config=config)
        assert "\n" not in str(error.value)
        return str(error.value)

    return ask


def test_a_cluster_of_2048_is_told_in_a_second_without_mindspore():
    program = (
        "import sys; from pangu_ms.cli.train_describe import main; main(sys.argv[1:]); sys.exit('mindspore' in"
        " sys.modules)"
    )
    words = ["--placement", "--", "--config", CLUSTER, "--output", "nowhere"]
    before = os.times()
    done = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, check=False)
    after = os.times()
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    mesh = Mesh.of(load_config(CLUSTER).parallel)
    assert found.keys() == {"world", "device", "chip", "placement", "devices_per_server"}
    assert (found["world"], found["device"], found["chip"]) == (2048, "Ascend", "ascend910")
    assert (
        found["placement"] == [[d.server, d.device] for d in mesh.placement()]
        and len({map(tuple, found["placement"])}) == 1
    )
    assert (
        len({tuple(place) for place in found["placement"]}) == 2048
        and max(server for server, _ in found["placement"]) == 255
    )
    assert (
        after.children_user + after.children_system - before.children_user - before.children_system < 2
    )  # 0.7 s of one core, whoever else has it


def test_options_become_words_that_train_understands(told, tmp_path):
    found = told("--num-ranks", "3", "--device", "cpu", words=["runtime.compile_cache=false"])
    assert (found["world"], found["device"], found["words"][-1]) == (3, "CPU", "parallel.data_parallel=3")
    (tmp_path / "config.yaml").write_text(found["config"])
    config = load_config(str(tmp_path / "config.yaml"))
    assert config.parallel.data_parallel == 3 and not config.runtime.compile_cache
    assert (found["total_steps"], found["tokens_per_step"]) == (12, 3 * 4 * 32)
    assert told()["words"][-1].endswith("run") and told("--num-ranks", "1")["world"] == 1

    on_cpu = told("--device", "cpu", words=["model.compute_dtype=bfloat16"], config="alpha/350m")
    assert (
        "compute_dtype: bfloat16" in on_cpu["config"] and on_cpu["words"][-1] == "runtime.device=CPU"
    )  # the user's own word
    assert told("--device", "cpu", config="alpha/350m")["words"][-2:] == [
        "runtime.device=CPU",
        "model.compute_dtype=float32",
    ]
    eight = ["parallel.num_devices=8", "parallel.data_parallel=8"]
    assert told("--device", "ascend", "--num-ranks", "8", words=eight)["device"] == "Ascend"


def test_options_that_contradict_the_run_are_refused(refused, told, records, tmp_path):
    eight = ["runtime.device=Ascend", "parallel.model_parallel=4", "parallel.data_parallel=2"]
    assert "--num-ranks 4: the plan has 8 ranks; must be equal on Ascend" in refused("--num-ranks", "4", words=eight)
    assert "--num-ranks 0: must be at least 1" in refused("--num-ranks", "0")
    assert "--device: runtime.device=Ascend is given, too" in refused("--device", "cpu", words=eight)
    assert "--num-ranks: parallel.data_parallel=2 is given, too" in refused(
        "--num-ranks", "4", words=["parallel.data_parallel=2"]
    )
    assert "--smoke: runs on CPU processes; found --device ascend" in refused("--smoke", "--device", "ascend")
    assert "--init-from there: these weights do not fit" in refused("--smoke", words=["--init-from", "there"])
    assert "parallel.model_parallel=2: a CPU trains with data_parallel alone" in refused(
        words=["parallel.model_parallel=2"]
    )
    assert "or `pangu launch --smoke`" in refused("--placement", words=["parallel.model_parallel=2"])


def test_what_would_end_the_ranks_is_told_before_they_start(refused, told, trained_run, tmp_path):
    assert "vocab_size=64: must be equal" in refused(words=["model.vocab_size=64"])
    assert "no MindRecord file" in refused(words=["--data", str(tmp_path)]) and "no MindRecord file" in refused(
        "--follower", words=["--data", str(tmp_path)]
    )
    assert "holds a run at step 12; add --resume" in refused(words=["--output", str(trained_run)])
    again = ["--output", str(trained_run), "--resume"]
    assert told(words=again)["output"] == str(trained_run)
    assert "optimizer.lr=0.5 (was" in refused(words=[*again, "optimizer.lr=0.5"])
    assert "instead of (64, 32)" in refused(
        words=["--init-from", str(trained_run), "model.ffn_hidden_size=64", "model.num_layers=2", "model.seq_length=32"]
    )
    (tmp_path / "other").mkdir()
    (tmp_path / "other/notes").write_text("mine")
    assert "exists with other content" in refused(words=["--output", str(tmp_path / "other")])
    told("--follower", words=["--output", str(tmp_path / "other")])  # the first host's business
    (tmp_path / "run/job").mkdir(parents=True)
    told()  # the launcher's own directory


def test_default_records_are_made_by_the_first_host_alone(capsys, tmp_path, monkeypatch, records):
    made = []
    monkeypatch.setattr(
        describe, "default_records", lambda config, output, resume, progress: made.append(output) or records
    )
    words = [
        "--",
        "--config",
        CLUSTER,
        "--output",
        str(tmp_path / "run"),
        "model.vocab_size=384",
        "model.seq_length=32",
    ]
    with pytest.raises(UserError, match="data.records: none; ranks that a launcher starts share records"):
        describe.main(words)
    assert describe.main(["--smoke", "--follower", *words]) == 0 and not made
    monkeypatch.setattr("pangu_ms.train.smoke.VOCAB_SIZE", 384)  # as the fixture's records
    assert describe.main(["--smoke", *words]) == 0 and made == [tmp_path / "run"]
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert (
        [one["world"] for one in found] == [2, 2] and found[1]["total_steps"] == 5 and not (tmp_path / "run").exists()
    )


def test_a_mistake_is_one_line_and_exit_code_2(tmp_path):
    command = [
        sys.executable,
        "-m",
        "pangu_ms.cli.train_describe",
        "--",
        "--config",
        "alpha/tiny",
        "--output",
        str(tmp_path / "run"),
        "model.num_heads=5",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (
        done.returncode == 2
        and done.stderr.startswith("pangu train: ")
        and done.stderr.count("\n") == 1
        and not done.stdout
    )
    assert "model.num_heads=5: must divide hidden_size=192" in done.stderr


KEPT = {
    "init_std",
    "init_rule",
    "dropout",
    "hidden_act",
    "final_norm_position",
    "siaf_terms",
    "siaf_mode",
    "siaf_position",
    "siaf_init",
    "rope_theta",
}
KEPT |= {
    "aug_shortcut_branches",
    "aug_shortcut_input",
    "aug_shortcut_act",
    "aug_shortcut_init",
    "tie_word_embeddings",
    "attention_bias",
    "family",
}


@pytest.mark.parametrize("name", presets())
@pytest.mark.parametrize("own_records", [False, True])
def test_every_shipped_config_can_be_thinned(name, own_records):
    config = load_config(name)
    thin = load_config(name, smoke_overrides(config, 3, own_records))
    model, full = thin.model, config.model
    assert (
        thin.parallel.world == 3
        and thin.runtime.device == "CPU"
        and model.compute_dtype == "float32"
        and thin.train.steps <= 5
    )
    tables = (model.vocab_size + model.seq_length) * 64 * 2 + model.vocab_size * len(model.domains)
    assert model.num_parameters() - tables < 1e6 + 4e4 * model.num_experts and model.num_layers == 2
    assert model.num_experts <= max(64, 2 * len(model.domains))
    assert (
        thin.optimizer == config.optimizer
        and thin.data == config.data
        and (thin.train.accumulation_steps > 1) == (config.train.accumulation_steps > 1)
    )
    for field in KEPT & vars(full).keys():
        assert getattr(model, field) == getattr(full, field), field
    if "num_kv_heads" in full.field_names():
        assert model.num_heads // model.num_kv_heads == full.num_heads // full.num_kv_heads and model.num_heads > 1
    rows = (model.vocab_size, model.seq_length)
    assert rows == (full.vocab_size, full.seq_length) if own_records else rows == (thin.tokenizer.vocab_size, 64)


def test_groups_of_heads_stay_legal_whatever_their_size():
    for heads, kv_heads in ((28, 4), (64, 1), (6, 2), (1, 1), (5, 5)):
        shape = [
            "model.hidden_size=1920",
            f"model.num_heads={heads}",
            f"model.num_kv_heads={kv_heads}",
            "model.head_dim=64",
        ]
        config = load_config("pi/1b", [*shape, "model.aug_shortcut_reduction=24"])
        thin = load_config("pi/1b", [*shape, *smoke_overrides(config)])
        assert (
            thin.model.num_heads // thin.model.num_kv_heads == min(8, heads // kv_heads)
            and thin.model.aug_shortcut_reduction == 8
        )


@pytest.mark.parametrize("name", [CLUSTER, pytest.param("pi/7b_64x32gib", marks=pytest.mark.slow)])
def test_a_thinned_cluster_config_trains(name, records, tmp_path, mindspore_cpu, monkeypatch):
    from pangu_ms.checkpoint.store import open_checkpoint
    from pangu_ms.train.loop import train

    monkeypatch.setattr("pangu_ms.train.run.Run.evaluate", lambda run: None)  # would compile another graph
    own = ["model.vocab_size=384", "model.seq_length=32", "train.steps=2"]
    config = load_config(name, [*own, *smoke_overrides(load_config(name, own), 1, own_records=True)])
    result = train(config, records, tmp_path / "run", progress=False)
    assert result.step == 2 and 0 < result.loss < 20 and open_checkpoint(tmp_path / "run").step == 2
