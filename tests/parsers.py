"""The parsers of all commands of `pangu`."""

import argparse
import functools

from pangu_ms.cli.actions import whole_parser
from pangu_ms.cli.main import VERBS


@functools.cache
def pangu_parser():
    """That of `pangu` itself, with all others below it."""
    return whole_parser("pangu", None, VERBS)


def below(parser):
    """The parsers of a parser's verbs or actions, by name."""
    found = next((a for a in parser._actions if isinstance(a, argparse._SubParsersAction)), None)
    return found.choices if found else {}


@functools.cache
def commands():
    """The parser of each command by its words, such as ("plan", "show")."""

    def leaves(words, parser):
        if not below(parser):
            yield words, parser
        for name, sub in below(parser).items():
            yield from leaves((*words, name), sub)

    return dict(leaves((), pangu_parser()))
