"""GGUF files in llama.cpp itself, if the environment variable PANGU_LLAMA_CPP names the directory of its libraries (npm
package @node-llama-cpp/linux-x64, folder `bins`): the same logits, greedy tokens and ids of texts."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pangu_ms.cli.main import main
from pangu_ms.data.tokenizer import Tokenizer, train_tokenizer
from tests.checkpoint.llama_models import VARIANTS, saved
from tests.data.common import STORED
from tests.models.alpha import our_logits
from tests.models.pi import random_parameters, small
from tests.reference.make_tokenizer_golden import CHINESE, CODE, PROSE, TEXTS, write_files

LIBRARIES = os.environ.get("PANGU_LLAMA_CPP")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not LIBRARIES, reason="PANGU_LLAMA_CPP names no directory of llama.cpp's libraries"),
]
ROOT = Path(__file__).parents[2]
PROMPT, STEPS = [5, 17, 42, 9], 20


def ask(model, texts=(), steps=STEPS):
    asked = json.dumps({"prompt": PROMPT, "steps": steps, "texts": list(texts)})
    command = [sys.executable, "-m", "tests.checkpoint.llama_cpp_child", LIBRARIES, str(model), asked]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.usefixtures("mindspore_cpu")
@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_and_greedy_tokens_are_ours(variant, tmp_path):
    model = small(**VARIANTS[variant])
    weights = saved(tmp_path / "ours", model, random_parameters(model, deviation=0.2))
    assert main(["convert", str(tmp_path / "ours"), "--to", "gguf", "--output", str(tmp_path / "m.gguf")]) == 0
    there = ask(tmp_path / "m.gguf")
    ids = np.array([there["tokens"][: model.seq_length]], np.int32)
    assert ids.shape[1] == len(PROMPT) + STEPS == model.seq_length
    logits = our_logits(model, weights, ids, False)[0]
    # The product of 24 positions and one of a single row add in another order; both are float32.
    np.testing.assert_allclose(there["logits"], logits[:-1], atol=2e-3)
    assert there["tokens"][len(PROMPT) :] == logits[len(PROMPT) - 1 : -1].argmax(axis=-1).tolist()


@pytest.mark.parametrize("variant", ["own", "llama2", "extended", "openpangu", "no_prefix"])
def test_texts_get_our_ids(variant, tmp_path):
    if variant == "own":
        train_tokenizer([CODE, PROSE, CHINESE] * 20, 420, "none").save(tmp_path / "tokenizer")
    else:
        write_files(STORED[variant]["files"], tmp_path / "tokenizer")
    tokenizer = Tokenizer.load(tmp_path / "tokenizer")
    saved(tmp_path / "ours", small(vocab_size=tokenizer.vocab_size), tokenizer=tmp_path / "tokenizer")
    assert main(["convert", str(tmp_path / "ours"), "--to", "gguf", "--output", str(tmp_path / "m.gguf")]) == 0
    # llama.cpp puts a space before a text that begins with one, too, and behind user-defined pieces (see the docs).
    skipped = {"llama2": lambda text: text.startswith((" ", "\u2581")), "openpangu": lambda text: "[unused" in text}
    texts = [text for text in TEXTS if text and "\0" not in text and not skipped.get(variant, lambda text: False)(text)]
    assert len(texts) > len(TEXTS) / 2
    found = ask(tmp_path / "m.gguf", texts, steps=1)["ids"]
    for text, ids in zip(texts, found):
        assert ids == tokenizer.encode_prompt(text), text
