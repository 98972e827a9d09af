"""Reads YAML that a user wrote or a crash damaged, in bounded memory and time. Duplicate keys, tags that create objects
and aliases that expand to very many values are refused."""

from pathlib import Path
from typing import Any

import yaml

from pangu_ms.core import small_json
from pangu_ms.core.errors import UserError

MAX_BYTES = 256 << 10
"""Largest file. A configuration has a few thousand bytes; PyYAML reads about 100 kB a second."""
MAX_DEPTH = 50
MAX_VALUES = 100_000
"""Largest number of values in a text. An alias counts as all the values that it stands for: nine nested levels of ten
aliases each would make a thousand million."""
_WHOLE_NUMBERS = 1 << 64
_PLAIN = {"null", "bool", "int", "float", "str", "seq", "map", "timestamp", "merge"}
_PREFIX = "tag:yaml.org,2002:"


class YamlError(ValueError):
    """A text is not acceptable YAML: a short description of the problem, and its line.

    Attributes:
        line: counted from 1; None if the error concerns the whole text.
    """

    def __init__(self, problem: str, mark: yaml.Mark | None = None):
        super().__init__(problem)
        self.line = mark.line + 1 if mark else None


def read(path: Path, wrong: type[UserError]) -> Any:
    """The value of a YAML file.

    Raises:
        UserError: of the class `wrong`: the file cannot be read or is not YAML. The message is one line that names the
            place.
    """
    try:
        text = small_json.read_bytes(Path(path), MAX_BYTES).decode("utf-8")
    except UnicodeDecodeError as error:
        raise wrong(f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8") from None
    except ValueError as error:
        raise wrong(f"{path}: cannot be read ({error}); name a YAML file of at most {MAX_BYTES:,} bytes") from None
    try:
        return parse(text)
    except YamlError as error:
        raise wrong(f"{path}:{error.line or '?'}: not YAML: {error}; mend it there") from None


def parse(text: str) -> Any:
    """The value of a YAML text: mappings, lists, texts, numbers, booleans, dates and null.

    Raises:
        YamlError: the text is not YAML, or is refused (see the module).
    """
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _require_bounded(node, {})
        return loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        raise YamlError(error.problem or str(error.context), error.problem_mark or error.context_mark) from None
    except yaml.reader.ReaderError as error:
        raise YamlError(error.reason) from None
    except (ValueError, OverflowError) as error:
        raise error if isinstance(error, YamlError) else YamlError(str(error).partition("\n")[0]) from None


class _Loader(yaml.SafeLoader):
    """Refuses deep nesting before it reaches Python's recursion limit."""

    _depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise YamlError(f"nested deeper than {MAX_DEPTH} levels", self.peek_event().start_mark)
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        try:
            number = super().construct_yaml_int(node)
        except ValueError:  # more digits than Python converts, or no digits after 0b
            raise YamlError(f"{node.value[:20]!r} begins no whole number of at most 64 bits", node.start_mark) from None
        if abs(number) >= _WHOLE_NUMBERS:
            raise YamlError(f"{node.value[:20]}... is a whole number of more than 64 bits", node.start_mark)
        return number


_Loader.add_constructor(_PREFIX + "int", _Loader.construct_yaml_int)


def _require_bounded(node: yaml.Node, known: dict[int, int]) -> int:
    """Count the values that a node stands for, and check keys and tags on the way.

    Args:
        node: the root of a part of the text.
        known: counts of the nodes seen so far, by id; 0 for a node that is still being counted.
    """
    if (count := known.get(id(node))) is not None:
        if count == 0:
            raise YamlError("an alias of what it stands in", node.start_mark)
        return count
    if node.tag.removeprefix(_PREFIX) not in _PLAIN:
        raise YamlError(f"tag {node.tag[:60]!r}: values are texts, numbers, lists and mappings", node.start_mark)
    known[id(node)] = 0  # an alias that leads here from inside would never end
    children: list[yaml.Node] = []
    if isinstance(node, yaml.MappingNode):
        _require_different(node)
        children = [child for pair in node.value for child in pair]
    elif isinstance(node, yaml.SequenceNode):
        children = node.value
    known[id(node)] = 1 + sum(_require_bounded(child, known) for child in children)
    if known[id(node)] > MAX_VALUES:
        raise YamlError(
            f"stands for more than {MAX_VALUES:,} values, aliases counted as what they stand for", node.start_mark
        )
    return known[id(node)]


def _require_different(node: yaml.MappingNode) -> None:
    seen: dict[str, yaml.Node] = {}
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise YamlError("a key that is a list or a mapping; keys are texts", key.start_mark)
        first = seen.setdefault(key.value, key)
        if first is not key:
            raise YamlError(
                f"{key.value[:60]!r} is given here and in line {first.start_mark.line + 1}; a key stands once: keep one"
                " of the two",
                key.start_mark,
            )
