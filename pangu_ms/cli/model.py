"""`pangu model ACTION`: make a model from the parameters of another one."""

import dataclasses
import shlex
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pangu_ms.checkpoint.domains import inherit_base
from pangu_ms.checkpoint.store import Checkpoint, open_checkpoint
from pangu_ms.cli import options
from pangu_ms.cli.actions import run_action, whole_parser
from pangu_ms.config.load import load_config
from pangu_ms.core import runtime
from pangu_ms.core.errors import ConfigError
from pangu_ms.core.parser import Parser
from pangu_ms.core.table import print_result, table_lines
from pangu_ms.data.records import RecordSet
from pangu_ms.data.token_counts import domain_token_counts
from pangu_ms.models.common.config import ModelConfig
from pangu_ms.models.registry import FAMILIES
from pangu_ms.research.inherit import fit
from pangu_ms.research.inherit.masks import MaskOptions
from pangu_ms.research.inherit.pipeline import Choices, inherit
from pangu_ms.research.inherit.scores import CRITERIA
from pangu_ms.research.inherit.units import GROUPS

if TYPE_CHECKING:
    import numpy as np

ACTIONS = {
    "inherit": ("pangu_ms.cli.model:inherit_parser", "make a smaller model from a larger one"),
    "upgrade": ("pangu_ms.cli.model:upgrade_parser", "make a pi model from a LLaMA model, a sigma model from an alpha"),
}
INHERIT_HELP = """Make a student model whose parameters are those of the most important layers, heads, neurons and
channels of a teacher (PanGu-pi Pro, arXiv 2402.02791)."""
UPGRADE_HELP = """Make a model that computes the same function as the checkpoint's model, and has more parts to train:
from a LLaMA a PanGu-pi with series activations and augmented shortcuts (arXiv 2312.17276); from a PanGu-alpha, with
--config or model.family=sigma and its fields, a PanGu-Sigma, each expert of which is a copy of its layer's feed-forward
network (arXiv 2303.10845)."""
_NO_DATA = ("data.records=", "data.order=")  # the teacher's records have its tokens, and its order is of its own round
_GROUP_HELP = {
    "channels": (
        "criterion by which hidden channels are kept, the same ones in the whole model; norms then average over fewer"
        " channels, to which training adapts"
    ),
    "heads": "criterion by which attention heads are kept in each layer; heads that share keys and values are one unit",
    "neurons": "criterion by which feed-forward channels are kept in each layer",
}
_MASK_HELP = {
    "mask_steps": "optimizer steps that learn the masks, each on one calibration batch",
    "mask_lr": "Adam's learning rate for the mask logits",
    "mask_start": "initial logit of every mask",
    "mask_first_temperature": "first temperature of the sigmoid that turns logits into masks; it falls geometrically",
    "mask_last_temperature": "temperature at the last step",
    "mask_penalty": "weight of the penalty that pushes masks towards the wanted number of units",
}


def build_parser() -> Parser:
    """The options of all actions."""
    return whole_parser("pangu model", __doc__, ACTIONS)


def main(argv: list[str]) -> int:
    """Entry of the verb."""
    return run_action("model", __doc__, ACTIONS, argv)


def inherit_parser() -> Parser:
    """The options of `pangu model inherit`."""
    text = "overrides of the student's configuration, e.g. model.num_layers=20"
    parser = _parser("inherit", "TEACHER", INHERIT_HELP, text)
    text = "YAML file or shipped config of the student (default: the teacher's config with the overrides)"
    parser.add_argument("--config", metavar="NAME", help=text)
    text = "tokenizer of the student, which `pangu tokenizer compress` made from the teacher's"
    parser.add_argument("--tokenizer", type=Path, metavar="DIR", help=text)
    text = "layers of the teacher to keep, such as 0,1,2,5 (default: the first, the last and uniformly spaced ones)"
    parser.add_argument("--layers", metavar="LIST", help=text)
    parser.add_argument("--keep-first", type=int, default=3, help="number of first layers to keep (PanGu-pi Pro: 3)")
    parser.add_argument("--keep-last", type=int, default=3, help="number of last layers to keep (PanGu-pi Pro: 3)")
    for group in GROUPS:
        parser.add_argument(f"--{group}", choices=CRITERIA, default="l2", help=_GROUP_HELP[group])
    text = (
        "records written by `pangu data prepare` with the teacher's tokenizer; taylor, learned and the losses need them"
    )
    options.add_data(parser, text)
    text = "number of batches: training batches for taylor and learned, held-out batches for the losses"
    parser.add_argument("--calibration-batches", type=int, default=8, help=text)
    options.add_batch_size(parser, "sequences per calibration batch")
    options.add_fields(parser, MaskOptions, _MASK_HELP)
    text = "seed of the calibration batches, the random scores, and parameters that the teacher lacks"
    parser.add_argument("--seed", type=int, default=1, help=text)
    parser.set_defaults(run=_inherit)
    return parser


def upgrade_parser() -> Parser:
    """The options of `pangu model upgrade`."""
    defaults = " or ".join(dict.fromkeys(" ".join(words) for words in _additions().values()))
    text = f"what to add (default: {defaults}); the overrides must not change the function that the model computes"
    parser = _parser("upgrade", "CHECKPOINT", UPGRADE_HELP, text)
    text = "YAML file or shipped config of a model of another family, such as sigma/tiny (default: the checkpoint's)"
    parser.add_argument("--config", metavar="NAME", help=text)
    text = "for model.routing_mode=frequency_balanced: records whose tokens are counted, made with the new tokenizer"
    options.add_data(parser, text)
    text = "for another family: another tokenizer; rows of word tables whose piece the old one has, too, are copied"
    parser.add_argument("--tokenizer", type=Path, metavar="DIR", help=text)
    parser.add_argument("--seed", type=int, default=1, help="seed of the added parameters")
    parser.set_defaults(run=_upgrade)
    return parser


def _parser(action: str, source: str, description: str, overrides: str) -> Parser:
    """A parser with the options that both actions have."""
    parser = Parser(prog=f"pangu model {action}", description=description)
    options.add_checkpoint(parser, source)
    options.add_overrides(parser, overrides)
    text = "directory for the new checkpoint; it must hold no checkpoints, and is made if needed"
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help=text)
    options.add_json(parser)
    options.add_verbose(parser)
    return parser


def _inherit(args: Namespace) -> int:
    choices = _choices(args)
    runtime.quiet(args.verbose)
    teacher = open_checkpoint(args.checkpoint)
    if args.config:
        config = load_config(args.config, args.overrides)
    else:
        config = load_config(str(teacher.path / "config.yaml"), [*_NO_DATA, *args.overrides])
    result = inherit(teacher, config, args.output, choices, args.tokenizer, progress=not args.json)
    print_result(result, "\n".join(_table(result)), args.json)
    return 0


def _upgrade(args: Namespace) -> int:
    choices, additions = Choices(seed=_seed(args.seed)), _additions()
    runtime.quiet(args.verbose)
    checkpoint = open_checkpoint(args.checkpoint)
    old = checkpoint.config().model
    if args.config or args.tokenizer or args.data or any(text.startswith("model.family=") for text in args.overrides):
        return _upgrade_to_other_family(checkpoint, args)
    if old.family not in additions:
        others = [name for name, family in FAMILIES.items() if family.config.BASE_FAMILY == old.family]
        raise ConfigError(
            f"{checkpoint.path}: model.family={old.family}: only {' and '.join(additions)} models have parts to add;"
            f" {''.join(f'add model.family={name} and its fields, or ' for name in others)}name another checkpoint"
        )
    config = load_config(str(checkpoint.path / "config.yaml"), [*_NO_DATA, *additions[old.family], *args.overrides])
    fit.require_fit(old, config.model)
    fit.require_same_function(old, config.model)
    if config.model.num_parameters() == old.num_parameters():
        raise ConfigError(
            f"{checkpoint.path}: has these parts already; there is nothing to add; ask for more with model.siaf_terms"
            " and the like"
        )
    result = inherit(checkpoint, config, args.output, choices, progress=not args.json)
    print_result(result, "\n".join(_table(result)), args.json)
    return 0


def _upgrade_to_other_family(checkpoint: Checkpoint, args: Namespace) -> int:
    own = str(checkpoint.path / "config.yaml")
    config = load_config(args.config, args.overrides) if args.config else load_config(own, [*_NO_DATA, *args.overrides])
    old, new = checkpoint.config().model, config.model
    if new.BASE_FAMILY != old.family:
        raise ConfigError(_no_way(checkpoint, old, new))
    counts = _token_counts(new, args.data)
    seed, progress = _seed(args.seed), not args.json
    result = inherit_base(checkpoint, config, args.output, args.tokenizer, seed, counts, progress)
    output, (_, experts), (before, after) = result["output"], result["num_experts"], result["parameters"]
    file, place = shlex.quote(f"{output}/config.yaml"), shlex.quote(output)
    text = (
        f"{new.family}, {experts} experts a layer, parameters {before:,} -> {after:,}, new rows of word tables:"
        f" {result['new_rows']:,}\n"
        f"wrote {output}; go on with: pangu train --config {file} --init-from {place} --data RECORDS"
    )
    print_result(result, text, args.json)
    return 0


def _no_way(checkpoint: Checkpoint, old: ModelConfig, new: ModelConfig) -> str:
    """The message if a checkpoint cannot become a model of another family."""
    made = {name: family.config.BASE_FAMILY for name, family in FAMILIES.items() if family.config.BASE_FAMILY}
    ways = " or ".join(f"{base} to {name}" for name, base in made.items())
    where = f"{checkpoint.path}: is {old.family}"
    if new.family == old.family:
        return f"{where}: --config, --data and --tokenizer are for an upgrade from {ways}; leave them out"
    if new.family in made:
        return f"{where}: a {new.family} model is made from {made[new.family]}; name a checkpoint of that family"
    return (
        f"{where}: a {new.family} model is not made from one of another family, which is only done from {ways}; train"
        " one with `pangu train`, or leave --config and model.family out"
    )


def _token_counts(model: ModelConfig, records: str | None) -> "np.ndarray | None":
    """How often each token occurs in each domain of the records, if the model's tables depend on it."""
    if not model.uses_token_counts:
        if records:
            raise ConfigError(f"--data {records}: the model's tables do not depend on records; leave it out")
        return None
    if not records:
        raise ConfigError(
            "model.routing_mode=frequency_balanced: needs to know how often tokens occur; add --data RECORDS, or use"
            " random"
        )
    record_set = RecordSet.open(records)
    record_set.check(model)
    return domain_token_counts(record_set, model)


def _additions() -> dict[str, list[str]]:
    """For each family whose models can be extended: the overrides that add the parts."""
    made = {}
    for name, family in FAMILIES.items():
        if family.config.ADDITIONS:
            made[name] = [f"model.{field}={value}" for field, value in family.config.ADDITIONS.items()]
    return made


def _choices(args: Namespace) -> Choices:
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


def _table(result: dict[str, Any]) -> list[str]:
    """What was inherited, and the command that trains the student, as text."""
    criterion = {"hidden_size": "channels", "num_heads": "heads", "ffn_hidden_size": "neurons"}
    rows = []
    for name, values in result.items():
        if isinstance(values, list) and name not in ("layers", "loss"):
            group = criterion.get(name)
            chosen = f"{group}: {result['criteria'][group]}" if group and result["criteria"][group] else ""
            rows.append((name, f"{values[0]:,}", f"{values[1]:,}", chosen))
    if "loss" in result:
        teacher, student = result["loss"]
        note = "before training, with the teacher's vocabulary"
        rows.append((f"loss, {result['loss_split']}", f"{teacher:.4f}", f"{student:.4f}", note))
    output = result["output"]
    file, place = shlex.quote(f"{output}/config.yaml"), shlex.quote(output)
    return [
        *table_lines(("", "teacher", "student", ""), rows, "<>><"),
        f"layers of the teacher: {', '.join(map(str, result['layers']))}",
        f"wrote {output}; go on with: pangu train --config {file} --init-from {place} --data RECORDS --output RUN",
    ]
