"""`pangu ckpt reshard`: convert a checkpoint from any parallel plan to any other, or to and from an unsharded one."""

import dataclasses
import functools
import json
from argparse import Namespace
from pathlib import Path
from typing import Any

from pangu_ms.checkpoint import store
from pangu_ms.checkpoint.mindspore_shards import open_shards
from pangu_ms.checkpoint.reshard import Source, check, reshard
from pangu_ms.cli import options
from pangu_ms.config import RunConfig, load_config
from pangu_ms.config.load import config_to_dict, dump_config
from pangu_ms.config.parallel import ParallelConfig
from pangu_ms.core import files
from pangu_ms.core.errors import CheckpointError, ConfigError
from pangu_ms.core.parser import Parser, RawHelp
from pangu_ms.core.size_text import size_text
from pangu_ms.core.table import print_result
from pangu_ms.data.tokenizer import Tokenizer, require_vocabulary
from pangu_ms.parallel.mesh import Mesh
from pangu_ms.train import global_batch
from pangu_ms.train.guard import Guard

_DESCRIPTION = """\
From plan to plan:     pangu ckpt reshard CHECKPOINT --output DIR parallel.model_parallel=8 [parallel.FIELD=VALUE ...]
To the plan of a run:  pangu ckpt reshard CHECKPOINT --output DIR --config NAME
To one device:         pangu ckpt reshard CHECKPOINT --output DIR --whole
From MindSpore's own:  pangu ckpt reshard --from-mindspore DIR --strategy FILE ... --config NAME --output DIR

CHECKPOINT is a step directory, a directory of step directories, or a run directory; it may be whole or sharded. Its
plan is the section `parallel` of its config.yaml; the new checkpoint has this section with the changes that you give.
Model, optimizer, state and tokenizer are copied, and all values stay bit for bit the same. The command needs memory for
about one parameter.
DIR is a run directory afterwards: `pangu train --config DIR/config.yaml --data RECORDS --output DIR --resume` resumes
it. (To resume CHECKPOINT's own run on another number of cards, no reshard is needed: `pangu train --resume` reads what
each rank needs from a checkpoint of any plan.)
A sharded checkpoint stores every slice once, in the file of the first rank that holds it. eval, generate, export and
convert read it directly.
The global batch size does not change: train.batch_size, which is that of one replica, and the number of micro-batches
are adapted to data_parallel, unless you give train.batch_size."""

_BATCH = ("train.batch_size", "train.accumulation_steps")


def build_parser() -> Parser:
    """The action's options."""
    parser = Parser(prog="pangu ckpt reshard", description=_DESCRIPTION, formatter_class=RawHelp)
    text = "the checkpoint to reshard; leave it out with --from-mindspore"
    parser.add_argument("checkpoint", nargs="?", metavar="CHECKPOINT", help=text)
    text = "run directory to make, new or empty; the new step is written below checkpoints/"
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help=text)
    text = (
        "write an unsharded checkpoint; its plan is that of one device, or (with CHECKPOINT) that of --config, with"
        " your overrides"
    )
    parser.add_argument("--whole", action="store_true", help=text)
    text = (
        "step of CHECKPOINT to use (default: the newest valid one); with --from-mindspore: number of optimizer steps"
        " done (default: 0)"
    )
    parser.add_argument("--step", type=int, metavar="N", help=text)
    text = "MindSpore's own sharded checkpoint: directories DIR/rank_N/ with one .ckpt or .safetensors in each"
    parser.add_argument("--from-mindspore", type=Path, metavar="DIR", help=text)
    text = "strategy files of --from-mindspore: one merged file, or one for each stage"
    parser.add_argument("--strategy", type=Path, nargs="+", metavar="FILE", help=text)
    parser.add_argument("--tokenizer", type=Path, metavar="DIR", help="tokenizer to copy, with --from-mindspore")
    options.add_json(parser)
    options.add_config(parser, default=None)
    parser.set_defaults(run=functools.partial(_run, parser))
    return parser


def _run(parser: Parser, args: Namespace) -> int:
    _require_whole_command(parser, args)
    _require_new_run(args.output)
    source, old, new, left_out = _from_mindspore(args) if args.from_mindspore else _from_ours(args)
    path = reshard(source, _root(args), new, args.whole, progress=True)
    files.write_text(args.output / "config.yaml", dump_config(new))
    result = _result(path, source, old, new, args.whole) | {"left_out": left_out}
    print_result(result, _text(result), args.json)
    return 0


def _require_whole_command(parser: Parser, args: Namespace) -> None:
    """End with the parser's error if options do not go together. With --from-mindspore, the positional CHECKPOINT is an
    override too."""
    if args.from_mindspore:
        args.overrides = [word for word in (args.checkpoint, *args.overrides) if word]
        if not args.strategy or not args.config:
            parser.error(
                "--from-mindspore needs --strategy FILE and --config NAME: its files do not say how tensors were cut,"
                " and which model it is"
            )
    elif args.strategy or args.tokenizer:
        parser.error("--strategy and --tokenizer go with --from-mindspore: a checkpoint of ours has its own")
    elif args.checkpoint is None or "=" in args.checkpoint and not Path(args.checkpoint).exists():
        parser.error("CHECKPOINT is missing: name what to reshard before the overrides, or --from-mindspore DIR")
    if args.step is not None and args.step < 0:
        parser.error(f"--step {args.step}: steps are counted from 0")


def _from_ours(args: Namespace) -> tuple[Source, RunConfig, RunConfig, list[str]]:
    for override in args.overrides:
        if not override.startswith("parallel.") and override.partition("=")[0] not in _BATCH:
            raise ConfigError(
                f"{override}: a checkpoint keeps its configuration; only parallel.*, {' and '.join(_BATCH)} can be"
                " changed; leave it out"
            )
    section = load_config(args.config).parallel if args.config else ParallelConfig() if args.whole else None
    path = _step_path(Path(args.checkpoint), args.step)

    def planned(checkpoint: store.Checkpoint) -> tuple[Source, RunConfig, RunConfig]:
        old = checkpoint.config()
        new = _with_plan(checkpoint.path / "config.yaml", old, section, args.overrides)
        if not any(word.startswith("train.batch_size=") for word in args.overrides):
            new = _with_plan(
                checkpoint.path / "config.yaml", old, section, [*args.overrides, *_keeping_batch(old, new)]
            )
        return Source.of(checkpoint), old, new

    source, _, new = planned(store.open_checkpoint(path, digests=False))
    check(source, _root(args), new)  # errors are found before the digests are computed, which may take minutes
    return *planned(store.open_checkpoint(path, progress=True)), []


def _keeping_batch(old: RunConfig, new: RunConfig) -> list[str]:
    if new.global_batch_size == old.global_batch_size:
        return []
    keeping = global_batch.overrides_for(new, old.global_batch_size)
    if keeping is None:
        cannot = global_batch.why_not(new, old.global_batch_size)
        rule = "must stay, or a run that goes on reads other samples"
        raise ConfigError(
            f"the global batch of {old.global_batch_size} sequences: {cannot}; {rule}; use other degrees, or give"
            " train.batch_size to change it"
        )
    return keeping


def _require_new_run(output: Path) -> None:
    """Raise OutputError unless `output` is missing or empty, apart from leftovers of a killed reshard."""
    inside = sorted(output.iterdir()) if output.is_dir() else []
    store.require_unused(output / "checkpoints" if [path.name for path in inside] == ["checkpoints"] else output)


def _root(args: Namespace) -> Path:
    return args.output / "checkpoints"


def _from_mindspore(args: Namespace) -> tuple[Source, RunConfig | None, RunConfig, list[str]]:
    new = load_config(args.config, args.overrides)
    if args.whole:
        new = _with_plan(Path(args.config), new, ParallelConfig(), args.overrides)
    if args.tokenizer:
        require_vocabulary(Tokenizer.load(args.tokenizer), new.model.vocab_size)
    shards = open_shards(args.from_mindspore, args.strategy, new.model)
    imported = {
        "directory": args.from_mindspore.name,
        "format": "mindspore",
        "sha256": {path.name: files.sha256_file(path) for path in args.strategy},
    }
    step = args.step or 0
    state = {"step": step, "guard": Guard.create(new).state(), "imported": imported}  # what a run needs to resume
    return (
        Source(str(args.from_mindspore), step, shards.groups, json.dumps(state, indent=2).encode(), args.tokenizer),
        None,
        new,
        shards.left_out,
    )


def _step_path(path: Path, step: int | None) -> Path:
    if step is None:
        return path
    root = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    if not (root / f"step-{step:08d}").is_dir():
        steps = ", ".join(str(int(found.name[5:])) for found in sorted(root.glob("step-????????"))) or "none"
        raise CheckpointError(f"{root}: has no step {step}; its steps: {steps}; name one of these")
    return root / f"step-{step:08d}"


def _with_plan(path: Path, config: RunConfig, section: ParallelConfig | None, overrides: list[str]) -> RunConfig:
    """Load the configuration in `path`, replace its section `parallel` if one is given, then apply the overrides.

    A plan with several ranks keeps no experts in host memory: that is for one process, and changes no number.
    """
    own = dataclasses.asdict(config.parallel)
    changed = {key: value for key, value in dataclasses.asdict(section or config.parallel).items() if value != own[key]}
    # The value of an override is YAML, of which JSON is a part.
    words = [f"parallel.{key}={json.dumps(value)}" for key, value in changed.items()] + overrides
    if config.offload.experts:
        new = load_config(str(path), [*words, "offload.experts=false"])
        if new.parallel.world > 1:
            return new
    return load_config(str(path), words)


def _result(path: Path, source: Source, old: RunConfig | None, new: RunConfig, whole: bool) -> dict[str, Any]:
    return {
        "output": str(path),
        "step": source.step,
        "whole": whole,
        "ranks": new.parallel.world,
        "files": len(list(path.glob("*.safetensors"))),
        "tensors": {group: len(tensors) for group, tensors in source.groups.items()},
        "bytes": source.nbytes,
        "mesh": {"pp": new.parallel.pipeline_stage} | dict(Mesh.of(new.parallel).axes),
        "parallel": config_to_dict(new)["parallel"],
        "global_batch_size": {"before": old and old.global_batch_size, "after": new.global_batch_size},
    }


def _text(result: dict[str, Any]) -> str:
    axes = ", ".join(f"{name} {size}" for name, size in result["mesh"].items())
    how = "whole" if result["whole"] else f"for {result['ranks']:,} ranks ({axes})"
    tensors = ", ".join(f"{count:,} {group}" for group, count in result["tensors"].items())
    lines = [
        f"wrote {result['output']}, {how}: {tensors} tensors, {size_text(result['bytes'])} in {result['files']:,} files"
    ]
    before, after = result["global_batch_size"].values()
    if before not in (None, after):
        lines.append(
            f"note: the global batch is now {after} sequences, it was {before}; leave train.batch_size, that of one"
            " replica, out to keep it"
        )
    if result["left_out"]:
        lines.append(f"left out, as not of the model or its optimizer: {', '.join(result['left_out'])}")
    return "\n".join(lines)
