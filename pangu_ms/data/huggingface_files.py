"""Writes a tokenizer's files into a Hugging Face directory, and recognises them when such a directory is read again.

A tokenizer of our own is written as its SentencePiece model and settings with which transformers gives the same ids
(with segmenter none; transformers has no jieba). The settings also hold our own settings, so that an unchanged
directory is read back as the original tokenizer, with its fingerprint.
"""

from pathlib import Path
from typing import Any

from pangu_ms.core import files, small_json
from pangu_ms.data.huggingface import FAST, SENTENCEPIECE, HuggingFaceTokenizer
from pangu_ms.data.special_tokens import GENERATION, SETTINGS
from pangu_ms.data.tokenizer import Tokenizer

_LLAMA, _FAST_CLASS, _JIEBA_CLASS = "LlamaTokenizer", "PreTrainedTokenizerFast", "PanguTokenizer"
_OWN = "pangu_tokenizer"  # key of tokenizer_config.json
TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
"""Keys of config.json and generation_config.json."""


def find(directory: Path) -> Path | None:
    """The path in a directory of weights that `Tokenizer.load` can read, or None if it holds no tokenizer."""
    directory = Path(directory)
    released = directory / "vocab.model"  # the community's ports of PanGu-alpha have settings beside it
    if any((directory / name).exists() for name in (SENTENCEPIECE, FAST)) or not released.exists():
        return directory if any((directory / name).exists() for name in (SENTENCEPIECE, FAST, SETTINGS)) else None
    return released


def files_of(tokenizer: Tokenizer) -> dict[str, bytes]:
    """The contents, by name, of the files that make up a tokenizer in a Hugging Face directory.

    generation_config.json is one of them: it holds the ids that end a generated text.
    """
    if isinstance(tokenizer, HuggingFaceTokenizer):
        contents = _portable(tokenizer)
    else:
        contents = {SENTENCEPIECE: tokenizer.model, SETTINGS: _json(_settings_of(tokenizer))}
    return {GENERATION: _json(token_ids(tokenizer))} | contents


def token_ids(tokenizer: Tokenizer) -> dict[str, Any]:
    """bos, eos and pad in the form of config.json: a number, None, or for eos a list of numbers."""
    ends = [tokenizer.eod_id, *(i for i in tokenizer.stop_ids if i != tokenizer.eod_id)]
    pad = tokenizer.pad_id if tokenizer.has_pad else None
    return dict(zip(TOKEN_IDS, (tokenizer.bos_id, ends if len(ends) > 1 else ends[0], pad)))


def transformers_reads(tokenizer: Tokenizer) -> bool:
    """Whether transformers has a tokenizer class that gives the same ids."""
    return tokenizer.segmenter == "none"


def own_tokenizer(directory: Path) -> Tokenizer | None:
    """The tokenizer of our own that `files_of` wrote there, if nobody has changed its files since; else None."""
    try:
        settings = small_json.read_object(directory / SETTINGS)
        tokenizer = Tokenizer(
            small_json.read_bytes(directory / SENTENCEPIECE), settings[_OWN]["segmenter"], settings[_OWN]["eod"]
        )
        unchanged = settings == _settings_of(tokenizer) and not (directory / FAST).exists()
    except (ValueError, KeyError, TypeError):
        return None  # the files are not ours or were changed; HuggingFaceTokenizer.load reports what is wrong with them
    return tokenizer if unchanged else None


def _settings_of(tokenizer: Tokenizer) -> dict[str, Any]:
    """The content of tokenizer_config.json for a tokenizer of our own."""
    special = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    named = {"bos": tokenizer.bos_id, "eos": tokenizer.eod_id, "unk": tokenizer.unk_id, "pad": tokenizer.pad_id}
    return {
        "tokenizer_class": _LLAMA if transformers_reads(tokenizer) else _JIEBA_CLASS,
        "add_bos_token": bool(tokenizer.first_ids),
        "add_eos_token": False,
        "add_prefix_space": False,
        "legacy": False,
        "clean_up_tokenization_spaces": False,
        **{f"{name}_token": None if index is None else tokenizer.piece_of(index) for name, index in named.items()},
        "added_tokens_decoder": {str(i): special | {"content": tokenizer.piece_of(i)} for i in tokenizer.special_ids},
        _OWN: tokenizer.settings,
    }


def _portable(tokenizer: HuggingFaceTokenizer) -> dict[str, bytes]:
    """The original files. A tokenizer class whose code lies in the original directory is replaced by one of
    transformers' own classes, which gives the same ids."""
    contents = tokenizer.files()
    settings = small_json.parse_object(contents.get(SETTINGS, b"{}"))
    if settings.pop("auto_map", None) is None:
        return contents
    settings["tokenizer_class"] = _LLAMA if tokenizer.of_pieces else _FAST_CLASS
    return contents | {SETTINGS: _json(settings)}


def _json(tree: dict[str, Any]) -> bytes:
    return files.json_text(tree).encode()
