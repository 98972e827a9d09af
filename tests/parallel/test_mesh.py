"""Ranks, groups and placement against numpy's reshape and brute force."""

import numpy as np
import pytest

from pangu_ms.config.parallel import ParallelConfig
from pangu_ms.core.errors import PlanError
from pangu_ms.parallel.mesh import Coordinate, Mesh

DEGREES = [
    (1, 1, 1, 1),
    (4, 1, 2, 1),
    (2, 4, 1, 1),
    (2, 8, 4, 1),
    (4, 2, 2, 2),
    (3, 16, 2, 1),
    (8, 1, 1, 4),
    (16, 8, 16, 1),
]


def mesh(dp, mp, pp, ep):
    return Mesh.of(
        ParallelConfig(data_parallel=dp, model_parallel=mp, pipeline_stage=pp, micro_batch_num=pp, expert_parallel=ep)
    )


@pytest.mark.parametrize("degrees", DEGREES)
def test_ranks_are_a_row_major_array_of_stages_and_axes(degrees):
    dp, mp, pp, ep = degrees
    at = mesh(*degrees)
    shape = (pp, dp, mp) if ep == 1 else (pp, dp // ep, ep, mp)
    ranks = np.arange(dp * mp * pp).reshape(shape)
    assert at.world == ranks.size and at.stage_size == ranks[0].size and (at.num_stages, *at.matrix) == shape
    for index in np.ndindex(shape):
        place = Coordinate(index[0], index[1:])
        assert at.rank(place) == ranks[index] and at.coordinate(int(ranks[index])) == place
    for stage in range(pp):
        assert list(at.stage_ranks(stage)) == ranks[stage].ravel().tolist()


@pytest.mark.parametrize("degrees", DEGREES[:-1])
def test_groups_are_lines_and_planes_of_that_array(degrees):
    dp, mp, pp, ep = degrees
    at = mesh(*degrees)
    ranks = np.arange(at.world).reshape(pp, *at.matrix)
    for names in [*((name,) for name in at.names), at.names]:
        for index in np.ndindex(ranks.shape):
            where = (index[0], *(slice(None) if name in names else i for name, i in zip(at.names, index[1:])))
            assert at.group(int(ranks[index]), *names) == ranks[where].ravel().tolist()


@pytest.mark.parametrize("degrees", DEGREES)
def test_matrices_stay_in_a_server_and_stages_are_neighbours(degrees):
    at = mesh(*degrees)
    placed = np.array([(device.server, device.device) for device in at.placement()])
    number = placed[:, 0] * 8 + placed[:, 1]
    assert sorted(number) == list(range(at.world)) and placed[:, 1].max() < 8  # every device once
    inner = at.matrix[-1]
    by_stage = number.reshape(at.num_stages, -1, inner)
    assert (by_stage - by_stage[..., :1] == np.arange(inner)).all()  # a model_parallel group fills consecutive devices
    assert len(set(placed[:inner, 0])) == -(-inner // 8)
    assert (np.diff(by_stage[..., 0], axis=0) == inner).all()  # the next stage of a replica follows at once
    replicas = np.sort(by_stage.transpose(1, 0, 2).reshape(by_stage.shape[1], -1), axis=1)
    assert (replicas == np.arange(at.world).reshape(replicas.shape)).all()  # replicas outermost
    for ranks in ([0], at.group(0, at.names[-1]), at.group(0, at.names[0]), list(at.stage_ranks(0))):
        assert at.servers(ranks) == len({int(placed[r, 0]) for r in ranks})


def test_the_published_placement_of_2048_devices():
    at = mesh(16, 8, 16, 1)
    assert at.servers(at.group(0, "mp")) == 1 and at.servers(at.group(0, "dp")) == 16
    assert [at.placement()[rank].server for rank in (0, 128, 1920, 8)] == [
        0,
        1,
        15,
        16,
    ]  # stages 0, 1, 15 of replica 0, then replica 1


def test_a_rank_that_is_not_there():
    with pytest.raises(PlanError, match="rank 8: the plan has 8 devices; ranks are 0 to 7"):
        mesh(4, 1, 2, 1).coordinate(8)
