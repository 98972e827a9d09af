"""PanGu-alpha names: the bijection, its transposes, the accepted spellings, and strictness."""

import numpy as np
import pytest

from pangu_ms.core.errors import CheckpointError
from pangu_ms.models.alpha.weights import FORMATS
from tests.checkpoint.alpha_tensors import foreign_tensors, our_tensors
from tests.checkpoint.common import assert_same, small_config
from tests.checkpoint.official_names import IN_OUT, expected

pytestmark = pytest.mark.fast


def to_ours(format: str, tensors: dict[str, np.ndarray], num_layers: int = 3) -> dict[str, np.ndarray]:
    return FORMATS[format].to_ours("there.npz", tensors, small_config(num_layers).model)


@pytest.mark.parametrize("num_layers", [2, 3, 5])
def test_official_names_shapes_and_transposes_are_those_of_the_specification(num_layers):
    ours, official = our_tensors(num_layers), foreign_tensors("official", num_layers)
    rows = expected(num_layers)
    assert official.keys() == {row[1] for row in rows} and ours.keys() == {row[0] for row in rows}
    for our_name, name, _, shape, our_shape in rows:
        assert official[name].shape == shape and ours[our_name].shape == our_shape, name
        # By what the matrix does to a vector, not by how it is stored: out = x @ W for [in, out].
        turned = official[name].T if name.endswith(IN_OUT) else official[name]
        np.testing.assert_array_equal(turned, ours[our_name], err_msg=name)


@pytest.mark.parametrize("num_layers", [2, 3, 5])
def test_hugging_face_names_and_values(num_layers):
    ours, foreign = our_tensors(num_layers), foreign_tensors("huggingface", num_layers)
    rows = expected(num_layers)
    assert foreign.keys() == {row[2] for row in rows} | {"lm_head.weight"}
    for our_name, _, name, _, shape in rows:
        assert foreign[name].shape == shape
        np.testing.assert_array_equal(foreign[name], ours[our_name], err_msg=name)
    np.testing.assert_array_equal(foreign["lm_head.weight"], ours["word_embedding.weight"])


@pytest.mark.parametrize("num_layers", [2, 3, 5])
@pytest.mark.parametrize("format", FORMATS)
def test_there_and_back(format, num_layers):
    ours = our_tensors(num_layers)
    back = to_ours(format, foreign_tensors(format, num_layers), num_layers)
    assert_same(back, ours)
    assert list(back) == list(ours)


def test_official_spellings_and_what_else_stands_in_the_files():
    official = foreign_tensors("official")
    for spelling in (
        {f"{kind}_embedding": f"backbone.{kind}_embedding.embedding_table" for kind in ("word", "position")},
        {f"{kind}_embedding": f"{kind}_embedding_table" for kind in ("word", "position", "query")},
        {f"{kind}_embedding": f"backbone.{kind}_embedding_table" for kind in ("word", "position", "query")},
    ):
        file = {}
        for name, array in official.items():
            kind = next((kind for kind in spelling if kind in name), None)
            file[spelling[kind] if kind else name] = array
        assert len(file) == len(official) and file.keys() != official.keys()
        assert_same(to_ours("official", file), our_tensors(3))
    mapping = {}
    for name, array in official.items():
        for module in ("attention.projection", "output.mapping", "output.projection"):
            name = name.replace(f"{module}.weight", f"{module}.mapping_weight").replace(
                f"{module}.bias", f"{module}.mapping_bias"
            )
        mapping[name] = array
    assert sum("mapping_weight" in name for name in mapping) == 9
    assert_same(to_ours("official", mapping), our_tensors(3))
    extras = [
        "adam_m.backbone.layernorm.gamma",
        "adam_v.backbone.layernorm.gamma",
        "accu_grads.backbone.layernorm.gamma",
    ]
    extras += ["backbone.blocks.0.attention.key_past", "backbone.top_query_layer.attention.value_past"]
    extras += ["epoch_num", "step_num", "global_step", "loss_scale"]
    assert_same(to_ours("official", official | {name: np.zeros(1) for name in extras}), our_tensors(3))


def test_hugging_face_spellings_buffers_and_tied_head():
    foreign = foreign_tensors("huggingface")
    renamed = {name.replace("attn.c_proj", "attn.out_proj"): array for name, array in foreign.items()}
    assert renamed.keys() != foreign.keys()
    buffers = {f"transformer.h.{i}.attn.{leaf}": np.zeros(1) for i in range(3) for leaf in ("bias", "masked_bias")}
    assert_same(to_ours("huggingface", renamed | buffers), our_tensors(3))
    del foreign["lm_head.weight"]
    assert_same(to_ours("huggingface", foreign), our_tensors(3))
    foreign["lm_head.weight"] = foreign["transformer.wte.weight"] + 1
    with pytest.raises(CheckpointError, match="there.npz: lm_head.weight differs from transformer.wte.weight"):
        to_ours("huggingface", foreign)


UNKNOWN = [
    "network.backbone.layernorm.gamma",
    "backbone.blocks.0.layernorm3.gamma",
    "xepoch_num",
    "epoch_numx",
    "backbone.blocks.0.output.mapping.weights",
]


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_is_not_in_the_specification_is_listed(name):
    official = foreign_tensors("official")
    with pytest.raises(CheckpointError, match=f"there.npz: 1 unexpected: {name}"):
        to_ours("official", official | {name: np.zeros(1)})


def test_missing_and_misshaped_are_listed_with_the_files_own_shapes():
    official = foreign_tensors("official")
    official["backbone.blocks.0.output.mapping.weight"] = official["backbone.blocks.0.output.mapping.weight"].T
    del official["backbone.layernorm.beta"]
    with pytest.raises(CheckpointError) as error:
        to_ours("official", official)
    assert (
        "1 missing: backbone.layernorm.beta; 1 of another shape: backbone.blocks.0.output.mapping.weight (20, 8)"
        " instead of (8, 20)" in str(error.value)
    )


def test_a_model_of_another_depth_is_refused():
    with pytest.raises(CheckpointError, match="16 unexpected: backbone.blocks.1"):
        to_ours("official", foreign_tensors("official", 3), 2)
    with pytest.raises(CheckpointError, match="16 missing: transformer.h.4"):
        to_ours("huggingface", foreign_tensors("huggingface", 4), 5)


def test_two_spellings_of_one_parameter_are_refused():
    official = foreign_tensors("official")
    with pytest.raises(CheckpointError, match="word_embedding.embedding_table stands there twice"):
        to_ours("official", official | {"word_embedding_table": np.zeros((12, 8))})
