"""A virtual cluster: makes MindSpore's parallel compiler run on the CPU wheel for one rank of N Ascend devices that do
not exist. MindSpore does not support this.

The compiler's parallel passes refuse a CPU, and its code generation needs a device. So compilation stops after the
front end, the device name in MindSpore's live context is overwritten with Ascend, and the Python side of communication
is replaced. This changes the process irreversibly: use it in a child process.

It rests on the wheel's internals: the layout of a C++ string (libstdc++'s old ABI) and two mangled symbols. Everything
that can be checked is checked before memory is overwritten. Shapes, layouts and collectives of such a compilation are
right. But where the compiler asks for the size of a group, a stub communicator answers 2048 ranks, so constants in such
graphs need care (see execute.py). Nothing else may depend on this module.
"""

import ctypes
import os
import struct
from pathlib import Path

from pangu_ms.core.errors import PlanError

KNOWN_VERSIONS = ("2.7.2", "2.9.0")
"""MindSpore versions with which this was tested."""
STUB_GROUP_SIZE = 2048
"""The stub communicator's answer when the compiler asks for the size of a group."""
_INSTANCE = "_ZN9mindspore9MsContext11GetInstanceEv"
_GET_STRING = "_ZNK9mindspore9MsContext9get_paramISsEERKT_NS_10MsCtxParamE"
# Length, capacity and reference count: the header before the characters of an old-ABI string.
_HEADER = struct.Struct("<QQi")
# The 20 bytes of the header are followed by 4 bytes of padding.
_HEADER_BYTES = 24
_kept_alive: list[ctypes.Array] = []


def why_not() -> str:
    """Why no virtual cluster can be made in this process; empty if it can. This changes nothing."""
    import mindspore

    if mindspore.__version__ not in KNOWN_VERSIONS:
        return (
            f"MindSpore {mindspore.__version__}: it was tried on {', '.join(KNOWN_VERSIONS)} alone, and rests on their"
            " internals"
        )
    try:
        slot = _device_target_slot()
    except (OSError, AttributeError) as error:
        return f"this build of MindSpore {mindspore.__version__} has another core library ({error})"
    if not _is_old_abi_string(slot, mindspore.get_context("device_target").encode()):
        return f"this build of MindSpore {mindspore.__version__} keeps its strings in another form"
    return ""


def enter(world: int, rank: int) -> None:
    """Make this process rank `rank` of `world` virtual Ascend devices, until it ends. Parallel settings must be made
    afterwards.

    Raises:
        PlanError: it is not possible with this MindSpore.
    """
    if reason := why_not():
        raise PlanError(f"rehearsal: not available: {reason}; use `pangu plan estimate`, which needs no compiler")
    from mindspore import context
    from mindspore._c_expression import AutoParallelContext
    from mindspore.communication import _comm_helper

    context.set_context(precompile_only=True)
    _comm_helper.hccl, _comm_helper._HCCL_TEST_AVAILABLE = _Communicator(world, rank), True
    common = _comm_helper.GlobalComm
    # MindSpore's Python layer then takes communication as initialised, and asks our _Communicator for ranks.
    common.INITED, common.BACKEND, common.WORLD_COMM_GROUP = True, _comm_helper.Backend("hccl"), "hccl_world_group"
    os.environ |= {"RANK_SIZE": str(world), "RANK_ID": str(rank)}
    AutoParallelContext.get_instance().set_hccl_test_avaible(True)  # "avaible" is MindSpore's spelling
    ctypes.c_void_p.from_address(_device_target_slot()).value = _old_abi_string(b"Ascend")
    assert context.get_context("device_target") == "Ascend"


class _Communicator:
    """Replaces MindSpore's HCCL adapter. The compiler names its groups "<size>-<hash>"."""

    def __init__(self, world: int, rank: int):
        self.world, self.rank = world, rank

    def get_rank_size(self, group: str | None = None) -> int:
        if group is None or group == "hccl_world_group":
            return self.world
        return int(group.split("-")[0])

    def get_rank_id(self, group: str | None = None) -> int:
        return self.rank % self.get_rank_size(group)

    def get_local_rank_id(self, group: str | None = None) -> int:
        return self.rank % 8  # a server has 8 devices

    def get_local_rank_size(self, group: str | None = None) -> int:
        return min(8, self.world)

    def get_world_rank_from_group_rank(self, group: str, rank: int) -> int:
        return rank

    def get_group_rank_from_world_rank(self, rank: int, group: str) -> int:
        return rank

    def create_group(self, group: str, size: int, ranks: list[int]) -> None:
        """Does nothing, since there is no group to create."""

    def destroy_group(self, group: str) -> None:
        """Does nothing, since there is no group to destroy."""


def _device_target_slot() -> int:
    """Address of the context's string that names the device."""
    import mindspore
    from mindspore._c_expression import ms_ctx_param

    core = ctypes.CDLL(str(Path(mindspore.__file__).parent / "lib" / "libmindspore_core.so"))
    instance, get_string = getattr(core, _INSTANCE), getattr(core, _GET_STRING)
    shared_pointer = (ctypes.c_void_p * 2)()  # the C++ ABI returns it through a pointer to memory of the caller
    instance.argtypes, instance.restype = [ctypes.c_void_p], ctypes.c_void_p
    instance(ctypes.addressof(shared_pointer))
    get_string.argtypes, get_string.restype = [ctypes.c_void_p, ctypes.c_int], ctypes.c_void_p
    return get_string(shared_pointer[0], int(ms_ctx_param.device_target))


def _is_old_abi_string(slot: int, text: bytes) -> bool:
    """Whether the pointer at `slot` leads to `text` with an old-ABI header before it. If the string is a new-ABI one,
    no memory outside of it is read."""
    characters = ctypes.c_void_p.from_address(slot).value
    if characters is None:
        return False
    if ctypes.c_uint64.from_address(slot + 8).value == len(text) and characters == slot + 16:
        return False  # a new-ABI string, which has pointer, length and short text in place
    length, _, _ = _HEADER.unpack(ctypes.string_at(characters - _HEADER_BYTES, _HEADER.size))
    return length == len(text) and ctypes.string_at(characters, len(text)) == text


def _old_abi_string(text: bytes) -> int:
    """Allocate a string that is never freed; returns the address of its characters."""
    memory = ctypes.create_string_buffer(_HEADER_BYTES + len(text) + 1)
    # With so many references libstdc++ never frees the string, whose memory belongs to Python.
    _HEADER.pack_into(memory, 0, len(text), len(text), 100_000)
    ctypes.memmove(ctypes.addressof(memory) + _HEADER_BYTES, text, len(text))
    _kept_alive.append(memory)
    return ctypes.addressof(memory) + _HEADER_BYTES
