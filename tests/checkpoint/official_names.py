"""Official names and shapes of a PanGu-alpha checkpoint, copied by hand from the specification (A7.1, A7.3), not from
the table under test.

Each row: our name, official name, Hugging Face name, official shape, our shape and Hugging Face shape (which are
equal). `block` rows stand inside a layer. V 12, S 6, E 8, F 20 as in common.small_config.
"""

V, S, E, F = 12, 6, 8, 20

OUTSIDE = [
    (
        "word_embedding.weight",
        "backbone.embedding.word_embedding.embedding_table",
        "transformer.wte.weight",
        (V, E),
        (V, E),
    ),
    (
        "position_embedding.weight",
        "backbone.embedding.position_embedding.embedding_table",
        "transformer.wpe.weight",
        (S, E),
        (S, E),
    ),
    (
        "query_embedding.weight",
        "backbone.top_query_embedding.embedding_table",
        "transformer.wqe.weight",
        (S, E),
        (S, E),
    ),
    ("final_norm.weight", "backbone.layernorm.gamma", "transformer.ln_f.weight", (E,), (E,)),
    ("final_norm.bias", "backbone.layernorm.beta", "transformer.ln_f.bias", (E,), (E,)),
]

BLOCK = [
    ("attention_norm.weight", "layernorm1.gamma", "ln_1.weight", (E,), (E,)),
    ("attention_norm.bias", "layernorm1.beta", "ln_1.bias", (E,), (E,)),
    ("ffn_norm.weight", "layernorm2.gamma", "ln_2.weight", (E,), (E,)),
    ("ffn_norm.bias", "layernorm2.beta", "ln_2.bias", (E,), (E,)),
    ("attention.query.weight", "attention.dense1.weight", "attn.q_proj.weight", (E, E), (E, E)),
    ("attention.query.bias", "attention.dense1.bias", "attn.q_proj.bias", (E,), (E,)),
    ("attention.key.weight", "attention.dense2.weight", "attn.k_proj.weight", (E, E), (E, E)),
    ("attention.key.bias", "attention.dense2.bias", "attn.k_proj.bias", (E,), (E,)),
    ("attention.value.weight", "attention.dense3.weight", "attn.v_proj.weight", (E, E), (E, E)),
    ("attention.value.bias", "attention.dense3.bias", "attn.v_proj.bias", (E,), (E,)),
    ("attention.output.weight", "attention.projection.weight", "attn.c_proj.weight", (E, E), (E, E)),
    ("attention.output.bias", "attention.projection.bias", "attn.c_proj.bias", (E,), (E,)),
    ("ffn.up.weight", "output.mapping.weight", "mlp.c_fc.weight", (E, F), (F, E)),
    ("ffn.up.bias", "output.mapping.bias", "mlp.c_fc.bias", (F,), (F,)),
    ("ffn.down.weight", "output.projection.weight", "mlp.c_proj.weight", (F, E), (E, F)),
    ("ffn.down.bias", "output.projection.bias", "mlp.c_proj.bias", (E,), (E,)),
]

# The three that the official code multiplies as x @ W instead of x @ W^T.
IN_OUT = ("attention.projection.weight", "output.mapping.weight", "output.projection.weight")


def expected(num_layers: int) -> list[tuple[str, str, str, tuple[int, ...], tuple[int, ...]]]:
    """All rows of a model with `num_layers` layers, the query layer included."""
    rows = list(OUTSIDE)
    for i in range(num_layers - 1):
        rows += [
            (f"blocks.{i}.{a}", f"backbone.blocks.{i}.{b}", f"transformer.h.{i}.{c}", d, e) for a, b, c, d, e in BLOCK
        ]
    last = num_layers - 1
    return rows + [
        (f"query_layer.{a}", f"backbone.top_query_layer.{b}", f"transformer.h.{last}.{c}", d, e)
        for a, b, c, d, e in BLOCK
    ]
