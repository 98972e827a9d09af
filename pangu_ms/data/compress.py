"""Compresses a vocabulary: removes the rare pieces from a SentencePiece model, and maps the new ids to the old ones.

Legend: V pieces of the full vocabulary, K pieces of the compressed one.

Source: spec E2.1.
"""

import dataclasses
import json
from pathlib import Path

import numpy as np

from pangu_ms.core import format_version, small_json
from pangu_ms.core.errors import DataError
from pangu_ms.data.piece_table import BYTE, NORMAL, PieceTable
from pangu_ms.data.tokenizer import SPECIALS, Tokenizer

MAP_FILE = "vocab_map.json"
FORMAT = 1
_SPACE = "\u2581"


@dataclasses.dataclass(frozen=True, eq=False)
class VocabMap:
    """Maps the ids of a compressed vocabulary to the ids of the full one. Indexing an embedding or output head with
    `old_ids` gives the rows of the compressed vocabulary.

    Attributes:
        source_fingerprint: fingerprint of the full tokenizer.
        fingerprint: fingerprint of the compressed tokenizer.
        source_vocab_size: V.
        old_ids: int64 [K], strictly increasing, in [0, V): the old id of each new one.
        where: the file or step that the map comes from, for error messages.
    """

    source_fingerprint: str
    fingerprint: str
    source_vocab_size: int
    old_ids: np.ndarray
    where: str = MAP_FILE

    def __post_init__(self) -> None:
        ids = self.old_ids
        if not (len(ids) and ids[0] >= 0 and ids[-1] < self.source_vocab_size and (np.diff(ids) > 0).all()):
            raise DataError(
                f"{self.where}: old_ids must be strictly increasing, from 0 to {self.source_vocab_size - 1}; restore"
                " the file or compress again"
            )

    def require(self, source: Tokenizer, source_vocab_size: int) -> None:
        """Raise DataError unless the map was made from this tokenizer, and the model has a vocabulary of that size."""
        if self.source_vocab_size != source_vocab_size or not source.made(self.source_fingerprint, self.where):
            found = f"{self.source_fingerprint[:12]} ({self.source_vocab_size})"
            given = f"{source.fingerprint[:12]} ({source_vocab_size})"
            raise DataError(
                f"{self.where}: made from tokenizer {found}, given {given} (fingerprint, pieces): must be the same; "
                "compress the tokenizer of the model whose rows are taken"
            )

    def to_bytes(self) -> bytes:
        """Content of `vocab_map.json`."""
        content = {
            "format": FORMAT,
            "source_fingerprint": self.source_fingerprint,
            "fingerprint": self.fingerprint,
            "source_vocab_size": self.source_vocab_size,
            "old_ids": self.old_ids.tolist(),
        }
        return (json.dumps(content) + "\n").encode()


def load_vocab_map(directory: str | Path) -> VocabMap:
    """Read the map in a tokenizer directory that `pangu tokenizer compress` wrote.

    Only that directory and the checkpoints that copied it have the map; `pangu data prepare` does not copy it to
    `OUTPUT/tokenizer`.

    Raises:
        DataError: the map is missing or damaged, or belongs to another tokenizer than the one beside it.
    """
    path = Path(directory) / MAP_FILE
    try:
        content = small_json.read_object(path)
        format_version.require_known(content["format"], FORMAT, path, DataError)
        old_ids = np.array(content["old_ids"])
        if old_ids.ndim != 1 or old_ids.dtype != np.int64:
            raise TypeError("old_ids is not a list of whole numbers")
        found = VocabMap(
            str(content["source_fingerprint"]),
            str(content["fingerprint"]),
            int(content["source_vocab_size"]),
            old_ids,
            str(path),
        )
    except small_json.Missing as error:
        raise DataError(
            f"{path}: {error}; `pangu tokenizer compress` writes it beside vocab.model; name its output directory"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path}: not a vocabulary map ({error!r}); restore it or compress again") from error
    tokenizer = Tokenizer.load(directory)
    if len(found.old_ids) != tokenizer.vocab_size or not tokenizer.made(found.fingerprint, str(path)):
        raise DataError(
            f"{path}: of tokenizer {found.fingerprint[:12]}, beside it is {tokenizer.fingerprint[:12]}; must be the"
            " same; compress again"
        )
    return found


@dataclasses.dataclass(frozen=True, eq=False)
class Compressed:
    """A compressed tokenizer.

    Attributes:
        tokenizer: the compressed tokenizer, with the segmenter and the end-of-document piece of the full one.
        vocab_map: maps its ids to the ids of the full one.
        kept: number of pieces of each kind: special, byte, character (one character), word (longer).
        unreachable: pieces that encoding could produce with the full vocabulary and no longer can.
    """

    tokenizer: Tokenizer
    vocab_map: VocabMap
    kept: dict[str, int]
    unreachable: list[str]

    def save(self, directory: str | Path) -> None:
        """Write tokenizer and map into a new directory atomically.

        Raises:
            OutputError: the directory has other content, or the disk is full.
        """
        self.tokenizer.save(directory, {MAP_FILE: self.vocab_map.to_bytes()})


class Compressor:
    """Compresses one tokenizer to one or several sizes; what depends on the tokenizer alone is computed once.

    Attributes:
        tokenizer: the full one.
        required: bool [V], pieces that every size keeps. These are all pieces that are not NORMAL in the SentencePiece
            model (specials, user-defined ones, bytes); the pieces named in SPECIALS and the eod piece; U+2581, since
            decoding turns only this piece into a space, not its three byte pieces; and, in a model without byte pieces,
            every single character, since no other piece could spell it.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer, self._table = tokenizer, PieceTable(tokenizer.model)
        self._kinds = np.array([_kind(piece, type_) for piece, type_ in zip(self._table.pieces, self._table.types)])
        always = ("special", "byte") if "byte" in self._kinds else ("special", "character")
        by_name = {tokenizer.eod_id, *map(tokenizer.id_of, (*SPECIALS, _SPACE))} - {None}
        self.required = np.isin(self._kinds, always)
        self.required[list(by_name)] = True

    def require_size(self, vocab_size: int) -> None:
        """Raise DataError unless the tokenizer can be compressed to this size."""
        smallest, full = int(self.required.sum()), self.tokenizer.vocab_size
        if not smallest <= vocab_size < full:
            raise DataError(
                f"vocab_size={vocab_size}: must be at least {smallest} (specials, bytes or single characters are kept)"
                f" and below the {full} pieces of the tokenizer; use a size between"
            )

    def compress(self, counts: np.ndarray, vocab_size: int, closure: bool = True) -> Compressed:
        """Keep the required pieces, then the others by descending count; ties are broken by id.

        Args:
            counts: int64 [V], occurrences of each piece.
            vocab_size: K.
            closure: for a BPE model, keep with each piece all pieces that its merges pass through, so that encoding can
                still produce it; a piece is skipped if these do not fit. Without the closure, 73 of 4,000 pieces became
                unreachable (compressed from 8,000, on 12 MB of Chinese) and texts took 1.5 % more tokens. Models of
                other types have no merges, so the closure has no effect.

        Raises:
            DataError: `vocab_size` is out of range.

        Source: spec E2.1 (the closure is ours: the official script prunes by count alone).
        """
        self.require_size(vocab_size)
        old_ids = np.flatnonzero(self._chosen(counts, vocab_size, closure))
        small = self.tokenizer.with_model(self._table.subset(old_ids))
        vocab_map = VocabMap(self.tokenizer.fingerprint, small.fingerprint, self.tokenizer.vocab_size, old_ids)
        lost = old_ids[self._table.reachable[old_ids] & ~PieceTable(small.model).reachable]
        kept = {kind: int((self._kinds[old_ids] == kind).sum()) for kind in ("special", "byte", "character", "word")}
        return Compressed(small, vocab_map, kept, [self._table.pieces[i] for i in lost])

    def _chosen(self, counts: np.ndarray, vocab_size: int, closure: bool) -> np.ndarray:
        """bool [V]: the pieces to keep."""
        chosen, room = self.required.copy(), vocab_size - int(self.required.sum())
        # One pass is enough to fill the vocabulary: if a piece is skipped because the pieces that it needs do not fit,
        # the loop reaches those pieces later, and each of them needs fewer others.
        for index in np.argsort(-counts, kind="stable"):
            if room == 0:
                break
            missing = [] if chosen[index] else [i for i in self._needed(int(index), closure) if not chosen[i]]
            if len(missing) <= room:
                chosen[missing] = True
                room -= len(missing)
        assert room == 0, f"{room} slots of the vocabulary are not filled"
        return chosen

    def _needed(self, index: int, closure: bool) -> set[int]:
        """A piece, and with `closure` the pieces that encoding needs to produce it."""
        if closure and self._table.is_bpe and self._table.reachable[index]:
            return {index, *self._table.merges(index)}
        return {index}


def _kind(piece: str, type_: int) -> str:
    if type_ != NORMAL:
        return "byte" if type_ == BYTE else "special"
    return "character" if len(piece) == 1 else "word"
