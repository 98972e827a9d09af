"""mindformers.Trainer in child processes, since its import has side effects, against our own training step."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from pangu_ms.checkpoint import safetensors_file, store
from pangu_ms.cli.main import main
from pangu_ms.config.load import config_from_dict
from pangu_ms.mindformers.train import load_yaml
from pangu_ms.models.common.strict import check_names_and_shapes

STEPS, SAVED_AT, BATCH, LR, WEIGHT_DECAY = 12, 6, 4, 3e-3, 0.1
# Dropout is on: its masks are a function of seed and step, so both sides must take the same keys.
MODEL = {
    "family": "alpha",
    "vocab_size": 97,
    "hidden_size": 32,
    "num_layers": 2,
    "num_heads": 4,
    "seq_length": 32,
    "hidden_act": "fast_gelu",
    "dropout": 0.1,
}
PI = {
    "family": "pi",
    "vocab_size": 97,
    "hidden_size": 32,
    "num_layers": 2,
    "num_heads": 4,
    "num_kv_heads": 2,
    "ffn_hidden_size": 48,
    "seq_length": 32,
}
PI |= {"siaf_terms": 2, "aug_shortcut_branches": 1, "aug_shortcut_reduction": 4}
EOD = 6  # of records without a manifest
BY_PATH = """
import sys, mindformers
config = mindformers.MindFormerConfig(sys.argv[1])
mindformers.build_context(config)
mindformers.Trainer(config).train()
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A directory with records of 40 rows in which the next token depends on the last one."""
    from pangu_ms.data.pack import write_split

    directory = tmp_path_factory.mktemp("mf")
    generator = np.random.default_rng(0)
    steps = generator.integers(1, 4, (40, MODEL["seq_length"] + 1))
    ids = (7 + steps.cumsum(1) % (MODEL["vocab_size"] - 7)).astype(np.int32)
    ids[generator.random(ids.shape) < 0.05] = EOD
    (directory / "records").mkdir()
    write_split(directory / "records", "train", iter([ids]), MODEL["seq_length"] + 1)
    return directory


def write_yaml(path: Path, records: Path, model: dict = MODEL, **changes) -> Path:
    """The shipped YAML with a smaller model, a constant learning rate and a checkpoint in the middle."""
    tree = load_yaml(f"{model['family']}_tiny")
    tree["pangu"] = {"model": model, "data": {"records": str(records)}, "train": {"steps": STEPS}}
    tree["runner_config"]["batch_size"] = BATCH
    tree["runner_wrapper"]["scale_sense"] = {
        "type": "DynamicLossScaleUpdateCell",
        "loss_scale_value": 65536,
        "scale_factor": 2,
        "scale_window": 1000,
    }
    tree["lr_schedule"] = {"type": "ConstantWarmUpLR", "learning_rate": LR, "warmup_steps": 0}
    tree["callbacks"][1]["save_checkpoint_steps"] = SAVED_AT
    path.write_text(yaml.safe_dump(tree | changes))
    return path


def child(arguments: list[str], cwd: Path, **environment: str) -> None:
    cwd.mkdir()
    done = subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=os.environ | environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def logged(output: Path) -> dict[int, tuple[float, bool]]:
    """Loss and overflow by number of the step, from the log of MFLossMonitor."""
    lines = re.findall(
        r"step:\[ *(\d+)/.*loss:\[([\d.]+)/.*overflow cond: (\w+)", (output / "log/rank_0/info.log").read_text()
    )
    return {int(step): (float(loss), overflow == "True") for step, loss, overflow in lines}


def weights(output: Path, step: int, model: dict = MODEL) -> dict[str, np.ndarray]:
    """The model's arrays of a checkpoint: exactly our names and shapes."""
    (path,) = (output / f"checkpoint/iteration_{step:08d}").glob("*-model-*.safetensors")
    tensors = safetensors_file.read(path)
    check_names_and_shapes(str(path), tensors, config_from_dict({"model": model}, "test").model.parameter_shapes())
    return tensors


@pytest.fixture(scope="module")
def trained(place, forks):
    """Output of the command, run in an empty directory; overflow.json is beside it."""
    config = write_yaml(place / "run.yaml", place / "nowhere")
    program = str(Path(__file__).with_name("command_and_overflow.py"))
    (place / "empty").mkdir()
    words = [program, config, "--data", place / "records", "--output", place / "out"]
    done = forks.run(words, place / "empty", os.environ)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return place / "out"


@pytest.fixture(scope="module")
def ours(place, mindspore_cpu):
    return our_own_steps(place)


def our_own_steps(place: Path, fields: dict = MODEL) -> tuple[list[float], dict[str, np.ndarray]]:
    """Losses and last weights of our own step on the same records."""
    from pangu_ms.data.loader import Loader
    from pangu_ms.data.records import RecordSet
    from pangu_ms.models.build import build_model, initialize, to_arrays
    from pangu_ms.train.steps.train_step import TrainStep

    sections = {"train": {"steps": STEPS, "batch_size": BATCH}, "optimizer": {"lr": LR, "weight_decay": WEIGHT_DECAY}}
    config = config_from_dict({"model": fields} | sections, "test")
    model = build_model(config.model)
    initialize(model, config.model, config.train.seed)
    step = TrainStep(model, config)
    batches = Loader(RecordSet.open(place / "records"), BATCH).batches()
    losses = [step(next(batches), number, LR).loss for number in range(STEPS)]
    return losses, to_arrays(model.trainable_params())


def require_the_trajectory(output: Path, losses: list[float], last: dict[str, np.ndarray], model: dict = MODEL) -> None:
    assert losses[-1] < losses[0] - 0.5, "the comparison needs a run that learns"
    # The same operators in another graph, and MindFormers logs 6 decimals: measured 6e-7 on both version pairs.
    np.testing.assert_allclose([loss for loss, _ in logged(output).values()], losses, rtol=0, atol=5e-6)
    for name, array in weights(output, STEPS, model).items():
        # Adam divides rounding errors by small gradients: measured 8e-6, where the weights moved by up to
        # STEPS * LR = 4e-2.
        np.testing.assert_allclose(array, last[name], rtol=0, atol=5e-5, err_msg=name)


def test_the_trajectory_is_that_of_our_own_step(trained, ours):
    require_the_trajectory(trained, *ours)


@pytest.mark.slow
def test_pi_takes_our_own_steps_too(place, mindspore_cpu):
    config = write_yaml(place / "pi.yaml", place / "records", PI)
    child(["-m", "pangu_ms.mindformers", str(config), "--output", str(place / "pi")], place / "pi_cwd")
    require_the_trajectory(place / "pi", *our_own_steps(place, PI), PI)


def test_everything_is_written_to_the_output_directory(place, trained):
    assert list((place / "empty").iterdir()) == []
    assert {path.name for path in trained.iterdir()} == {"config.yaml", "checkpoint", "log", "strategy"}


def test_the_output_of_the_run_is_converted(trained, tmp_path):
    """Its last checkpoint, or the one that is named."""
    fields = [f"model.{name}={value}" for name, value in MODEL.items() if name != "family"]
    for directory, step in ((trained, STEPS), (trained / f"checkpoint/iteration_{SAVED_AT:08d}", SAVED_AT)):
        words = ["convert", str(directory), "--from", "mindformers", "--config", "alpha/tiny", *fields]
        assert main([*words, "--output", str(tmp_path / str(step))]) == 0
        found = store.open_checkpoint(tmp_path / str(step)).tensors()
        expected = weights(trained, step)
        assert found.keys() == expected.keys()
        assert all(np.array_equal(found[name], expected[name]) for name in expected)


@pytest.mark.slow
def test_registration_by_path_resumes_the_same_trajectory(place, trained):
    import pangu_ms.mindformers

    output = place / "resumed"
    changes = {
        "trainer": {"type": "PanguTrainer", "auto_register": "trainer.PanguTrainer"},
        "output_dir": str(output),
        "resume_training": True,
    }
    config = write_yaml(
        place / "by_path.yaml",
        place / "records",
        load_checkpoint=str(trained / f"checkpoint/iteration_{SAVED_AT:08d}"),
        **changes,
    )
    directories = {
        "REGISTER_PATH": str(Path(pangu_ms.mindformers.__file__).parent),
        "OM_MODULES_CACHE": str(place / "modules"),
        "LOCAL_DEFAULT_PATH": str(output),
    }
    child(["-c", BY_PATH, str(config)], place / "elsewhere", **directories)
    assert list((place / "elsewhere").iterdir()) == []
    first = logged(trained)
    assert logged(output) == {step: first[step] for step in range(SAVED_AT + 1, STEPS + 1)}
    last, resumed = weights(trained, STEPS), weights(output, STEPS)
    assert all(np.array_equal(last[name], resumed[name]) for name in last)


def test_a_gradient_that_is_infinite_changes_no_weight(place, trained):
    assert json.loads((place / "overflow.json").read_text()) == [
        [False, [0.75] * 2],
        [True, [0.75] * 2],
        [False, [0.5] * 2],
    ]


@pytest.mark.slow
def test_a_step_that_overflows_changes_no_weight(place):
    from pangu_ms.models.build import initial_values

    wrapper = {"type": "PanguTrainOneStepCell", "use_clip_grad": True, "scale_sense": 2.0**40}
    config = write_yaml(place / "overflow.yaml", place / "records", runner_wrapper=wrapper)
    output = place / "overflow"
    overrides = [f"pangu.train.steps={SAVED_AT}", "pangu.model.compute_dtype=float16"]
    child(["-m", "pangu_ms.mindformers", str(config), *overrides, "--output", str(output)], place / "overflow_cwd")
    assert all(overflow for _, overflow in logged(output).values()) and len(logged(output)) == SAVED_AT
    model = config_from_dict({"model": MODEL}, "test").model
    expected = dict(initial_values(model, 1))
    for name, array in weights(output, SAVED_AT).items():
        assert np.array_equal(array, expected[name]), name
