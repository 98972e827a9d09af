"""The pieces of a SentencePiece model: read, cut to a subset, tried out one by one.

The model's bytes are taken apart here, since the protobuf package, once imported, keeps mindspore from being imported after it.

Source: sentencepiece_model.proto and bpe_model.cc of SentencePiece 0.2.
"""

import struct
from collections.abc import Iterator
from functools import cached_property

import numpy as np
import sentencepiece

NORMAL, USER_DEFINED, UNUSED, BYTE = 1, 4, 5, 6  # SentencePiece.Type; 2 is unknown, 3 control
_VARINT, _FIXED64, _MESSAGE, _FIXED32 = 0, 1, 2, 5  # wire types
_PIECES, _TRAINER, _NORMALIZER, _SELF_TEST = 1, 2, 3, 4  # fields of ModelProto
_PIECE, _SCORE, _TYPE = 1, 2, 3  # of ModelProto.SentencePiece
_MODEL_TYPE, _VOCAB_SIZE = 3, 4  # of TrainerSpec
_SPECIAL_IDS = {40: 0, 41: 1, 42: 2, 43: -1}  # of TrainerSpec with defaults: unk_id, bos_id, eos_id, pad_id
_UNIGRAM, _BPE = 1, 2
_AS_IT_STANDS = bytes([3 << 3, 0, 4 << 3, 0])
"""A NormalizerSpec that changes nothing: add_dummy_prefix and remove_extra_whitespaces false, no character map."""


class PieceTable:
    """The pieces of a serialised model that SentencePiece has accepted, V of them.

    Attributes:
        pieces: text of each piece.
        scores: float of each piece; BPE merges the highest first.
        types: int64 [V], SentencePiece.Type.
        is_bpe: whether encoding merges pairs.
    """

    def __init__(self, model: bytes) -> None:
        self.model = model
        parts = [dict(_values(value)) for number, value, _ in _fields(model) if number == _PIECES]
        self.pieces: list[str] = [part[_PIECE].decode() for part in parts]
        self.scores: list[float] = [struct.unpack("<f", part.get(_SCORE, bytes(4)))[0] for part in parts]
        self.types = np.array([part.get(_TYPE, NORMAL) for part in parts])
        trainer = dict(_values(b"".join(value for number, value, _ in _fields(model) if number == _TRAINER)))
        self.is_bpe: bool = trainer.get(_MODEL_TYPE, _UNIGRAM) == _BPE

    def subset(self, old_ids: np.ndarray) -> bytes:
        """The model with these pieces only; they keep order, scores and types, and everything else stays."""
        new_ids = {int(old): new for new, old in enumerate(old_ids)}
        kept, index = [], 0
        for number, value, raw in _fields(self.model):
            if number == _PIECES:
                kept += [raw] if index in new_ids else []
                index += 1
            elif number == _TRAINER:
                kept.append(_message(_TRAINER, _trainer(value, new_ids)))
            elif number != _SELF_TEST:  # samples that were encoded with all pieces; SentencePiece refuses a model that fails them
                kept.append(raw)
        return b"".join(kept)

    @cached_property
    def reachable(self) -> np.ndarray:
        """bool [V]: the piece's own text encodes to it. For BPE no other normal piece ever comes out of encoding, whatever is around it."""
        others = b"".join(raw for number, _, raw in _fields(self.model) if number not in (_NORMALIZER, _SELF_TEST))
        processor = sentencepiece.SentencePieceProcessor(model_proto=others + _message(_NORMALIZER, _AS_IT_STANDS))
        return np.array([ids == [index] for index, ids in enumerate(processor.encode(self.pieces, num_threads=1))])

    def merges(self, index: int) -> list[int]:
        """Ids of what BPE makes of a piece's characters, merge by merge: the best score first, the leftmost on a tie."""
        symbols, made = list(self.pieces[index]), []
        while pairs := [(-self._mergeable[a + b][0], at) for at, (a, b) in enumerate(zip(symbols, symbols[1:])) if a + b in self._mergeable]:
            at = min(pairs)[1]
            symbols[at : at + 2] = [symbols[at] + symbols[at + 1]]
            made.append(self._mergeable[symbols[at]][1])
        return made

    @cached_property
    def _mergeable(self) -> dict[str, tuple[float, int]]:
        """Score and id of the pieces that BPE looks up; unused ones it takes apart again at the end."""
        chosen = np.flatnonzero(np.isin(self.types, (NORMAL, USER_DEFINED, UNUSED)))
        return {self.pieces[i]: (self.scores[i], int(i)) for i in chosen}


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes, bytes]]:
    """Number, value and whole text of each field of a message."""
    start = 0
    while start < len(message):
        tag, at = _varint(message, start)
        size = {_FIXED64: 8, _FIXED32: 4}.get(tag & 7, 0)
        if tag & 7 == _VARINT:
            value, end = _varint(message, at)
        else:
            size, at = _varint(message, at) if tag & 7 == _MESSAGE else (size, at)
            value, end = message[at : at + size], at + size
        yield tag >> 3, value, message[start:end]
        start = end


def _values(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    return ((number, value) for number, value, _ in _fields(message))


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """The number that starts here, seven bits a byte, and where it ends."""
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at


def _number(value: int) -> bytes:
    """`value` as a varint."""
    groups = []
    while value > 127:
        groups.append(value & 127 | 128)
        value >>= 7
    return bytes([*groups, value])


def _message(number: int, content: bytes) -> bytes:
    return _number(number << 3 | _MESSAGE) + _number(len(content)) + content


def _trainer(trainer: bytes, new_ids: dict[int, int]) -> bytes:
    """A TrainerSpec with the new vocab_size and ids of specials, which other programs read there. The last value of a field counts."""
    values = _SPECIAL_IDS | dict(_values(trainer))
    changes = {_VOCAB_SIZE: len(new_ids)} | {number: new_ids[values[number]] for number in _SPECIAL_IDS if values[number] in new_ids}
    return trainer + b"".join(_number(number << 3 | _VARINT) + _number(value) for number, value in changes.items())
