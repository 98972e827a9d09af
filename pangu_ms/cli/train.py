"""`pangu train`: train a model on prepared records, or resume a run."""

import contextlib
import dataclasses
import sys
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pangu_ms.cli import options
from pangu_ms.config.load import load_config
from pangu_ms.config.schema import RunConfig
from pangu_ms.core import files, runtime
from pangu_ms.core.errors import ConfigError, NoRoom
from pangu_ms.core.exit_codes import EXIT_STOPPED
from pangu_ms.core.parser import Parser
from pangu_ms.core.table import print_result
from pangu_ms.data.domains import require_run_domains
from pangu_ms.data.records import RecordSet
from pangu_ms.train.checks import (
    needs_ranks,
    require_executable,
    require_readable,
    require_shared_records,
    require_startable,
)
from pangu_ms.train.directory import OWN_DATA, RunLock, require_own
from pangu_ms.train.schedule import decay_end
from pangu_ms.train.trackers import TRACKERS

DATA_HELP = (
    "directory written by `pangu data prepare`, or MindRecord files (default: data.records, or if that is empty the"
    " quickstart's corpus, which is prepared in DIR/data)"
)
RESUME_FROM_HELP = (
    "resume from the checkpoint of that step; optimizer.lr, min_lr and clip_norm may be changed, and later checkpoints"
    " are moved aside; if the same command is repeated, it resumes where it stopped"
)


def build_parser() -> Parser:
    """The verb's options."""
    parser = Parser(prog="pangu train", description=__doc__)
    options.add_config(parser)
    text = "run directory, for config.yaml, metrics.jsonl and checkpoints/"
    parser.add_argument("--output", required=True, metavar="DIR", help=text)
    options.add_data(parser, DATA_HELP)
    text = "resume from the newest valid checkpoint in --output; if there is none, start a new run"
    parser.add_argument("--resume", action="store_true", help=text)
    parser.add_argument("--resume-from", type=int, metavar="STEP", help=RESUME_FROM_HELP)
    text = "start a new run from these weights, with a new optimizer state; ignored if --resume finds a checkpoint"
    parser.add_argument("--init-from", metavar="CHECKPOINT", help=text)
    text = "stop after that step and save a checkpoint"
    parser.add_argument("--stop-at", type=int, metavar="STEP", help=text)
    parser.add_argument("--tensorboard", action="store_true", help="also write OUTPUT/tensorboard")
    text = "also send the metrics to this tracker; may be given several times; --tensorboard is --tracker tensorboard"
    parser.add_argument("--tracker", action="append", choices=TRACKERS, default=[], help=text)
    options.add_json(parser, "print the result as JSON")
    options.add_verbose(parser)
    return parser


def parse(argv: list[str]) -> Namespace:
    """Parse the arguments of `pangu train`.

    Raises:
        ConfigError: --stop-at or --resume-from is not a valid step.
    """
    args = build_parser().parse_intermixed_args(argv)
    if args.stop_at is not None and args.stop_at < 1:
        raise ConfigError(f"--stop-at {args.stop_at}: must be at least 1; leave it out to train to the end")
    if args.resume_from is not None and args.resume_from < 0:
        raise ConfigError(f"--resume-from {args.resume_from}: must be the step of a checkpoint; see OUTPUT/checkpoints")
    args.trackers = list(dict.fromkeys([*(["tensorboard"] if args.tensorboard else []), *args.tracker]))
    args.resume = args.resume or args.resume_from is not None
    return args


def main(argv: list[str]) -> int:
    """Entry of the verb."""
    args = parse(argv)
    config = load_config(args.config, args.overrides)
    require_executable(config)
    require_shared_records(config, args.data or config.data.records)
    runtime.quiet(args.verbose)

    output = Path(args.output)
    # If there are several ranks, the process that starts them makes these checks, not each rank.
    alone = runtime.place()[1] == 1 and not needs_ranks(config)
    if alone:  # mistakes are reported before MindSpore is imported, which takes seconds, and before records are made
        require_startable_alone(config, args)
    records = args.data or config.data.records or default_records(config, output, args.resume, progress=not args.json)
    if alone:
        domains = RecordSet.require_declared(records, "train", config.model)
        require_run_domains(str(records), domains, config.data, config.model)
    if needs_ranks(config):
        require_startable(config, **start_options(args))
        require_readable(config, records)
        from pangu_ms.cli.train_ranks import train_on_ranks  # here, since asyncio would delay every start

        return train_on_ranks(argv, config, output)
    from pangu_ms.train.loop import train

    session = {
        "stop_at": args.stop_at,
        "progress": not args.json,
        "trackers": args.trackers,
        "resume_from": args.resume_from,
    }
    with _advice_to_resume(output):
        result = train(config, records, output, args.resume, args.init_from, **session)
    if runtime.place()[0] == 0:  # only rank 0 prints the result
        print_result(_as_dict(result), _as_text(result, config), args.json)
    if result.stopped_by and result.stopped_by != "stop_at":
        print(
            f"stopped by {result.stopped_by}; {_saved(result)}; the same command with --resume goes on", file=sys.stderr
        )
        return EXIT_STOPPED
    return 0


@contextlib.contextmanager
def _advice_to_resume(output: Path) -> Iterator[None]:
    """If the disk is full, name the command that goes on: without --resume a directory with a run is refused."""
    go_on = "run the same command with --resume, which goes on from the newest checkpoint"
    try:
        yield
    except NoRoom as error:
        raise NoRoom(error.path, error.reason, go_on) from error
    except OSError as error:
        if error.errno not in files.NO_ROOM:
            raise
        raise NoRoom(error.filename or output, str(error.strerror), go_on) from error


def start_options(args: Namespace) -> dict[str, Any]:
    """The keyword arguments of `require_startable`."""
    names = ("resume", "resume_from", "init_from", "trackers")
    return {"output": Path(args.output)} | {name: getattr(args, name) for name in names}


def require_startable_alone(config: RunConfig, args: Namespace) -> None:
    """Like `require_startable`, but first reports another run that is active in the directory."""
    # The lock is held for these checks only; the training loop takes it again.
    with contextlib.closing(RunLock(Path(args.output))) as lock:
        lock.acquire()
        require_startable(config, **start_options(args))


def default_records(config: RunConfig, output: Path, resume: bool, progress: bool) -> Path:
    """Records of the standard library's source in OUTPUT/data. They are made if they do not exist yet."""
    from pangu_ms.data.default_corpus import build_default_records

    directory = output / OWN_DATA
    if not (directory / "records").exists():
        require_own(output, resume)
        directory.mkdir(parents=True, exist_ok=True)
        build_default_records(config, directory, progress)
    return directory / "records"


def _as_dict(result: Any) -> dict[str, Any]:
    held_out = result.held_out and _score_as_dict(result.held_out)
    return dataclasses.asdict(result) | {"output": str(result.output), "held_out": held_out}


def _score_as_dict(score: Any) -> dict[str, Any]:
    shown: dict[str, Any] = {"loss": score.loss, "perplexity": score.perplexity}
    if score.domains:
        shown["domains"] = {domain: _score_as_dict(own) for domain, own in score.domains.items()}
    return shown


def _as_text(result: Any, config: RunConfig) -> str:
    finished = result.loss is None
    done = "nothing left to do" if finished else f"loss {result.loss:.4f}, {result.tokens_per_second:,.0f} tokens/s"
    return f"{result.output}: step {result.step}, {done}{_notes(result)}" + (
        f"; to lengthen the run, add {_lengthening(config)}" if finished else ""
    )


def _lengthening(config: RunConfig) -> str:
    """The overrides that continue a finished run. They keep the learning rates of the steps already done, so a decay
    that has begun still ends at the same step."""
    end, warmup = decay_end(config), config.optimizer.warmup_steps
    keeps_end = end and end > warmup and end != config.optimizer.decay_steps
    return f"a train.steps above {config.train.steps}" + (f" and optimizer.decay_steps={end}" if keeps_end else "")


def _saved(result: Any) -> str:
    if result.saved == result.step:
        return "the checkpoint is committed"
    before = "there is none before it" if result.saved is None else f"the newest one is of step {result.saved}"
    return f"no checkpoint of step {result.step} is committed, since the losses after it are bad; {before}"


def _notes(result: Any) -> str:
    held_out = f", held-out perplexity {result.held_out.perplexity:.2f}" if result.held_out else ""
    held_out += "".join(f", {name} {value:.2f}" for name, value in result.task_scores.items())
    return held_out + (f", {result.skipped} steps skipped" if result.skipped else "")
