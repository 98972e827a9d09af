"""Special ids of the stored Hugging Face tokenizers."""

import json

from tests.data.common import STORED

LLAMA3_BEGIN = STORED["llama3"]["files"]["config.json"]["vocab_size"] - 3 - 3  # three rows to spare, three specials


IDS = {  # bos, eos and pad of config.json
    "llama1": (1, 2, None),
    "bare": (1, 2, None),
    "llama2": (1, 2, 0),
    "no_prefix": (1, 2, None),
    "extended": (1, [2, 300], 420),
    "openpangu": (1, 4, None),
    "llama1_fast": (1, 2, None),
    "llama2_fast": (1, 2, None),
    "llama3": (LLAMA3_BEGIN, [LLAMA3_BEGIN + 1, LLAMA3_BEGIN + 2], None),
}


def read_json(path):
    return json.loads(path.read_text())
