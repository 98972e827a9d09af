"""The model of commands that evaluate: a checkpoint, or one behind a URL."""

from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from pangu_ms.cli import options
from pangu_ms.core.errors import GenerationError
from pangu_ms.core.parser import Parser

if TYPE_CHECKING:
    from pangu_ms.eval.tasks.model import EvaluatedModel

EXTRA = 'pip install "pangu-ms[eval]"'


def add_model(parser: Parser) -> None:
    """Add the model and how it is opened."""
    text = "a run directory, a checkpoint, or the URL of a server with OpenAI's API, such as http://localhost:8000"
    parser.add_argument("model", metavar="MODEL", help=text)
    options.add_overrides(parser)
    options.add_weights(parser)
    text = "tokenizer directory or vocab.model; default: the checkpoint's own, or the server's"
    options.add_tokenizer(parser, text, required=False)
    options.add_domain(parser, "domain in which a checkpoint answers (default: the model's own default)")
    options.add_batch_size(parser, "prompts that are continued at a time, or requests to a server")
    parser.add_argument("--model-name", default="", metavar="NAME", help="which of the server's models is meant")
    parser.add_argument("--api-key-file", type=Path, metavar="FILE", help="a file with the key for the server")


def is_url(model: str) -> bool:
    """Whether a model is named by a URL."""
    return model.startswith(("http://", "https://"))


def open_model(args: Namespace) -> "EvaluatedModel":
    """What `add_model` asked for.

    Raises:
        UserError: it cannot be opened, or options do not go together.
    """
    if is_url(args.model):
        return _remote(args)
    for option in ("model_name", "api_key_file"):
        if getattr(args, option):
            raise GenerationError(
                f"--{option.replace('_', '-')}: is for a server, {args.model} is a path; leave it out, or name a URL"
            )
    from pangu_ms.checkpoint.model import checkpoint_config
    from pangu_ms.checkpoint.store import open_checkpoint
    from pangu_ms.eval.tasks.model import LocalModel

    checkpoint = open_checkpoint(Path(args.model))
    config = checkpoint_config(checkpoint, args.overrides)
    return LocalModel(checkpoint, config, args.weights, args.tokenizer, args.batch_size, args.domain or "")


def _remote(args: Namespace) -> "EvaluatedModel":
    for option in ("overrides", "weights", "domain"):
        if getattr(args, option):
            shown = "section.field=value" if option == "overrides" else f"--{option}"
            raise GenerationError(
                f"{shown}: is for a checkpoint; the server of {args.model} has its own; leave it out, or give it to the"
                " server"
            )
    try:
        from pangu_ms.eval.remote import RemoteModel
    except ModuleNotFoundError as error:
        if error.name != "httpx":
            raise
        raise GenerationError(f"{args.model}: needs the package httpx, which is not there; {EXTRA}") from None
    from pangu_ms.data.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(args.tokenizer) if args.tokenizer else None
    key = _key(args.api_key_file) if args.api_key_file else ""
    return RemoteModel(args.model, args.model_name, key, tokenizer, connections=max(1, args.batch_size))


def _key(path: Path) -> str:
    from pangu_ms.core import small_json

    try:
        words = small_json.read_bytes(path, pipes=True).decode().split()
    except ValueError as error:
        raise GenerationError(f"--api-key-file {path}: cannot be read ({error}); name a file with the key") from None
    if not words:
        raise GenerationError(f"--api-key-file {path}: is empty; it must hold the key")
    return words[0]
