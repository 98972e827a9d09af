"""Converts text to ids and back with SentencePiece. Chinese text is first segmented into words by jieba, which is
imported when it is needed.

A tokenizer is a directory with `vocab.model` (SentencePiece) and `tokenizer.json`; or a released bare `vocab.model`; or
a Hugging Face directory (see huggingface.py). With a tokenizer of our own, decoding restores the exact text, unless the
text contains U+2581 (SentencePiece's own space) or, with segmenter jieba, U+2582 or U+2583 (which stand for space and
newline).

Source: spec A5.
"""

import codecs
import collections
import hashlib
import io
import json
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import sentencepiece

from pangu_ms.core import files, format_version, small_json
from pangu_ms.core.errors import DataError
from pangu_ms.data.segment import make_segmenter, segmenter_version

_log = logging.getLogger(__name__)

FORMAT = 1
_MODEL_DIGEST = "vocab_model_sha256"
SEGMENTERS = ("jieba", "none")
SPECIALS = ("<unk>", "<s>", "</s>", "<sep>", "<pad>", "<eod>", "<eot>")
SPACE, NEWLINE = "\u2582", "\u2583"
# jieba makes every white space character a word of its own, and CRLF one word.
_TO_PIECES = {" ": SPACE, "\n": NEWLINE, "\r\n": "\r" + NEWLINE}
_FROM_PIECES = str.maketrans({" ": None, SPACE: " ", NEWLINE: "\n"})
SMALLEST_VOCAB = 256 + len(SPECIALS) + 9
"""256 byte pieces, the specials, and some room for characters: 272."""
CHUNK = 2000
"""Characters per training sentence. It is limited because the trainer's memory and time grow faster than the length of
the longest sentence."""
COVERAGE = 0.9995
"""Share of a text's characters that get a piece of their own, as SentencePiece advises for Chinese. All other
characters are spelt in byte pieces."""
_UNUSED = re.compile(r"\[unused\d+\]")
_LOSSLESS_PROBE = " a  b\n\n\tc\r\n \u3000\uff1a"


class Tokenizer:
    """A SentencePiece model with its segmenter.

    Attributes:
        vocab_size: number of pieces.
        pad_id, eod_id, eot_id, unk_id: ids of the padding, end-of-document, end-of-text and unknown pieces. If a piece
            is missing, its id falls back to that of another piece: pad to eod, eod to pad, eot to eod. In a bare
            released file, eod is <pad> even if there is an <eod>: the released models were trained on documents that
            end with the pad id 6 (spec A5, A6).
        has_pad: whether pad_id is the id of a real padding piece, rather than of eod.
        bos_id, eos_id: ids of <s> and </s>, or None.
        first_ids: ids that begin each prompt and document, such as LLaMA's bos; tokenizers of our own have none.
        stop_ids: ids that end a generated text, sorted: eot, eod and the <eod> piece.
        fingerprint: SHA-256 over the model, the settings and, with segmenter jieba, its version and dictionary; two
            tokenizers with equal fingerprints give equal ids.
        segmenter_version: versions that the segmentation depends on; empty for segmenter none.
        packages: the Python packages that the tokenizer needs.
    """

    first_ids: tuple[int, ...] = ()

    def __init__(self, model: bytes, segmenter: str = "jieba", eod: str = "<eod>", where: str = "tokenizer") -> None:
        """Wrap a serialised SentencePiece model.

        Args:
            model: content of a `vocab.model`.
            segmenter: one of SEGMENTERS.
            eod: the piece that ends a document.
            where: the path, with which error messages begin.

        Raises:
            DataError: the model is not a SentencePiece model, has neither <pad> nor <eod>, or changes texts although
                the segmenter is none; or the segmenter is unknown.
        """
        if segmenter not in SEGMENTERS:
            raise DataError(f"{where}: segmenter={segmenter!r}: must be one of {', '.join(SEGMENTERS)}")
        try:
            self._processor = processor_of(model)
        except ValueError as error:
            raise DataError(
                f"{where}: {error}; a tokenizer needs one; train one with `pangu tokenizer train`"
            ) from error
        self.vocab_size: int = self._processor.get_piece_size()
        self.model, self.segmenter = model, segmenter
        self._settings: dict[str, Any] = {"format": FORMAT, "segmenter": segmenter, "eod": eod}
        self._set_ids(eod, where)
        if segmenter == "none" and self.decode(self.encode(_LOSSLESS_PROBE)) != _LOSSLESS_PROBE:
            raise DataError(
                f"{where}: the SentencePiece model changes white space or characters; segmenter none must be lossless; "
                "train with `pangu tokenizer train --segmenter none`"
            )

    def _set_ids(self, eod: str, where: str) -> None:
        """Look up the ids of the special pieces; a missing one falls back as the class describes."""
        pad, eot, own_eod = self.id_of("<pad>"), self.id_of("<eot>"), self.id_of("<eod>")
        ends = [i for i in (self.id_of(eod), own_eod, pad) if i is not None]
        if not ends:
            raise DataError(
                f"{where}: has neither <eod> nor <pad>; documents need an end; train one with `pangu tokenizer train`"
            )
        self.eod_id: int = ends[0]
        self.has_pad, self.pad_id = pad is not None, self.eod_id if pad is None else pad
        self.eot_id: int = self.eod_id if eot is None else eot
        self.stop_ids: tuple[int, ...] = tuple(
            sorted({self.eot_id, self.eod_id, self.eod_id if own_eod is None else own_eod})
        )
        self.unk_id: int = self._processor.unk_id()
        self.bos_id, self.eos_id = self.id_of("<s>"), self.id_of("</s>")

    @property
    def segmenter_version(self) -> dict[str, str]:
        return segmenter_version() if self.segmenter == "jieba" else {}

    @property
    def packages(self) -> tuple[str, ...]:
        return ("sentencepiece", "jieba") if self.segmenter == "jieba" else ("sentencepiece",)

    @property
    def fingerprint(self) -> str:
        return self._hash_with(self._settings | self.segmenter_version)

    def _hash_with(self, settings: dict) -> str:
        return hashlib.sha256(self.model + json.dumps(settings, sort_keys=True).encode()).hexdigest()

    def made(self, fingerprint: str, where: str) -> bool:
        """Whether `fingerprint` is that of this tokenizer.

        Fingerprints of an older format, which does not include the segmenter's version, are accepted with a warning.

        Args:
            fingerprint: fingerprint that was stored with some data, of the tokenizer that made the data.
            where: the file that holds the fingerprint, for the warning.
        """
        if fingerprint == self.fingerprint:
            return True
        if fingerprint != self._hash_with(self._settings):
            return False
        _warn_of_old(fingerprint, where)
        return True

    @classmethod
    def load(cls, path: str | Path) -> "Tokenizer":
        """Read a tokenizer directory in our own or in Hugging Face's format, or a bare SentencePiece model.

        A bare model that has the special pieces of a released `vocab.model` gets the segmenter jieba. Any other is read
        as the model of a LLaMA tokenizer.

        Raises:
            DataError: there is no tokenizer, or it cannot be read.
        """
        from pangu_ms.data import huggingface, huggingface_files  # imported here, since both import this module

        path = Path(path)
        if not path.is_dir():
            if path.name == huggingface.SENTENCEPIECE and (own := huggingface_files.own_tokenizer(path.parent)):
                return own
            if path.name != huggingface.FAST and has_our_pieces(model := _read(path)):
                return cls(model, "jieba", "<pad>", str(path))
            # A file of a Hugging Face directory is read together with the settings beside it.
            in_directory = path.name in (huggingface.SENTENCEPIECE, huggingface.FAST) and path.exists()
            return cls.load(path.parent) if in_directory else huggingface.HuggingFaceTokenizer.load(path)
        if huggingface.is_directory_of(path):
            return huggingface_files.own_tokenizer(path) or huggingface.HuggingFaceTokenizer.load(path)
        try:
            settings = small_json.parse_object(_read(path / "tokenizer.json"))
            format_version.require_known(settings["format"], FORMAT, path / "tokenizer.json", DataError)
            segmenter, eod, digest = settings["segmenter"], settings.get("eod", "<eod>"), settings.get(_MODEL_DIGEST)
            if not isinstance(eod, str):
                raise ValueError(f"eod={eod!r:.40}")
        except DataError:
            raise
        except (ValueError, KeyError) as error:
            raise DataError(
                f"{path}/tokenizer.json: not what `pangu tokenizer train` writes ({error}); train again or restore it"
            ) from error
        model = _read(path / "vocab.model")
        if digest not in (None, hashlib.sha256(model).hexdigest()):  # None: version 0.1.0 wrote no digest
            raise DataError(
                f"{path}/vocab.model: its SHA-256 differs from tokenizer.json's; it was damaged or changed; restore"
                " both files or train again"
            )
        return cls(model, segmenter, eod, str(path))

    @property
    def special_ids(self) -> list[int]:
        """Ids of the control pieces and the unknown piece, which no text encodes to."""
        return [i for i in range(self.vocab_size) if self._processor.is_control(i) or self._processor.is_unknown(i)]

    @property
    def chat_template(self) -> str | None:
        """The template of chats (Jinja2) that came with the tokenizer."""
        return None

    @property
    def sentencepiece(self) -> bytes | None:
        """The SentencePiece model that encodes texts, in which the special tokens are control pieces; None for a
        tokenizer of another kind."""
        return self.model

    @property
    def strips_space(self) -> bool:
        """Whether encoding puts a space before a text, so that decoding removes it."""
        return False

    @property
    def markers(self) -> dict[str, int]:
        """Ids of the pieces that mark the structure of a text, by their spelling: control pieces, and those of other
        makers that no training has made, such as `[unused9]`."""
        pieces = {self.piece_of(i): i for i in range(self.vocab_size)}
        control = {self.piece_of(i): i for i in self.special_ids}
        return control | {piece: i for piece, i in pieces.items() if _UNUSED.fullmatch(piece)}

    def text_bytes(self, index: int) -> bytes:
        """The UTF-8 bytes that an id adds to a text; none for a special one."""
        return self._restored_bytes(self._bytes_of[index]) if index != self.unk_id else b""

    @property
    def settings(self) -> dict[str, Any]:
        """The settings which, besides the model, determine the ids."""
        return dict(self._settings)

    def with_model(self, model: bytes) -> "Tokenizer":
        """A tokenizer with another SentencePiece model and the same settings."""
        return Tokenizer(model, self.segmenter, self._settings["eod"])

    def save(self, directory: str | Path, extra: Mapping[str, bytes] | None = None) -> None:
        """Write `vocab.model` and `tokenizer.json` into a new directory atomically.

        Args:
            directory: must not exist, or be empty.
            extra: contents of further files for the directory, by name.

        Raises:
            OutputError: the directory has other content, or the disk is full.
        """
        settings = self._settings | {_MODEL_DIGEST: hashlib.sha256(self.model).hexdigest()}
        contents = {
            "vocab.model": self.model,
            "tokenizer.json": (json.dumps(settings, indent=2) + "\n").encode(),
            **(extra or {}),
        }
        with files.new_directory(Path(directory)) as temporary:
            for name, content in contents.items():
                (temporary / name).write_bytes(content)

    def id_of(self, piece: str) -> int | None:
        """Id of a piece, or None if the vocabulary lacks it."""
        index = self._processor.piece_to_id(piece)
        return index if self._processor.id_to_piece(index) == piece else None

    def piece_of(self, index: int) -> str:
        """The piece with this id, in the spelling of the vocabulary."""
        self._require_ids([index])
        return self._processor.id_to_piece(int(index))

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without any special token.

        Raises:
            DataError: the text contains a lone surrogate, which UTF-8 cannot represent.
        """
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """`encode` of each text. It uses one thread, since callers run one process per core."""
        try:
            return self._processor.encode([self._segmented(text) for text in texts], num_threads=1)
        except (TypeError, UnicodeEncodeError):  # SentencePiece raises one of these, by version, for a lone surrogate
            for text in texts:
                require_unicode(text)
            raise

    def encode_behind_special(self, text: str) -> list[int]:
        """Ids of a text that follows a special piece: tokenizers of other makers may put a space before the first text
        only."""
        return self.encode(text)

    def encode_prompt(self, text: str) -> list[int]:
        """Ids of a text that a model is to continue: `first_ids`, then the ids of `encode`."""
        return [*self.first_ids, *self.encode(text)]

    def decode(self, ids: Iterable[int], continuation: bool = False) -> str:
        """Text of ids. Control pieces are dropped, the unknown piece becomes U+2047, and byte pieces that are not valid
        UTF-8 become U+FFFD.

        Args:
            ids: token ids.
            continuation: whether the ids continue other ids. If so, a space at their beginning is kept as a part of the
                text.

        Raises:
            DataError: an id lies outside the vocabulary.
        """
        ids = list(ids)
        self._require_ids(ids)
        return self._restored(b"".join(map(self._bytes_of.__getitem__, ids)).decode("utf-8", "replace"))

    def _require_ids(self, ids: list[int]) -> None:
        wrong = next((i for i in ids if not 0 <= i < self.vocab_size), None)
        if wrong is not None:
            raise DataError(
                f"id {wrong}: outside the vocabulary; must be 0 to {self.vocab_size - 1}; use the tokenizer that made"
                " the ids"
            )

    def _segmented(self, text: str) -> str:
        return text if self.segmenter == "none" else _join_words(_jieba_cut()(text))

    def _restored(self, text: str) -> str:
        return text if self.segmenter == "none" else text.translate(_FROM_PIECES)

    def _restored_bytes(self, piece: bytes) -> bytes:
        """As `_restored`, of whole or cut characters."""
        if self.segmenter == "none":
            return piece
        return piece.replace(b" ", b"").replace(SPACE.encode(), b" ").replace(NEWLINE.encode(), b"\n")

    @cached_property
    def _bytes_of(self) -> list[bytes]:
        return [self._piece_bytes(i) for i in range(self.vocab_size)]

    def _piece_bytes(self, index: int) -> bytes:
        processor = self._processor
        if processor.is_control(index):
            return b""
        if processor.is_unknown(index):
            return "\u2047".encode()
        piece = processor.id_to_piece(index)
        return bytes([int(piece[3:5], 16)]) if processor.is_byte(index) else piece.replace("\u2581", " ").encode()


class StreamDecoder:
    """Decodes ids that arrive one by one. The returned parts, joined, equal `Tokenizer.decode` of the ids as a
    continuation."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, index: int) -> str:
        """Add an id; returns the text that it completes, which is empty while a character is incomplete."""
        self._tokenizer._require_ids([index])
        return self._tokenizer._restored(self._utf8.decode(self._tokenizer._bytes_of[index]))

    def flush(self) -> str:
        """The rest of the text at the end of the ids: U+FFFD if the last character is incomplete."""
        return self._tokenizer._restored(self._utf8.decode(b"", final=True))


@cache
def _warn_of_old(fingerprint: str, where: str) -> None:
    _log.warning(
        "%s: its tokenizer fingerprint %s tells nothing of the jieba that cut the text; it is taken to be the one"
        " installed here",
        where,
        fingerprint,
    )


@cache
def _jieba_cut() -> Callable[[str], Iterator[str]]:
    """The segmenter. All tokenizers share it, since it has no state and loading its dictionary takes half a second."""
    return make_segmenter(SPECIALS)


def _join_words(words: Iterable[str]) -> str:
    return " ".join([_TO_PIECES.get(word, word) for word in words])


def require_unicode(text: str) -> None:
    """Raise DataError if a text holds a lone surrogate, which cannot be encoded as UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"text: lone surrogate at character {error.start}; text must be valid Unicode; repair the input"
        ) from error


def processor_of(model: bytes) -> sentencepiece.SentencePieceProcessor:
    """Load a serialised SentencePiece model.

    Raises:
        ValueError: it is no SentencePiece model.
    """
    processor = sentencepiece.SentencePieceProcessor()
    try:
        # The constructor is not used, since it ignores empty bytes instead of refusing them.
        processor.load_from_serialized_proto(model)
    except (RuntimeError, UnicodeDecodeError):  # UnicodeDecodeError: SentencePiece's message quotes the file's bytes
        raise ValueError("not a SentencePiece model") from None
    if not processor.get_piece_size():
        raise ValueError("not a SentencePiece model: it has no pieces")
    return processor


def has_our_pieces(model: bytes) -> bool:
    """Whether a bare SentencePiece model is a released vocabulary. Only these have U+2582 and U+2583, which stand for
    white space between jieba's words, or our special pieces."""
    try:
        processor = processor_of(model)
    except ValueError:
        return True  # the caller then loads it as our own, and that error says what is wrong with it
    own = [SPACE, NEWLINE, *(piece for piece in SPECIALS[3:] if piece != "<pad>")]
    return any(processor.id_to_piece(processor.piece_to_id(piece)) == piece for piece in own)


def _read(path: Path) -> bytes:
    try:
        return small_json.read_bytes(path)
    except ValueError as error:
        raise DataError(
            f"{path}: {error}; a tokenizer is a vocab.model file or a directory with vocab.model and tokenizer.json; "
            "name one, or make one with `pangu tokenizer train`"
        ) from error


def require_vocabulary(tokenizer: Tokenizer, vocab_size: int) -> None:
    """Raise DataError unless tokenizer and model have the same vocabulary size."""
    if tokenizer.vocab_size != vocab_size:
        raise DataError(
            f"tokenizer: {tokenizer.vocab_size} pieces, model.vocab_size={vocab_size}: must be equal; "
            f"set model.vocab_size={tokenizer.vocab_size} or name the model's tokenizer"
        )


def train_tokenizer(
    texts: Iterable[str],
    vocab_size: int = 40000,
    segmenter: str = "jieba",
    sample_bytes: int = 20_000_000,
    progress: bool = False,
) -> Tokenizer:
    """Train a BPE vocabulary with byte fallback and without normalisation. Its control pieces, with ids 0 to 6, are the
    seven specials of the released vocabulary.

    BPE is used because it takes 0.4 s for 2048 pieces on 3.6 MB of Python, where unigram takes 7.5 s; both give 3.17
    bytes per token. Newlines and tabs are ordinary characters, so that pieces such as "):" + newline exist: this gives
    6 % fewer tokens on Python than a newline piece of its own.

    Args:
        texts: documents, read once.
        vocab_size: number of pieces, specials and 256 bytes included.
        segmenter: jieba for Chinese, none for code and other languages.
        sample_bytes: UTF-8 bytes to train on. From a larger corpus an evenly spaced sample is taken, which has between
            half and all of these bytes.
        progress: show a bar while Chinese is segmented.

    Raises:
        DataError: there is no text, or too little for `vocab_size`; or `vocab_size` has no room for the fixed pieces.
    """
    if vocab_size < SMALLEST_VOCAB:
        raise DataError(
            f"vocab_size={vocab_size}: must be at least {SMALLEST_VOCAB} (256 bytes, specials, characters); use a"
            " larger one"
        )
    sample = sample_chunks(texts, sample_bytes)
    if not any(chunk.strip() for chunk in sample):
        raise DataError("corpus: has no text; a tokenizer is trained on text; name files with text")
    if segmenter == "jieba":
        from pangu_ms.core.progress import progress_bar  # imported here, since a MindIR package does not contain it

        cut = _jieba_cut()
        chunks = progress_bar(progress, iterable=sample, desc="segment", unit="chunk", leave=False)
        sample = [_join_words(cut(chunk)) for chunk in chunks]
    return Tokenizer(_train(_without_rare_characters(sample, vocab_size), vocab_size, segmenter), segmenter)


def sample_chunks(texts: Iterable[str], limit: int) -> list[str]:
    """Cut texts into chunks and return an evenly spaced sample of them, in order: all chunks, or every 2nd, 4th, 8th
    and so on, if all have more than `limit` UTF-8 bytes. This needs bounded memory and no random numbers."""
    kept: list[str] = []
    size, stride, position = 0, 1, 0
    for text in texts:
        for start in range(0, len(text), CHUNK):
            if position % stride == 0:
                kept.append(text[start : start + CHUNK])
                size += len(kept[-1].encode())
            position += 1
            if size > limit and len(kept) > 1:
                kept, stride = kept[::2], 2 * stride
                size = sum(len(chunk.encode()) for chunk in kept)
    return kept


def _without_rare_characters(sample: list[str], vocab_size: int) -> list[str]:
    """Cut the sample at its rarest characters, which will be spelt in bytes.

    These are the characters beyond COVERAGE, and as many more as are needed so that single characters fill at most half
    of a small vocabulary. SentencePiece's own option cannot do this, since it refuses a coverage below 0.98. NUL is cut
    out too, since the trainer treats it as the end of a text.
    """
    counts = collections.Counter("".join(sample)).most_common()
    left, room = COVERAGE * sum(count for _, count in counts), (vocab_size - 256 - len(SPECIALS)) // 2
    cuts = {0: "\0"}
    for rank, (character, count) in enumerate(counts):
        if rank >= room or left <= 0:
            cuts[ord(character)] = "\0"
        left -= count
    return [part for text in sample for part in text.translate(cuts).split("\0") if part]


def _train(sample: list[str], vocab_size: int, segmenter: str) -> bytes:
    """Train a SentencePiece model on the sample; returns the serialised model."""
    model = io.BytesIO()
    # U+2581 gets a piece even if the sample has no space, because decoding does not turn its three byte pieces into a
    # space.
    lossless: dict[str, Any] = {
        "required_chars": "\u2581",
        "remove_extra_whitespaces": False,
        "add_dummy_prefix": False,
        "allow_whitespace_only_pieces": True,
    }
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sample),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            character_coverage=1.0,  # `_without_rare_characters` has removed all characters that get no piece
            byte_fallback=True,
            normalization_rule_name="identity",
            control_symbols=list(SPECIALS[3:]),
            max_sentence_length=16 * CHUNK,  # in bytes: a character has at most 4, and segmenting at most doubles them
            minloglevel=2,
            **(lossless if segmenter == "none" else {}),
        )
    except RuntimeError as error:
        limit = re.search(r"value <= (\d+)", str(error))
        advice = "use more text"
        if limit and int(limit[1]) >= SMALLEST_VOCAB:
            advice = f"use a vocab_size of at most {limit[1]}, or more text"
        size = sum(len(chunk.encode()) for chunk in sample)
        raise DataError(
            f"corpus: {size:,} bytes of training text are too few for vocab_size={vocab_size}: {advice}"
        ) from error
    return model.getvalue()
