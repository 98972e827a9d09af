"""A checkpoint with a NaN in it, as an overflow or a damaged disk leaves it: one line, no text made of nothing."""

import numpy as np
import pytest

from pangu_ms.checkpoint import store
from pangu_ms.cli.main import main
from tests.eager import eager

NAME = "final_norm.weight"


@pytest.fixture(scope="module")
def damaged(trained_run, tmp_path_factory):
    """The trained run's last checkpoint with one NaN."""
    whole = store.open_checkpoint(trained_run)
    tensors = {name: value.copy() for name, value in whole.tensors().items()}
    tensors[NAME][5] = np.nan
    return store.save(
        tmp_path_factory.mktemp("damaged"), whole.step, {"model": tensors}, {}, whole.config(), whole.tokenizer_path()
    )


@pytest.fixture(autouse=True)
def eagerly(mindspore_cpu):
    """Each command ends after its first logits: no graph is worth compiling."""
    with eager():
        yield


def one_line(capsys, *arguments):
    capsys.readouterr()
    assert main([*map(str, arguments)]) == 2
    out, error = capsys.readouterr()
    assert out == "" and error.count("\n") == 1 and "Traceback" not in error
    return error


@pytest.mark.parametrize("words", [["--temperature", "0"], ["--top-p", "0.9"]])
def test_generate(damaged, capsys, words):
    line = one_line(capsys, "generate", damaged, "--prompt", "print(", "--max-new-tokens", "4", *words)
    assert "prompt 1: the model's logits behind 0 new tokens hold nan; they must be numbers" in line


def test_eval(damaged, records, capsys):
    line = one_line(capsys, "eval", damaged, "--data", records, "--no-baselines", "--json")
    assert f"{damaged}: the loss is nan; it must be a number" in line


def test_export(damaged, tmp_path, capsys):
    line = one_line(
        capsys,
        "export",
        damaged,
        "--output",
        tmp_path / "package",
        "--batch-size",
        "1",
        "--max-length",
        "4",
        "--chunk",
        "4",
    )
    assert "the checkpoint's logits are not finite" in line and not (tmp_path / "package").exists()


def test_of_several_prompts_the_one_is_named():
    """By its number, also where beams are searched."""
    from pangu_ms.core.errors import GenerationError
    from pangu_ms.infer.beam import beam_search
    from pangu_ms.infer.decoder import GraphShape
    from pangu_ms.infer.sampling import SamplingConfig

    class Decoder:
        shape = GraphShape(2, 8, 8, 8)

        def prefill(self, prompts, domains=()):
            return np.full((2, 4), np.inf, np.float32)

    with pytest.raises(GenerationError, match="prompt 3: the model's logits behind 0 new tokens hold inf"):
        beam_search(Decoder(), [1], SamplingConfig(num_beams=2), frozenset(), 2)
