"""Memory of generation: exact against the arrays of a model that generates; what does not fit says what to lower."""

import json
import tracemalloc

import numpy as np
import pytest

from ascend_ops.packing import pack
from pangu_ms.cli.main import main
from pangu_ms.config.load import load_config
from pangu_ms.core.errors import GenerationError
from pangu_ms.infer.beam import Hypothesis, _candidates
from pangu_ms.infer.sampling import Sampler, SamplingConfig
from pangu_ms.planner.serving import ServingMemory
from tests.infer.common import make_decoder
from tests.models.alpha import random_parameters, small


def test_weights_and_cache_are_those_of_the_model(mindspore_cpu):
    config = small()
    decoder = make_decoder(config, random_parameters(config), 3, 5, 20)
    memory = ServingMemory(config, 3, 20, 5)
    assert 3 * memory.slot_bytes == sum(cache.asnumpy().nbytes for cache in decoder.caches)
    parameters = sum(parameter.asnumpy().nbytes for parameter in decoder.graph.get_parameters())
    assert memory.weights_bytes == parameters - 3 * memory.slot_bytes


def test_a_cache_of_bfloat16_is_half_of_one_of_float32(capsys):
    assert main(["plan", "estimate", "--config", "alpha/13b", "--serve", "--cache-dtype", "bfloat16", "--json"]) in (
        0,
        1,
    )
    found = json.loads(capsys.readouterr().out)
    model = load_config("alpha/13b", ["model.compute_dtype=float32"]).model
    assert 2 * found["slot_bytes"] == ServingMemory(model, 8, model.seq_length, 64).slot_bytes


@pytest.mark.parametrize("weights", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("name", ["alpha/tiny", "moge/tiny"])
def test_packed_weights_have_the_bytes_of_packing(name, weights):
    config = load_config(name).model
    arrays = {name: np.ones(shape, np.float32) for name, shape in config.parameter_shapes().items()}
    packed = sum(pack(arrays.pop(name), weights).nbytes for name in config.packed_matrices())
    expected = packed + sum(array.nbytes for array in arrays.values())
    assert ServingMemory(config, 3, 20, 5, weights).weights_bytes == expected


def test_as_many_slots_fit_as_are_told():
    config = small()
    memory = ServingMemory(config, 4, 20, 5)
    free = memory.total_bytes - 1
    with pytest.raises(
        GenerationError,
        match=r"4 slots of 20 tokens need .* use at most 3 slots \(--batch-size or --slots\) or beams, or",
    ):
        memory.require_fitting(free)
    for slots in (1, 4):  # the answer does not depend on the slots that were asked for
        room = ServingMemory(config, slots, 20, 5).slots_in(100 * free)
        ServingMemory(config, room, 20, 5).require_fitting(100 * free)
        with pytest.raises(GenerationError, match=f"use at most {room} "):
            ServingMemory(config, room + 1, 20, 5).require_fitting(100 * free)
    with pytest.raises(GenerationError, match="use a smaller model, or free some memory"):
        memory.require_fitting(1000)


def test_the_scores_of_a_beam_search_are_within_what_is_counted():
    """Against the largest sum of numpy's arrays that live at once."""
    config = small(vocab_size=20000)
    logits = np.random.default_rng(0).normal(size=(4, config.vocab_size)).astype(np.float32)
    sampler = Sampler(SamplingConfig(num_beams=4, repetition_penalty=1.2, frequency_penalty=0.1), [3, 4], 0)
    tracemalloc.start()
    _candidates([Hypothesis((1, 2), -1.0)] * 4, logits, sampler, 8)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    counted = (
        ServingMemory(config, 4, 20, 5, searches_beams=True).step_bytes - ServingMemory(config, 4, 20, 5).step_bytes
    )
    assert 0.7 * counted < peak <= counted


def test_the_command(capsys):
    """13B in float16 on a card of 64 GB: by hand, 2 * 40 * 1025 * 5120 * 2 bytes a slot."""
    words = ["plan", "estimate", "--config", "alpha/13b", "--serve", "--slots", "4", "--hbm", "64GiB", "--json"]
    assert main([*words, "model.compute_dtype=float16"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["slot_bytes"] == 2 * 40 * 1025 * 5120 * 2 and found["fits"]
    assert found["slots_that_fit"] == int(((64 << 30) - found["total_bytes"]) / found["slot_bytes"]) + 4
    assert main([*words, "model.compute_dtype=float16", "--hbm", "16GiB"]) == 1
    assert main([*words, "--max-length", "4096"]) == 2
    assert "--max-length 4096: must be at least 1 and at most model.seq_length=1024" in capsys.readouterr().err
    assert main([*words, "--chunk", "0"]) == 2
    assert "--chunk 0: must be at least 1" in capsys.readouterr().err
    words.remove("--serve")
    assert main(words) == 2
    assert "--slots 4: is an option of --serve; add --serve, or leave it out" in capsys.readouterr().err
