"""Kernel entries, operator definitions, inference and MindSpore's call agree with ascend_ops/table.py."""

import re

import pytest

from ascend_ops.table import ACTIVATION_CODES, FLOATS
from tests.ascend_ops.ascendc.ascendc_host import (
    ASCENDC_KERNELS,
    ROOT,
    chip_dtypes,
    snake_case,
)

SHAPES = {
    "SeriesActivation": [(2, 3, 8), (8,), (2, 8), (2, 1)],
    "SeriesActivationGrad": [(2, 3, 8), (2, 3, 8), (1,), (2, 1), (2, 8)],
    "SeriesGlu": [(6, 8), (6, 8), (8,), (1,), (1, 8), (1, 8)],
    "SeriesGluGrad": [(6, 8), (6, 8), (6, 8), (1,), (8,), (3, 1), (3, 8)],
    "RreRoute": [(4, 5), (4, 5), (3, 9)],
    "MoeDispatch": [(5, 16), (10,), (4,)],
    "MoeCombine": [(10, 16), (10,), (5, 2)],
}
SYNCHRONISED = {"SeriesActivationGrad", "SeriesGluGrad", "MoeDispatch"}


def test_every_kernel_of_the_table_has_its_sources_and_no_other():
    expected = {f"{snake_case(name)}.cpp" for name in ASCENDC_KERNELS}
    for directory in ("op_host", "op_kernel"):
        assert {p.name for p in (ROOT / directory).glob("*.cpp")} == expected
        # MindSpore's custom compiler copies top-level .cpp and .h files only
        assert all(p.is_file() and p.suffix in (".cpp", ".h") for p in (ROOT / directory).iterdir())


@pytest.mark.parametrize("name", ASCENDC_KERNELS)
def test_kernel_entry(name):
    """Parameters are inputs, outputs, workspace and tiling, under the table's names."""
    source = (ROOT / "op_kernel" / f"{snake_case(name)}.cpp").read_text()
    entries = re.findall(r'extern "C" __global__ __aicore__ void (\w+)\(([^)]*)\)', source)
    assert [e for e, _ in entries] == [snake_case(name)]
    parameters = [re.fullmatch(r"GM_ADDR (\w+)", p.strip())[1] for p in entries[0][1].split(",")]
    kernel = ASCENDC_KERNELS[name]
    assert parameters == [p.name for p in (*kernel.inputs, *kernel.outputs)] + ["workspace", "tiling"]


@pytest.mark.parametrize("name", ASCENDC_KERNELS)
def test_dtype_macro_names_an_input_of_the_float_type(name):
    """CANN defines DTYPE_<INPUT> for each input; the kernel must use one whose type is T."""
    source = (ROOT / "op_kernel" / f"{snake_case(name)}.cpp").read_text()
    t_inputs = {p.name.upper() for p in ASCENDC_KERNELS[name].inputs if p.dtype == "T"}
    used = set(re.findall(r"\bDTYPE_(\w+)", source))
    assert used <= t_inputs and bool(used) == bool(t_inputs)


def test_activation_codes():
    source = (ROOT / "op_kernel" / "activation.h").read_text()
    constants = re.search(r"constexpr uint32_t (GELU = .*?);", source)[1]
    assert {k.strip().lower(): int(v) for k, v in (c.split("=") for c in constants.split(","))} == ACTIVATION_CODES


def parse_definitions(text: str) -> dict:
    """The lines of describe_ops by operator: {kind: [(name, option, [types])]}, configs by chip."""
    ops, config = {}, None
    for line in text.splitlines():
        kind, name, *rest = line.split()
        if kind == "op":
            current = ops[name] = {"input": [], "output": [], "attr": [], "configs": {}}
        elif kind == "config":
            config = current["configs"][name] = {"input": [], "output": []}
        else:
            (config if kind.startswith("config-") else current)[kind.removeprefix("config-")].append(
                (name, rest[0], rest[1:])
            )
    return ops


@pytest.mark.parametrize("name", ASCENDC_KERNELS)
def test_operator_definition(host, name):
    """Names, order, attributes and dtype columns; no bfloat16 on ascend910."""
    op, kernel = parse_definitions(host.describe())[name], ASCENDC_KERNELS[name]
    rows = kernel.dtype_rows()
    columns = [list(c) for c in zip(*rows)]
    ports = list(zip([p.name for p in (*kernel.inputs, *kernel.outputs)], ["required"] * len(columns), columns))
    assert op["input"] == ports[: len(kernel.inputs)] and op["output"] == ports[len(kernel.inputs) :]
    assert op["attr"] == [(a.name, "required", [a.type]) for a in kernel.attributes]
    assert set(op["configs"]) == {"ascend910", "ascend910b", "ascend910_93"}
    legal = [k for k, row in enumerate(rows) if "bfloat16" not in row]
    on910 = [(n, o, [c[k] for k in legal]) for n, o, c in ports]
    assert op["configs"]["ascend910"] == {"input": on910[: len(kernel.inputs)], "output": on910[len(kernel.inputs) :]}
    assert all(not op["configs"][chip]["input"] for chip in ("ascend910b", "ascend910_93"))


def test_no_other_operator_is_registered(host):
    assert set(parse_definitions(host.describe())) == set(ASCENDC_KERNELS)


@pytest.mark.parametrize("name", ASCENDC_KERNELS)
def test_inference(host, name):
    """The C++ inference functions give what MindSpore's primitive infers from the table."""
    custom = pytest.importorskip("ascend_ops.custom")
    kernel = ASCENDC_KERNELS[name]
    for t in FLOATS:
        dtypes = [t if p.dtype == "T" else p.dtype for p in kernel.inputs]
        shapes = [tuple(s) for s in custom.output_shapes(kernel, SHAPES[name])]
        expected = list(zip(shapes, (t if p.dtype == "T" else p.dtype for p in kernel.outputs)))
        assert host.infer(name, SHAPES[name], dtypes) == expected


@pytest.mark.parametrize("chip", ["ascend910", "ascend910b"])
@pytest.mark.parametrize("name", ASCENDC_KERNELS)
def test_tiling_limits(host, name, chip):
    """Never more cores than there are; batch mode and room in the workspace exactly where cores wait for each other."""
    kernel = ASCENDC_KERNELS[name]
    for t in chip_dtypes(name, chip):
        tiling = host.tile(name, chip, 48, SHAPES[name], [t if p.dtype == "T" else p.dtype for p in kernel.inputs])
        assert 1 <= tiling.block_dim <= 48
        assert tiling.schedule_mode == (1 if name in SYNCHRONISED else 0)
        assert tiling.workspace > 0, "SyncAll asks for a workspace"
    source = (ROOT / "op_kernel" / f"{snake_case(name)}.cpp").read_text()
    assert ("KERNEL_TYPE_MIX_AIV_1_0" in source) == (name in SYNCHRONISED)


@pytest.mark.parametrize("name", ASCENDC_KERNELS)
def test_mindspore_calls_the_signature_of_the_table(name):
    """MindSpore derives the C types of aclnnNameGetWorkspaceSize from reg_info; they must be those that op_host's
    definition generates."""
    utils = pytest.importorskip("mindspore.ops.operations._custom_ops_utils")
    custom = pytest.importorskip("ascend_ops.custom")
    kernel = ASCENDC_KERNELS[name]
    types = utils.CustomCodeGenerator().get_api_types_by_reg_info(custom.registration(kernel, "Ascend"))
    expected = [t.replace("const ", "").replace(" ", "") for t, _ in kernel.aclnn_signature()]
    assert types == [*expected, "int64_t*", "aclOpExecutor**"]
