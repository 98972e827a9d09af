"""The special tokens of a Hugging Face directory, as its settings files define them.

Source: transformers 4.57, tokenization_utils_base.py.
"""

from collections.abc import Mapping
from typing import Any

SETTINGS, SPECIAL_TOKENS, ADDED = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
GENERATION, CONFIG = "generation_config.json", "config.json"
_LLAMA = ("LlamaTokenizer", "LlamaTokenizerFast")
_OF_LLAMA = {"bos": "<s>", "eos": "</s>", "unk": "<unk>", "pad": None}


class SpecialTokens:
    """The settings of a tokenizer, from the JSON files of its directory.

    Attributes:
        tokenizer_class: the class that the settings name; by default LLaMA's.
        is_llama: whether transformers opens the tokenizer with its LLaMA classes.
        has_known_class: whether the class encodes with a SentencePiece model as LLaMA's class does. openPangu's own
            class does so too.
        add_bos: whether bos is put before a text.
        add_prefix_space: the setting of this name; None if it is absent.
        legacy: transformers' setting of this name: if it is true, a text that already begins with a space gets another
            space.
        named: the text of each of bos, eos, unk and pad; None if the directory does not define it.
        added: for each id that the settings list, the token's text and whether it is special.
        contents: the texts of all special tokens.
        vocab_size: the value in config.json, or None.
    """

    SOURCES = (SETTINGS, SPECIAL_TOKENS, ADDED, GENERATION, CONFIG)

    def __init__(self, trees: Mapping[str, dict[str, Any]]) -> None:
        """Read the settings from the JSON objects of the files that exist.

        Raises:
            ValueError, TypeError, AttributeError: a value has the wrong type.
        """
        settings, special_map = trees.get(SETTINGS, {}), trees.get(SPECIAL_TOKENS, {})
        self._generation, self._config = trees.get(GENERATION, {}), trees.get(CONFIG, {})
        self.tokenizer_class = settings.get("tokenizer_class") or _LLAMA[0]
        self.is_llama = self.tokenizer_class in _LLAMA
        self.has_known_class = self.is_llama or "pangu" in self.tokenizer_class.lower()
        self.add_bos, self.legacy = settings.get("add_bos_token", True), settings.get("legacy") is not False
        self.add_prefix_space: bool | None = settings.get("add_prefix_space")
        listed = settings.get("added_tokens_decoder")
        # As in transformers: settings that list the added tokens have precedence over special_tokens_map.json; in older
        # directories, whose settings have no such list, it is the other way round.
        order = [settings, special_map] if listed is not None else [special_map, settings]
        defaults = _OF_LLAMA if self.has_known_class else dict.fromkeys(_OF_LLAMA)
        self.named = {name: _named(f"{name}_token", order, default) for name, default in defaults.items()}
        further = [_content(token) for tree in order for token in tree.get("additional_special_tokens") or []]
        self.contents = {content for content in [*self.named.values(), *further] if content is not None}
        self.added: dict[int, tuple[str, bool]] = {}
        for content, index in trees.get(ADDED, {}).items():
            self.added[int(index)] = (content, content in self.contents)
        for index, token in (listed or {}).items():
            is_special = token.get("special") is True or _content(token) in self.contents
            self.added[int(index)] = (_content(token), is_special)
        self.contents |= {content for content, special in self.added.values() if special}
        self.vocab_size: int | None = _whole(self._config.get("vocab_size"))
        if self.vocab_size is not None and not 0 < self.vocab_size <= 1 << 24:
            raise ValueError(f"{CONFIG}: vocab_size={self.vocab_size}")

    def end_ids(self, vocab_size: int) -> list[int]:
        """Ids that end a generated text, from generation_config.json or else config.json."""
        given = self._first_given("eos_token_id")
        if given is None:
            return []
        ids = []
        for value in given if isinstance(given, list) else [given]:
            index = _whole(value)
            if index is None or index >= vocab_size:
                raise ValueError(f"eos_token_id={given!r}: {index} is no id of a vocabulary of {vocab_size}")
            if index >= 0:  # -1 means that there is none
                ids.append(index)
        return ids

    def pad_id(self, vocab_size: int) -> int | None:
        """The padding id in generation_config.json or else config.json, for directories that define no pad_token."""
        index = _whole(self._first_given("pad_token_id"))
        return index if index is not None and 0 <= index < vocab_size else None

    def _first_given(self, key: str) -> Any:
        """A value of generation_config.json, or else of config.json; None if neither has one."""
        given = self._generation.get(key)
        return self._config.get(key) if given is None else given


def _named(key: str, order: list[dict[str, Any]], default: str | None) -> str | None:
    found = next((tree[key] for tree in order if key in tree), default)
    return None if found is None else _content(found)


def _content(token: Any) -> str:
    content = token.get("content") if isinstance(token, dict) else token
    if not isinstance(content, str) or not content:
        raise ValueError(f"token {token!r} has no content")
    return content


def _whole(value: Any) -> int | None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
        raise ValueError(f"{value!r} is no whole number")
    return value
