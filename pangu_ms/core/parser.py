"""The argument parser of all commands, and the argparse actions of options that name an output."""

import argparse
import difflib
import re
from collections.abc import Sequence
from typing import Any, NoReturn

from pangu_ms.core import files
from pangu_ms.core.console import USER_ERROR, tell

TEXT = "TEXT"
"""Placeholder of options whose value may be empty."""


class Help(argparse.ArgumentDefaultsHelpFormatter):
    """Shows an option's default unless there is none, or the help text names it."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        default = action.default
        none = default is None or default is False or default == [] or "default:" in (action.help or "")
        return action.help if none else super()._get_help_string(action)


class RawHelp(Help, argparse.RawDescriptionHelpFormatter):
    """As Help, but keeps the line breaks of the description."""


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that reports a mistake in one line, with the most similar option, and exits with code 2.

    A verb's parser names the function that gets the parsed options: `set_defaults(run=function)`.
    """

    _given_arguments: Sequence[str] = ()

    def __init__(self, prog: str, *, formatter_class: type[argparse.HelpFormatter] = Help, **kwargs: Any):
        super().__init__(prog=prog, formatter_class=formatter_class, **kwargs)

    def run(self, argv: list[str]) -> int:
        """Parse `argv`, in which options and positional arguments may be mixed, and call the `run` of `set_defaults`
        with the result; returns the exit code."""
        args = self.parse_intermixed_args(argv)
        return args.run(args)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse; the arguments are kept for error messages."""
        self._given_arguments = args or self._given_arguments
        return super().parse_known_args(args, namespace)

    def _get_values(self, action: argparse.Action, arg_strings: list[str]) -> Any:
        """As argparse, but an empty value of an option is an error: it often comes from an unset shell variable, and
        must not count as an option that was left out."""
        if action.option_strings and "" in arg_strings and action.metavar != TEXT:
            raise argparse.ArgumentError(action, "is empty; give a value, or leave the option out")
        return super()._get_values(action, arg_strings)

    def error(self, message: str) -> NoReturn:
        """Print the message in one line and exit."""
        tell(f"{self.prog}: {message}; {self._nearest(message)}see `{self.prog} --help`")
        self.exit(USER_ERROR)

    def _nearest(self, message: str) -> str:
        """A hint: the option or choice that an unknown word is most similar to. If a required argument is missing, a
        misspelt option may have been meant to give it."""
        forms = r"(unrecognized arguments: |the following arguments are required: |one of the arguments .* is required)"
        if match := re.match(forms, message):
            missing = not match[1].startswith("unrecognized")
            words = self._given_arguments if missing else [*self._given_arguments, *message[match.end() :].split()]
            known = self._known_options()
            options = [word.partition("=")[0] for word in words if word[:1] == "-"]
            unknown = next((option for option in options if not any(name.startswith(option) for name in known)), "")
            near = _similar_options(unknown, known)
            return (f"{unknown}: " if missing and near else "") + _did_you_mean(near)
        if match := re.match(r".*invalid choice: '(.*?)' \(choose from (.*)\)", message):
            return _did_you_mean(difflib.get_close_matches(match[1], re.split(r"[', ]+", match[2]), 1))
        return ""

    def _known_options(self) -> list[str]:
        """Names of this parser's options and of those of its subparsers."""
        parsers: list[argparse.ArgumentParser] = [self]
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                parsers += action.choices.values()
        return [name for parser in parsers for action in parser._actions for name in action.option_strings]


def _similar_options(word: str, options: list[str]) -> list[str]:
    """The option that is most similar to a word, if any. The leading dashes, which all options share, do not count:
    with them `--chip` would be similar to `--help`."""
    names = {option.lstrip("-"): option for option in options}
    return [names[name] for name in difflib.get_close_matches(word.lstrip("-"), names, 1)]


def _did_you_mean(near: list[str]) -> str:
    return f"did you mean {near[0]}? " if near else ""


class NewFile(argparse.Action):
    """Action of an option that names a file to write. The file must not exist yet, which is checked before the work
    starts; `files.write_new` writes it afterwards."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        if values != self.default:  # such as "-" for the terminal
            files.require_new(values, self.option_strings[0])
        setattr(namespace, self.dest, values)


class NewDirectory(argparse.Action):
    """As NewFile, for an option that names a directory to create: it may exist if it is empty."""

    of_saves = False

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        files.require_free(values, self.option_strings[0], self.of_saves)
        setattr(namespace, self.dest, values)


class NewCheckpoint(NewDirectory):
    """As NewDirectory, for the directory of a new checkpoint: it may hold what a killed command left there."""

    of_saves = True
