"""Reads the values in a pickle without running anything that it names. No mindspore import.

A pickle is a program: Python's own reader imports and calls whatever the file names. This reader interprets the opcodes
itself. It imports nothing and calls only the functions that its caller passes. Every other class or function stays a
name, and an object that one of them would make is an `Opaque`.

Source: pickletools.py of CPython, which documents each opcode.
"""

import io
import pickletools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

LIMIT = 1 << 24
"""Largest pickle in bytes. Tensors are stored outside of it; what is left of a checkpoint is some hundred kilobytes."""
_NEWEST_PROTOCOL = 5
_SCALARS = (str, bytes, int, float, type(None))
_EXPECTED = (
    "_codecs.encode", "_io.BytesIO", "argparse.Namespace", "builtins.bytearray", "builtins.bytes", "builtins.complex",
    "builtins.frozenset", "builtins.object", "builtins.range", "builtins.set", "builtins.slice",
    "copyreg._reconstructor", "signal.Signals", "types.SimpleNamespace",
)  # fmt: skip
_EXPECTED_PACKAGES = (
    "apex", "codegeex", "collections", "datetime", "deepspeed", "enum", "fp16", "megatron", "mindspeed", "numpy",
    "pathlib", "torch", "torch_npu", "transformer_engine",
)  # fmt: skip
"""Packages whose objects stand in checkpoints of Megatron and its relatives beside the weights. That other names are
refused is no part of the protection, which is that nothing is called; it tells the user what kind of file this is."""
_RENAMED = {"__builtin__": "builtins", "copy_reg": "copyreg"}
"""Modules that have another name since Python 3; protocol 2 writes the old one."""


class Refused(ValueError):
    """The pickle is not one of weights; the text says why, in a few words."""


@dataclass(frozen=True)
class Name:
    """A class or function that a pickle names. It is not imported."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(eq=False)
class Opaque:
    """An object that was not made, because nothing is called."""

    maker: Name
    """The class or function that would make it."""
    arguments: Any
    """What it would be called with."""
    state: Any = None
    """What would be assigned to it afterwards; of a Namespace, its attributes by name."""


def read(file: io.BytesIO, makers: Mapping[str, Callable[..., Any]], persistent: Callable[[Any], Any]) -> Any:
    """The value of the pickle at the file's position; the position afterwards is behind it.

    Args:
        file: the bytes, at most LIMIT of them.
        makers: functions that are called in place of the named ones, by name.
        persistent: called with each persistent id; returns the value that it stands for.

    Raises:
        ValueError: the pickle is damaged or not one of weights; the message says why, in a few words.
    """
    machine = _Machine(makers, persistent)
    try:
        for opcode, argument, _ in pickletools.genops(file):
            if opcode.name == "STOP":
                return machine.pop()
            machine.run(opcode.name, argument)
    except Refused:
        raise
    except (ValueError, TypeError, IndexError, KeyError, AttributeError, OverflowError, MemoryError) as error:
        raise Refused(f"damaged pickle: {type(error).__name__}: {error}"[:200]) from None
    raise Refused("damaged pickle: it has no end")


class _Machine:
    """The stack and memo of a pickle that is being read."""

    def __init__(self, makers: Mapping[str, Callable[..., Any]], persistent: Callable[[Any], Any]):
        self.makers, self.persistent = makers, persistent
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []
        """The stacks that were put aside by MARK."""
        self.memo: dict[int, Any] = {}

    def run(self, opcode: str, argument: Any) -> None:
        """Execute one opcode."""
        if opcode in _PUSH:
            self.stack.append(argument)
        elif opcode in _CONSTANTS:
            self.stack.append(_CONSTANTS[opcode]())
        elif opcode in _HANDLERS:
            _HANDLERS[opcode](self, argument)
        else:
            raise Refused(f"pickle opcode {opcode}, which torch.save does not write")

    def pop(self) -> Any:
        """The topmost value."""
        if not self.stack:
            raise Refused("damaged pickle: a value is missing")
        return self.stack.pop()

    def top(self) -> Any:
        """The topmost value, which stays there."""
        if not self.stack:
            raise Refused("damaged pickle: a value is missing")
        return self.stack[-1]

    def pops(self, count: int) -> list[Any]:
        """The `count` topmost values, the topmost last."""
        return [self.pop() for _ in range(count)][::-1]

    def since_mark(self) -> list[Any]:
        """The values above the last mark, which are removed together with it."""
        if not self.below:
            raise Refused("damaged pickle: a mark is missing")
        values, self.stack = self.stack, self.below.pop()
        return values

    def protocol(self, number: int) -> None:
        if number > _NEWEST_PROTOCOL:
            raise Refused(f"pickle protocol {number}; known are those up to {_NEWEST_PROTOCOL}")

    def ignore(self, _: Any) -> None:
        pass

    def mark(self, _: Any) -> None:
        self.below.append(self.stack)
        self.stack = []

    def drop(self, _: Any) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self.since_mark()

    def drop_to_mark(self, _: Any) -> None:
        self.since_mark()

    def duplicate(self, _: Any) -> None:
        self.stack.append(self.top())

    def put(self, index: int) -> None:
        self.memo[index] = self.top()

    def memoize(self, _: Any) -> None:
        self.memo[len(self.memo)] = self.top()

    def get(self, index: int) -> None:
        if index not in self.memo:
            raise Refused(f"damaged pickle: it uses value {index}, which it does not have")
        self.stack.append(self.memo[index])

    def tuple_(self, _: Any) -> None:
        values = self.since_mark()
        self.stack.append(tuple(values))

    def tuple_of(self, count: int) -> None:
        self.stack.append(tuple(self.pops(count)))

    def list_(self, _: Any) -> None:
        values = self.since_mark()
        self.stack.append(values)

    def dict_(self, _: Any) -> None:
        values = self.since_mark()
        self.stack.append({})
        self.set_items(values)

    def append(self, _: Any) -> None:
        self.extend([self.pop()])

    def appends(self, _: Any) -> None:
        self.extend(self.since_mark())

    def extend(self, values: list[Any]) -> None:
        target = self.top()
        if isinstance(target, list):
            target += values
        elif not isinstance(target, Opaque):
            raise Refused(f"damaged pickle: it appends to a {type(target).__name__}")

    def set_item(self, _: Any) -> None:
        self.set_items(self.pops(2))

    def set_items_since_mark(self, _: Any) -> None:
        self.set_items(self.since_mark())

    def set_items(self, values: list[Any]) -> None:
        target = self.top()
        if len(values) % 2:
            raise Refused("damaged pickle: a key without a value")
        if isinstance(target, Opaque):
            return
        if not isinstance(target, dict):
            raise Refused(f"damaged pickle: it sets an item of a {type(target).__name__}")
        for key, value in zip(values[::2], values[1::2]):
            _require_key(key)
            target[key] = value

    def set_(self, _: Any) -> None:
        self.stack.append(Opaque(Name("builtins", "set"), ()))

    def frozenset_(self, _: Any) -> None:
        values = self.since_mark()
        self.stack.append(Opaque(Name("builtins", "frozenset"), values))

    def global_(self, text: str) -> None:
        module, _, name = text.partition(" ")
        self.stack.append(_name(module, name))

    def stack_global(self, _: Any) -> None:
        module, name = self.pops(2)
        if not (isinstance(module, str) and isinstance(name, str)):
            raise Refused("damaged pickle: a name that is not a text")
        self.stack.append(_name(module, name))

    def reduce(self, _: Any) -> None:
        maker, arguments = self.pops(2)
        self.stack.append(self.made(maker, arguments))

    def new_object(self, _: Any) -> None:
        maker, arguments, _options = self.pops(3)
        self.stack.append(self.made(maker, arguments))

    def build(self, _: Any) -> None:
        state = self.pop()
        target = self.top()
        if isinstance(target, Opaque):
            target.state = state
        elif isinstance(target, Name):
            raise Refused(f"damaged pickle: it assigns to {target}")
        # What is assigned to a dictionary or tensor is no part of its values: an OrderedDict's _metadata, for example.

    def persistent_id(self, _: Any) -> None:
        self.stack.append(self.persistent(self.pop()))

    def made(self, maker: Any, arguments: Any) -> Any:
        """What calling `maker` gives, if it is one of `makers`; else an Opaque."""
        if not isinstance(maker, Name) or not isinstance(arguments, tuple):
            raise Refused("damaged pickle: it calls what is no function")
        if str(maker) == "collections.OrderedDict":
            return _ordered_dict(*map(require_sequence, arguments))
        make = self.makers.get(str(maker))
        if make is None:
            return Opaque(maker, arguments)
        return make(*arguments)


def _name(module: str, name: str) -> Name:
    """A name, unless no checkpoint of weights needs it."""
    found = Name(_RENAMED.get(module, module), name)
    package = found.module.partition(".")[0]
    if package not in _EXPECTED_PACKAGES and str(found) not in _EXPECTED:
        raise Refused(f"names {str(found)[:80]!r}, which a file of weights does not need; nothing was executed")
    return found


def _ordered_dict(items: Any = ()) -> dict[Any, Any]:
    made = {}
    for key, value in items:
        _require_key(key)
        made[key] = value
    return made


def require_sequence(value: Any) -> list[Any] | tuple[Any, ...]:
    """The value, if it is a list or tuple. A tensor must not be iterated over: it may claim any number of rows."""
    if isinstance(value, (list, tuple)):
        return value
    raise Refused(f"damaged pickle: a {type(value).__name__} where a list belongs")


def _require_key(key: Any) -> None:
    """Refuse keys that Python's hash would have to look into: deep nesting there exhausts the C stack."""
    members = key if isinstance(key, tuple) else (key,)
    if not all(isinstance(member, (*_SCALARS, Name, Opaque)) for member in members):
        raise Refused(f"damaged pickle: a {type(key).__name__} as a key")


_PUSH = frozenset(
    "INT BININT BININT1 BININT2 LONG LONG1 FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE"
    " SHORT_BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8".split()
)
"""Opcodes whose argument is the value. LONG4 is none of them: Python refuses to show a number of so many digits."""
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
}
_HANDLERS: dict[str, Callable[[_Machine, Any], None]] = {
    "PROTO": _Machine.protocol,
    "FRAME": _Machine.ignore,
    "MARK": _Machine.mark,
    "POP": _Machine.drop,
    "POP_MARK": _Machine.drop_to_mark,
    "DUP": _Machine.duplicate,
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), _Machine.put),
    "MEMOIZE": _Machine.memoize,
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), _Machine.get),
    "TUPLE": _Machine.tuple_,
    "TUPLE1": lambda machine, _: machine.tuple_of(1),
    "TUPLE2": lambda machine, _: machine.tuple_of(2),
    "TUPLE3": lambda machine, _: machine.tuple_of(3),
    "LIST": _Machine.list_,
    "DICT": _Machine.dict_,
    "APPEND": _Machine.append,
    "APPENDS": _Machine.appends,
    "SETITEM": _Machine.set_item,
    "SETITEMS": _Machine.set_items_since_mark,
    "EMPTY_SET": _Machine.set_,
    "ADDITEMS": _Machine.appends,
    "FROZENSET": _Machine.frozenset_,
    "GLOBAL": _Machine.global_,
    "STACK_GLOBAL": _Machine.stack_global,
    "REDUCE": _Machine.reduce,
    "BUILD": _Machine.build,
    "NEWOBJ": _Machine.reduce,
    "NEWOBJ_EX": _Machine.new_object,
    "BINPERSID": _Machine.persistent_id,
}
