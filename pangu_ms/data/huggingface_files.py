"""A tokenizer as a Hugging Face directory holds it: written for transformers, and known again when it comes back.

One of our own goes out as its SentencePiece model with settings that make transformers give the same ids, where its
segmenter is none; transformers has no jieba. The settings name ours too, so that what nobody changed comes back as what
it was, with its fingerprint.
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
    """What `Tokenizer.load` can read in a directory of weights, or None if it has no tokenizer."""
    directory = Path(directory)
    if any((directory / name).exists() for name in (SENTENCEPIECE, FAST, SETTINGS)):
        return directory
    released = directory / "vocab.model"
    return released if released.exists() else None


def files_of(tokenizer: Tokenizer) -> dict[str, bytes]:
    """Name -> content of the files of a Hugging Face directory that make up a tokenizer, what ends a generated text
    included."""
    contents = (
        _portable(tokenizer)
        if isinstance(tokenizer, HuggingFaceTokenizer)
        else {SENTENCEPIECE: tokenizer.model, SETTINGS: _json(_settings_of(tokenizer))}
    )
    return {GENERATION: _json(token_ids(tokenizer))} | contents


def token_ids(tokenizer: Tokenizer) -> dict[str, Any]:
    """bos, eos and pad as config.json has them: numbers, null, or for eos several."""
    ends = [tokenizer.eod_id, *(i for i in tokenizer.stop_ids if i != tokenizer.eod_id)]
    pad = tokenizer.pad_id if tokenizer.has_pad else None
    return dict(zip(TOKEN_IDS, (tokenizer.bos_id, ends if len(ends) > 1 else ends[0], pad)))


def transformers_reads(tokenizer: Tokenizer) -> bool:
    """Whether transformers has a class that gives the same ids."""
    return tokenizer.segmenter == "none"


def own_tokenizer(directory: Path) -> Tokenizer | None:
    """A tokenizer of ours that `files_of` wrote there and nobody changed; None for any other."""
    try:
        settings = small_json.read_object(directory / SETTINGS)
        tokenizer = Tokenizer(
            small_json.read_bytes(directory / SENTENCEPIECE), settings[_OWN]["segmenter"], settings[_OWN]["eod"]
        )
        unchanged = settings == _settings_of(tokenizer) and not (directory / FAST).exists()
    except (
        ValueError,
        KeyError,
        TypeError,
    ):  # not written by us, or not as it was: who reads Hugging Face's form says what is wrong
        return None
    return tokenizer if unchanged else None


def _settings_of(tokenizer: Tokenizer) -> dict[str, Any]:
    """tokenizer_config.json of one of our own."""
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
    """Its files as they came; where they name a class whose code came beside them, one of transformers' own that gives
    the same ids."""
    contents = tokenizer.files()
    settings = small_json.parse_object(contents.get(SETTINGS, b"{}"))
    if settings.pop("auto_map", None) is None:
        return contents
    settings["tokenizer_class"] = _LLAMA if tokenizer.of_pieces else _FAST_CLASS
    return contents | {SETTINGS: _json(settings)}


def _json(tree: dict[str, Any]) -> bytes:
    return files.json_text(tree).encode()
