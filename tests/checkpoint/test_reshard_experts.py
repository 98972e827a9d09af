"""Checkpoints with experts from any expert_parallel to any other, and to and from whole ones with a tensor for each
expert, against slices by numpy."""

import numpy as np
import pytest

from pangu_ms.checkpoint import safetensors_file, sharded, store
from pangu_ms.checkpoint.reshard import Source, reshard
from pangu_ms.cli import main as cli
from pangu_ms.config import load_config
from pangu_ms.config.load import replace
from pangu_ms.parallel.plan import MOMENTS, Plan

EXPERTS = 12
SIZES = ["hidden_size=16", "num_heads=2", "ffn_hidden_size=64", "num_layers=3", "vocab_size=40", "seq_length=8"]
SIGMA = [f"model.{field}" for field in (*SIZES, f"num_experts={EXPERTS}", "group_of_domain=[0,0]", "dropout=0.1")]


def planned(dp, ep, mp, pp, shard):
    degrees = {"data_parallel": dp, "expert_parallel": ep, "model_parallel": mp, "pipeline_stage": pp}
    fields = [f"parallel.{name}={value}" for name, value in (degrees | {"micro_batch_num": pp}).items()]
    return load_config("sigma/tiny", [*SIGMA, *fields, f"parallel.optimizer_shard={shard}", "train.batch_size=12"])


def random_plan(generator):
    ep = int(generator.choice([n for n in range(1, EXPERTS + 1) if EXPERTS % n == 0]))
    dp, mp, pp = ep * int(generator.integers(1, 3)), int(generator.integers(1, 3)), int(generator.integers(1, 4))
    return planned(dp, ep, mp, pp, bool(generator.integers(2)))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A whole checkpoint with slots, its arrays, and the bytes of its tensor files."""
    config, generator = planned(1, 1, 1, 1, False), np.random.default_rng(7)
    model = {}
    for name, spec in config.model.parameters().items():
        shape = config.model.parameter_shapes()[name]
        numbers = generator.integers(0, EXPERTS, shape) if spec.dtype == "int32" else generator.normal(size=shape)
        model[name] = numbers.astype(spec.dtype)
    trained = config.model.trainable_parameter_shapes()
    moments = {
        prefix + name: generator.normal(size=shape).astype(np.float32)
        for prefix in MOMENTS
        for name, shape in trained.items()
    }
    groups = {"model": model, "optimizer": moments}
    path = store.save(tmp_path_factory.mktemp("whole"), 5, groups, {"step": 5}, config)
    return path, groups, tensor_bytes(path)


def tensor_bytes(path):
    return {file.name: file.read_bytes() for file in sorted(path.glob("*.safetensors"))}


def slices_on(plan, name, rank, array):
    """By numpy: experts over ep, channels over mp, and what optimizer_shard shards further left out of account."""
    sizes = dict(plan.mesh.axes)
    place = dict(zip(plan.mesh.names, np.unravel_index(rank % plan.mesh.stage_size, plan.mesh.matrix)))
    array = np.split(array, sizes.get("ep", 1))[place.get("ep", 0)]
    axis = {"up.weight": 1, "up.bias": 1, "down.weight": 2}.get(name.split("experts.")[1])
    return array if axis is None else np.split(array, sizes["mp"], axis)[place["mp"]]


def test_from_any_expert_parallel_to_any_other_and_back_to_the_same_bytes(tmp_path, whole):
    path, groups, original = whole
    generator, eps = np.random.default_rng(11), set()
    for step in range(12):
        config = random_plan(generator)
        eps.add(config.parallel.expert_parallel)
        path = reshard(Source.of(store.open_checkpoint(path)), tmp_path / str(step), config)
        plan, found = Plan.of(config), store.open_checkpoint(path)
        for group, tensors in groups.items():
            read = found.tensors(group)
            assert read.keys() == tensors.keys()
            assert all(np.array_equal(read[name], array) for name, array in tensors.items())
        if config.parallel.world > 1 and not config.parallel.optimizer_shard:
            owned = 0
            for rank in range(plan.mesh.world):
                file = path / sharded.rank_file("model", rank)
                for name, (spec, location) in safetensors_file.index(file).items() if file.exists() else ():
                    if "experts" in name:
                        expected = slices_on(plan, name, rank, groups["model"][name])
                        assert np.array_equal(location.map(spec), expected), (name, rank)
                        owned += expected.size
            assert owned == sum(array.size for name, array in groups["model"].items() if "experts" in name)
    assert len(eps) >= 4
    back = reshard(Source.of(store.open_checkpoint(path)), tmp_path / "back", planned(1, 1, 1, 1, False), whole=True)
    assert tensor_bytes(back) == original
    names = [name for file in back.glob("model*.safetensors") for name in safetensors_file.index(file)]
    assert sum("blocks.1.ffn.experts.11.up.weight" == name for name in names) == 1, "experts by their own names"
    assert set(safetensors_file.index(back / "routing.safetensors")) == {
        name for name in groups["model"] if name.endswith("routing")
    }


def test_for_several_ranks_experts_are_no_longer_in_host_memory(tmp_path, whole):
    """offload.experts is for one process, and the verb takes no override of it."""
    path, groups, original = whole
    offloaded = replace(planned(1, 1, 1, 1, False), offload={"experts": True})
    path = store.save(tmp_path / "offloaded", 5, groups, {"step": 5}, offloaded)

    def resharded(source, name, *words):
        output = tmp_path / name
        assert cli.main(["ckpt", "reshard", str(source), "--output", str(output), *words]) == 0
        return output / "checkpoints" / "step-00000005"

    ranks = resharded(path, "ranks", "parallel.data_parallel=2", "parallel.expert_parallel=2")
    assert not store.open_checkpoint(ranks).config().offload.experts
    back = resharded(ranks, "back", "--whole")
    assert tensor_bytes(back) == original
    assert store.open_checkpoint(resharded(path, "same", "--whole")).config().offload.experts


def test_a_missing_expert_or_a_missing_rank_is_named(tmp_path, whole):
    path, groups, _ = whole
    sliced = reshard(Source.of(store.open_checkpoint(path)), tmp_path / "ep", planned(4, 4, 1, 1, False))
    plan = Plan.of(planned(4, 4, 1, 1, False))
    files = {rank: sliced / sharded.rank_file("model", rank) for rank in (0, 1, 3)}
    with pytest.raises(Exception, match=r"experts.*that rank 2 should have is in no file"):
        sharded.read_ranks("here", files, plan)
    entries = safetensors_file.index(path / "model.safetensors")
    gone = "query_layer.ffn.experts.5.down.weight"
    with pytest.raises(Exception, match=f"{gone} is missing"):
        sharded.joined("here", {name: entry for name, entry in entries.items() if name != gone})
