"""Tokenizers of Hugging Face directories: a SentencePiece model (LLaMA, openPangu) or a tokenizer.json of the
`tokenizers` library.

For text without special tokens the ids are those of transformers' `AutoTokenizer`. Text never encodes to a special
token: text that spells one is ordinary text, as with `split_special_tokens=True`. Saving writes the original files
unchanged, so that transformers reads them as before.

Source: transformers 4.57, tokenization_llama_fast.py, convert_slow_tokenizer.py (LlamaConverter); tokenizers 0.22,
decoders.
"""

import json
import logging
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import sentencepiece

from pangu_ms.core import files, small_json
from pangu_ms.core.errors import DataError
from pangu_ms.core.protobuf import content as message_content
from pangu_ms.core.protobuf import fields, message_field, number_field, values
from pangu_ms.data.special_tokens import ADDED, CONFIG, GENERATION, SETTINGS, SPECIAL_TOKENS, SpecialTokens
from pangu_ms.data.tokenizer import SPACE as JIEBA_SPACE
from pangu_ms.data.tokenizer import Tokenizer, processor_of, require_unicode

SENTENCEPIECE, FAST = "tokenizer.model", "tokenizer.json"
FILES = (SENTENCEPIECE, FAST, SETTINGS, SPECIAL_TOKENS, ADDED, GENERATION, "chat_template.jinja", "chat_template.json")
"""Files of a directory that belong to its tokenizer. The keys `_OF_CONFIG` of its config.json are used too."""
_OF_CONFIG = ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id")
_SPACE = "\u2581"
_PIECES, _NORMALIZER, _SELF_TEST = 1, 3, 4  # fields of SentencePiece's ModelProto
_ADD_DUMMY_PREFIX = 3  # of NormalizerSpec; true unless it is given
_CONTROL = b"\x15" + bytes(4) + number_field(3, 3)  # of ModelProto.SentencePiece: score 0, type CONTROL

log = logging.getLogger(__name__)


def is_directory_of(path: Path) -> bool:
    """Whether a directory holds a tokenizer in Hugging Face's format. Our own format also has a tokenizer.json, but
    that has no "model" key."""
    if (path / SENTENCEPIECE).exists() or (path / SETTINGS).exists():
        return True
    try:
        return isinstance(small_json.read_object(path / FAST).get("model"), dict)
    except ValueError:
        return False


class HuggingFaceTokenizer(Tokenizer):
    """A tokenizer as a Hugging Face directory describes it; see `Tokenizer` for the attributes.

    Its eod, the end of a document, is the directory's eos token. Its pad is the eos token too if the directory has no
    pad token. `stop_ids` also holds the eos ids of generation_config.json.

    Attributes:
        of_pieces: whether the SentencePiece model encodes text, rather than the tokenizer.json.
    """

    def __init__(self, contents: Mapping[str, bytes], where: str) -> None:
        """Build the tokenizer from the contents of its files.

        Args:
            contents: content of each file, by file name.
            where: the directory, for error messages.

        Raises:
            DataError: a file is damaged, or uses something that is not supported.
        """
        self._contents, self.segmenter = dict(contents), "none"
        try:
            sources = [name for name in contents if name in SpecialTokens.SOURCES]
            special = SpecialTokens({name: small_json.parse_object(contents[name]) for name in sources})
            # With add_prefix_space in a LLaMA's settings, transformers builds the tokenizer from the SentencePiece
            # model even where there is a tokenizer.json.
            self.of_pieces = SENTENCEPIECE in contents and (
                FAST not in contents or (special.is_llama and special.add_prefix_space is not None)
            )
            self.model = contents[SENTENCEPIECE if self.of_pieces else FAST]
            self._table = SentencePieces(self.model, special) if self.of_pieces else FastPieces(self.model, special)
            if self.of_pieces and self._table.id_of(JIEBA_SPACE) is not None:
                raise ValueError(f"{SENTENCEPIECE} is PanGu-alpha's vocabulary of jieba's words; name that file itself")
            self._take_ids(special, where)
        except KeyError:
            raise DataError(
                f"{where}: holds neither {SENTENCEPIECE} nor {FAST}; a tokenizer is one of them; copy it there, or name"
                " another directory"
            ) from None
        except (ValueError, TypeError, AttributeError) as error:
            raise DataError(
                f"{where}: the tokenizer cannot be read: {error}; copy or download its files again, or name another"
                " with --tokenizer"
            ) from None

    @classmethod
    def load(cls, path: str | Path) -> "HuggingFaceTokenizer":
        """Read a directory, or a bare SentencePiece model, which is read as the model of a LLaMA tokenizer.

        Raises:
            DataError: there is no tokenizer, or it cannot be read.
        """
        path = Path(path)
        if path.is_file():
            found = {SENTENCEPIECE: path}
        else:
            found = {name: path / name for name in (*FILES, CONFIG) if (path / name).exists()}
        contents = {}
        for name, file in found.items():
            try:
                contents[name] = small_json.read_bytes(file)
            except ValueError as error:
                raise DataError(f"{file}: {error}; it belongs to a tokenizer; restore it or remove it") from None
        return cls(contents, str(path))

    def save(self, directory: str | Path, extra: Mapping[str, bytes] | None = None) -> None:
        """Write the files of the tokenizer into a new directory atomically; see `Tokenizer.save`."""
        with files.new_directory(Path(directory)) as temporary:
            for name, content in {**self.files(), CONFIG: self._config(), **(extra or {})}.items():
                (temporary / name).write_bytes(content)

    def files(self) -> dict[str, bytes]:
        """The original files of the tokenizer, by name. config.json is left out, since it belongs to the model."""
        return {name: content for name, content in self._contents.items() if name != CONFIG}

    def _config(self) -> bytes:
        tree = small_json.parse_object(self._contents.get(CONFIG, b"{}"))
        return (json.dumps({key: tree[key] for key in _OF_CONFIG if key in tree}, indent=2) + "\n").encode()

    def _take_ids(self, special: SpecialTokens, where: str) -> None:
        """Set the vocabulary size and the ids of the special tokens, and check that they fit together."""
        size = self._table.size
        self.vocab_size: int = special.vocab_size or size  # the model's embedding may have spare rows
        beyond = [self._table.piece_of(i) for i in range(self.vocab_size, size)]
        named = {name: self._id_inside(content) for name, content in special.named.items()}
        for piece in beyond:
            if piece not in special.contents or piece in (special.named["bos"], special.named["eos"]):
                raise ValueError(f"{piece!r} has an id beyond the model's vocab_size={self.vocab_size}")
        if beyond:
            log.warning("%s: %s: no rows of the model's word table; left out", where, ", ".join(beyond))
        ends = ([named["eos"]] if named["eos"] is not None else []) + special.end_ids(self.vocab_size)
        if not ends:
            raise ValueError("no eos_token; a document needs an end")
        self.bos_id, self.eos_id = named["bos"], ends[0]
        self.eod_id = self.eot_id = ends[0]
        pad = named["pad"] if named["pad"] is not None else special.pad_id(self.vocab_size)
        self.has_pad, self.pad_id = pad is not None, self.eod_id if pad is None else pad
        self.unk_id = self.eod_id if named["unk"] is None else named["unk"]
        self.stop_ids = tuple(sorted(set(ends)))
        self.first_ids = self._first_ids(special)
        marking = {*special.contents, *(content for content, _ in special.added.values())}
        self._special_ids = sorted({i for content in marking if (i := self._id_inside(content)) is not None})
        self._settings = {
            "huggingface": SETTINGS,
            "vocab_size": self.vocab_size,
            "first": self.first_ids,
            "eod": self.eod_id,
            "pad": self.pad_id,
        }
        self._settings |= {"rule": self._table.rule}

    def _first_ids(self, special: SpecialTokens) -> tuple[int, ...]:
        if not special.is_llama and isinstance(self._table, FastPieces):
            return self._table.first_ids
        if not special.add_bos:
            return ()
        if self.bos_id is None:
            raise ValueError("add_bos_token is true, and there is no bos_token")
        return (self.bos_id,)

    def _id_inside(self, piece: str | None) -> int | None:
        index = None if piece is None else self._table.id_of(piece)
        return index if index is not None and index < self.vocab_size else None

    @property
    def packages(self) -> tuple[str, ...]:
        """See `Tokenizer`."""
        return ("sentencepiece", "tokenizers") if isinstance(self._table, FastPieces) else ("sentencepiece",)

    def with_model(self, model: bytes) -> "Tokenizer":
        """Raise DataError: the special tokens of a Hugging Face directory are listed in several files, which would have
        to be changed too."""
        raise DataError(
            "tokenizer: has Hugging Face's form; only tokenizers of `pangu tokenizer train` and released vocab.model"
            " files can be cut; use one of these"
        )

    @property
    def special_ids(self) -> list[int]:
        """Ids of the special and the added tokens."""
        return list(self._special_ids)

    @property
    def chat_template(self) -> str | None:
        """The directory's own template of chats.

        Raises:
            DataError: it is no text.
        """
        if (jinja := self._contents.get("chat_template.jinja")) is not None:
            try:
                return jinja.decode()
            except UnicodeDecodeError:
                raise DataError("chat_template.jinja: is not UTF-8; copy or download it again") from None
        for name in ("chat_template.json", SETTINGS):
            found = small_json.parse_object(self._contents.get(name, b"{}")).get("chat_template")
            if isinstance(found, list):  # several of them, by name
                found = next((one.get("template") for one in found if one.get("name") == "default"), None)
            if isinstance(found, str):
                return found
            if found is not None:
                raise DataError(f"{name}: chat_template is neither a text nor a list of texts; name one with an option")
        return None

    @property
    def sentencepiece(self) -> bytes | None:
        """See `Tokenizer`."""
        return self._table.model if isinstance(self._table, SentencePieces) else None

    @property
    def strips_space(self) -> bool:
        """See `Tokenizer`."""
        return self._table.strips_space

    def id_of(self, piece: str) -> int | None:
        """See `Tokenizer`."""
        return self._id_inside(piece)

    def piece_of(self, index: int) -> str:
        """See `Tokenizer`; a spare row of the embedding has an empty piece."""
        self._require_ids([index])
        return self._table.piece_of(int(index)) if index < self._table.size else ""

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """See `Tokenizer`."""
        for text in texts:
            require_unicode(text)
        return self._table.encode(texts)

    def encode_behind_special(self, text: str) -> list[int]:
        """See `Tokenizer`."""
        require_unicode(text)
        return self._table.encode_behind_special(text)

    def decode(self, ids: Iterable[int], continuation: bool = False) -> str:
        """See `Tokenizer`. The space that encoding puts before a text is removed again, except in a continuation."""
        text = super().decode(ids)
        return text[1:] if self.strips_space and not continuation and text.startswith(" ") else text

    @cached_property
    def _bytes_of(self) -> list[bytes]:
        return [self._table.bytes_of(i) if i < self._table.size else b"" for i in range(self.vocab_size)]


class SentencePieces:
    """The pieces of a SentencePiece model; it encodes as transformers' LLaMA tokenizer does.

    Attributes:
        size: number of pieces.
        model: the SentencePiece model with all special tokens as control pieces.
        strips_space: whether encoding puts a space before a text, so that decoding must remove it.
        rule: the settings besides the model that determine the ids; they are a part of the fingerprint.
    """

    def __init__(self, model: bytes, special: SpecialTokens) -> None:
        if not special.has_known_class:
            raise ValueError(
                f"{SETTINGS}: tokenizer_class={special.tokenizer_class!r} with {SENTENCEPIECE} alone is not known; save"
                f" it with a {FAST}"
            )
        self.strips_space, self._legacy = special.add_prefix_space is not False, special.legacy
        if not special.is_llama and special.add_prefix_space is None:
            self.strips_space = _has_dummy_prefix(model)  # openPangu's class leaves it to the model
        self.rule = {
            "prefix": self.strips_space,
            "legacy": self._legacy,
            "added": {str(i): token for i, (token, _) in sorted(special.added.items())},
        }
        # The model must leave white space as it is: `_prefixed` decides what is put before a text.
        as_it_stands = message_field(_NORMALIZER, number_field(3, 0) + number_field(4, 0))
        self.model = _with_specials(model, processor_of(model), special) + as_it_stands
        self._processor = processor_of(self.model)
        self.size: int = self._processor.get_piece_size()

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Ids of texts."""
        return self._processor.encode([self._prefixed(text) for text in texts], num_threads=1)

    def encode_behind_special(self, text: str) -> list[int]:
        """Ids of a text that follows a special token."""
        return self._processor.encode(self._prefixed(text) if self._legacy else text)

    def _prefixed(self, text: str) -> str:
        add = self.strips_space and text and (self._legacy or not text.startswith((" ", _SPACE)))
        return _SPACE + text if add else text

    def id_of(self, piece: str) -> int | None:
        """Id of a piece, or None."""
        index = self._processor.piece_to_id(piece)
        return index if self._processor.id_to_piece(index) == piece else None

    def piece_of(self, index: int) -> str:
        """The piece with this id."""
        return self._processor.id_to_piece(index)

    def bytes_of(self, index: int) -> bytes:
        """The bytes of text that a piece stands for; none for a special one."""
        if self._processor.is_control(index) or self._processor.is_unknown(index):
            return b""
        piece = self._processor.id_to_piece(index)
        return bytes([int(piece[3:5], 16)]) if self._processor.is_byte(index) else piece.replace(_SPACE, " ").encode()


def _has_dummy_prefix(model: bytes) -> bool:
    """Whether a SentencePiece model itself puts a space before a text."""
    normalizer = b"".join(message_content(value) for field, value, _ in fields(model) if field == _NORMALIZER)
    return bool(dict(values(normalizer)).get(_ADD_DUMMY_PREFIX, 1))


def _with_specials(model: bytes, processor: sentencepiece.SentencePieceProcessor, special: SpecialTokens) -> bytes:
    """The model with all special tokens, including added ones, turned into control pieces, which no text can spell.

    Raises:
        ValueError: an added token is not special, or the ids of the added tokens leave a gap.
    """
    size = processor.get_piece_size()
    changes: dict[int, str] = {}
    for index, (content, is_special) in special.added.items():
        same = index < size and processor.id_to_piece(index) == content
        # A user-defined piece needs no change: SentencePiece finds it in texts as transformers does.
        if same and (
            processor.is_control(index)
            or processor.is_unknown(index)
            or (not is_special and _is_user_defined(processor, index))
        ):
            continue
        if not same and index < size:
            raise ValueError(
                f"id {index} is {processor.id_to_piece(index)!r} in {SENTENCEPIECE}, {content!r} among the added"
                f" tokens; save it with a {FAST}"
            )
        if not is_special:
            raise ValueError(
                f"the added token {content!r} is not special, which {SENTENCEPIECE} alone cannot express; save it with"
                f" a {FAST}"
            )
        changes[index] = content
    for content in special.contents:  # a special token may be named in the settings but not among the added tokens
        index = processor.piece_to_id(content)
        if processor.id_to_piece(index) == content and not (processor.is_control(index) or processor.is_unknown(index)):
            changes.setdefault(index, content)
    further = sorted(index for index in changes if index >= size)
    if further != list(range(size, size + len(further))):
        raise ValueError(f"the added tokens have the ids {further} behind {size} pieces; they must follow one another")
    if not changes:
        return model
    kept, index = [], 0
    for number, _, raw in fields(model):
        if number == _PIECES:
            kept.append(_control_piece(changes[index]) if index in changes else raw)
            index += 1
        elif number != _SELF_TEST:
            kept.append(raw)
    return b"".join(kept + [_control_piece(changes[i]) for i in further])


def _is_user_defined(processor: sentencepiece.SentencePieceProcessor, index: int) -> bool:
    """Whether encoding keeps the piece whole between any other characters."""
    piece = processor.id_to_piece(index)
    return index in processor.encode(f"x{piece}x")


def _control_piece(content: str) -> bytes:
    return message_field(_PIECES, message_field(1, content.encode()) + _CONTROL)


class FastPieces:
    """The pieces of a tokenizer.json, encoded by the `tokenizers` library; see `SentencePieces` for the attributes."""

    def __init__(self, content: bytes, special: SpecialTokens) -> None:
        tokenizers = _library()
        tree = small_json.parse_object(content)
        pre = tree.get("pre_tokenizer")
        if isinstance(pre, dict) and pre.get("type") == "ByteLevel":
            # As in transformers, the settings override tokenizer.json.
            pre["add_prefix_space"] = bool(special.add_prefix_space)
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(json.dumps(tree))
        except Exception as error:  # the library raises nothing more specific
            raise ValueError(f"{FAST}: {error}") from None
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._has_first_prefix = _set_first_prefix(tree, "never")
        self._tree = tree
        for index, (token, is_special) in sorted(special.added.items()):
            if self._tokenizer.token_to_id(token) is None:
                add = self._tokenizer.add_special_tokens if is_special else self._tokenizer.add_tokens
                add([tokenizers.AddedToken(token, special=is_special, normalized=not is_special)])
            if self._tokenizer.token_to_id(token) != index:
                raise ValueError(
                    f"the added token {token!r} has id {index} in the settings, {self._tokenizer.token_to_id(token)} in"
                    f" {FAST}"
                )
        known = sorted(token for token in special.contents if self._tokenizer.token_to_id(token) is not None)
        marked = [tokenizers.AddedToken(token, special=True, normalized=False) for token in known]
        self._tokenizer.add_special_tokens(marked)
        # Despite its name, this flag makes the library encode text that spells a special token as ordinary text.
        self._tokenizer.encode_special_tokens = True
        added = self._tokenizer.get_added_tokens_decoder()
        self._special = {index for index, token in added.items() if token.special}
        self.size = max(self._tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        self._decoder = _Decoder(tree.get("decoder"))
        self.strips_space = self._decoder.strips_space
        self.rule = {
            "prefix": special.add_prefix_space,
            "added": {str(i): token for i, (token, _) in sorted(special.added.items())},
        }

    @property
    def first_ids(self) -> tuple[int, ...]:
        """Ids that the post-processor puts before a text, found by encoding a sample text."""
        bare = self._tokenizer.encode("a", add_special_tokens=False).ids
        whole = self._tokenizer.encode("a", add_special_tokens=True).ids
        at = next((i for i in range(len(whole)) if whole[i : i + len(bare)] == bare), 0)
        return tuple(whole[:at])

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Ids of texts. The texts are encoded one by one, since the library's `encode_batch` starts threads, and
        callers already run one process per core."""
        return [self._tokenizer.encode(text, add_special_tokens=False).ids for text in texts]

    def encode_behind_special(self, text: str) -> list[int]:
        """Ids of a text that follows a special token."""
        return self._behind_special.encode(text, add_special_tokens=False).ids

    @cached_property
    def _behind_special(self) -> Any:
        """The library's tokenizer without the prefix of the first text."""
        if not self._has_first_prefix:
            return self._tokenizer
        pre = _library().Tokenizer.from_str(json.dumps(self._tree)).pre_tokenizer
        other = _library().Tokenizer.from_str(self._tokenizer.to_str())
        other.pre_tokenizer = pre
        other.encode_special_tokens = True
        return other

    def id_of(self, piece: str) -> int | None:
        """Id of a piece, or None."""
        return self._tokenizer.token_to_id(piece)

    def piece_of(self, index: int) -> str:
        """The piece with this id; empty where the vocabulary has a gap."""
        return self._tokenizer.id_to_token(index) or ""

    def bytes_of(self, index: int) -> bytes:
        """The bytes of text that a piece stands for; none for a special one."""
        return b"" if index in self._special else self._decoder.bytes_of(self.piece_of(index))


class _Decoder:
    """The decoder of a tokenizer.json, applied to one piece at a time."""

    def __init__(self, tree: Any) -> None:
        """Read the "decoder" section of a tokenizer.json.

        Raises:
            ValueError: the decoder is unknown, or needs more than one piece at a time.
        """
        parts = tree["decoders"] if isinstance(tree, dict) and tree.get("type") == "Sequence" else [tree]
        by_type = {part["type"]: part for part in parts if isinstance(part, dict)}
        unknown = by_type.keys() - {"ByteLevel", "Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"}
        replace, strip = by_type.get("Replace"), by_type.get("Strip", {})
        odd = replace and (replace.get("pattern"), replace.get("content")) != ({"String": _SPACE}, " ")
        odd = odd or (strip and (strip["content"], strip["stop"]) != (" ", 0))
        if unknown or odd or not by_type.keys() & {"ByteLevel", "Replace", "Metaspace"}:
            raise ValueError(f"{FAST}: decoder {json.dumps(tree)[:200]} is not supported")
        self._of_bytes, self._fallback = "ByteLevel" in by_type, "ByteFallback" in by_type
        self.strips_space = bool(strip.get("start")) or _prepends_space(by_type.get("Metaspace"))

    def bytes_of(self, piece: str) -> bytes:
        """The bytes of text that a piece stands for."""
        if self._of_bytes:
            try:
                return bytes(_BYTE_OF[character] for character in piece)
            except KeyError:  # an added token is stored as plain text, not in GPT-2's letters
                return piece.encode()
        if self._fallback and len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
            try:
                return bytes([int(piece[3:5], 16)])
            except ValueError:
                return piece.encode()
        return piece.replace(_SPACE, " ").encode()


def _set_first_prefix(tree: dict[str, Any], scheme: str) -> bool:
    """Replace the scheme "first" in the pre-tokenizers of a tokenizer.json; whether there was one."""
    pre = tree.get("pre_tokenizer")
    parts = pre.get("pretokenizers", [pre]) if isinstance(pre, dict) else []
    found = [part for part in parts if part.get("type") == "Metaspace" and part.get("prepend_scheme") == "first"]
    for part in found:
        part["prepend_scheme"] = scheme
    return bool(found)


def _prepends_space(metaspace: dict[str, Any] | None) -> bool:
    """Whether a Metaspace decoder belongs to an encoder that puts a space before a text."""
    if not metaspace:
        return False
    by_default = "always" if metaspace.get("add_prefix_space", True) else "never"  # older name of prepend_scheme
    return metaspace.get("prepend_scheme", by_default) != "never"


def _byte_of() -> dict[str, int]:
    """GPT-2's mapping of letters to bytes: a printable Latin-1 character stands for its own byte; U+0100 and up stand
    for the other bytes, in order."""
    plain = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("\u00a1"), ord("\u00ac") + 1),
        *range(ord("\u00ae"), ord("\u00ff") + 1),
    ]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + i): byte for i, byte in enumerate(others)}


_BYTE_OF = _byte_of()


def _library() -> Any:
    try:
        import tokenizers
    except ImportError:
        raise DataError(
            f"{FAST}: needs the package tokenizers, which is not installed; pip install tokenizers"
        ) from None
    return tokenizers
