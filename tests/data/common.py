"""Small texts, and the Hugging Face tokenizers whose ids are stored."""

import argparse
import inspect
import json
import random

from tests.reference.make_tokenizer_golden import GOLDEN

STORED = json.loads(GOLDEN.read_text())


CHINESE = [
    "\u4f60\u597d\uff0c\u4eca\u5929\u5929\u6c14\u4e0d\u9519\u3002",
    (
        "\u6240\u6709\u7684\u9047\u89c1\uff0c\u90fd\u662f\u7f8e\u9e97\u7684\u3002\n\u6709\u4e9b\u4eba\u9009\u62e9"
        " \u6c38\u8fdc\u7559\u5728\u4f60\u8eab\u8fb9\uff01"
    ),
    "\u6bb7\u58eb\u7686\u5468\u796f\uff0c\u5357\u97f3\u72ec\u695a\u51a0\u3002\u5bdd\u8f66\u4eba\u66f4\u6012\uff0c\u8d1f\u4fce\u6211\u4f55\u5b89\u3002",
]


CODE = inspect.getsource(argparse)


def documents(count: int, seed: int = 0) -> list[dict]:
    """Records of mixed Chinese, English and code; the texts differ."""
    rng = random.Random(seed)
    records = []
    for number in range(count):
        start = rng.randrange(len(CODE))
        text = f"{number} {rng.choice(CHINESE)} {CODE[start : start + rng.randrange(400)]}"
        records.append({"text": text, "domain": rng.choice(["zh", "code"])})
    return records


def write_jsonl(path, records) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)
