"""Templates, and quoting of values for the language of the template."""

import json
import re
import shlex
import string
import textwrap
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

TEMPLATES = Path(__file__).parent / "templates"


class _Template(string.Template):
    delimiter = "@@"  # $ has a meaning in the shell


def fill(template: str, **values: Any) -> str:
    """The text of a template with its placeholders @@name replaced by values, which the caller has quoted. First, each
    @@include(FILE) is replaced by the content of that file."""
    text = re.sub(r"@@include\(([\w.]+)\)\n", lambda match: _read(match[1]), _read(template))
    return _Template(text).substitute(values).rstrip("\n") + "\n"


def _read(name: str) -> str:
    return (TEMPLATES / name).read_text(encoding="utf-8")


def shell_words(argv: Iterable[str]) -> str:
    """Arguments, quoted for bash."""
    return shlex.join(argv)


def exports(environment: Mapping[str, str]) -> str:
    """Lines of bash that set variables."""
    return "".join(f"export {name}={shlex.quote(value)}\n" for name, value in environment.items())


def yaml_block(value: Any, indent: int = 0) -> str:
    """A value as indented YAML, in which multi-line strings stay readable."""
    import yaml

    # A class of its own, since add_representer changes a class for everybody who uses it.
    class Dumper(yaml.SafeDumper):
        """Writes multi-line strings in literal style, and no aliases."""

        def ignore_aliases(self, data: Any) -> bool:
            return True

    def text(dumper: yaml.SafeDumper, string: str) -> yaml.Node:
        return dumper.represent_scalar("tag:yaml.org,2002:str", string, style="|" if "\n" in string else None)

    Dumper.add_representer(str, text)
    # A large width keeps long strings on one line.
    return textwrap.indent(
        yaml.dump(value, Dumper=Dumper, sort_keys=False, width=1 << 20, allow_unicode=True), " " * indent
    ).rstrip("\n")


def pod_argument(word: str) -> str:
    """An argument of a container's command with $ escaped: Kubernetes replaces $(NAME), and reads $$ as $.

    Source: Kubernetes API, Container.args.
    """
    return re.sub(r"\$(?=[$(])", "$$", word)


def docker_list(argv: Iterable[str]) -> str:
    """Arguments in the exec form of a Dockerfile's instruction."""
    return json.dumps(list(argv))


def docker_literal(word: str) -> str:
    """An argument of COPY with $ escaped: Docker replaces variables there."""
    return word.replace("\\", "\\\\").replace("$", "\\$")


def docker_value(value: str) -> str:
    """A quoted value for ENV and ARG."""
    return '"' + docker_literal(value).replace('"', '\\"') + '"'


def systemd_word(word: str) -> str:
    """An argument of ExecStart: systemd replaces specifiers (%) and variables ($), and reads quotes and escapes.

    Source: systemd.service(5), "Command lines"; systemd.unit(5), "Specifiers".
    """
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return escaped if re.fullmatch(r"[\w./:=%,@+-]+", escaped, re.ASCII) else f'"{escaped}"'
