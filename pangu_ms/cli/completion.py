"""`pangu completion SHELL`: print a script that completes the verbs of `pangu` and their options in a shell."""

from argparse import Namespace

from pangu_ms.cli.actions import whole_parser
from pangu_ms.cli.main import VERBS
from pangu_ms.core.console import USER_ERROR, tell
from pangu_ms.core.parser import Parser, RawHelp

EPILOG = """bash: pangu completion bash > ~/.local/share/bash-completion/completions/pangu
zsh:  pangu completion zsh > _pangu, in a directory of $fpath
tcsh: pangu completion tcsh > pangu.csh, and `source pangu.csh` in ~/.tcshrc"""


def build_parser() -> Parser:
    """The verb's options."""
    parser = Parser(prog="pangu completion", description=__doc__, epilog=EPILOG, formatter_class=RawHelp)
    parser.add_argument("shell", choices=("bash", "zsh", "tcsh"), help="the shell to print the script for")
    parser.set_defaults(run=_run)
    return parser


def main(argv: list[str]) -> int:
    """Entry of the verb."""
    return build_parser().run(argv)


def _run(args: Namespace) -> int:
    try:
        import shtab
    except ModuleNotFoundError:
        tell('pangu completion: shtab is not installed; run: pip install "pangu-ms[completion]"')
        return USER_ERROR
    print(shtab.complete(whole_parser("pangu", None, VERBS), args.shell))
    return 0
