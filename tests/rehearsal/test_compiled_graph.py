"""Collectives read from MindSpore's graphs: lines as its compiler wrote them."""

from pangu_ms.rehearsal.compiled_graph import Collective, collectives, totals

LINES = """
  %77(CNode_1) = PrimFunc_MatMul(%75, %76, Bool(0), Bool(1)) primitive_attrs: {in_strategy: ((2, 2), (1, 2))}
      : (<Tensor[Float32], (256, 16)>, <Tensor[Float32], (32, 16)>, <Bool, NoShape>, <Bool, NoShape>) -> (<Tensor[Float32], (256, 32)>)
      # Fullname with scope: (Default/model/MatMul-op0)
  %78(CNode_2) = AllReduce(%77) {instance name: forward_op_1} primitive_attrs: {group: "2-500", fusion: I64(0), op: "sum", rank_list: (0, 1), group_rank_ids: (0, 1)}
      : (<Tensor[Float32], (256, 32)>) -> (<Tensor[Float32], (256, 32)>)
      # Fullname with scope: (Default/model/AllReduce-op0)
  %79(CNode_3) = AllReduce(%7) {instance name: grad_mirror} primitive_attrs: {group: "hccl_world_group", op: "sum", mirror_user_id: "norm.weight"} cnode_attrs: {}
      : (<Tensor[Float16], (32)>) -> (<Tensor[Float16], (32)>)
      # Fullname with scope: (Default/model/AllReduce-op1)
  %80(CNode_4) = AllGather(%8) {instance name: x} primitive_attrs: {group: "4-77", rank_size: I64(4), group_ranks: "0-1-2-3"} cnode_attrs: {}
      : (<Tensor[Float16], (8, 32)>) -> (<Tensor[Float16], (32, 32)>)
      # Fullname with scope: (Default/model/AllGather-op0)
  %81(CNode_5) = AllReduce(%9) {instance name: x} primitive_attrs: {group: "2-500", op: "sum", rank_list: (0, 1)} cnode_attrs: {}
      : (<Tensor[Float32], ()>) -> (<Tensor[Float32], ()>)
      # Fullname with scope: (Default/model/AllReduce-op2)
  %82(CNode_6) = Receive(%9) {instance name: x} primitive_attrs: {sr_tag: I64(0), src_rank: I64(0), group: "hccl_world_group"} cnode_attrs: {}
      : (<Tensor[Float32], (2, 8)>) -> (<Tensor[Float32], (2, 8)>)
      # Fullname with scope: (Default/model/Receive-op0)
  %83(CNode_7) = AllReduce(%9) {instance name: x} primitive_attrs: {group: "1-500", op: "sum", rank_list: (0)} cnode_attrs: {}
      : (<Tensor[Float32], (8)>) -> (<Tensor[Float32], (8)>)
      # Fullname with scope: (Default/model/AllReduce-op3)
""".splitlines()


def test_kind_group_bytes_and_parameter_of_each() -> None:
    assert list(collectives(LINES, world=16)) == [
        Collective("AllReduce", "2-500", 2, "sum", 256 * 32 * 4, "", "Default/model/AllReduce-op0"),
        Collective("AllReduce", "hccl_world_group", 16, "sum", 32 * 2, "norm.weight", "Default/model/AllReduce-op1"),
        Collective("AllGather", "4-77", 4, "", 32 * 32 * 2, "", "Default/model/AllGather-op0"),
        Collective("AllReduce", "2-500", 2, "sum", 4, "", "Default/model/AllReduce-op2"),
        Collective("Receive", "hccl_world_group", 2, "", 64, "", "Default/model/Receive-op0"),
    ]


def test_totals_by_kind_and_size_of_group() -> None:
    assert totals(collectives(LINES, 16)) == [
        ("AllReduce", 2, 2, 32772),
        ("AllGather", 4, 1, 2048),
        ("AllReduce", 16, 1, 64),
        ("Receive", 2, 1, 64),
    ]
