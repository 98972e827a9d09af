"""Verbs with actions, such as `pangu plan show`. Each action has its own parser, which is built only when needed."""

import importlib
from collections.abc import Mapping
from typing import Any

from pangu_ms.core.parser import Parser, RawHelp

Actions = Mapping[str, tuple[str, str]]
"""Maps the name of an action to a pair: "module:function" that builds its parser (the function is build_parser if it is
left out), and a summary."""


def run_action(verb: str, description: str | None, actions: Actions, argv: list[str]) -> int:
    """Run the action that `argv` begins with; returns its exit code. Only the modules of that action are imported."""
    listed = "\n".join(f"  {name:<12} {summary}" for name, (_, summary) in actions.items())
    parser = Parser(prog=f"pangu {verb}", description=f"{description}\n\n{listed}", formatter_class=RawHelp)
    text = f"`pangu {verb} ACTION --help` shows its options"
    parser.add_argument("action", choices=actions, metavar="ACTION", help=text)
    action = parser.parse_args(argv[:1]).action  # the rest belongs to the parser of the action
    return build(actions[action][0]).run(argv[1:])


def whole_parser(program: str, description: str | None, actions: Actions) -> Parser:
    """The parser of a verb with the parsers of all its actions as subparsers, or of `pangu` with all its verbs. Shell
    completion reads such parsers. A command line is parsed by the parser of its action alone."""
    parser = Parser(prog=program, description=description)
    parser_class: Any = _build  # a function that argparse calls in place of a parser class
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
