"""Write tokenizer_golden.json: small Hugging Face tokenizers, and the ids that transformers gives for a mixed corpus,
for machines without it.

    python -m tests.reference.make_tokenizer_golden

Made with transformers 4.57.1, tokenizers 0.22.1 and sentencepiece 0.2.1. For each variant: `files` by name (JSON
objects; a SentencePiece model in base64), and `texts`: text, ids, decoded (without special tokens). Special tokens in
texts are text (`split_special_tokens=True`).
"""

import base64
import io
import json
import tempfile
from pathlib import Path
from typing import Any

GOLDEN = Path(__file__).with_name("tokenizer_golden.json")
CODE = "def add(a, b):\n    return a + b\n\n\nfor i in range(10):\n\tprint(f'{i:>3}', add(i, 1))\n"
PROSE = (
    "The quick brown fox jumps over the lazy dog. It's 3.14 o'clock, isn't it? The dog sleeps; the fox runs over the"
    " hill. "
)
CHINESE = (
    "\u4eca\u5929\u5929\u6c14\u4e0d\u9519\uff0c\u6211\u4eec\u53bb\u516c\u56ed\u8d70\u8d70\u3002"
    "\u660e\u6708\u51e0\u65f6\u6709\uff1f\u628a\u9152\u95ee\u9752\u5929\u3002"
)
TEXTS = [
    "", " ", "  ", "a", " a", "  a", "a ", "\n", "\n\n a", "\t\tx", "Hello", " Hello world", "Hello  world",
    "\u2581", "\u2581a", "a\u2581b",
    CODE, PROSE, CHINESE, CHINESE + PROSE, PROSE + "\n" + CODE, "\u4f60\u597d\uff0c\u4e16\u754c\uff01",
    "\u3000\u3000\u5168\u89d2\u3000\u7a7a\u683c",
    "caf\u00e9 na\u00efve cafe\u0301", "\U0001f600\U0001f468\u200d\U0001f469\u200d\U0001f467",
    "\u0645\u0631\u062d\u0628\u0627 \u05e9\u05dc\u05d5\u05dd", "\r\nwin\r\n", "\0nul", "\ufeffbom",
    "<s>", "</s>", "a<s>b</s> c", "<unk>", "<pad>", "<|im_end|>", "x <|im_end|> y",
    "<|begin|>a<|end|>", "<0x41>", "[unused10]x", "a [unused9]b", "1234567890 1,000", "A" * 40,
]  # fmt: skip
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


def listed(*tokens: tuple[int, str, bool]) -> dict[str, Any]:
    """`added_tokens_decoder` of tokenizer_config.json."""
    plain = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    return {
        "added_tokens_decoder": {
            str(i): plain | {"content": content, "special": special} for i, content, special in tokens
        }
    }


def golden() -> dict[str, Any]:
    """The content of the file."""
    model = base64.b64encode(llama_model()).decode()
    base = ((0, "<unk>", True), (1, "<s>", True), (2, "</s>", True))
    llama = {"tokenizer_class": "LlamaTokenizer", **SPECIAL}
    vocab = {"model_type": "llama", "vocab_size": 420}
    variants = {
        "llama1": {
            "config.json": vocab | {"pad_token_id": -1},
            "special_tokens_map.json": SPECIAL,
            "tokenizer_config.json": {"tokenizer_class": "LlamaTokenizer"},
        },
        "bare": {"config.json": vocab | {"bos_token_id": 1, "eos_token_id": 2}},
        "llama2": {
            "config.json": vocab,
            "tokenizer_config.json": llama | {"legacy": False, "add_bos_token": True} | listed(*base),
            "generation_config.json": {"eos_token_id": 2, "pad_token_id": 0},
        },
        "no_prefix": {
            "config.json": vocab,
            "tokenizer_config.json": llama | {"add_prefix_space": False, "add_bos_token": False} | listed(*base),
        },
        "extended": {  # a pad behind the vocabulary, and rows to spare
            "config.json": vocab | {"vocab_size": 432},
            "tokenizer_config.json": llama | {"pad_token": "<pad>"} | listed(*base, (420, "<pad>", True)),
            "generation_config.json": {"eos_token_id": [300, 2]},
        },
    }
    variants = {name: {**files, "tokenizer.model": model} for name, files in variants.items()}
    openpangu = (
        llama
        | {"eos_token": {"__type": "AddedToken", "content": "[unused10]"}}
        | listed(*base, (4, "[unused10]", True))
    )
    variants["openpangu"] = {
        "config.json": vocab,
        "tokenizer_config.json": openpangu,
        "tokenizer.model": base64.b64encode(llama_model("[unused9]", "[unused10]")).decode(),
    }
    variants |= fast_variants(variants["llama1"], variants["llama2"])
    return {name: {"files": files, "texts": vectors(name, files)} for name, files in variants.items()}


def fast_variants(*with_model: dict[str, Any]) -> dict[str, Any]:
    """The same tokenizers saved as tokenizer.json, with tokens added, and one of LLaMA 3's kind, which is spelt in
    bytes."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    made = {}
    for name, files in zip(("llama1_fast", "llama2_fast"), with_model):
        with tempfile.TemporaryDirectory() as directory:
            write_files(files, Path(directory))
            tokenizer = AutoTokenizer.from_pretrained(directory)
            tokenizer.add_tokens(["[unused10]", AddedToken("<|im_end|>", special=True)])
            made[name] = saved(tokenizer) | {"config.json": {"model_type": "llama", "vocab_size": 424}}
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(__import__("tokenizers").Regex(r"\p{N}{1,3}|\s+(?!\S)|[^\p{N}\s]+|\s+"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(
        [CODE, PROSE, CHINESE] * 3,
        trainers.BpeTrainer(vocab_size=380, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False),
    )
    bpe.add_special_tokens(["<|begin|>", "<|end|>", "<|im_end|>"])
    begin = bpe.token_to_id("<|begin|>")
    bpe.post_processor = processors.TemplateProcessing(
        single="<|begin|> $A", pair="<|begin|> $A $B", special_tokens=[("<|begin|>", begin)]
    )
    llama3 = saved(
        PreTrainedTokenizerFast(
            tokenizer_object=bpe, bos_token="<|begin|>", eos_token="<|end|>", clean_up_tokenization_spaces=False
        )
    )
    size = bpe.get_vocab_size()
    return made | {
        "llama3": (
            llama3
            | {
                "config.json": {"model_type": "llama", "vocab_size": size + 3},
                "generation_config.json": {"eos_token_id": [begin + 1, begin + 2]},
            }
        )
    }


def saved(tokenizer: Any) -> dict[str, Any]:
    """The JSON files that transformers writes of a tokenizer."""
    with tempfile.TemporaryDirectory() as directory:
        tokenizer.save_pretrained(directory)
        return {path.name: json.loads(path.read_text()) for path in Path(directory).glob("*.json")}


def llama_model(*user_defined: str) -> bytes:
    """A SentencePiece model with LLaMA's options; `user_defined` pieces have the ids from 3 on."""
    import sentencepiece

    model = io.BytesIO()
    options = {
        "model_type": "bpe",
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
    }
    options |= {
        "split_digits": True,
        "allow_whitespace_only_pieces": True,
        "character_coverage": 0.99995,
        "minloglevel": 2,
        "num_threads": 1,
        "user_defined_symbols": list(user_defined),
    }
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([CODE, PROSE, CHINESE] * 20), model_writer=model, vocab_size=420, **options
    )
    return model.getvalue()


def write_files(files: dict[str, Any], directory: Path) -> None:
    """Write a variant's files."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (directory / name).write_bytes(
            base64.b64decode(content) if isinstance(content, str) else json.dumps(content).encode()
        )


def vectors(name: str, files: dict[str, Any]) -> list[list[Any]]:
    """Text, ids and decoded text of `TEXTS`; openPangu's own class is one of the slow ones, which leave user-defined
    pieces to SentencePiece."""
    from transformers import AutoTokenizer

    with tempfile.TemporaryDirectory() as directory:
        write_files(files, Path(directory))
        tokenizer = AutoTokenizer.from_pretrained(directory, use_fast=name != "openpangu")
        ids = [tokenizer(text, split_special_tokens=True).input_ids for text in TEXTS]
        return [
            [text, row, tokenizer.decode(row, skip_special_tokens=True, clean_up_tokenization_spaces=False)]
            for text, row in zip(TEXTS, ids)
        ]


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(golden(), separators=(",", ":")) + "\n")
