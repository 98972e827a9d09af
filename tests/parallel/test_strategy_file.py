"""Strategy files against MindSpore: its own protobuf classes, its transform and merge tools, and what its compiler
wrote; slices against plain numpy."""

import json
import subprocess
import sys

import numpy as np
import pytest

from pangu_ms.cli.main import main
from pangu_ms.config import load_config
from pangu_ms.core.errors import PlanError
from pangu_ms.parallel.layout import Layout
from pangu_ms.parallel.operator_file import check_operators, read_operator_strategies, write_operator_strategies
from pangu_ms.parallel.plan import Plan
from pangu_ms.parallel.stored_layout import StoredLayout, layout_item
from pangu_ms.parallel.strategy_file import read_parameter_layouts, write_parameter_layouts
from pangu_ms.parallel.strategy_wire import Content, LayoutItem, StrategyItem, read_content, write_content
from tests.parallel.common import OPERATORS, OVERRIDES, SMALL, degrees, plan_of

WORDS, UP, DOWN, GAIN = (
    "word_embedding.weight",
    "blocks.0.ffn.up.weight",
    "blocks.0.ffn.down.weight",
    "blocks.0.attention_norm.weight",
)


def piece(array, name, rank, dp=1, mp=1, pp=1, optimizer_shard=False, rows=False):
    """What a rank of a stage holds, by hand: tensor parallelism by name, then the optimizer's replicas."""
    d, m = divmod(rank, mp)
    is_cut_in_rows = (
        any(part in name for part in (".query.", ".key.", ".value.", ".up.")) or rows and "word_embedding" in name
    )
    is_cut_in_columns = name.endswith((".output.weight", ".down.weight"))
    part = np.split(array, mp, 0)[m] if is_cut_in_rows else np.split(array, mp, 1)[m] if is_cut_in_columns else array
    of_two_stages = pp > 1 and "word_embedding" in name  # alpha's head is the word table
    if not optimizer_shard or array.nbytes < 64 << 10 or of_two_stages:
        return part
    replicas, replica = (dp, d) if is_cut_in_rows or is_cut_in_columns else (dp * mp, rank)
    return np.split(part, replicas, 0)[replica]


def whole_tensors(plan):
    """Parameters and moments with values that tell every place."""
    names = {
        prefix + name: layout.shape for prefix in ("", "adam_m.", "adam_v.") for name, layout in plan.layouts.items()
    }
    return {name: np.random.default_rng(i).random(shape, np.float32) for i, (name, shape) in enumerate(names.items())}


def stage_names(plan, stage):
    return [prefix + name for prefix in ("", "adam_m.", "adam_v.") for name in plan.stage_parameters(stage)]


def write_strategy(kind, directory, suffix):
    """The strategy file of all stages, merged by MindSpore where there are several."""
    import mindspore as ms

    plan = plan_of(**kind)
    for stage in range(plan.mesh.num_stages):
        write_parameter_layouts(plan, stage, directory / f"stage{stage}{suffix}")
    if plan.mesh.num_stages == 1:
        return str(directory / f"stage0{suffix}")
    ms.merge_pipeline_strategys(str(directory), str(directory.parent / f"merged{suffix}"))
    return str(directory.parent / f"merged{suffix}")


@pytest.mark.parametrize(
    "source, target, suffix",
    [
        ({"dp": 2, "mp": 2, "rows": True, "optimizer_shard": True}, {"mp": 4}, ".ckpt"),
        ({"dp": 2, "mp": 2, "pp": 2, "optimizer_shard": True}, {"dp": 4, "optimizer_shard": True}, ".json"),
        ({"mp": 2, "rows": True}, {"dp": 2, "mp": 2, "pp": 2, "optimizer_shard": True}, ".ckpt"),
    ],
)
def test_mindspore_reshards_by_our_files_as_numpy_does(source, target, suffix, tmp_path, mindspore_cpu):
    import mindspore as ms

    plan, goal = plan_of(**source), plan_of(**target)
    whole = whole_tensors(plan)
    for rank in range(plan.mesh.world):
        stage, rest = divmod(rank, plan.mesh.stage_size)
        (tmp_path / f"in/rank_{rank}").mkdir(parents=True)
        slices = [
            {"name": name, "data": ms.Tensor(piece(whole[name], name, rest, **source))}
            for name in stage_names(plan, stage)
        ]
        ms.save_checkpoint(slices, str(tmp_path / f"in/rank_{rank}/part.ckpt"))
    files = [
        write_strategy(kind, tmp_path / which / "stages", suffix)
        for kind, which in ((source, "source"), (target, "target"))
    ]
    ms.transform_checkpoints(str(tmp_path / "in"), str(tmp_path / "out"), "part", *files)
    for rank in range(goal.mesh.world):
        stage, rest = divmod(rank, goal.mesh.stage_size)
        found = ms.load_checkpoint(str(tmp_path / f"out/rank_{rank}/part{rank}.ckpt"))
        assert set(found) == set(stage_names(goal, stage))
        for name, value in found.items():
            np.testing.assert_array_equal(value.asnumpy(), piece(whole[name], name, rest, **target))


@pytest.mark.parametrize("suffix", [".ckpt", ".json"])
def test_a_written_plan_reads_back(suffix, tmp_path, mindspore_cpu):
    for i, kind in enumerate(
        [
            {},
            {"dp": 8, "optimizer_shard": True},
            {"mp": 2, "rows": True},
            {"dp": 2, "mp": 2, "pp": 2, "optimizer_shard": True},
        ]
    ):
        plan = plan_of(**kind)
        path = tmp_path / str(i) / "stages"
        merged = write_strategy(kind, path, suffix)
        for stage in range(plan.mesh.num_stages):
            one = read_parameter_layouts(path / f"stage{stage}{suffix}", plan.mesh)
            assert (list(one.stages), one.stage_size, one.is_merged) == ([stage], plan.mesh.stage_size, False)
            slices = (
                {name: piece(value, name, 0, **kind).shape for name, value in whole_tensors(plan).items()}
                if suffix == ".ckpt"
                else None
            )
            layouts = one.layouts(stage, slices)
            assert sorted(layouts) == sorted(stage_names(plan, stage))
            for name, layout in layouts.items():
                wanted = plan.layouts[name.removeprefix("adam_m.").removeprefix("adam_v.")]
                assert layout.shape == wanted.shape and set(layout.axes) <= set(wanted.axes)
                assert [layout.slices(rank) for rank in range(one.stage_size)] == [
                    wanted.slices(rank) for rank in range(one.stage_size)
                ]
        together = read_parameter_layouts(merged)
        assert together.world == plan.mesh.world
        together.check_against(plan)
        assert not read_operator_strategies(merged)


# dev_matrix, tensor_map, step, size that MindSpore 2.9's compiler wrote with parallel_optimizer_threshold=0, and the
# layout that it made
COMPILED = [
    ((("dp", 4), ("mp", 2)), (("mp",), ()), ("dp",), [4, 2], [0, -1], 2, -1),
    ((("dp", 4), ("mp", 2)), ((), ("mp",)), ("dp",), [4, 2], [-1, 0], 2, -1),
    ((("dp", 4), ("mp", 2)), ((), ()), ("dp", "mp"), [4, 2], [-1, -1], 1, -1),
    ((("dp", 4), ("mp", 2)), ((),), ("mp",), [4, 2], [-1], 1, 2),
    ((("dp", 4), ("mp", 2)), (("mp",),), (), [4, 2], [0], 0, 0),
    ((("dp", 8), ("mp", 1)), (("mp",), ()), ("dp",), [8], [-1, -1], 1, -1),
    ((("dp", 1), ("mp", 8)), (("mp",), ()), (), [8], [0, -1], 0, 0),
    ((("dp", 2), ("ep", 2), ("mp", 2)), (("ep",), (), ()), ("dp", "mp"), [2, 2, 2], [1, -1, -1], 1, -1),
    ((("dp", 2), ("ep", 2), ("mp", 2)), (("ep",), (), ()), ("mp",), [2, 2, 2], [1, -1, -1], 1, 2),
    ((("dp", 2), ("ep", 2), ("mp", 2)), (("ep",), (), ("mp",)), ("dp",), [2, 2, 2], [1, -1, 0], 4, -1),
    ((("dp", 2), ("ep", 2), ("mp", 2)), (("ep", "mp"), ()), ("dp",), [2, 2, 2], [[1, 0], -1], 4, -1),
    ((("dp", 2), ("ep", 2), ("mp", 2)), (("ep", "mp"),), ("dp",), [2, 2, 2], [[1, 0]], 4, -1),
]


@pytest.mark.parametrize("axes, dims, optimizer_axes, matrix, tensor_map, step, size", COMPILED)
def test_numbers_are_those_of_the_compiler(
    axes, dims, optimizer_axes, matrix, tensor_map, step, size, tmp_path, mindspore_cpu
):
    import mindspore as ms

    layout = Layout((64,) * len(dims), axes, dims, optimizer_axes)
    item = layout_item(layout, with_shape=False)
    assert item == LayoutItem(matrix, tensor_map, 0, step, size)
    assert StoredLayout.of(item).whole(layout.shape).slice_shape == layout.slice_shape
    write_content(Content(parallel_layout_item={"w": item}), tmp_path / "one.ckpt")
    message = ms.build_searched_strategy(str(tmp_path / "one.ckpt"))["w"]
    maps = [dim if isinstance(dim, list) else [dim] for dim in tensor_map]
    flat = not any(len(dim) > 1 for dim in maps)
    assert [list(dim.dim) for dim in message.tensor_map] == (
        [tensor_map] if flat else maps if len(maps) > 1 else [*maps, []]
    )
    assert [list(part.dim) for part in (*message.dev_matrix, *message.param_split_shape, *message.indices_offset)] == [
        matrix,
        [],
        [],
    ]
    assert (message.field, message.opt_weight_shard_step, message.opt_weight_shard_size) == (0, step, size)
    assert read_content(tmp_path / "one.ckpt").parallel_layout_item == {"w": item}


def test_a_part_of_the_replicas_splits_an_axis():
    whole = np.arange(64 * 3).reshape(64, 3)
    layout = StoredLayout.of(LayoutItem([4, 2], [0, -1], 0, 2, 2)).of_slice(
        (16, 3)
    )  # ranks 0 and 2 share, so do 4 and 6
    for rank in range(8):
        start = 32 * (rank % 2) + 16 * (rank // 2 % 2)
        np.testing.assert_array_equal(whole[layout.slices(rank)], whole[start : start + 16])


def mindspore_slice(item, whole, rank):
    """The slice by MindSpore's own expansion of the optimizer's group."""
    from mindspore.parallel._tensor import _construct_tensor_layout_for_opt_shard, _extract_layout_item

    arguments = _extract_layout_item(
        [item.dev_matrix, item.tensor_map, None, None, item.opt_weight_shard_step, item.opt_weight_shard_size]
    )
    matrix, tensor_map, shape = _construct_tensor_layout_for_opt_shard(*arguments, whole.shape)
    at = np.unravel_index(rank % np.prod(matrix), matrix)
    part = whole.reshape(shape)
    for dim, number in enumerate(tensor_map):
        if number != -1:
            part = np.split(part, matrix[-1 - number], dim)[at[-1 - number]]
    return part.ravel()


def test_any_group_that_mindspore_accepts_has_its_slices(mindspore_cpu):
    rng, compared = np.random.default_rng(0), 0
    whole = np.arange(96 * 24).reshape(96, 24)
    for _ in range(400):
        matrix = [int(n) for n in rng.choice([1, 2, 3, 4], rng.integers(1, 4))]
        chosen = [int(n) for n in rng.permutation(len(matrix))]
        tensor_map = [chosen.pop() if chosen and rng.random() < 0.5 else -1 for _ in range(2)]
        free = [i for i, n in enumerate(matrix) if n > 1 and len(matrix) - 1 - i not in tensor_map]
        step = int(np.prod(matrix[free[-1] + 1 :])) if free else 1
        item = LayoutItem(matrix, tensor_map, 0, step, int(rng.choice([-1, 0, 1, 2, 3, 4, 6, 8])))
        try:
            layout = StoredLayout.of(item).whole(whole.shape)
        except PlanError as error:
            assert "group" in str(error) or "product" in str(error) or "divide" in str(error)
            continue
        if item.opt_weight_shard_size == 1 or -1 not in tensor_map and tensor_map != sorted(tensor_map, reverse=True):
            continue  # nothing to cut; or axes against the order of dimensions, where that function mixes them up
        compared += 1
        for rank in range(layout.num_devices):
            np.testing.assert_array_equal(
                whole[layout.slices(rank)].ravel(), mindspore_slice(item, whole, rank), str(item)
            )
    assert compared > 100


def test_every_cut_off_file_is_judged_as_protobuf_does(tmp_path, mindspore_cpu):
    from google.protobuf.message import DecodeError
    from mindspore.train.node_strategy_pb2 import ParallelStrategyMap

    item = layout_item(Layout((64, 8), (("dp", 4), ("mp", 2)), (("mp",), ()), ("dp",)), with_shape=False)
    write_content(Content(parallel_layout_item={"a": item, "b": item}), tmp_path / "f.ckpt")
    write_content(Content(parallel_strategy_item={"MatMul_a": StrategyItem([[4, 1], [2, 1]])}), tmp_path / "g.ckpt")
    text = (tmp_path / "f.ckpt").read_bytes() + (
        tmp_path / "g.ckpt"
    ).read_bytes()  # messages one behind the other are one message
    accepted = []
    for end in range(len(text) + 1):
        (tmp_path / "cut.ckpt").write_bytes(text[:end])
        message = ParallelStrategyMap()
        try:
            message.ParseFromString(text[:end])
            is_file = bool(message.parallel_layout_item)
        except DecodeError:
            is_file = False
        try:
            names = list(read_parameter_layouts(tmp_path / "cut.ckpt").stages[0])
            assert is_file and names == [layout.param_name for layout in message.parallel_layout_item]
            accepted.append(end)
        except PlanError as error:
            assert not is_file and str(error).startswith(f"{tmp_path}/cut.ckpt: ") and "\n" not in str(error)
    assert len(accepted) == 4
    for seed in range(300):
        broken = bytearray(text)
        broken[seed % len(text)] ^= 1 + seed % 255
        (tmp_path / "cut.ckpt").write_bytes(broken)
        try:
            read_parameter_layouts(tmp_path / "cut.ckpt")
        except PlanError:
            pass  # and nothing else


def test_packed_numbers_are_read(tmp_path):
    body = (
        bytes([10, 4, 10, 2, 4, 2]) + bytes([18, 13, 10, 11, 0]) + b"\xff" * 9 + b"\x01" + bytes([40, 0, 48, 0, 56, 0])
    )  # [4, 2], [0, -1] packed
    item = bytes([10, 1, ord("w"), 18, len(body)]) + body
    (tmp_path / "packed.ckpt").write_bytes(bytes([8, 1, 26, len(item)]) + item)
    assert read_content(tmp_path / "packed.ckpt").parallel_layout_item == {"w": LayoutItem([4, 2], [0, -1], 0, 0, 0)}


def test_operator_strategies_of_mindspore_come_back_to_the_byte(tmp_path):
    (tmp_path / "in.json").write_text(OPERATORS)
    operators = read_operator_strategies(tmp_path / "in.json")
    product, scale = operators.values()
    assert (product.kind, product.in_strategies, product.out_strategies) == ("MatMul", ((2, 1), (4, 1)), ((2, 4),))
    assert product.in_layouts[1].dims == (("ep", "mp"), ()) and product.out_layouts[0].dims == (("dp",), ("ep", "mp"))
    assert (scale.kind, scale.in_strategies, scale.in_layouts) == ("Mul", ((4, 2), ()), ())
    write_operator_strategies(operators.values(), tmp_path / "out.json")
    assert (tmp_path / "out.json").read_text() == OPERATORS
    with pytest.raises(PlanError, match="must end in .json"):
        write_operator_strategies([], tmp_path / "out.ckpt")
    plan = plan_of(dp=4, mp=2)
    check_operators("in.json", operators, plan, known=operators)
    with pytest.raises(
        PlanError,
        match="in.json: .*/Mul-op0: the model has no such operator.*did you mean Default/network-Net/MatMul-op0",
    ):
        check_operators("in.json", operators, plan, known={product.key})
    with pytest.raises(PlanError, match="in.json: x/Y-op0 is missing"):
        check_operators("in.json", operators, plan, known=[*operators, "x/Y-op0"])
    with pytest.raises(
        PlanError, match="in.json: Default/network-Net/M.*8 devices; a stage of the plan has 16|must divide"
    ):
        check_operators("in.json", operators, plan_of(dp=8, mp=2))


def fails(capsys, *words):
    capsys.readouterr()
    assert main(["plan", "inspect", *map(str, words)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith("pangu plan: "), error
    return error


def test_a_file_of_another_model_or_world(tmp_path, capsys):
    write_parameter_layouts(plan_of(dp=2, mp=2, pp=2), 1, path := tmp_path / "stage1.json")
    config = ["--config", "alpha/tiny", *OVERRIDES]
    assert "is of 4 devices a stage; the plan has 2" in fails(capsys, path, *config, *degrees(dp=2))
    assert "holds stage 1; the plan has stages 0 to 0" in fails(capsys, path, *config, *degrees(dp=2, mp=2))
    assert "stage 1: blocks.2.attention_norm.weight is missing" in fails(
        capsys, path, *config, *degrees(dp=2, mp=2, pp=2), "model.num_layers=4"
    )
    assert "a tensor of shape [128, 512]; must be [128, 1024]" in fails(
        capsys, path, *config, *degrees(dp=2, mp=2, pp=2), "model.ffn_hidden_size=1024"
    )
    assert "no parameter of this stage" in fails(
        capsys, path, "--config", "pi/tiny", "train.batch_size=8", *degrees(dp=2, mp=2, pp=2)
    )
    tree = json.loads(path.read_text())
    tree["parallel_layout_item"].pop("final_norm.bias")
    path.write_text(json.dumps(tree))
    assert "stage 1: final_norm.bias is missing" in fails(capsys, path, *config, *degrees(dp=2, mp=2, pp=2))
    tree["parallel_strategy_item"] = {"MatMul_words.weight": {"stage": 1, "parallel_strategy": [[2, 1], [2, 1]]}}
    path.write_text(json.dumps(tree))
    with pytest.raises(PlanError, match="MatMul_words.weight: words.weight is no parameter of the plan's model"):
        check_operators(path, read_operator_strategies(path), plan_of(dp=2, mp=2, pp=2))
    assert "an override without a configuration" in fails(capsys, path, "train.steps=3")


def test_as_many_slices_on_other_devices_are_a_difference(tmp_path):
    plan = plan_of(dp=2, mp=2)
    write_parameter_layouts(plan, 0, path := tmp_path / "f.json")
    tree = json.loads(path.read_text())
    tree["parallel_layout_item"][UP]["tensor_map"] = [1, -1]
    path.write_text(json.dumps(tree))
    file = read_parameter_layouts(path)
    assert [difference.name for difference in file.differences(plan)] == [UP]
    with pytest.raises(PlanError, match=f"f.json: {UP}: cut 2 .d0., 1; the plan has 2 .mp., 1"):
        file.check_against(plan)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"tensor_map": [2, -1]}, "tensor_map has 2; must be -1 or an axis"),
        ({"tensor_map": [0, 0]}, "an axis cuts two dimensions"),
        ({"tensor_map": [-1] * 33}, "dev_matrix has 2 numbers, tensor_map 33; must be at most 32 each"),
        ({"dev_matrix": [1 << 31]}, "at most 1,048,576 devices"),
        ({"dev_matrix": [4, 0]}, "dev_matrix.1: Input should be greater than or equal to 1"),
        ({"dev_matrix": [4]}, "on 8 devices, .* on 4;"),
        ({"field": 3}, "unequal parts"),
        ({"opt_weight_shard_size": None}, "opt_weight_shard_size: Input should be a valid integer"),
        ({"opt_weight_shard_step": 3, "opt_weight_shard_size": -1}, "have no such group"),
        ({"opt_weight_shard_step": 2, "opt_weight_shard_size": 3}, "must be a product"),
        ({"tensor_shape": [7, 128]}, "2 devices must divide 7"),
        ({"tensor_shape": [512]}, "a tensor of shape"),
    ],
)
def test_numbers_that_do_not_fit_together(change, message, tmp_path):
    write_parameter_layouts(plan_of(dp=4, mp=2), 0, path := tmp_path / "f.json")
    tree = json.loads(path.read_text())
    tree["parallel_layout_item"][UP] |= change
    path.write_text(json.dumps(tree))
    with pytest.raises(PlanError, match=f"{path}: .*{UP}.*{message}|{message}"):
        read_parameter_layouts(path)


NO_FILES = [
    b"",
    b"[]",
    b"{",
    b"{}",
    b"\xff\xfe",
    b"[" * 100_000,
    b'{"parallel_layout_item": {}}',
    b'{"parallel_newshape_layout_value_item": {}}',
]


@pytest.mark.parametrize("content", NO_FILES)
@pytest.mark.parametrize("suffix", [".ckpt", ".json"])
def test_no_strategy_file_is_one_line(content, suffix, tmp_path, capsys):
    (tmp_path / f"f{suffix}").write_bytes(content)
    with pytest.raises(PlanError, match=f"f{suffix}: .*; "):
        read_parameter_layouts(tmp_path / f"f{suffix}")
    assert "no such file" in fails(capsys, tmp_path / "none.ckpt")


def test_a_checkpoint_is_no_strategy_file(tmp_path, mindspore_cpu):
    import mindspore as ms

    ms.save_checkpoint([{"name": "w", "data": ms.Tensor(np.ones((4, 4), np.float32))}], str(tmp_path / "w.ckpt"))
    with pytest.raises(PlanError, match="no parameters and no operators in it"):
        read_parameter_layouts(tmp_path / "w.ckpt")


def test_inspect_folds_equal_layers_and_compares(tmp_path, capsys, mindspore_cpu):
    kind = {"dp": 2, "mp": 2, "optimizer_shard": True}
    layers = [f"model.{m}" for m in SMALL if "layers" not in m] + ["model.num_layers=12", *OVERRIDES[5:]]
    plan = Plan.of(load_config("alpha/tiny", layers + degrees(**kind)))
    write_parameter_layouts(plan, 0, path := tmp_path / "f.ckpt")
    config = ["--config", "alpha/tiny", *layers]

    assert main(["plan", "inspect", str(path), *config, *degrees(**kind)]) == 0
    out = capsys.readouterr().out
    line = next(line for line in out.splitlines() if line.startswith("blocks.*.ffn.up.weight"))
    assert (
        line.split()
        == "blocks.*.ffn.up.weight x11 0 adam_m adam_v 512 x 128 128 x 128 4 (mp dp), 1 dp 2 x mp 2".split()
    )
    assert "every slice lies where" in out and len(out.splitlines()) < 50 and "Plan-stage" not in out

    assert main(["plan", "inspect", str(path), "--json", *config, *degrees(dp=2, mp=2)]) == 1
    report = json.loads(capsys.readouterr().out)
    assert len(report["parameters"]) == 3 * len(plan.layouts)
    first = next(d for d in report["differences"] if d["name"] == UP)
    assert first == {"stage": 0, "name": UP, "file": "4 (mp dp), 1", "plan": "2 (mp), 1"}
    assert GAIN not in {d["name"] for d in report["differences"]}

    assert main(["plan", "inspect", str(path), "--all"]) == 0
    lines = capsys.readouterr().out.splitlines()
    names = [line.split()[0] for line in lines if line]
    assert names.index("blocks.9.ffn.up.weight") < names.index("blocks.10.ffn.up.weight") and "adam_v." + WORDS in names
    assert (
        next(line for line in lines if line.startswith(DOWN)).split()[1:] == "0 ? ? 2 (d0), 2 (d1) d0 2 x d1 2".split()
    )

    merged = write_strategy({"mp": 2, "pp": 2}, tmp_path / "merge/stages", ".json")
    assert main(["plan", "inspect", merged, "--config", "alpha/tiny", *OVERRIDES, *degrees(mp=2, pp=2)]) == 0
    out = capsys.readouterr().out
    line = next(line for line in out.splitlines() if line.startswith(WORDS))
    assert (
        line.split() == f"{WORDS} 0,1 adam_m adam_v 512 x 128 512 x 128 1, 1 mp 2".split()
        and "stage 0,1 (merged), 2 devices" in out
    )

    (tmp_path / "operators.json").write_text(OPERATORS)
    assert main(["plan", "inspect", str(tmp_path / "operators.json")]) == 0
    assert "Default/network-Net/MatMul-op0  0      (dp, 1) (ep mp, 1)  (dp, ep mp)" in capsys.readouterr().out


def test_files_are_read_and_written_without_mindspore(tmp_path):
    write_parameter_layouts(plan_of(dp=2), 0, path := tmp_path / "f.ckpt")
    code = (
        "import sys; from pangu_ms.cli.main import main; main(sys.argv[1:]);"
        " sys.exit(bool({'mindspore', 'google.protobuf'} & set(sys.modules)))"
    )
    assert (
        subprocess.run([sys.executable, "-c", code, "plan", "inspect", str(path)], stdout=subprocess.DEVNULL).returncode
        == 0
    )
