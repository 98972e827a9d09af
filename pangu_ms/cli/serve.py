"""`pangu serve`: an HTTP server with OpenAI's API."""

import dataclasses
from argparse import Namespace
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from pangu_ms.cli import options
from pangu_ms.core import runtime
from pangu_ms.core.console import show, tell
from pangu_ms.core.errors import GenerationError
from pangu_ms.core.parser import TEXT, Parser
from pangu_ms.serve.settings import Limits

if TYPE_CHECKING:
    from pangu_ms.serve.models import ServedModel

LIMITS_HELP = {
    "queue": "continuations of each model that may wait for a slot; further requests get 429",
    "queue_timeout": "seconds after which a request that still waits gets 503",
    "generation_timeout": "seconds after which a continuation ends as if it had reached max_tokens",
    "body_mib": "largest body of a request, in MiB",
    "body_timeout": "seconds in which the headers, and then the body of a request must arrive",
    "send_timeout": "seconds after which a client that does not read is left",
    "connections": "open connections",
    "choices": "continuations of one request: prompts times n",
    "stream_interval": "seconds between two events of a stream, at least; 0: each token is an event",
    "drain_timeout": "seconds that running requests get to end after SIGTERM",
}
_PACKAGES = ("anyio", "fastapi", "jinja2", "llguidance", "prometheus_client", "starlette", "uvicorn", "h11")


def build_parser() -> Parser:
    """The verb's options."""
    parser = Parser(prog="pangu serve", description=__doc__)
    add_model(parser, chunk=64)
    parser.add_argument("--name", help="name of the model in requests (default: that of the directory)")
    text = "a further model; may be given several times"
    parser.add_argument("--model", action="append", default=[], metavar="NAME=PATH", help=text)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0: all, see --api-key-file")
    parser.add_argument("--port", type=int, default=8000, help="0 takes any that is free")
    parser.add_argument("--slots", type=int, default=8, metavar="N", help="continuations that are generated at a time")
    options.add_scheduling(parser)
    parser.add_argument("--api-key-file", type=Path, metavar="FILE", help="answer only clients with one of these keys")
    text = "origin of web pages that may ask, or *; may be given several times"
    parser.add_argument("--cors-origin", action="append", default=[], metavar="ORIGIN", help=text)
    text = "prefix of all paths, which a proxy in front of the server removes"
    parser.add_argument("--root-path", default="", metavar=TEXT, help=text)
    parser.add_argument("--no-page", action="store_true", help="without the chat page at /")
    parser.add_argument("--access-log", action="store_true", help="log a line for each request, without prompts")
    parser.add_argument("--log-requests", action="store_true", help="log the prompts, too")
    options.add_verbose(parser)
    options.add_fields(parser.add_argument_group("limits"), Limits, LIMITS_HELP)
    parser.set_defaults(run=_run)
    return parser


def add_model(parser: Parser, chunk: int, nargs: str | None = None) -> None:
    """The model that `pangu serve` and `pangu chat` open, and how; `chunk` is the default of --chunk, `nargs` that of
    CHECKPOINT."""
    text = "a run directory, a checkpoint, or a package written by `pangu export`"
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", nargs=nargs, help=text)
    options.add_overrides(parser)
    parser.add_argument("--chunk", type=int, default=chunk, help="prompt tokens per step")
    text = "longest prompt and continuation (of a chat, all of it), in tokens; 0: the model's context"
    parser.add_argument("--max-length", type=int, default=0, metavar="N", help=text)
    options.add_threads(parser)
    options.add_weights(parser)
    options.add_cache_dtype(parser)
    options.add_own_tokenizer(parser)
    text = "auto (the tokenizer's own, openPangu's or a plain one), openpangu, plain, or a file of Jinja2"
    parser.add_argument("--chat-template", default="auto", metavar="FILE", help=text)
    parser.add_argument("--key-file", metavar="FILE", help="file with the AES key of an encrypted package")
    text = "refuse a package unless it was signed with the key of this Ed25519 public key, a PEM file"
    parser.add_argument("--verify-key", metavar="FILE", help=text)
    options.add_allow_kernels(parser)


def main(argv: list[str]) -> int:
    """Entry of the verb."""
    return build_parser().run(argv)


def _run(args: Namespace) -> int:
    limits = _limits(args)
    _require_sizes(args)
    paths = _paths(args)
    runtime.quiet(args.verbose)
    options.use_threads(args)
    require_extra("serve", _PACKAGES)
    _require_checkpoint(args, paths.values())

    import logging

    from pangu_ms.serve.api_keys import read_api_keys, readable_by_others
    from pangu_ms.serve.app import Settings
    from pangu_ms.serve.models import Models
    from pangu_ms.serve.run import listen, run

    for name, wanted in (("uvicorn.access", args.access_log), ("pangu_ms.serve", args.log_requests)):
        logging.getLogger(name).setLevel(logging.INFO if wanted else logging.WARNING)
    keys = read_api_keys(args.api_key_file) if args.api_key_file else []
    if keys and readable_by_others(args.api_key_file):
        tell(f"pangu serve: --api-key-file {args.api_key_file}: other users can read it; chmod 600 it")
    models = Models([_open(args, name, path) for name, path in paths.items()])
    settings = Settings(limits, keys, args.cors_origin, _root_path(args.root_path), args.log_requests, not args.no_page)
    with listen(args.host, args.port) as bound:
        if not keys and args.host not in ("127.0.0.1", "localhost", "::1"):
            tell(f"pangu serve: --host {args.host} without --api-key-file: everybody who reaches it is answered")
        return run(models, settings, bound, lambda url: show(_ready_line(url, models.values())))


def _ready_line(url: str, models: "Iterable[ServedModel]") -> str:
    shown = [f"{model.name} ({model.shape.batch_size} slots of {model.shape.max_length} tokens)" for model in models]
    return f"{url}: ready with {', '.join(shown)}; Ctrl-C ends it"


def require_extra(extra: str, packages: tuple[str, ...]) -> None:
    """Raise GenerationError unless the packages of an extra are installed."""
    from importlib.util import find_spec

    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        raise GenerationError(f"{', '.join(missing)}: not installed; pip install pangu-ms[{extra}]")


def _limits(args: Namespace) -> Limits:
    """The limits of the options."""
    values = {name: getattr(args, name) for name in LIMITS_HELP}
    for name, value in values.items():
        least = 0 if name in ("queue", "stream_interval") else 1 if isinstance(value, int) else 0.001
        if not least <= value < 1e9:
            raise GenerationError(f"--{name.replace('_', '-')} {value}: must be at least {least}")
    return Limits(**values)


def _require_sizes(args: Namespace) -> None:
    """Name sizes as the options do; `GraphShape.fitting` knows other names."""
    for option, value, least in (("slots", args.slots, 1), ("chunk", args.chunk, 1)):
        if value < least:
            raise GenerationError(f"--{option} {value}: must be at least {least}")
    if args.max_length and args.max_length < 2:
        raise GenerationError(f"--max-length {args.max_length}: must be at least 2; 0: the model's context")


def _require_checkpoint(args: Namespace, paths: Iterable[Path]) -> None:
    """Options of checkpoints need one: what they set is fixed in a package."""
    from pangu_ms.serve.open import is_package

    if not all(is_package(path) for path in paths):
        return
    plain = build_parser()
    for name in ("slots", "chunk", "max_length", "weights", "cache_dtype", "tokenizer", "overrides"):
        value, default = getattr(args, name), plain.get_default(name)
        if (value or default) and value != default:
            option = value[0] if name == "overrides" else f"--{name.replace('_', '-')} {value}"
            raise GenerationError(f"{option}: is fixed in a package by `pangu export`; leave it out")


def _root_path(given: str) -> str:
    if given and not given.startswith("/"):
        raise GenerationError(f"--root-path {given}: must begin with /; write /{given}")
    return given.rstrip("/")


def _paths(args: Namespace) -> dict[str, Path]:
    """The models by name."""
    found = {args.name or args.checkpoint.resolve().name: args.checkpoint}
    for word in args.model:
        name, equals, path = word.partition("=")
        if not (name and equals and path):
            raise GenerationError(f"--model {word}: must be NAME=PATH")
        if name in found:
            raise GenerationError(f"--model {word}: another model has this name; give each its own")
        found[name] = Path(path)
    return found


def open_served(args: Namespace, name: str, path: Path, slots: int) -> "ServedModel":
    """A checkpoint or package by the options of `add_model`; a package has its own number of slots."""
    from pangu_ms.export.package import read_key
    from pangu_ms.serve.open import is_package, open_model, open_package

    if is_package(path):
        key = read_key(args.key_file)
        return open_package(name, path, key, args.verify_key, args.chat_template, args.allow_kernels)
    return open_model(
        name,
        path,
        slots,
        args.chunk,
        args.max_length,
        args.overrides,
        args.weights,
        args.tokenizer,
        args.chat_template,
        args.cache_dtype,
    )


def _open(args: Namespace, name: str, path: Path) -> "ServedModel":
    from pangu_ms.infer.scheduling.length_predictors import OwnAnswer

    model = open_served(args, name, path, args.slots)
    scheduling = options.scheduling(args, model.tokenizer)
    if isinstance(scheduling["predictor"], OwnAnswer):
        raise GenerationError(
            f"--length-predictor {args.length_predictor}: asks the model, which a server has no slot for; train one of"
            " --kind ngrams"
        )
    return dataclasses.replace(model, **scheduling)
