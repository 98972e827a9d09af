"""Tokenizers of Hugging Face directories: a SentencePiece model (LLaMA, openPangu) or a tokenizer.json of the
`tokenizers` library.

Ids are those of `AutoTokenizer` in transformers for text without special tokens. Special tokens are placed as ids
alone: text that spells one is ordinary text, as with `split_special_tokens=True`. The files are kept as they are, so
that what transformers reads later is what it read before.

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
from pangu_ms.core.protobuf import fields, message_field, number_field
from pangu_ms.data.special_tokens import ADDED, CONFIG, GENERATION, SETTINGS, SPECIAL_TOKENS, SpecialTokens
from pangu_ms.data.tokenizer import SPACE as JIEBA_SPACE
from pangu_ms.data.tokenizer import Tokenizer, processor_of, require_unicode

SENTENCEPIECE, FAST = "tokenizer.model", "tokenizer.json"
FILES = (SENTENCEPIECE, FAST, SETTINGS, SPECIAL_TOKENS, ADDED, GENERATION, "chat_template.jinja", "chat_template.json")
"""What a directory says of its tokenizer; its config.json besides, of which `_OF_CONFIG` are kept."""
_OF_CONFIG = ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id")
_SPACE = "\u2581"
_PIECES, _NORMALIZER, _SELF_TEST = 1, 3, 4  # fields of SentencePiece's ModelProto
_CONTROL = b"\x15" + bytes(4) + number_field(3, 3)  # of ModelProto.SentencePiece: score 0, type CONTROL

log = logging.getLogger(__name__)


def is_directory_of(path: Path) -> bool:
    """Whether a directory has a tokenizer in Hugging Face's form; our own has a tokenizer.json too, which says its
    format."""
    if (path / SENTENCEPIECE).exists() or (path / SETTINGS).exists():
        return True
    try:
        return isinstance(small_json.read_object(path / FAST).get("model"), dict)
    except ValueError:
        return False


class HuggingFaceTokenizer(Tokenizer):
    """A tokenizer as a Hugging Face directory describes it; see `Tokenizer` for the attributes.

    eod, what ends a document, is the directory's eos; its pad, where it has none, too. `stop_ids` are those of its
    generation_config.json as well.

    Attributes:
        of_pieces: whether its SentencePiece model encodes, and not its tokenizer.json.
    """

    def __init__(self, contents: Mapping[str, bytes], where: str) -> None:
        """A tokenizer from the contents of its files by name.

        Raises:
            DataError: a file is damaged, or says something that is not supported.
        """
        self._contents, self.segmenter = dict(contents), "none"
        try:
            special = SpecialTokens(
                {
                    name: small_json.parse_object(content)
                    for name, content in contents.items()
                    if name in SpecialTokens.SOURCES
                }
            )
            # A LLaMA's add_prefix_space makes transformers build from the SentencePiece model even where
            # there is a tokenizer.json.
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
        """Read a directory, or a bare SentencePiece model, which is taken for a LLaMA's.

        Raises:
            DataError: nothing there, or not a tokenizer.
        """
        path = Path(path)
        found = (
            {SENTENCEPIECE: path}
            if path.is_file()
            else {name: path / name for name in (*FILES, CONFIG) if (path / name).exists()}
        )
        contents = {}
        for name, file in found.items():
            try:
                contents[name] = small_json.read_bytes(file)
            except ValueError as error:
                raise DataError(f"{file}: {error}; it belongs to a tokenizer; restore it or remove it") from None
        return cls(contents, str(path))

    def save(self, directory: str | Path, extra: Mapping[str, bytes] | None = None) -> None:
        """Write its files into a new directory, whole or not at all; see `Tokenizer.save`."""
        with files.new_directory(Path(directory)) as temporary:
            for name, content in {**self.files(), CONFIG: self._config(), **(extra or {})}.items():
                (temporary / name).write_bytes(content)

    def files(self) -> dict[str, bytes]:
        """Its files by name as they came, but config.json, which belongs to the model."""
        return {name: content for name, content in self._contents.items() if name != CONFIG}

    def _config(self) -> bytes:
        tree = small_json.parse_object(self._contents.get(CONFIG, b"{}"))
        return (json.dumps({key: tree[key] for key in _OF_CONFIG if key in tree}, indent=2) + "\n").encode()

    def _take_ids(self, special: SpecialTokens, where: str) -> None:
        size = self._table.size
        self.vocab_size: int = special.vocab_size or size  # a word table may have rows to spare
        beyond = [self._table.piece_of(i) for i in range(self.vocab_size, size)]
        named = {name: self._id_inside(content) for name, content in special.named.items()}
        if missing := [
            piece
            for piece in beyond
            if piece not in special.contents or piece in (special.named["bos"], special.named["eos"])
        ]:
            raise ValueError(f"{missing[0]!r} has an id beyond the model's vocab_size={self.vocab_size}")
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
        """Not for these: their specials stand in several files."""
        raise DataError(
            "tokenizer: has Hugging Face's form; only tokenizers of `pangu tokenizer train` and released vocab.model"
            " files can be cut; use one of these"
        )

    def id_of(self, piece: str) -> int | None:
        """See `Tokenizer`."""
        return self._id_inside(piece)

    def piece_of(self, index: int) -> str:
        """See `Tokenizer`; a spare row of the word table has an empty one."""
        self._require_ids([index])
        return self._table.piece_of(int(index)) if index < self._table.size else ""

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """See `Tokenizer`."""
        for text in texts:
            require_unicode(text)
        return self._table.encode(texts)

    def decode(self, ids: Iterable[int], continuation: bool = False) -> str:
        """See `Tokenizer`: the space that encoding puts before a text is taken away again, unless the text goes on from
        another."""
        text = super().decode(ids)
        return text[1:] if self._table.strips_space and not continuation and text.startswith(" ") else text

    @cached_property
    def _bytes_of(self) -> list[bytes]:
        return [self._table.bytes_of(i) if i < self._table.size else b"" for i in range(self.vocab_size)]


class SentencePieces:
    """Pieces of a SentencePiece model, encoded as transformers' LLaMA tokenizer does.

    Attributes:
        size: number of pieces.
        strips_space: whether a text's first space is encoding's own.
        rule: what besides the model determines the ids.
    """

    def __init__(self, model: bytes, special: SpecialTokens) -> None:
        if not special.has_known_class:
            raise ValueError(
                f"{SETTINGS}: tokenizer_class={special.tokenizer_class!r} with {SENTENCEPIECE} alone is not known; save"
                f" it with a {FAST}"
            )
        self.strips_space, self._legacy = special.add_prefix_space is not False, special.legacy
        self.rule = {
            "prefix": self.strips_space,
            "legacy": self._legacy,
            "added": {str(i): token for i, (token, _) in sorted(special.added.items())},
        }
        # White space goes through as it stands; what is put before a text is decided here.
        as_it_stands = message_field(_NORMALIZER, number_field(3, 0) + number_field(4, 0))
        self._processor = processor_of(_with_specials(model, processor_of(model), special) + as_it_stands)
        self.size: int = self._processor.get_piece_size()

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Ids of texts."""
        return self._processor.encode([self._prefixed(text) for text in texts], num_threads=1)

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
        """UTF-8 of a piece in a text; nothing for a special one."""
        if self._processor.is_control(index) or self._processor.is_unknown(index):
            return b""
        piece = self._processor.id_to_piece(index)
        return bytes([int(piece[3:5], 16)]) if self._processor.is_byte(index) else piece.replace(_SPACE, " ").encode()


def _with_specials(model: bytes, processor: sentencepiece.SentencePieceProcessor, special: SpecialTokens) -> bytes:
    """The model whose special tokens, further ones included, are control pieces: no text can spell one.

    Raises:
        ValueError: further tokens that are not special, or whose ids leave a gap.
    """
    size, changes = processor.get_piece_size(), {}
    for index, (content, is_special) in special.added.items():
        same = index < size and processor.id_to_piece(index) == content
        # What SentencePiece itself calls user-defined it takes out of texts as transformers does.
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
    for content in special.contents:  # those named in the settings alone
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
    """A piece that comes out whole whatever stands around it."""
    piece = processor.id_to_piece(index)
    return index in processor.encode(f"x{piece}x")


def _control_piece(content: str) -> bytes:
    return message_field(_PIECES, message_field(1, content.encode()) + _CONTROL)


class FastPieces:
    """Pieces of a tokenizer.json; the `tokenizers` library encodes. See `SentencePieces`.

    Attributes:
        first_ids: what its post-processor puts before a text.
    """

    def __init__(self, content: bytes, special: SpecialTokens) -> None:
        tokenizers = _library()
        tree = small_json.parse_object(content)
        pre = tree.get("pre_tokenizer")
        if isinstance(pre, dict) and pre.get("type") == "ByteLevel":  # transformers lets the settings decide
            pre["add_prefix_space"] = bool(special.add_prefix_space)
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(json.dumps(tree))
        except Exception as error:  # the library raises nothing more specific
            raise ValueError(f"{FAST}: {error}") from None
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        for index, (token, is_special) in sorted(special.added.items()):
            if self._tokenizer.token_to_id(token) is None:
                add = self._tokenizer.add_special_tokens if is_special else self._tokenizer.add_tokens
                add([tokenizers.AddedToken(token, special=is_special, normalized=not is_special)])
            if self._tokenizer.token_to_id(token) != index:
                raise ValueError(
                    f"the added token {token!r} has id {index} in the settings, {self._tokenizer.token_to_id(token)} in"
                    f" {FAST}"
                )
        known = [token for token in special.contents if self._tokenizer.token_to_id(token) is not None]
        self._tokenizer.add_special_tokens(
            [tokenizers.AddedToken(token, special=True, normalized=False) for token in sorted(known)]
        )
        self._tokenizer.encode_special_tokens = (
            True  # its name notwithstanding: text that spells a special token is text
        )
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
        bare, whole = (
            self._tokenizer.encode("a", add_special_tokens=False).ids,
            self._tokenizer.encode("a", add_special_tokens=True).ids,
        )
        at = next((i for i in range(len(whole)) if whole[i : i + len(bare)] == bare), 0)
        return tuple(whole[:at])

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Ids of texts, one by one: the library's own threads would add to the callers' processes."""
        return [self._tokenizer.encode(text, add_special_tokens=False).ids for text in texts]

    def id_of(self, piece: str) -> int | None:
        """Id of a piece, or None."""
        return self._tokenizer.token_to_id(piece)

    def piece_of(self, index: int) -> str:
        """The piece with this id; empty where the vocabulary has a gap."""
        return self._tokenizer.id_to_token(index) or ""

    def bytes_of(self, index: int) -> bytes:
        """UTF-8 of a piece in a text; nothing for a special one."""
        return b"" if index in self._special else self._decoder.bytes_of(self.piece_of(index))


class _Decoder:
    """What a tokenizer.json's decoder makes of one piece.

    Raises:
        ValueError: a decoder that looks at more than one piece, or is not known.
    """

    def __init__(self, tree: Any) -> None:
        parts = tree["decoders"] if isinstance(tree, dict) and tree.get("type") == "Sequence" else [tree]
        by_type = {part["type"]: part for part in parts if isinstance(part, dict)}
        unknown = by_type.keys() - {"ByteLevel", "Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"}
        replace, strip = by_type.get("Replace"), by_type.get("Strip", {})
        odd = replace and (replace.get("pattern"), replace.get("content")) != ({"String": _SPACE}, " ")
        odd = odd or (strip and (strip["content"], strip["stop"]) != (" ", 0))
        if unknown or odd or not by_type.keys() & {"ByteLevel", "Replace", "Metaspace"}:
            raise ValueError(f"{FAST}: decoder {json.dumps(tree)[:200]} is not supported")
        self._of_bytes, self._fallback = "ByteLevel" in by_type, "ByteFallback" in by_type
        metaspace = by_type.get("Metaspace", {})
        prepends = (
            bool(metaspace)
            and metaspace.get("prepend_scheme", "always" if metaspace.get("add_prefix_space", True) else "never")
            != "never"
        )
        self.strips_space = bool(strip.get("start")) or prepends

    def bytes_of(self, piece: str) -> bytes:
        """UTF-8 of a piece in a text."""
        if self._of_bytes:
            try:
                return bytes(_BYTE_OF[character] for character in piece)
            except KeyError:  # an added token, which is not spelt in bytes
                return piece.encode()
        if self._fallback and len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
            try:
                return bytes([int(piece[3:5], 16)])
            except ValueError:
                return piece.encode()
        return piece.replace(_SPACE, " ").encode()


def _byte_of() -> dict[str, int]:
    """GPT-2's letters for bytes: a printable Latin-1 character is itself, the others follow from U+0100."""
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
