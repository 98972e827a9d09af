"""Writes the model of a checkpoint, with its tokenizer, as a GGUF file for llama.cpp. No mindspore import.

Source: convert_hf_to_gguf.py of llama.cpp; llm_tokenizer_spm and llama_vocab in llama-vocab.cpp.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pangu_ms.checkpoint import gguf_file, reshard
from pangu_ms.checkpoint.gguf_file import Value
from pangu_ms.checkpoint.lazy import Readable, Slices
from pangu_ms.checkpoint.store import Checkpoint
from pangu_ms.core import dtypes, files
from pangu_ms.core.errors import CheckpointError
from pangu_ms.data.piece_table import BYTE, UNUSED, PieceTable
from pangu_ms.data.tokenizer import Tokenizer
from pangu_ms.models.common.gguf import GgufModel
from pangu_ms.models.registry import FAMILIES

NAME, SUFFIX = "gguf", ".gguf"
_NO_TOKENIZER: dict[str, Value] = {"tokenizer.ggml.model": "none"}


def export(checkpoint: Checkpoint, output: Path, dtype: str, with_tokenizer: bool, say: Callable[[str], None]) -> Path:
    """Write a GGUF file.

    Args:
        checkpoint: of a model that llama.cpp has.
        output: a new file with the suffix .gguf.
        dtype: type of the matrices, one of gguf_file.DTYPES.
        with_tokenizer: False leaves the tokenizer out.
        say: called with lines that say what became of dtypes and tokenizer.

    Returns:
        `output`.

    Raises:
        CheckpointError: llama.cpp would compute or tokenize something else, or the `gguf` package is missing.
        OutputError: `output` exists, or the disk is full.
    """
    output = Path(output)
    if output.suffix != SUFFIX:
        raise CheckpointError(f"{output}: a GGUF file ends in {SUFFIX}; name such a file")
    files.require_new(output)
    gguf_file.package()
    config = checkpoint.config()
    model = FAMILIES[config.model.family].gguf(config.model)
    tokenizer = checkpoint.tokenizer() if with_tokenizer else None
    keys = tokenizer_keys(tokenizer) if tokenizer else _NO_TOKENIZER
    keys = keys | {f"{model.architecture}.{name}": value for name, value in model.fields.items()}
    tensors = tensors_of(model, checkpoint.stored())
    say(f"weights: {_change(tensors, dtype)}")
    absent = "left out" if checkpoint.tokenizer_path() else "the checkpoint has none"
    what = f"{tokenizer.vocab_size:,} pieces of SentencePiece" if tokenizer else f"{absent}; llama.cpp takes ids only"
    say(f"tokenizer: {what}")
    shapes = [tensor.shape for tensor in tensors.values()]
    reshard.require_room(output, sum(gguf_file.num_bytes(one, gguf_file.dtype_of(one, dtype)) for one in shapes))
    gguf_file.write(output, model.architecture, keys, tensors, dtype)
    return output


def tensors_of(model: GgufModel, tensors: Mapping[str, Readable]) -> dict[str, Readable]:
    """A model's tensors by GGUF's names, in the order of the model."""
    return {
        theirs: _Interleaved(tensors[ours].spec, tensors[ours], model.interleaved[ours])
        if ours in model.interleaved
        else tensors[ours]
        for ours, theirs in model.names.items()
    }


@dataclass(frozen=True)
class _Interleaved(Readable):
    """A matrix whose rows are reordered within each head: (0, D / 2, 1, D / 2 + 1, ...)."""

    base: Readable
    num_heads: int

    def read(self, wanted: Slices) -> np.ndarray:
        """See Readable."""
        rows, *rest = wanted
        size = self.shape[0] // self.num_heads
        # The rows of the heads that have one of the wanted rows.
        heads = slice(rows.start // size * size, -(-rows.stop // size) * size)
        order = np.arange(heads.stop - heads.start).reshape(-1, 2, size // 2).swapaxes(1, 2).reshape(-1)
        return self.base.read((heads, *rest))[order[rows.start - heads.start : rows.stop - heads.start]]


def tokenizer_keys(tokenizer: Tokenizer) -> dict[str, Value]:
    """The keys that describe a tokenizer to llama.cpp.

    Raises:
        CheckpointError: llama.cpp would give a text other ids.
    """
    table = _table(tokenizer)
    size = len(table.pieces)
    spare = range(size, tokenizer.vocab_size)  # rows of the word table without a piece
    keys: dict[str, Value] = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": table.pieces[: tokenizer.vocab_size] + [f"[PAD{i}]" for i in spare],
        "tokenizer.ggml.scores": table.scores[: tokenizer.vocab_size] + [-1000.0] * len(spare),
        "tokenizer.ggml.token_type": table.types[: tokenizer.vocab_size].tolist() + [UNUSED] * len(spare),
        "tokenizer.ggml.unknown_token_id": tokenizer.unk_id,
        "tokenizer.ggml.eos_token_id": tokenizer.eod_id,
        "tokenizer.ggml.add_bos_token": bool(tokenizer.first_ids),
        "tokenizer.ggml.add_eos_token": False,
        "tokenizer.ggml.add_space_prefix": tokenizer.strips_space,
    }
    optional = {"bos": tokenizer.bos_id, "padding": tokenizer.pad_id if tokenizer.has_pad else None}
    # llama.cpp ends a text at eos and at eot.
    optional["eot"] = next((i for i in tokenizer.stop_ids if i != tokenizer.eod_id), None)
    keys |= {f"tokenizer.ggml.{name}_token_id": index for name, index in optional.items() if index is not None}
    template = tokenizer.chat_template
    return keys | ({"tokenizer.chat_template": template} if template else {})


def _table(tokenizer: Tokenizer) -> PieceTable:
    """The pieces of a tokenizer that llama.cpp can encode with."""
    reason = None
    if tokenizer.segmenter != "none":
        reason = f"segments text with {tokenizer.segmenter}, which llama.cpp does not have"
    elif tokenizer.sentencepiece is None:
        reason = "is a tokenizer.json, of which llama.cpp knows some by name alone"
    else:
        table = PieceTable(tokenizer.sentencepiece)
        if not table.is_bpe:
            reason = "is a unigram model, and llama.cpp merges pairs"
        elif (table.types == BYTE).sum() != 256:
            reason = "has no piece for every byte, without which llama.cpp ends at an unknown character"
        else:
            return table
    raise CheckpointError(
        f"tokenizer: {reason}, so that texts would get other ids there; leave it out with --no-tokenizer"
    )


def _change(tensors: Mapping[str, Readable], dtype: str) -> str:
    """What becomes of the dtypes, in a few words."""
    written = {name: gguf_file.dtype_of(tensor.shape, dtype) for name, tensor in tensors.items()}
    before = {tensor.spec.dtype_name for tensor in tensors.values()}
    if dtype == gguf_file.Q8_0:
        text = f"matrices in q8_0, each value rounded to a multiple of its block's scale ({', '.join(sorted(before))})"
    else:
        text = dtypes.change(before, dtype)
    odd = [name for name, tensor in tensors.items() if len(tensor.shape) > 1 and written[name] != dtype]
    kept = f"; {len(odd)} with rows that are no multiple of 32 stay float32 ({odd[0]}, ...)" if odd else ""
    vectors = "" if dtype == "float32" else "; vectors in float32"
    return text + vectors + kept
