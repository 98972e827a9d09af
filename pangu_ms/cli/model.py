"""`pangu model inherit` and `pangu model upgrade`: a model from the parameters of another one."""

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

from pangu_ms.checkpoint.store import Checkpoint, open_checkpoint
from pangu_ms.cli.config import add_override_arguments
from pangu_ms.config.load import load_config
from pangu_ms.config.schema import RunConfig
from pangu_ms.core import runtime
from pangu_ms.core.errors import ConfigError
from pangu_ms.core.parser import Parser
from pangu_ms.models.common.config import ModelConfig
from pangu_ms.models.registry import FAMILIES
from pangu_ms.research.inherit import fit
from pangu_ms.research.inherit.masks import MaskOptions
from pangu_ms.research.inherit.pipeline import Choices, inherit
from pangu_ms.research.inherit.scores import CRITERIA
from pangu_ms.research.inherit.units import GROUPS

_NO_DATA = ("data.records=", "data.order=")  # the teacher's are in its tokens, and of its round
_GROUP_HELP = {
    "channels": (
        "which hidden channels are kept, the same in the whole model; norms then divide by the mean over fewer, which"
        " training mends"
    ),
    "heads": "which attention heads are kept, in each layer; with shared keys and values, which whole groups of heads",
    "neurons": "which feed-forward channels are kept, in each layer",
}
_MASK_HELP = {
    "mask_steps": "steps of learning masks, each on one calibration batch",
    "mask_lr": "Adam's learning rate of the mask logits",
    "mask_start": "first logit of every mask",
    "mask_first_temperature": "of the sigmoid that makes a mask of a logit; it falls geometrically",
    "mask_last_temperature": "of the last step",
    "mask_penalty": "weight of the push towards the wanted number of units",
}


def main(argv: list[str]) -> int:
    """Entry of the verb."""
    verbs = {"inherit": _inherit, "upgrade": _upgrade}
    parser = Parser(prog="pangu model", description=__doc__, epilog="pangu model VERB --help says more.")
    parser.add_argument(
        "verb",
        choices=list(verbs),
        help="inherit: a smaller model from a larger one; upgrade: a pi model from a LLaMA one",
    )
    return verbs[parser.parse_args(argv[:1]).verb](argv[1:])


def _inherit(argv: list[str]) -> int:
    """A student model whose parameters are those of the most important layers, heads, neurons and channels of a teacher
    (spec E2.3)."""
    parser = _parser("inherit", "TEACHER", _inherit.__doc__, "of the student, e.g. model.num_layers=20")
    parser.add_argument(
        "--config",
        metavar="NAME",
        help="YAML file or shipped config of the student; none: the teacher's with overrides",
    )
    tokenizer_help = "compact tokenizer of the student, written by `pangu tokenizer compress` from the teacher's"
    parser.add_argument("--tokenizer", type=Path, metavar="DIR", help=tokenizer_help)
    parser.add_argument(
        "--layers",
        metavar="LIST",
        help="layers of the teacher, such as 0,1,2,5; none: the first, the last and uniformly spaced ones",
    )
    parser.add_argument("--keep-first", type=int, default=3, help="layers kept at the beginning (spec E2.3: 3)")
    parser.add_argument("--keep-last", type=int, default=3, help="layers kept at the end (spec E2.3: 3)")
    for group in GROUPS:
        parser.add_argument(f"--{group}", choices=CRITERIA, default="l2", help=_GROUP_HELP[group])
    data_help = "written by `pangu data prepare` with the teacher's tokenizer; for taylor and learned, and for losses"
    parser.add_argument("--data", metavar="RECORDS", help=data_help)
    parser.add_argument(
        "--calibration-batches",
        type=int,
        default=8,
        help="training batches for taylor and learned, held-out ones for losses",
    )
    parser.add_argument("--batch-size", type=int, default=8, help="sequences of a calibration batch")
    for option in dataclasses.fields(MaskOptions):
        parser.add_argument(
            _flag(option.name), type=type(option.default), default=option.default, help=_MASK_HELP[option.name]
        )
    parser.add_argument(
        "--seed",
        type=int,
        default=1,
        help="of calibration batches, random scores and parameters that the teacher lacks",
    )
    args = parser.parse_intermixed_args(argv)
    choices = _choices(args)
    runtime.quiet(args.verbose)
    teacher = open_checkpoint(args.checkpoint)
    config = (
        load_config(args.config, args.overrides)
        if args.config
        else load_config(str(teacher.path / "config.yaml"), [*_NO_DATA, *args.overrides])
    )
    return _run(teacher, config, choices, args, args.tokenizer)


def _upgrade(argv: list[str]) -> int:
    """A PanGu-pi model that computes what the checkpoint's does, with series activations and augmented shortcuts to
    train (spec D2, D3)."""
    by_family = {name: _additions(family.config) for name, family in FAMILIES.items() if family.config.ADDITIONS}
    defaults = ", ".join(" ".join(words) for words in by_family.values())
    overrides = f"by default {defaults}; they must leave the function as it is"
    parser = _parser("upgrade", "CHECKPOINT", _upgrade.__doc__, overrides)
    parser.add_argument("--seed", type=int, default=1, help="of the added parameters")
    args = parser.parse_intermixed_args(argv)
    runtime.quiet(args.verbose)
    checkpoint = open_checkpoint(args.checkpoint)
    old = checkpoint.config().model
    if old.family not in by_family:
        raise ConfigError(
            f"{checkpoint.path}: model.family={old.family}: only {', '.join(by_family)} has parts to add; name another"
            " checkpoint"
        )
    config = load_config(str(checkpoint.path / "config.yaml"), [*_NO_DATA, *by_family[old.family], *args.overrides])
    fit.require_fit(old, config.model)
    fit.require_same_function(old, config.model)
    if config.model.num_parameters() == old.num_parameters():
        raise ConfigError(
            f"{checkpoint.path}: has these parts already; there is nothing to add; ask for more with model.siaf_terms"
            " and the like"
        )
    return _run(checkpoint, config, Choices(seed=_seed(args.seed)), args)


def _additions(config: type[ModelConfig]) -> list[str]:
    """A family's additions as overrides."""
    return [f"model.{name}={value}" for name, value in config.ADDITIONS.items()]


def _parser(verb: str, what: str, description: str | None, overrides: str) -> argparse.ArgumentParser:
    formatter = argparse.ArgumentDefaultsHelpFormatter
    parser = Parser(prog=f"pangu model {verb}", description=description, formatter_class=formatter)
    parser.add_argument(
        "checkpoint", metavar=what, type=Path, help="a run directory, its checkpoints directory, or one step of it"
    )
    add_override_arguments(parser, overrides)
    parser.add_argument(
        "--output",
        required=True,
        default=argparse.SUPPRESS,
        type=Path,
        metavar="DIR",
        help="directory without checkpoints; made if needed",
    )
    parser.add_argument("--json", action="store_true", help="machine-readable output")
    parser.add_argument("--verbose", action="store_true", help="show MindSpore's own messages")
    return parser


def _choices(args: argparse.Namespace) -> Choices:
    masks = MaskOptions(**{option.name: getattr(args, option.name) for option in dataclasses.fields(MaskOptions)})
    same = ("keep_first", "keep_last", "data", "calibration_batches", "batch_size")
    criteria = {group: getattr(args, group) for group in GROUPS}
    return Choices(
        criteria=criteria,
        layers=_layers(args.layers),
        masks=masks,
        seed=_seed(args.seed),
        **{name: getattr(args, name) for name in same},
    )


def _layers(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    numbers = text.split(",")
    if not all(number.strip().isdecimal() for number in numbers):
        raise ConfigError(f"--layers {text}: must be numbers separated by commas, such as 0,1,2,5; correct it")
    return tuple(map(int, numbers))


def _seed(seed: int) -> int:
    if seed < 0:
        raise ConfigError(f"--seed {seed}: must not be negative; use 0 or more")
    return seed


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _run(
    teacher: Checkpoint, config: RunConfig, choices: Choices, args: argparse.Namespace, tokenizer: Path | None = None
) -> int:
    result = inherit(teacher, config, args.output, choices, tokenizer, progress=not args.json)
    print(json.dumps(result) if args.json else "\n".join(_table(result)))
    return 0


def _table(result: dict[str, Any]) -> list[str]:
    """What was inherited, and how to go on."""
    criterion = {"hidden_size": "channels", "num_heads": "heads", "ffn_hidden_size": "neurons"}
    lines = [f"{'':<22}{'teacher':>16}{'student':>16}"]
    for name, values in result.items():
        if isinstance(values, list) and name not in ("layers", "loss"):
            group = criterion.get(name)
            chosen = f"  {group}: {result['criteria'][group]}" if group and result["criteria"][group] else ""
            lines.append(f"{name:<22}{values[0]:>16,}{values[1]:>16,}{chosen}")
    if "loss" in result:
        teacher, student = result["loss"]
        lines.append(
            f"{'loss, ' + result['loss_split']:<22}{teacher:>16.4f}{student:>16.4f}  before training, with the"
            " teacher's vocabulary"
        )
    lines.append(f"layers of the teacher: {', '.join(map(str, result['layers']))}")
    output = result["output"]
    return [
        *lines,
        (
            f"wrote {output}; go on with: pangu train --config {output}/config.yaml --init-from {output} --data RECORDS"
            " --output RUN"
        ),
    ]
