"""The adapter with a compiled model: numbers of lm-eval's three questions, against numpy and the engine."""

from types import SimpleNamespace

import numpy as np
import pytest

from pangu_ms.checkpoint.store import open_checkpoint
from pangu_ms.eval.tasks.model import LocalModel
from pangu_ms.infer.generate import Prompt
from pangu_ms.infer.load import load_generator
from pangu_ms.infer.sampling import SamplingConfig
from tests.reference import alpha_numpy
from tests.serve.checkpoint import SEQ_LENGTH, save_checkpoint

pytest.importorskip("lm_eval")

from pangu_ms.eval.harness import HarnessModel

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("mindspore_cpu")]
PAIRS = [("def alpha_1(beta):\n", "    return"), ("", "def alpha"), ("print(", ")"), ("gamma = " * 150, "delta")]


@pytest.fixture(scope="module")
def model(records, made_once):
    path = made_once("served", lambda path: save_checkpoint(path, records.parent / "tokenizer"))
    return LocalModel(open_checkpoint(path))


def requests(*all_args):
    return [SimpleNamespace(args=args, doc_id=i, task_name="made") for i, args in enumerate(all_args)]


def logprobs(model, inputs):
    """Of each token behind `inputs`, in float64 from the whole sequence."""
    config, weights = model.config.model, model.checkpoint.tensors("model")
    logits = alpha_numpy.forward(config, weights, np.array([inputs]), None)[0]
    top = logits.max(-1, keepdims=True)
    return logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True))


def test_log_likelihoods_equal_float64(model):
    answers = HarnessModel(model, progress=False).loglikelihood(requests(*PAIRS))
    for (context, continuation), (total, greedy) in zip(PAIRS, answers, strict=True):
        whole = model.tokenizer.encode(context + continuation)
        scored = whole[-total.num_tokens :]
        inputs = ([model.tokenizer.eod_id, *whole] if not context else whole)[-SEQ_LENGTH - 1 : -1]
        table = logprobs(model, inputs)[-len(scored) :]
        assert total == pytest.approx(sum(row[token] for row, token in zip(table, scored)), abs=1e-3)
        assert greedy == all(row.argmax() == token for row, token in zip(table, scored))


def test_whole_texts_equal_float64(model):
    text = "".join(f"def alpha_{i}(beta):\n    return beta + {i}\n" for i in range(30))
    (total,) = HarnessModel(model, progress=False).loglikelihood_rolling(requests((text,)))
    ids, eod = model.tokenizer.encode(text), model.tokenizer.eod_id
    assert len(ids) > SEQ_LENGTH
    expected, begin = 0.0, 0
    while begin < len(ids):
        end = min(begin + SEQ_LENGTH, len(ids))
        first = max(0, end - SEQ_LENGTH)  # the last window has as much context as there is room for
        inputs = ([eod, *ids] if not first else ids[first - 1 :])[: end - first]
        table = logprobs(model, inputs)
        expected += sum(table[i - first, ids[i]] for i in range(begin, end))
        begin = end
    assert total == pytest.approx(expected, abs=1e-2) and total.num_tokens == len(ids)


def test_continuations_equal_those_of_the_engine(model):
    texts = ["def alpha", "print(", "class gamma"]
    prompts = [Prompt(text, SamplingConfig(24, temperature=0.9, stop=("a", "e"))) for text in texts]
    found = sorted(load_generator(model.checkpoint, prompts).each(prompts), key=lambda one: one[0])
    expected = [one.text for _, _, one in found]
    assert len(set(expected)) == 3
    asked = [(text, {"until": ["a", "e"], "max_gen_toks": 24, "temperature": 0.9}) for text in texts]
    assert HarnessModel(model, progress=False).generate_until(requests(*asked)) == expected
