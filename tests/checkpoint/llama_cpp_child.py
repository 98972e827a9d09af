"""Child of test_llama_cpp.py: `DIRECTORY FILE ASKED` prints in JSON what llama.cpp makes of a GGUF file: greedy tokens
behind a prompt, the logits of every position, and ids of texts."""

import json
import sys
from pathlib import Path

import numpy as np

from tests.bench.llama_cpp import LlamaCpp

directory, model, asked = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
llama = LlamaCpp(directory, model, 1, 256, 1, exact=True)  # 256: the least that it reserves
tokens, logits = list(asked["prompt"]), []
for position in range(len(tokens) + asked["steps"] - 1):
    logits.append(np.ctypeslib.as_array(llama.append([tokens[position]])[0], (llama.vocab_size,)).tolist())
    if position + 1 == len(tokens):
        tokens.append(int(np.argmax(logits[-1])))
ids = [llama.tokenize(text) for text in asked["texts"]]
print(json.dumps({"tokens": tokens, "logits": logits, "ids": ids}))
