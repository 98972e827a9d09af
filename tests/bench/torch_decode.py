"""Decoding in PyTorch with a static cache, compiled: a peer of the benchmark of decoding. Needs torch alone."""

from __future__ import annotations

import json
import math
import mmap
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import nn
from torch.nn import functional

from tests.bench.alpha_torch import AlphaTorch
from tests.bench.pi_torch import PiTorch, rotate
from tests.bench.turns import PROMPT, TOKEN, serve

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class CachedTorch(nn.Module):
    """One step: the next token of every sequence, all at one position, as Hugging Face's StaticCache has it."""

    def __init__(self, config: SimpleNamespace, batch_size: int, capacity: int, dtype: torch.dtype):
        super().__init__()
        self.pi = config.family == "pi"
        self.model = (PiTorch if self.pi else AlphaTorch)(config)
        num_kv_heads = config.num_kv_heads if self.pi else config.num_heads
        shape = config.num_layers, batch_size, num_kv_heads, capacity, config.hidden_size // config.num_heads
        self.keys, self.values = ([*torch.zeros(shape, dtype=dtype)] for _ in range(2))
        self.index = torch.arange(capacity)

    def attend(self, attention, layer, query, key, value, position):
        """Attention to what the cache of a layer holds up to the position."""
        self.keys[layer].index_copy_(2, position, key)
        self.values[layer].index_copy_(2, position, value)
        y = functional.scaled_dot_product_attention(
            query,
            self.keys[layer],
            self.values[layer],
            attn_mask=(self.index <= position)[None, None, None],
            enable_gqa=query.shape[1] != key.shape[1],
        )
        return attention.output(y.transpose(1, 2).flatten(2))

    def forward(self, ids, position):
        """ids int64 [B], position int64 [1] -> logits [B, V]."""
        return (self.step_pi if self.pi else self.step_alpha)(ids[:, None], position)[:, 0]

    def step_pi(self, ids, position):
        model = self.model
        x, cos, sin = model.word_embedding(ids), model.cos[position], model.sin[position]
        for layer, block in enumerate(model.blocks):
            normed, attention = block.attention_norm(x), block.attention
            query, key = (rotate(attention.heads(part(normed)), cos, sin) for part in (attention.query, attention.key))
            y = self.attend(attention, layer, query, key, attention.heads(attention.value(normed)), position)
            x = x + y + sum(branch(x if block.shortcut_reads_stream else normed) for branch in block.aug_shortcut)
            x = x + block.ffn(block.ffn_norm(x))
        x = model.final_norm(x)
        return functional.linear(x, model.word_embedding.weight) if model.head is None else model.head(x)

    def step_alpha(self, ids, position):
        model = self.model
        x = model.word_embedding(ids) + model.position_embedding(position)
        for layer, block in enumerate([*model.blocks, model.query_layer]):
            if block is model.query_layer and model.norm_before_query:
                x = model.final_norm(x)
            normed, attention = block.attention_norm(x), block.attention
            query = normed if block is not model.query_layer else model.query_embedding(position).expand_as(normed)
            query, key, value = (
                attention.heads(part(of))
                for part, of in ((attention.query, query), (attention.key, normed), (attention.value, normed))
            )
            x = x + self.attend(attention, layer, query, key, value, position)
            x = x + block.ffn(block.ffn_norm(x))
        x = x if model.norm_before_query else model.final_norm(x)
        return functional.linear(x, model.word_embedding.weight)


def read_weights(directory: Path) -> dict[str, torch.Tensor]:
    """The float32 tensors of the safetensors files in a directory."""
    tensors = {}
    for path in sorted(directory.glob("*.safetensors")):
        with path.open("rb") as file:
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        begin = 8 + int.from_bytes(content[:8], "little")
        for name, entry in json.loads(content[8:begin]).items():
            if name != "__metadata__":
                count, offset = math.prod(entry["shape"]), begin + entry["data_offsets"][0]
                tensors[name] = torch.frombuffer(content, dtype=torch.float32, count=count, offset=offset).view(
                    entry["shape"]
                )
    return tensors


class TorchDecoder:
    """A candidate of the benchmark."""

    def __init__(self, checkpoint: Path, config: dict, batch_size: int, capacity: int, dtype: str):
        torch.set_num_threads(len(os.sched_getaffinity(0)))
        torch._inductor.config.freezing = True
        self.model = CachedTorch(SimpleNamespace(**config), batch_size, capacity, DTYPES[dtype])
        self.model.model.load_state_dict(read_weights(checkpoint))
        self.model.to(DTYPES[dtype]).eval().requires_grad_(False)
        self.compiled = torch.compile(self.model, fullgraph=True, dynamic=False)
        self.ids, self.position = torch.full((batch_size,), 0), torch.zeros(1, dtype=torch.int64)
        for token in (*PROMPT, TOKEN):
            self.ids.fill_(token)
            logits = self.step()
        self.logits = logits[0].float()

    @torch.inference_mode()
    def step(self) -> torch.Tensor:
        logits = self.compiled(self.ids, self.position)
        self.position += 1
        return logits

    def reset(self) -> None:
        self.position.fill_(len(PROMPT))


if __name__ == "__main__":
    told = json.loads(sys.argv[1])
    decoder = TorchDecoder(
        Path(told["checkpoint"]), told["model"], told["batch_size"], told["capacity"], told["weights"]
    )
    serve(decoder, {"version": torch.__version__, "logits": decoder.logits.tolist()})
