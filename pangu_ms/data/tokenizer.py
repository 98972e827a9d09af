"""Text to ids and back: SentencePiece, after jieba's word segmentation for Chinese. No jieba import until Chinese text
is encoded.

A tokenizer is a directory with `vocab.model` (SentencePiece) and `tokenizer.json`, or a released bare `vocab.model`, or
what a Hugging Face directory has (see huggingface.py). Round trip of our own is exact for any text without U+2581
(SentencePiece's own space) and, with segmenter jieba, without U+2582 and U+2583 (they stand for space and newline).

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
# jieba gives every white space character as a word of its own, CRLF as one.
_TO_PIECES = {" ": SPACE, "\n": NEWLINE, "\r\n": "\r" + NEWLINE}
_FROM_PIECES = str.maketrans({" ": None, SPACE: " ", NEWLINE: "\n"})
SMALLEST_VOCAB = 256 + len(SPECIALS) + 9
"""256 byte pieces, the specials, and some room for characters: 272."""
CHUNK = 2000
"""Characters of one training sentence; the trainer's memory and time grow faster than its longest sentence."""
COVERAGE = 0.9995
"""Share of characters that get a piece of their own (SentencePiece's advice for Chinese); the others are spelt in
bytes."""
_LOSSLESS_PROBE = " a  b\n\n\tc\r\n \u3000\uff1a"


class Tokenizer:
    """A SentencePiece model with its segmenter.

    Attributes:
        vocab_size: number of pieces.
        pad_id, eod_id, eot_id, unk_id: ids of the padding, end-of-document, end-of-text and unknown pieces. Missing
            ones fall back: pad to eod, eod to pad, eot to eod. eod of a bare released file is its <pad>: the released
            models were trained on documents that end with the pad id 6 (spec A5, A6), whatever else the vocabulary
            holds.
        has_pad: whether pad_id is a padding piece, and not what replaces it.
        bos_id, eos_id: ids of <s> and </s>, or None.
        first_ids: what stands before each prompt and document, such as a LLaMA's bos; our own have none.
        stop_ids: ids that end a generated text, sorted: eot, eod and the <eod> piece.
        fingerprint: SHA-256 over the model, the settings and, with segmenter jieba, its version and dictionary; two
            tokenizers with equal fingerprints give equal ids.
        segmenter_version: what the segmenter's words depend on; empty for none.
        packages: Python packages that it needs.
    """

    first_ids: tuple[int, ...] = ()

    def __init__(self, model: bytes, segmenter: str = "jieba", eod: str = "<eod>", where: str = "tokenizer") -> None:
        """Wrap a serialised SentencePiece model.

        Raises:
            DataError: not a SentencePiece model, an unknown segmenter, neither <pad> nor <eod>, or a lossy model with
                segmenter none.
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
        """Whether `fingerprint`, found in `where`, is this tokenizer's. The older form without the segmenter's version
        counts, with a warning."""
        if fingerprint == self.fingerprint:
            return True
        if fingerprint != self._hash_with(self._settings):
            return False
        _warn_of_old(fingerprint, where)
        return True

    @classmethod
    def load(cls, path: str | Path) -> "Tokenizer":
        """Read a tokenizer directory, ours or Hugging Face's, or a bare model: a released `vocab.model`, which implies
        jieba, or else a LLaMA's.

        Raises:
            DataError: nothing there, or not a tokenizer.
        """
        from pangu_ms.data import huggingface, huggingface_files  # which are made of what stands here

        path = Path(path)
        if not path.is_dir():
            if path.name == huggingface.SENTENCEPIECE and (own := huggingface_files.own_tokenizer(path.parent)):
                return own
            if path.name != huggingface.FAST and has_our_pieces(model := _read(path)):
                return cls(model, "jieba", "<pad>", str(path))
            beside = path.name in (huggingface.SENTENCEPIECE, huggingface.FAST) and path.exists()  # its settings
            return cls.load(path.parent) if beside else huggingface.HuggingFaceTokenizer.load(path)
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
        if digest not in (None, hashlib.sha256(model).hexdigest()):  # None: of version 0.1.0
            raise DataError(
                f"{path}/vocab.model: its SHA-256 differs from tokenizer.json's; it was damaged or changed; restore"
                " both files or train again"
            )
        return cls(model, segmenter, eod, str(path))

    @property
    def special_ids(self) -> list[int]:
        """Ids that no text has: of control pieces and the unknown one."""
        return [i for i in range(self.vocab_size) if self._processor.is_control(i) or self._processor.is_unknown(i)]

    @property
    def settings(self) -> dict[str, Any]:
        """What beside the model determines the ids."""
        return dict(self._settings)

    def with_model(self, model: bytes) -> "Tokenizer":
        """Another SentencePiece model under the same settings."""
        return Tokenizer(model, self.segmenter, self._settings["eod"])

    def save(self, directory: str | Path, extra: Mapping[str, bytes] | None = None) -> None:
        """Write `vocab.model` and `tokenizer.json` into a new directory, whole or not at all.

        Args:
            extra: name -> content of further files for the directory.

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
        """The piece with this id, as it stands in the vocabulary."""
        self._require_ids([index])
        return self._processor.id_to_piece(int(index))

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without any special token.

        Raises:
            DataError: a lone surrogate, which no UTF-8 file can hold.
        """
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """`encode` of each text, on one thread: the callers run one process per core."""
        try:
            return self._processor.encode([self._segmented(text) for text in texts], num_threads=1)
        except (TypeError, UnicodeEncodeError):  # SentencePiece's versions differ
            for text in texts:
                require_unicode(text)
            raise

    def encode_prompt(self, text: str) -> list[int]:
        """Ids of a text that a model is to continue: `first_ids` and `encode`."""
        return [*self.first_ids, *self.encode(text)]

    def decode(self, ids: Iterable[int], continuation: bool = False) -> str:
        """Text of ids. Control pieces give nothing, unknown ones U+2047, broken UTF-8 from byte pieces U+FFFD.

        Args:
            continuation: the ids go on from others, so that a space at their beginning is the text's.

        Raises:
            DataError: an id outside the vocabulary.
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
    """Text of ids that arrive one by one; the pieces of text joined equal `Tokenizer.decode` of the ids as a
    continuation."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, index: int) -> str:
        """New text after this id; empty while a character is incomplete."""
        self._tokenizer._require_ids([index])
        return self._tokenizer._restored(self._utf8.decode(self._tokenizer._bytes_of[index]))

    def flush(self) -> str:
        """What is left at the end: U+FFFD for a character that never became complete."""
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
    """One segmenter for all tokenizers: it keeps no state, and reading its dictionary takes half a second."""
    return make_segmenter(SPECIALS)


def _join_words(words: Iterable[str]) -> str:
    return " ".join([_TO_PIECES.get(word, word) for word in words])


def require_unicode(text: str) -> None:
    """Raise DataError for a lone surrogate, which no UTF-8 file can hold."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"text: lone surrogate at character {error.start}; text must be valid Unicode; repair the input"
        ) from error


def processor_of(model: bytes) -> sentencepiece.SentencePieceProcessor:
    """A serialised SentencePiece model, loaded.

    Raises:
        ValueError: it is none.
    """
    processor = sentencepiece.SentencePieceProcessor()
    try:
        processor.load_from_serialized_proto(model)  # the constructor takes empty bytes for no model at all
    except (RuntimeError, UnicodeDecodeError):  # the latter of its own message
        raise ValueError("not a SentencePiece model") from None
    if not processor.get_piece_size():
        raise ValueError("not a SentencePiece model: it has no pieces")
    return processor


def has_our_pieces(model: bytes) -> bool:
    """Whether a bare model is a released one: jieba's words are joined by U+2582 and U+2583, and no other vocabulary
    has these specials."""
    try:
        processor = processor_of(model)
    except ValueError:
        return True  # which then says what is wrong with it
    return any(
        processor.id_to_piece(processor.piece_to_id(piece)) == piece
        for piece in (SPACE, NEWLINE, *SPECIALS[3:])
        if piece != "<pad>"
    )


def _read(path: Path) -> bytes:
    try:
        return small_json.read_bytes(path)
    except ValueError as error:
        raise DataError(
            f"{path}: {error}; a tokenizer is a vocab.model file or a directory with vocab.model and tokenizer.json; "
            "name one, or make one with `pangu tokenizer train`"
        ) from error


def require_vocabulary(tokenizer: Tokenizer, vocab_size: int) -> None:
    """Raise DataError unless tokenizer and model have one vocabulary size."""
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
    """Train a vocabulary: byte fallback, no normalisation, the seven specials of the released one as control pieces
    (ids 0 to 6).

    BPE: on 3.6 MB of Python it takes 0.4 s for 2048 pieces where unigram takes 7.5 s, and both give 3.17 bytes a token.
    Newlines and tabs are ordinary characters, so pieces such as "):" + newline exist: 6 % fewer tokens on Python than
    with a newline piece of its own.

    Args:
        texts: documents, read once.
        vocab_size: number of pieces, specials and 256 bytes included.
        segmenter: jieba for Chinese, none for code and other languages.
        sample_bytes: train on an evenly spread sample of about half to all of this many UTF-8 bytes when the corpus is
            larger.
        progress: show a bar while Chinese is segmented.

    Raises:
        DataError: no text, or too little for `vocab_size`, or `vocab_size` too small for the fixed pieces.
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
        from pangu_ms.core.progress import progress_bar  # here: a MindIR package runs without it

        cut = _jieba_cut()
        sample = [
            _join_words(cut(chunk))
            for chunk in progress_bar(progress, iterable=sample, desc="segment", unit="chunk", leave=False)
        ]
    return Tokenizer(_train(_without_rare_characters(sample, vocab_size), vocab_size, segmenter), segmenter)


def sample_chunks(texts: Iterable[str], limit: int) -> list[str]:
    """Chunks of the texts, all or, above `limit` UTF-8 bytes, every 2nd, 4th, 8th, ... in order: bounded memory and no
    random numbers."""
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
    """The sample cut at its rarest characters, which will be spelt in bytes.

    They are those beyond COVERAGE, and more where characters would fill over half of a small vocabulary: the trainer
    itself refuses a coverage below 0.98. NUL goes too: the trainer takes it for its own end mark.
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
    model = io.BytesIO()
    # A space has a piece of its own even where the sample has none: its three bytes alone would not be read back
    # as a space.
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
            character_coverage=1.0,  # rare characters are gone already
            byte_fallback=True,
            normalization_rule_name="identity",
            control_symbols=list(SPECIALS[3:]),
            max_sentence_length=16 * CHUNK,  # in bytes; segmenting at most doubles the 4 bytes of a character
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
