"""Write chat_golden.json: ids that transformers gives for chats, with the tokenizers of tokenizer_golden.json.

    python -m tests.reference.make_chat_golden

Made with transformers 4.57.1. For each variant: `template`, `own` (the special tokens in the template's variables come
from the tokenizer), and `chats`: messages, whether an answer follows, ids. The template of openPangu is written here by
its description (every turn is [unused9]ROLE, a colon, CONTENT[unused10]); transformers puts no <s> before it.
"""

import json
import random
import tempfile
from pathlib import Path
from typing import Any

from tests.reference.make_tokenizer_golden import CHINESE, CODE, GOLDEN, PROSE, TEXTS, write_files

CHATS = Path(__file__).with_name("chat_golden.json")
_ROLES = {
    "system": "\u7cfb\u7edf",
    "user": "\u7528\u6237",
    "assistant": "\u52a9\u624b",
    "tool": "\u5de5\u5177",
    "function": "\u65b9\u6cd5",
}
OPENPANGU = (
    "{% for message in messages %}{% if loop.index0 == 0 and messages[0]['role'] != 'system' %}"
    "{{ '[unused9]\u7cfb\u7edf\uff1a[unused10]' }}{% endif %}"
    + "".join(
        f"{{% if message['role'] == '{role}' %}}{{{{ '[unused9]{name}\uff1a' + message['content'] + '[unused10]' }}}}"
        "{% endif %}"
        for role, name in _ROLES.items()
    )
    + "{% endfor %}{% if add_generation_prompt %}{{ '[unused9]\u52a9\u624b\uff1a' }}{% endif %}"
)
OTHERS = (
    "{{ bos_token }}{% for message in messages %}\n"
    "  {% if message.content is string %}{{ message.role | upper + ': ' + message.content | trim + eos_token }}\n"
    "  {% endif %}\n"
    "{%- endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
SPELLINGS = ("unused", "<", "|")
"""Texts with these may spell a special token, which transformers takes for one."""


def chats(number: int, seed: int) -> list[list[dict[str, str]]]:
    """Chats of mixed texts."""
    rng = random.Random(seed)
    texts = [text for text in (*TEXTS, CODE, PROSE, CHINESE) if not any(part in text for part in SPELLINGS)]
    found = []
    for _ in range(number):
        roles = (["system"] if rng.random() < 0.4 else []) + ["user", "assistant"] * rng.randint(0, 2) + ["user"]
        roles += rng.choice([[], [], ["tool"], ["function"]])
        found.append([{"role": role, "content": rng.choice(texts)} for role in roles])
    return found


def files_of(name: str) -> dict[str, Any]:
    """A tokenizer of tokenizer_golden.json; openPangu's with both of its special pieces in the list, as it is
    released."""
    files = json.loads(GOLDEN.read_text())[name]["files"]
    if name == "openpangu":
        listed = files["tokenizer_config.json"]["added_tokens_decoder"]
        listed["3"] = listed["4"] | {"content": "[unused9]"}
    return files


def golden() -> dict[str, Any]:
    """The content of the file."""
    from transformers import AutoTokenizer

    result = {}
    for name, number in (
        ("openpangu", 50),
        ("llama1", 8),
        ("llama2", 8),
        ("llama1_fast", 8),
        ("llama2_fast", 8),
        ("llama3", 8),
    ):
        template = OPENPANGU if name == "openpangu" else OTHERS
        with tempfile.TemporaryDirectory() as directory:
            write_files(files_of(name), Path(directory))
            tokenizer = AutoTokenizer.from_pretrained(directory, use_fast=name != "openpangu")
        rows = []
        for i, messages in enumerate(chats(number, len(name))):
            ids = tokenizer.apply_chat_template(messages, chat_template=template, add_generation_prompt=i % 3 > 0)
            rows.append([messages, i % 3 > 0, ids])
        result[name] = {"template": template, "chats": rows}
    return result


if __name__ == "__main__":
    CHATS.write_text(json.dumps(golden(), separators=(",", ":")) + "\n")
