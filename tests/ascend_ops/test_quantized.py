"""Products with int8 weights as files hold them: against numpy, and what MindSpore's operator for Ascend is given."""

from unittest import mock

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

import ascend_ops
from ascend_ops import quantized
from tests.eager import eager

pytestmark = pytest.mark.usefixtures("mindspore_cpu")
ROWS, INPUTS, OUTPUTS = 3, 40, 24


@pytest.fixture(scope="module")
def arrays():
    random = np.random.default_rng(0)
    weight = random.normal(size=(OUTPUTS, INPUTS)).astype(np.float32)
    scale = ascend_ops.row_scales(weight)
    x = random.normal(size=(2, ROWS, INPUTS)).astype(np.float32)
    return x, ascend_ops.quantized_rows(weight, scale), scale, random.normal(size=OUTPUTS).astype(np.float32)


def expected(x, weight, scale, bias):
    return x.astype(np.float64) @ (weight * scale[:, None].astype(np.float64)).T + bias


def test_without_the_built_in_it_is_the_product_with_the_widened_weight(arrays):
    x, weight, scale, bias = arrays
    with eager():
        y = ascend_ops.quantized_linear(*map(Tensor, arrays)).asnumpy()
        plain = ascend_ops.quantized_linear(*map(Tensor, arrays[:3])).asnumpy()
        ids = np.array([[3, 0], [23, 3]], np.int32)
        rows = ascend_ops.quantized_embedding(Tensor(ids), Tensor(weight), Tensor(scale)).asnumpy()
    np.testing.assert_allclose(y, expected(*arrays), atol=1e-5)
    np.testing.assert_allclose(plain, expected(*arrays[:3], 0), atol=1e-5)
    np.testing.assert_array_equal(rows, (weight * scale[:, None])[ids])


@pytest.mark.parametrize("dtype, bias_dtype", [(ms.float16, ms.float16), (ms.bfloat16, ms.float32)])
def test_the_built_in_gets_what_its_documentation_asks_for(arrays, monkeypatch, dtype, bias_dtype):
    """CANN's page of aclnnWeightQuantBatchMatmulV2: x [m, k], weight int8 [n, k] transposed, scale [n] in the dtype of
    x, bias [n] float32 with bfloat16 and float16 with float16."""
    given = []

    def primitive(**attributes):
        def product(*operands):
            given.append((attributes, operands))
            x, weight, scale = (ms.ops.cast(one, ms.float32) for one in operands[:3])
            y = ms.ops.MatMul(transpose_b=True)(x, weight) * scale + ms.ops.cast(operands[6], ms.float32)
            return ms.ops.cast(y, dtype)

        return product

    monkeypatch.setattr(quantized, "WeightQuantBatchMatmul", primitive)
    with eager(), mock.patch.object(quantized, "_has_builtin", lambda *_: True):
        x, weight, scale, bias = map(Tensor, arrays)
        y = ascend_ops.quantized_linear(ms.ops.cast(x, dtype), weight, scale, bias)
    ((attributes, operands),) = given
    assert attributes == {"transpose_weight": True} and operands[3:6] == (None, None, None)
    found = [(one.dtype, one.shape) for one in (*operands[:3], operands[6])]
    assert found == [
        (dtype, (2 * ROWS, INPUTS)),
        (ms.int8, (OUTPUTS, INPUTS)),
        (dtype, (OUTPUTS,)),
        (bias_dtype, (OUTPUTS,)),
    ]
    assert y.dtype == dtype and y.shape == (2, ROWS, OUTPUTS)
    found = ms.ops.cast(y, ms.float32).asnumpy()
    np.testing.assert_allclose(found, expected(*arrays), atol=0.1, rtol=0.02)


@pytest.mark.parametrize(
    "chip, dtype, shape, taken",
    [
        ("ascend910b", ms.bfloat16, (65535, 64), True),
        ("ascend910_93", ms.float16, (64, 65535), True),
        ("ascend910", ms.float16, (64, 64), False),
        ("ascend910b", ms.float32, (64, 64), False),
        ("ascend910b", ms.bfloat16, (65536, 64), False),
        ("none", ms.float16, (64, 64), False),
    ],
)
def test_it_is_taken_where_it_is_documented(monkeypatch, chip, dtype, shape, taken):
    monkeypatch.setattr(quantized, "device", lambda: "CPU" if chip == "none" else "Ascend")
    monkeypatch.setattr(quantized, "soc", lambda: chip)
    assert quantized.has_builtin(dtype, shape) is taken
    with ascend_ops.use("composed"):
        assert not quantized.has_builtin(dtype, shape)
