"""Which backend is taken, by force or by rule, and that the table describes what is there."""

import contextlib
import dataclasses
import inspect
import json

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn

import ascend_ops
from ascend_ops import activations, backend, custom, library
from ascend_ops.checks import RULES
from ascend_ops.table import CACHED, FLOATS, KERNELS, OPERATORS, PACKED
from tests.ascend_ops.common import forward

FORCE = ("use", "environment")


@pytest.fixture(autouse=True)
def unforced(monkeypatch, mindspore_cpu):
    """Whoever runs the tests forces no backend."""
    monkeypatch.delenv("ASCEND_OPS_BACKEND", raising=False)


@pytest.fixture
def cpu_library():
    """The path of the CPU library, which the test cannot do without."""
    if why_not := backend.unavailable("silu", "cpu", "float32"):
        pytest.skip(why_not)
    return library.build()


@pytest.fixture(params=FORCE)
def force(request, monkeypatch):
    """A function that forces a backend until the end of the test."""
    with contextlib.ExitStack() as stack:
        if request.param == "use":
            yield lambda name: stack.enter_context(ascend_ops.use(name))
        else:
            yield lambda name: monkeypatch.setenv("ASCEND_OPS_BACKEND", name)


def backends():
    return {choice.backend for choice in ascend_ops.explain().values()}


def assert_one_line(caught, *parts):
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


def test_force_takes_the_backend_for_every_operator(force):
    force("composed")
    assert set(ascend_ops.explain().values()) == {ascend_ops.Choice("composed", "asked for")}


def test_a_computer_takes_its_own_kernels_by_itself(cpu_library):
    for name, choice in ascend_ops.explain().items():
        if not OPERATORS[name].onednn:
            assert choice == ascend_ops.Choice("cpu", "builtin: the device is CPU; ascendc: the device is CPU")


def test_use_wins_over_the_variable(monkeypatch):
    monkeypatch.setenv("ASCEND_OPS_BACKEND", "ascendc")
    with ascend_ops.use("composed"):
        assert backends() == {"composed"}
    with pytest.raises(ascend_ops.OperatorError, match="backend ascendc"):
        backends()


def test_a_portable_graph_has_no_kernel_of_ours(monkeypatch, tmp_path):
    """They stand in a graph by the path of a library."""
    with ascend_ops.use(ascend_ops.PORTABLE):
        assert backends() == {"composed"}
    (tmp_path / "op_api").mkdir()
    monkeypatch.setenv("ASCEND_CUSTOM_OPP_PATH", str(tmp_path))
    for name, answer in (("device", "Ascend"), ("soc", "ascend910b")):
        monkeypatch.setattr(backend, name, lambda answer=answer: answer)
    assert backends() == {"builtin", "ascendc", "composed"} and backend.has_graphs_of_one_process()
    monkeypatch.setenv("ASCEND_OPS_BACKEND", "ascendc")
    with ascend_ops.use(ascend_ops.PORTABLE):
        assert backends() == {"builtin", "composed"}


def test_an_empty_variable_forces_nothing(monkeypatch):
    unforced = ascend_ops.explain()
    monkeypatch.setenv("ASCEND_OPS_BACKEND", "")
    assert ascend_ops.explain() == unforced


def test_an_unknown_backend_is_refused_in_one_line(monkeypatch):
    known = "no such backend; use one of builtin, ascendc, cpu, composed"
    with pytest.raises(ascend_ops.OperatorError) as caught, ascend_ops.use("cuda"):
        pytest.fail("entered")
    assert_one_line(caught, f"ascend_ops.use: 'cuda': {known}")
    assert backend.forced() is None
    monkeypatch.setenv("ASCEND_OPS_BACKEND", "CPU")
    with pytest.raises(ascend_ops.OperatorError) as caught:
        ascend_ops.choose("silu")
    assert_one_line(caught, f"ASCEND_OPS_BACKEND: 'CPU': {known}")


@pytest.mark.parametrize("name", ["ascendc", "builtin"])
def test_a_backend_that_is_not_here_is_an_error_not_a_fallback(force, name):
    force(name)
    reason = f"backend {name}, which was asked for, cannot be taken: the device is CPU"
    for operator in OPERATORS:
        with pytest.raises(ascend_ops.OperatorError) as caught:
            ascend_ops.choose(operator)
        assert_one_line(caught, f"ascend_ops.{operator}: {reason}")
    with pytest.raises(ascend_ops.OperatorError) as caught:
        forward(ascend_ops.silu, [Tensor([1.0])])
    assert_one_line(caught, f"ascend_ops.silu: {reason}")


def test_forcing_cpu_kernels_that_cannot_be_built_tells_why(force, monkeypatch):
    monkeypatch.setattr(backend, "_cpu_unavailable", lambda: "no compiler")
    assert backends() == {"composed"}
    force("cpu")
    with pytest.raises(
        ascend_ops.OperatorError, match="backend cpu, which was asked for, cannot be taken: no compiler"
    ):
        ascend_ops.choose("silu")


def test_only_matrix_products_need_onednn(cpu_library, monkeypatch):
    monkeypatch.setattr(backend, "_onednn_unavailable", lambda: "no oneDNN")
    found = ascend_ops.explain()
    assert {name for name, choice in found.items() if choice.backend == "composed"} == {"linear", "grouped_matmul"}
    assert found["linear"].reason.endswith("cpu: no oneDNN")


def test_nested_use_restores_also_after_an_exception():
    with ascend_ops.use("composed"):
        with ascend_ops.use("cpu"):
            assert backend.forced() == "cpu"
        assert backend.forced() == "composed"
        with pytest.raises(ZeroDivisionError), ascend_ops.use("ascendc"):
            raise ZeroDivisionError
        assert backend.forced() == "composed"
        with pytest.raises(ascend_ops.OperatorError), ascend_ops.use("cuda"):
            pass
        assert backend.forced() == "composed"
    assert backend.forced() is None


@pytest.mark.parametrize("dtype", FLOATS)
def test_explain_covers_every_operator_and_goes_into_json(dtype):
    found = ascend_ops.explain(dtype)
    assert list(found) == list(OPERATORS)
    again = json.loads(json.dumps(found, default=dataclasses.asdict))
    for name, choice in again.items():
        assert choice.keys() == {"backend", "reason"}
        assert choice["backend"] in ascend_ops.BACKENDS and choice["reason"]
        assert ascend_ops.choose(name, dtype) == ascend_ops.Choice(**choice)


def test_explain_refuses_a_dtype_that_no_operator_takes():
    with pytest.raises(ascend_ops.OperatorError) as caught:
        ascend_ops.explain("int8")
    assert_one_line(caught, "ascend_ops.explain: 'int8'", "float32, float16, bfloat16")


class Block(nn.Cell):
    def construct(self, x, weight):
        return ascend_ops.silu(ascend_ops.add(x, ascend_ops.rms_norm(x, weight)))


def exported(folder):
    """MindIR of a new cell: one that has been exported keeps its graph."""
    cell = Block()
    ms.export(
        cell,
        Tensor(np.ones((2, 4), np.float32)),
        Tensor(np.ones(4, np.float32)),
        file_name=str(folder / "block"),
        file_format="MINDIR",
    )
    return (folder / "block.mindir").read_bytes()


def test_a_composed_graph_travels_and_a_default_one_names_the_library(force, cpu_library, tmp_path):
    at_home = exported(tmp_path)
    assert b"Custom" in at_home and str(cpu_library).encode() in at_home
    force("composed")
    composed = exported(tmp_path)
    assert b"Custom" not in composed
    assert b"libascend_ops" not in composed and str(cpu_library.parent).encode() not in composed


def test_a_graph_keeps_the_backend_that_it_was_compiled_with(cpu_library, tmp_path):
    with ascend_ops.use("composed"):
        exported(tmp_path)
    assert b"Custom" in exported(tmp_path)  # the block has ended
    cell = Block()
    x, weight = Tensor(np.ones((2, 4), np.float32)), Tensor(np.ones(4, np.float32))
    at_home = cell(x, weight).asnumpy()
    with ascend_ops.use("ascendc"):  # would be refused if the choice were made again
        np.testing.assert_array_equal(cell(x, weight).asnumpy(), at_home)


def test_eager_calls_follow_use_at_each_call(cpu_library, monkeypatch):
    calls = []
    monkeypatch.setattr(
        activations, "kernel", lambda name, *layouts: calls.append(name) or custom.kernel(name, *layouts)
    )
    ms.set_context(mode=ms.PYNATIVE_MODE)
    try:
        x = Tensor([1.0, -2.0])
        ours = ascend_ops.silu(x)
        assert calls == ["SeriesActivation"]
        with ascend_ops.use("composed"):
            composed = ascend_ops.silu(x)
        assert calls == ["SeriesActivation"]
        ascend_ops.silu(x)
        assert calls == ["SeriesActivation"] * 2
    finally:
        ms.set_context(mode=ms.GRAPH_MODE)
    np.testing.assert_allclose(ours.asnumpy(), composed.asnumpy(), rtol=1e-5)


def test_identity_changes_with_what_a_compiled_graph_depends_on(force, monkeypatch):
    seen = {backend.identity()}
    assert backend.identity() in seen
    force("composed")
    seen.add(backend.identity())
    monkeypatch.setattr(library, "COMPILE_FLAGS", ())
    seen.add(backend.identity())
    monkeypatch.setattr(backend, "_cpu_unavailable", lambda: "no compiler")
    seen.add(backend.identity())
    on_chip(monkeypatch, "ascend910")
    seen.add(backend.identity())
    on_chip(monkeypatch, "ascend910b")
    seen.add(backend.identity())
    assert len(seen) == 6


# The table


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("target", ["CPU", "Ascend"])
def test_registration_has_the_rows_of_the_table(name, target):
    kernel = KERNELS[name]
    found = custom.registration(kernel, target)
    attributes = ["attributes"] if kernel.attributes and target == "CPU" else []
    assert [port["name"] for port in found["inputs"]] == [port.name for port in kernel.inputs] + attributes
    assert [port["name"] for port in found["outputs"]] == [port.name for port in kernel.outputs]
    wanted_attributes = [] if target == "CPU" else [(a.name, a.type) for a in kernel.attributes]
    assert [(a["name"], a["type"]) for a in found["attr"]] == wanted_attributes
    assert (found["op_name"], found["target"]) == (name, target)

    rows = [[dtype for dtype, _ in row] for row in found["dtype_format"]]
    ports = [*kernel.inputs, *(None for _ in attributes), *kernel.outputs]
    used = {port.dtype for port in ports if port}
    wanted = []
    for t in FLOATS if "T" in used else ("",):
        for p in PACKED if "P" in used else ("",):
            for c in CACHED[t] if "C" in used else ("",):
                meant = {"T": t, "P": p, "C": c}
                wanted.append([meant.get(port.dtype, port.dtype) if port else "float32" for port in ports])
    assert rows == wanted


def test_every_operator_has_kernels_and_a_rule():
    for name in ascend_ops.__all__:
        getattr(ascend_ops, name)  # modules are imported, and their rules registered, at the first use of a name
    assert RULES.keys() == OPERATORS.keys()
    for name, operator in OPERATORS.items():
        assert operator.kernels and set(operator.kernels) <= KERNELS.keys(), name
        assert len(inspect.signature(RULES[name]).parameters) == len(operator.inputs), name
        assert operator.summary and set(operator.builtin_socs) <= {"ascend910", "ascend910b", "ascend910_93"}, name
    assert {kernel for operator in OPERATORS.values() for kernel in operator.kernels} == KERNELS.keys()


def test_the_public_functions_are_the_operators():
    about_operators = {
        "choose",
        "explain",
        "use",
        "dropout_seed",
        "rotary_table",
        "lay_out",
        "is_laid_out",
        "on_own_slices",
        "fork",
        "host_adamw",
        "pack",
        "packed_tensors",
        "row_scales",
        "quantized_rows",
        "quantized_linear",  # MindSpore's own operator
        "quantized_embedding",
        "unpack",
        "logits",
        "add_to_stream",
        "as_rows",
        "from_rows",
    }
    functions = {name for name in ascend_ops.__all__ if inspect.isfunction(getattr(ascend_ops, name))}
    assert functions - about_operators == OPERATORS.keys()
    for name, operator in OPERATORS.items():  # errors call inputs as the caller does
        parameters = list(inspect.signature(getattr(ascend_ops, name)).parameters)
        assert [p for p in parameters if p in operator.inputs] == sorted(operator.inputs, key=parameters.index), name


# Ascend, as far as it can be tested without one: from what chip and installation say to the choice

BUILTIN = {
    "ascend910": {"gelu", "fast_gelu", "silu", "layer_norm", "adamw", "add", "linear"},
    "ascend910b": {
        *(
            "gelu",
            "gelu_erf",
            "fast_gelu",
            "silu",
            "layer_norm",
            "rms_norm",
            "causal_attention",
            "adamw",
            "grouped_matmul",
            "add",
            "linear",
        ),
        "rotary_embedding",
    },
}
OURS = {
    "ascend910": {"gelu_erf", "series_activation", "swiglu", "rre_route", "moe_dispatch"},
    "ascend910b": {"series_activation", "swiglu", "rre_route", "moe_dispatch"},
}


def on_chip(monkeypatch, soc):
    monkeypatch.setattr(backend, "device", lambda: "Ascend")
    monkeypatch.setattr(backend, "soc", lambda: soc)


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """ASCEND_CUSTOM_OPP_PATH of two packages, the second with our kernels' interfaces."""
    (tmp_path / "ours" / "op_api" / "lib").mkdir(parents=True)
    (tmp_path / "theirs").mkdir()
    monkeypatch.setenv("ASCEND_CUSTOM_OPP_PATH", f"{tmp_path / 'theirs'}:{tmp_path / 'ours'}")


def operators_on(name, dtype="float32"):
    return {operator for operator, choice in ascend_ops.explain(dtype).items() if choice.backend == name}


@pytest.mark.parametrize("soc", BUILTIN)
def test_on_ascend_builtin_where_documented_else_composed(monkeypatch, tmp_path, soc):
    on_chip(monkeypatch, soc)
    for nothing in ("", str(tmp_path), "/nonexistent"):
        monkeypatch.setenv("ASCEND_CUSTOM_OPP_PATH", nothing)
        assert operators_on("builtin") == BUILTIN[soc]
        assert operators_on("composed") == OPERATORS.keys() - BUILTIN[soc]
    reason = ascend_ops.choose("series_activation").reason
    assert "ASCEND_CUSTOM_OPP_PATH" in reason and reason.endswith("cpu: the device is Ascend")


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("soc", BUILTIN)
def test_on_ascend_installed_kernels_are_taken_but_not_for_bfloat16_on_the_first_chip(
    monkeypatch, installed, soc, dtype
):
    on_chip(monkeypatch, soc)
    ours = set() if (soc, dtype) == ("ascend910", "bfloat16") else OURS[soc]
    assert operators_on("ascendc", dtype) == ours
    builtin = set() if (soc, dtype) == ("ascend910", "bfloat16") else BUILTIN[soc]
    assert operators_on("builtin", dtype) == builtin
    assert operators_on("composed", dtype) == OPERATORS.keys() - builtin - ours


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("soc", BUILTIN)
def test_explain_for_another_chip_is_what_a_process_with_that_chip_says(monkeypatch, installed, soc, dtype):
    here, found = ascend_ops.explain(dtype), ascend_ops.explain(dtype, soc)
    assert backend.soc() == "none" and ascend_ops.explain(dtype) == here  # nothing of it stays
    on_chip(monkeypatch, soc)
    assert found == ascend_ops.explain(dtype) != here


def test_explain_refuses_a_chip_that_it_does_not_know():
    with pytest.raises(ascend_ops.OperatorError, match="'ascend920': no such chip; use one of ascend910, ascend910b"):
        ascend_ops.explain(chip="ascend920")
    assert backend.soc() == "none"


def test_reasons_name_the_chip_and_the_missing_kernel(monkeypatch, installed):
    on_chip(monkeypatch, "ascend910")
    found = ascend_ops.choose("rms_norm").reason.split("; ")
    assert found == [
        "builtin: RmsNorm is not documented for ascend910",
        "ascendc: no Ascend C kernel RmsNorm",
        "cpu: the device is Ascend",
    ]
    assert "ascendc: ascend910 has no bfloat16" in ascend_ops.choose("swiglu", "bfloat16").reason
    assert ascend_ops.choose("gelu") == ascend_ops.Choice("builtin", "first choice")


def test_on_ascend_a_forced_backend_must_be_available_too(monkeypatch, installed, force):
    on_chip(monkeypatch, "ascend910")
    force("ascendc")
    assert ascend_ops.choose("gelu").backend == "ascendc"  # before the built-in
    with pytest.raises(ascend_ops.OperatorError, match="ascend910 has no bfloat16"):
        ascend_ops.choose("gelu", "bfloat16")
    with pytest.raises(ascend_ops.OperatorError, match="no Ascend C kernel LayerNorm"):
        ascend_ops.choose("layer_norm")


def test_a_chip_that_nothing_is_documented_for_is_composed(monkeypatch, installed):
    on_chip(monkeypatch, "ascend310p")
    assert operators_on("builtin") == set()


def test_without_ascend_there_is_no_chip():
    assert backend.soc() == "none"


class Branches(nn.Cell):
    """An operator in a branch: MindSpore compiles branches in threads of its own."""

    def construct(self, x, first):
        if first:
            return ascend_ops.silu(x) * 2.0
        return ascend_ops.silu(x)


def test_use_reaches_the_branches_of_a_graph(mindspore_cpu, tmp_path):
    x = Tensor(np.ones((3, 5), np.float32))
    with ascend_ops.use("composed"):
        ms.export(Branches(), x, Tensor(True), file_name=str(tmp_path / "branches"), file_format="MINDIR")
    assert b"Custom" not in (tmp_path / "branches.mindir").read_bytes()
