"""What transformers makes of Hugging Face directories, for tests in a process that has mindspore: transformers imports
protobuf, which it cannot bear.

    python -m tests.reference.read_with_transformers DIRECTORY ...

Prints one JSON object: by directory `ids` of the corpus of make_tokenizer_golden.py (specials in texts are text),
`tokens` (content of bos, eos and pad), `config`, `generation` (their ids), `dtype`, `logits` of `PROBE`, `continued`,
twelve greedy ids after `PROMPT`, and `missing`, weights that were not in the files.
"""

import json
import sys
from typing import Any

from tests.reference.make_tokenizer_golden import TEXTS

PROBE = [1, 5, 17, 40, 2, 300, 7]
PROMPT = "def add(a"
NAMES = ("bos_token_id", "eos_token_id", "pad_token_id")


def read(directory: str) -> dict[str, Any]:
    """See above."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory)
    found = {"ids": [tokenizer(text, split_special_tokens=True).input_ids for text in TEXTS]}
    found["tokens"] = [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id]
    model, report = AutoModelForCausalLM.from_pretrained(directory, dtype="auto", output_loading_info=True)
    found |= {"missing": [str(value) for value in report.values() if value], "dtype": str(model.dtype)}
    found |= {
        "config": [getattr(model.config, name) for name in NAMES],
        "generation": [getattr(model.generation_config, name) for name in NAMES],
    }
    prompt = tokenizer(PROMPT, return_tensors="pt").input_ids
    made = model.float().generate(
        prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=12, pad_token_id=0
    )
    found["continued"] = made[0, prompt.shape[1] :].tolist()
    with torch.no_grad():
        return found | {"logits": model(torch.tensor([PROBE])).logits[0].tolist()}


if __name__ == "__main__":
    print(json.dumps({directory: read(directory) for directory in sys.argv[1:]}))
