"""Reads the pieces of a SentencePiece model, reduces the model to a subset of them, and finds which pieces encoding can
produce.

Source: sentencepiece_model.proto and bpe_model.cc of SentencePiece 0.2.
"""

import struct
from functools import cached_property

import numpy as np
import sentencepiece

from pangu_ms.core.protobuf import content, fields, message_field, number, number_field, values

NORMAL, USER_DEFINED, UNUSED, BYTE = 1, 4, 5, 6  # SentencePiece.Type; 2 is unknown, 3 control
_PIECES, _TRAINER, _NORMALIZER, _SELF_TEST = 1, 2, 3, 4  # fields of ModelProto
_PIECE, _SCORE, _TYPE = 1, 2, 3  # of ModelProto.SentencePiece
_MODEL_TYPE, _VOCAB_SIZE = 3, 4  # of TrainerSpec
_SPECIAL_IDS = {40: 0, 41: 1, 42: 2, 43: -1}  # of TrainerSpec with defaults: unk_id, bos_id, eos_id, pad_id
_UNIGRAM, _BPE = 1, 2  # TrainerSpec.ModelType
_AS_IT_STANDS = number_field(3, 0) + number_field(4, 0)
"""A NormalizerSpec that changes nothing: add_dummy_prefix and remove_extra_whitespaces false, no character map."""


class PieceTable:
    """The V pieces of a serialised model. SentencePiece must have accepted the model before.

    Attributes:
        pieces: text of each piece.
        scores: float of each piece; BPE merges the highest first.
        types: int64 [V], the SentencePiece.Type of each piece.
        is_bpe: whether encoding merges pairs.
    """

    def __init__(self, model: bytes) -> None:
        self.model = model
        parts = [dict(values(content(value))) for field, value, _ in fields(model) if field == _PIECES]
        self.pieces: list[str] = [bytes(content(part[_PIECE])).decode() for part in parts]
        self.scores: list[float] = [struct.unpack("<f", content(part.get(_SCORE, bytes(4))))[0] for part in parts]
        self.types = np.array([part.get(_TYPE, NORMAL) for part in parts])
        # Protobuf merges several messages of the same field; reading their joined bytes does the same.
        trainer = dict(values(b"".join(content(value) for field, value, _ in fields(model) if field == _TRAINER)))
        self.is_bpe: bool = trainer.get(_MODEL_TYPE, _UNIGRAM) == _BPE

    def subset(self, old_ids: np.ndarray) -> bytes:
        """The model with these pieces only. The pieces keep their order, scores and types; the rest of the model stays
        as it is."""
        new_ids = {int(old): new for new, old in enumerate(old_ids)}
        kept, index = [], 0
        for field, value, raw in fields(self.model):
            if field == _PIECES:
                kept += [raw] if index in new_ids else []
                index += 1
            elif field == _TRAINER:
                kept.append(message_field(_TRAINER, _trainer(bytes(content(value)), new_ids)))
            elif field != _SELF_TEST:
                # The self-test's samples were encoded with all pieces; SentencePiece refuses a model that fails them.
                kept.append(raw)
        return b"".join(kept)

    @cached_property
    def reachable(self) -> np.ndarray:
        """bool [V]: whether the text of a piece encodes to the piece. If this is false for a normal piece of a BPE
        model, no text encodes to that piece."""
        others = b"".join(raw for field, _, raw in fields(self.model) if field not in (_NORMALIZER, _SELF_TEST))
        processor = sentencepiece.SentencePieceProcessor(model_proto=others + message_field(_NORMALIZER, _AS_IT_STANDS))
        return np.array([ids == [index] for index, ids in enumerate(processor.encode(self.pieces, num_threads=1))])

    def merges(self, index: int) -> list[int]:
        """Ids of the pieces that BPE makes from a piece's characters, in the order of its merges.

        The pair with the best score is merged first; among equal scores, the leftmost pair.
        """
        symbols, made = list(self.pieces[index]), []
        while (at := self._best_pair(symbols)) is not None:
            symbols[at : at + 2] = [symbols[at] + symbols[at + 1]]
            made.append(self._mergeable[symbols[at]][1])
        return made

    def _best_pair(self, symbols: list[str]) -> int | None:
        """Position of the pair that BPE merges next; None where no pair is a piece."""
        scores = {}
        for at, (left, right) in enumerate(zip(symbols, symbols[1:])):
            if left + right in self._mergeable:
                scores[at] = self._mergeable[left + right][0]
        return max(scores, key=lambda at: scores[at]) if scores else None  # max returns the leftmost of equal scores

    @cached_property
    def _mergeable(self) -> dict[str, tuple[float, int]]:
        """Score and id of each piece that a merge can make, including UNUSED pieces, which BPE splits again at the
        end."""
        chosen = np.flatnonzero(np.isin(self.types, (NORMAL, USER_DEFINED, UNUSED)))
        return {self.pieces[i]: (self.scores[i], int(i)) for i in chosen}


def _trainer(trainer: bytes, new_ids: dict[int, int]) -> bytes:
    """Update vocab_size and the ids of specials in a TrainerSpec, from which other programs read them.

    The new values are appended: protobuf takes the last value of a field.
    """
    ids = _SPECIAL_IDS | dict(values(trainer))
    changes = {_VOCAB_SIZE: len(new_ids)}
    for field in _SPECIAL_IDS:
        old_id = number(ids[field])
        if old_id in new_ids:
            changes[field] = new_ids[old_id]
    return trainer + b"".join(number_field(field, value) for field, value in changes.items())
