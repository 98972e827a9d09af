"""`pangu chat`: a chat with a model in the terminal, or by --url with a server of OpenAI's API; if standard input is no
terminal, each of its lines is a message."""

import contextlib
import json
import signal
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from pangu_ms.cli import options
from pangu_ms.cli.serve import add_model, open_served, require_extra
from pangu_ms.core import files, runtime
from pangu_ms.core.console import INTERRUPTED, raw, show, tell, user_errors
from pangu_ms.core.errors import GenerationError, OutputError
from pangu_ms.core.parser import Parser

if TYPE_CHECKING:
    from pangu_ms.infer.sampling import SamplingConfig
    from pangu_ms.serve.conversation import Answer, Backend, Conversation
    from pangu_ms.serve.models import ServedModel

SAMPLED = ("temperature", "top_k", "top_p", "repetition_penalty", "seed")
COMMANDS = {
    "/clear": "begin a new chat; the system message stays",
    "/system TEXT": "set the system message from the next turn on; without a text: none",
    "/save FILE": "write the chat to a new file, as JSON",
    "/help": "this list; a message that begins with / is written with //",
    "/quit": "end",
}
_PACKAGES = ("jinja2", "llguidance")
_CHUNK = 32
_OF_CHECKPOINTS = {"max_length": 0, "chunk": _CHUNK, "weights": "", "cache_dtype": "", "tokenizer": None}
_OF_PACKAGES = {"key_file": None, "verify_key": None, "allow_kernels": False}
_FAINT, _PLAIN = "\x1b[2m", "\x1b[0m"
_HISTORY_LINES = 1000


def build_parser() -> Parser:
    """The verb's options."""
    from pangu_ms.infer.sampling import SamplingConfig

    parser = Parser(prog="pangu chat", description=__doc__)
    add_model(parser, _CHUNK, nargs="?")
    parser.add_argument("--url", metavar="URL", help="address of a server of OpenAI's API, instead of CHECKPOINT")
    parser.add_argument("--model", metavar="NAME", help="with --url: the model there (default: the only one)")
    text = "with --url: a file whose first key is sent to the server"
    parser.add_argument("--api-key-file", type=Path, metavar="FILE", help=text)
    parser.add_argument("--system", default="", metavar="TEXT", help="system message")
    text = "longest answer, in tokens; 0: as many as fit into the context"
    parser.add_argument("--max-new-tokens", type=int, default=0, metavar="N", help=text)
    options.add_fields(parser, SamplingConfig, {name: options.SAMPLING_HELP[name] for name in SAMPLED})
    parser.set_defaults(temperature=0.7)
    options.add_domain(parser, "domain of the chat (default: the model's model.default_domain, or its first domain)")
    parser.add_argument("--no-history", action="store_true", help="do not keep what is typed for the next session")
    text = "after each answer, show its tokens and what the cache held; show MindSpore's own messages"
    parser.add_argument("--verbose", action="store_true", help=text)
    parser.set_defaults(run=_run)
    return parser


def main(argv: list[str]) -> int:
    """Entry of the verb."""
    return build_parser().run(argv)


def _run(args: Namespace) -> int:
    from pangu_ms.serve.conversation import Conversation

    if args.max_new_tokens < 0:
        raise GenerationError(f"--max-new-tokens {args.max_new_tokens}: must be at least 0; 0: as many as fit")
    _require_one_backend(args)
    chat = Conversation(_of_server(args) if args.url else _of_engine(args), args.system)
    if sys.stdin.isatty() and sys.stdout.isatty():
        return Terminal(chat, args.verbose).run(with_history=not args.no_history)
    return _read_pipe(chat, args.verbose)


def _require_one_backend(args: Namespace) -> None:
    """Raise GenerationError for options that have no meaning beside --url, or without it."""
    if not args.url:
        for name in ("model", "api_key_file"):
            if getattr(args, name):
                raise GenerationError(f"--{name.replace('_', '-')}: needs --url URL; leave it out")
        if args.checkpoint is None:
            raise GenerationError("CHECKPOINT is missing: name what to chat with, or --url URL of a server")
        return
    if args.checkpoint:
        raise GenerationError(f"{args.checkpoint}: the server at --url has its own models; leave one of them out")
    plain = build_parser()
    for name in (*_OF_CHECKPOINTS, *_OF_PACKAGES, "chat_template", "threads"):
        if getattr(args, name) != plain.get_default(name):
            raise GenerationError(f"--{name.replace('_', '-')}: is the server's at --url; leave it out")


def _of_server(args: Namespace) -> "Backend":
    from pangu_ms.serve.api_keys import read_api_keys
    from pangu_ms.serve.server_chat import ServerBackend

    _sampling(args, 1 << 20)  # tells of values that cannot be
    names = {"max_new_tokens": "max_tokens"}
    fields: dict[str, object] = {"temperature": args.temperature}
    plain = build_parser()
    for name in ("max_new_tokens", *SAMPLED, "domain"):
        if getattr(args, name) != plain.get_default(name):  # not every server has the others
            fields[names.get(name, name)] = getattr(args, name)
    key = read_api_keys(args.api_key_file)[0] if args.api_key_file else ""
    return ServerBackend(args.url, args.model or "", fields, key)


def _of_engine(args: Namespace) -> "Backend":
    runtime.quiet(args.verbose)
    options.use_threads(args)
    require_extra("serve", _PACKAGES)
    from pangu_ms.serve.engine_chat import EngineBackend

    model = _open(args)
    sampling, domain = _sampling(args, model.shape.max_length), model.domains.index(args.domain or "")
    return EngineBackend(model, model.engine(), sampling, domain)


def _sampling(args: Namespace, max_length: int) -> "SamplingConfig":
    from pangu_ms.infer.sampling import SamplingConfig

    return SamplingConfig(args.max_new_tokens or max_length, **{name: getattr(args, name) for name in SAMPLED})


def _open(args: Namespace) -> "ServedModel":
    from pangu_ms.serve.open import is_package

    name, packaged = args.checkpoint.resolve().name, is_package(args.checkpoint)
    unused = _OF_CHECKPOINTS if packaged else _OF_PACKAGES
    for option, default in unused.items():
        if getattr(args, option) != default:
            what = "a package has its own" if packaged else "only packages have one"
            raise GenerationError(f"--{option.replace('_', '-')}: {what}; leave it out")
    if packaged and args.overrides:
        raise GenerationError(f"{args.overrides[0]}: a package cannot be changed; leave it out")
    return open_served(args, name, args.checkpoint, 1)


def _read_pipe(chat: "Conversation", verbose: bool) -> int:
    """One message a line; the answers alone go to stdout. An error ends it."""
    session = Session(chat, verbose)
    for number, line in enumerate(sys.stdin.buffer, 1):
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
        except UnicodeDecodeError:
            raise GenerationError(f"standard input: line {number} is not UTF-8; convert it") from None
        if not session.take(text):
            break
    return 0


class Session:
    """Carries out lines: messages and commands."""

    def __init__(self, chat: "Conversation", verbose: bool):
        self.chat, self._verbose, self._said_dropped = chat, verbose, False

    def take(self, line: str) -> bool:
        """Carry out a line; returns whether the session goes on.

        Raises:
            UserError: it cannot be done; the chat is as before.
        """
        line = line.strip()
        if line.startswith("//"):
            line = line[1:]
        elif line.startswith("/"):
            return self._command(*line.partition(" ")[::2])
        if line:
            self._ask(line)
        return True

    def _command(self, name: str, rest: str) -> bool:
        rest = rest.strip()
        if name == "/quit":
            return False
        if name == "/help":
            for words, text in COMMANDS.items():
                show(f"  {words:<14} {text}")
        elif name == "/clear":
            self.chat.messages, self._said_dropped = [], False
        elif name == "/system":
            self.chat.system = rest
        elif name == "/save":
            if not rest:
                raise OutputError("/save: names no file; write /save FILE")
            content = {"model": self.chat.backend.name, "messages": self.chat.all_messages()}
            files.write_new(Path(rest).expanduser(), json.dumps(content, ensure_ascii=False, indent=2) + "\n")
            show(f"{rest}: {len(content['messages'])} messages")
        else:
            raise GenerationError(
                f"{name}: no such command; /help lists them; write a message that begins so as /{name}"
            )
        return True

    def _ask(self, text: str) -> None:
        writer = _Writer()
        with _interruptible() as stopped:
            try:
                answer = self.chat.ask(text, writer.write, stopped)
            finally:
                writer.end()
        self._comment(answer)

    def _comment(self, answer: "Answer") -> None:
        if answer.dropped and not self._said_dropped:
            most = self.chat.backend.context
            context = f"context of {most} tokens" if most else "context"
            tell(f"pangu chat: longer than the {context}: from now on the oldest turns are dropped")
            self._said_dropped = True
        if answer.finish_reason == "length":
            tell("pangu chat: the answer was cut off: no more tokens")
        if self._verbose:
            reused = f"{answer.reused_tokens} of them reused"
            tell(f"pangu chat: {answer.prompt_tokens} prompt tokens, {reused}; {answer.new_tokens} new ones")


class _Writer:
    """Writes an answer while it is generated; its reasoning only to a terminal, faintly."""

    def __init__(self) -> None:
        self._faint, self._terminal = False, sys.stdout.isatty()

    def write(self, reasoning: str, content: str) -> None:
        """Write new text."""
        if self._terminal and reasoning:
            self._switch(True)
            print(reasoning, end="", flush=True)
        if content:
            self._switch(False)
            print(content, end="", flush=True)

    def end(self) -> None:
        """End the line."""
        self._switch(False)
        print(flush=True)

    def _switch(self, faint: bool) -> None:
        if faint == self._faint:
            return
        if not faint:
            print()
        self._faint = faint
        print(_FAINT if faint else _PLAIN, end="", flush=True, file=raw(sys.stdout))


@contextlib.contextmanager
def _interruptible() -> Iterator[Callable[[], bool]]:
    """A function that says whether Ctrl-C was pressed. In a terminal the first one in an answer does nothing else: in
    the middle of a step it would leave the cache in disorder. The second one ends the program, as does the first
    without a terminal."""
    pressed: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        pressed.append(number)
        if len(pressed) > 1:
            sys.exit(INTERRUPTED)

    if not sys.stdin.isatty() or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield lambda: False
        return
    signal.signal(signal.SIGINT, note)
    try:
        yield lambda: bool(pressed)
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


class Terminal:
    """A session in a terminal. Ctrl-C at the prompt clears the line; a second one ends the program."""

    def __init__(self, chat: "Conversation", verbose: bool):
        self._session = Session(chat, verbose)

    def run(self, with_history: bool) -> int:
        """Read lines until the end; returns the exit code."""
        chat = self._session.chat
        show(f"{chat.backend.name}: /help lists the commands; Ctrl-C stops an answer, Ctrl-D ends the chat")
        with _line_editing(with_history):
            interrupted = False
            while True:
                try:
                    if not self._session.take(input("> ")):
                        return 0
                    interrupted = False
                except EOFError:
                    print()
                    return 0
                except KeyboardInterrupt:
                    print()
                    if interrupted:
                        return INTERRUPTED
                    interrupted = True
                    tell("pangu chat: Ctrl-C again ends the chat")
                except UnicodeDecodeError:
                    tell("pangu chat: the line is not in the terminal's encoding; type it again")
                except user_errors() as error:
                    tell(f"pangu chat: {error}")
                except OSError as error:  # of /save
                    tell(f"pangu chat: {error.filename or 'disk'}: {error.strerror}")


@contextlib.contextmanager
def _line_editing(with_history: bool) -> Iterator[None]:
    """Editing of the line that is typed, and lines of earlier sessions, which are kept in the user's cache."""
    try:
        import readline  # `input` uses it once it is imported
    except ImportError:  # a Python that was built without it
        yield
        return
    path = None
    if with_history:
        with contextlib.suppress(OutputError, OSError):  # without a cache directory nothing is kept
            path = files.user_cache() / "chat_history"
            if path.exists():
                readline.read_history_file(path)
    readline.set_history_length(_HISTORY_LINES)
    try:
        yield
    finally:
        if path:
            lines = [readline.get_history_item(i + 1) for i in range(readline.get_current_history_length())]
            with contextlib.suppress(OutputError, OSError):
                content = "".join(f"{line}\n" for line in lines[-_HISTORY_LINES:])
                files.write_bytes(path, content.encode(errors="replace"), private=True)
