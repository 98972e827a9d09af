"""Verbs with actions, such as `pangu plan show`: each has a parser of its own, built when the action is named."""

import importlib
from collections.abc import Mapping
from typing import Any

from pangu_ms.core.parser import Parser, RawHelp

Actions = Mapping[str, tuple[str, str]]
"""By name: "module:function" that builds the action's parser (function: build_parser if left out), and a summary."""


def run_action(verb: str, description: str | None, actions: Actions, argv: list[str]) -> int:
    """Run the action that `argv` begins with; returns its exit code. Only the modules of that action are imported."""
    listed = "\n".join(f"  {name:<12} {summary}" for name, (_, summary) in actions.items())
    parser = Parser(prog=f"pangu {verb}", description=f"{description}\n\n{listed}", formatter_class=RawHelp)
    text = f"`pangu {verb} ACTION --help` shows its options"
    parser.add_argument("action", choices=actions, metavar="ACTION", help=text)
    action = parser.parse_args(argv[:1]).action
    return build(actions[action][0]).run(argv[1:])


def whole_parser(program: str, description: str | None, actions: Actions) -> Parser:
    """The parser of a verb with those of all its actions below it, or of `pangu` with its verbs: for who reads parsers,
    such as shell completion. A command line is parsed by the parser of its action alone."""
    parser = Parser(prog=program, description=description)
    parser_class: Any = _build  # called as the class would be
    subparsers: Any = parser.add_subparsers(metavar="ACTION", parser_class=parser_class)
    for name, (target, summary) in actions.items():
        subparsers.add_parser(name, help=summary, target=target)
    return parser


def build(target: str) -> Parser:
    """The parser that "module:function" builds."""
    module, _, function = target.partition(":")
    return getattr(importlib.import_module(module), function or "build_parser")()


def _build(target: str, **_: Any) -> Parser:
    return build(target)
