"""Keys and values that are kept in half the bytes: nearly the same logits, and bits of a sequence that do not depend on
the others."""

import json

import mindspore as ms
import numpy as np
import pytest

import ascend_ops
from ascend_ops.errors import OperatorError
from pangu_ms.checkpoint.store import open_checkpoint
from pangu_ms.cli.main import main
from pangu_ms.config.load import load_config
from pangu_ms.core.errors import ExportError, GenerationError
from pangu_ms.export.write import export_package
from pangu_ms.infer.decoder import GraphShape
from pangu_ms.infer.load import _require_writable, cache_dtype_of
from tests.eager import eager
from tests.infer.common import make_decoder
from tests.models.alpha import random_parameters, small
from tests.reference.alpha_numpy import forward

pytestmark = pytest.mark.usefixtures("mindspore_cpu")
CONFIG = small(num_layers=2)
PARAMETERS = random_parameters(CONFIG)
PROMPT, NEXT = [7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17], [20, 21, 22]


def decoder(slots, chunk, cache_dtype="bfloat16"):
    return make_decoder(CONFIG, PARAMETERS, slots, chunk, weights="float32", cache_dtype=cache_dtype)


def logits(decoder, slot=1):
    """After the prompt and each further token, beside another sequence in the other slot."""
    other = 1 - slot
    rows = [decoder.prefill([PROMPT if own == slot else [5] for own in range(2)])[slot]]
    return np.stack(rows + [decoder.append({other: 30, slot: token})[slot] for token in NEXT])


@pytest.fixture
def eagerly(mindspore_cpu):
    """Models that run a few times; the last test computes with such a cache in a graph."""
    with eager():
        yield


@pytest.fixture(scope="module")
def small_decoder():
    return decoder(2, 10)


@pytest.fixture(scope="module")
def exact():
    """The logits in float64."""
    parameters = {name: value.astype(np.float64) for name, value in PARAMETERS.items()}
    return forward(CONFIG, parameters, np.array([PROMPT + NEXT]), None)[0, len(PROMPT) - 1 :]


@pytest.mark.usefixtures("eagerly")
def test_logits_are_near_those_of_exact_keys_and_values(small_decoder, exact):
    """A rounding of bfloat16 is at most 2^-9 of a number."""
    assert 1e-4 < np.abs(logits(small_decoder) - exact).max() / np.abs(exact).max() < 2**-7
    assert all(cache.dtype == ms.bfloat16 for cache in small_decoder.caches)


@pytest.mark.usefixtures("eagerly")
def test_mindspore_s_own_operators_keep_float16_alone(exact):
    with ascend_ops.use("composed"):
        assert np.abs(logits(decoder(2, 10, "float16")) - exact).max() < 2**-10 * np.abs(exact).max()
        with pytest.raises(GenerationError, match=r"can write to such a cache.*\(asked for\); use float16"):
            _require_writable("bfloat16")
        with pytest.raises(OperatorError, match="keys is bfloat16: on a CPU only our kernel can write to it"):
            logits(decoder(1, 1))


@pytest.mark.usefixtures("eagerly")
def test_bits_of_a_sequence_do_not_depend_on_slots_and_chunks(small_decoder):
    expected = logits(small_decoder)
    for other in (logits(small_decoder, 0), logits(decoder(5, 4))):
        assert np.array_equal(other.view(np.int32), expected.view(np.int32))


@pytest.mark.usefixtures("eagerly")
def test_sequences_are_copied_kept_and_cleared(small_decoder):
    expected = logits(small_decoder)[-1]
    saved = small_decoder.save(1)
    small_decoder.clear(1)
    assert not any(rows.any() for rows in small_decoder.save(1))
    small_decoder.start(0)
    small_decoder.restore(0, saved)
    small_decoder.copy([0], [1], len(PROMPT) + len(NEXT) - 1)
    assert np.array_equal(small_decoder.append({1: NEXT[-1]})[1], expected)


def test_caches_that_cannot_be_had_are_refused():
    float16 = load_config("alpha/tiny", ["model.compute_dtype=float16"])
    for asked in ("float32", "bfloat16"):
        with pytest.raises(
            GenerationError, match=f"--cache-dtype {asked}: generation computes in float16 here, and keeps"
        ):
            cache_dtype_of(float16, asked)
    assert cache_dtype_of(load_config("alpha/tiny"), "float32") == ""
    computed = load_config("alpha/tiny", ["model.compute_dtype=bfloat16"])
    assert cache_dtype_of(computed, "bfloat16") == "bfloat16"  # a CPU computes in float32


def test_texts_are_scored_with_the_cache_that_is_asked_for(trained_run, tmp_path, capsys):
    (tmp_path / "items.jsonl").write_text(json.dumps({"text": "def alpha_1(beta):\n    return beta"}) + "\n")
    found = []
    for words in ([], ["--cache-dtype", "bfloat16"]):
        assert main(["score", str(trained_run), "--input", str(tmp_path / "items.jsonl"), "--json", *words]) == 0
        found.append(np.array(json.loads(capsys.readouterr().out)["logprobs"]))
    assert 1e-6 < np.abs(found[1] - found[0]).max() < 0.1


def test_a_package_for_a_cpu_has_no_cache_of_bfloat16(trained_run, tmp_path):
    shape = GraphShape.fitting(32, 1, 16)
    with pytest.raises(ExportError, match="--cache-dtype bfloat16: MindSpore's own operators.*use float16"):
        export_package(open_checkpoint(trained_run), tmp_path / "p", shape, cache_dtype="bfloat16")
    assert not (tmp_path / "p").exists()
