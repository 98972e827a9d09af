"""Reads and writes MindSpore's strategy files as plain values; the JSON and protobuf forms give the same tree. No
mindspore import.

Source: node_strategy.proto (mindspore/train/node_strategy_pb2.py), and what MindSpore 2.9's compiler writes.
"""

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from pangu_ms.core import files, small_json
from pangu_ms.core.errors import PlanError
from pangu_ms.core.protobuf import Bytes, message_field, number_field, signed, values

Count = Annotated[int, Field(strict=True, ge=1)]
Whole = Annotated[int, Field(strict=True)]
NOT_A_FILE = "must be a strategy file of MindSpore, JSON if its name ends in .json, else protobuf; save it again"
_CURRENT_STAGE, _OPERATORS, _LAYOUTS = 1, 2, 3  # fields of ParallelStrategyMap
_NAME, _CONTENT = 1, 2  # of ParallelStrategyItem and ParallelLayoutItem
_STAGE, _STRATEGY = 1, 2  # of ParallelStrategys
_DIM = 1  # of every list of numbers
_MATRIX, _MAP, _SPLIT, _OFFSET, _FIELD, _STEP, _SIZE = 1, 2, 3, 4, 5, 6, 7  # of ParallelLayouts


@dataclass(frozen=True)
class LayoutItem:
    """One parameter. The names are MindSpore's."""

    dev_matrix: list[Count]
    tensor_map: list[Whole | list[Whole]]
    """For each dimension the axis of the device matrix that shards it, counted from the last axis; -1 for none, a list
    for several."""
    field: Whole
    opt_weight_shard_step: Whole
    opt_weight_shard_size: Whole
    tensor_shape: list[Count] | None = None
    """Shape of the whole tensor; only in JSON files."""
    param_split_shape: list[Whole] = Field(default_factory=list)
    indices_offset: list[Whole] = Field(default_factory=list)


@dataclass(frozen=True)
class StrategyItem:
    """One operator: for each operand the number of slices of each dimension."""

    parallel_strategy: list[list[Any]]
    stage: Annotated[int, Field(strict=True, ge=0)] = 0


@dataclass(frozen=True)
class OperandItem:
    """One operand of an operator whose layouts the model gives."""

    alias_name: list[str]
    dev_matrix: list[Count]
    tensor_map: list[Whole | list[Whole]]
    interleaved_parallel: bool = False


@dataclass(frozen=True)
class Content:
    """The content of a file. Operators are keyed by Kind_parameter in a file of parameter layouts, by scope in a file
    of operator strategies."""

    current_stage: Whole = 1
    """Not a stage, in spite of the name: MindSpore counts its saves there, and writes 1 into merged files."""
    parallel_layout_item: dict[str, LayoutItem] = Field(default_factory=dict)
    parallel_strategy_item: dict[str, StrategyItem] = Field(default_factory=dict)
    parallel_out_strategy_item: dict[str, StrategyItem] = Field(default_factory=dict)
    parallel_layout_value_item: dict[str, dict[str, OperandItem]] = Field(default_factory=dict)
    parallel_out_layout_value_item: dict[str, dict[str, OperandItem]] = Field(default_factory=dict)


_CONTENT_TYPE = TypeAdapter(Content)
_SECTIONS = {field.name for field in dataclasses.fields(Content)}


def read_content(path: str | Path) -> Content:
    """The values of a file of either format.

    Raises:
        PlanError: it is missing, truncated or not a strategy file.
    """
    path = Path(path)
    try:
        text = small_json.read_bytes(path)
    except small_json.Missing:
        raise PlanError(f"{path}: no such file; a strategy file is wanted; check the path") from None
    except ValueError as error:
        raise PlanError(f"{path}: {error}; {NOT_A_FILE}") from None
    try:
        tree = small_json.parse(text) if path.suffix == ".json" else _tree(text)
        sections = [key for key in tree if key.startswith("parallel_")] if isinstance(tree, dict) else []
        if not sections:
            raise ValueError("no parameters and no operators in it")
        if unknown := [key for key in sections if key not in _SECTIONS]:
            raise ValueError(f"section {unknown[0]} is not read here")  # for operands that are tuples of tensors
        return _CONTENT_TYPE.validate_python(tree)
    except ValidationError as error:
        first = error.errors()[0]
        raise PlanError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}; {NOT_A_FILE}") from None
    except (ValueError, RecursionError) as error:  # not JSON, not UTF-8, not protobuf
        raise PlanError(f"{path}: {len(text):,} bytes, {error}; {NOT_A_FILE}") from None


def write_content(content: Content, path: str | Path) -> None:
    """Write a file whole or not at all; JSON if the name ends in .json, else protobuf, which holds no shapes."""
    path = Path(path)
    if path.suffix == ".json":
        tree = {key: value for key, value in _CONTENT_TYPE.dump_python(content).items() if value != {}}
        for item in tree.get("parallel_layout_item", {}).values():
            # MindSpore writes these keys only if they are not empty.
            for key in ("param_split_shape", "indices_offset"):
                item.pop(key)
        files.write_text(path, json.dumps(tree, separators=(",", ":"), sort_keys=True))
    else:
        files.write_bytes(path, _protobuf(content))


def _tree(text: bytes) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for number, value in values(text):
        if number == _CURRENT_STAGE:
            tree["current_stage"] = value
        elif number in (_OPERATORS, _LAYOUTS):
            section, item = (
                ("parallel_strategy_item", _operator) if number == _OPERATORS else ("parallel_layout_item", _layout)
            )
            part = dict(values(_bytes(value)))
            tree.setdefault(section, {})[_bytes(part.get(_NAME)).decode()] = item(_bytes(part.get(_CONTENT)))
        else:
            raise ValueError(f"field {number} is none of a strategy file")
    return tree


def _operator(message: bytes) -> dict[str, Any]:
    found = list(values(message))
    return {
        "stage": dict(found).get(_STAGE),
        "parallel_strategy": [_numbers(value) for number, value in found if number == _STRATEGY],
    }


def _layout(message: bytes) -> dict[str, Any]:
    found = list(values(message))
    lists = {
        key: [_numbers(value) for number, value in found if number == key] for key in (_MATRIX, _MAP, _SPLIT, _OFFSET)
    }
    maps = lists[_MAP]
    whole = {number: signed(value) for number, value in found if isinstance(value, int)}
    return {
        "dev_matrix": lists[_MATRIX][0] if lists[_MATRIX] else None,
        # Several messages mean one for each dimension; after a single dimension there is an empty message. MindSpore
        # reads and writes them so.
        "tensor_map": maps[0] if len(maps) == 1 else [dim[0] if len(dim) == 1 else dim for dim in maps if dim],
        "param_split_shape": sum(lists[_SPLIT], []),
        "indices_offset": sum(lists[_OFFSET], []),
    } | {
        name: whole.get(key)
        for name, key in (("field", _FIELD), ("opt_weight_shard_step", _STEP), ("opt_weight_shard_size", _SIZE))
    }


def _numbers(message: int | Bytes) -> list[int]:
    """The numbers of a list, one by one or packed."""
    numbers: list[int] = []
    for number, value in values(_bytes(message)):
        if number != _DIM:
            raise ValueError(f"field {number} in a list of numbers")
        if isinstance(value, int):
            numbers.append(signed(value))
        else:  # packed: the numbers have no tags, so that each gets one
            numbers += _unpacked(_bytes(value))
    return numbers


def _unpacked(packed: bytes) -> list[int]:
    ends = [0] + [i + 1 for i, byte in enumerate(packed) if byte < 128]
    if ends[-1] != len(packed):
        raise ValueError("cut off inside a list of numbers")
    tag = bytes([_DIM << 3])
    numbers: list[int] = []
    for start, end in zip(ends, ends[1:]):
        numbers += _numbers(tag + packed[start:end])
    return numbers


def _bytes(value: int | Bytes | None) -> bytes:
    """The bytes of a field that must be a message or a text."""
    if not isinstance(value, bytes):
        raise ValueError(
            "a number where a message is wanted" if isinstance(value, int) else "a name or its content is missing"
        )
    return value


def _protobuf(content: Content) -> bytes:
    parts = [number_field(_CURRENT_STAGE, content.current_stage)]
    for name, operator in content.parallel_strategy_item.items():
        strategies = b"".join(_list_field(_STRATEGY, numbers) for numbers in operator.parallel_strategy)
        parts.append(_named(_OPERATORS, name, number_field(_STAGE, operator.stage) + strategies))
    for name, layout in content.parallel_layout_item.items():
        whole = {_FIELD: layout.field, _STEP: layout.opt_weight_shard_step, _SIZE: layout.opt_weight_shard_size}
        lists = [_list_field(_MATRIX, layout.dev_matrix)] + [
            _list_field(_MAP, numbers) for numbers in _map_messages(layout.tensor_map)
        ]
        lists += [_list_field(_SPLIT, layout.param_split_shape), _list_field(_OFFSET, layout.indices_offset)]
        parts.append(
            _named(_LAYOUTS, name, b"".join(lists) + b"".join(number_field(key, value) for key, value in whole.items()))
        )
    return b"".join(parts)


def _map_messages(tensor_map: list[int | list[int]]) -> list[list[int]]:
    plain = [dim for dim in tensor_map if isinstance(dim, int)]
    if len(plain) == len(tensor_map):
        return [plain]
    messages = [dim if isinstance(dim, list) else [dim] for dim in tensor_map]
    return [*messages, []] if len(messages) == 1 else messages  # a single message would be read as all dimensions


def _list_field(number: int, numbers: list[int]) -> bytes:
    return message_field(number, b"".join(number_field(_DIM, value) for value in numbers))


def _named(number: int, name: str, content: bytes) -> bytes:
    return message_field(number, message_field(_NAME, name.encode()) + message_field(_CONTENT, content))
