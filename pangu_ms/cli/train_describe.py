"""`python -m pangu_ms.cli.train_describe [options] -- ARGUMENTS`: print what a launcher has to know about `pangu train
ARGUMENTS` as JSON, after all checks that need no device.

mindspore is imported where records are read, and only there.
"""

import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

from pangu_ms.cli.train import default_records, parse, start_options
from pangu_ms.config.load import load_config
from pangu_ms.config.schema import RunConfig
from pangu_ms.core import runtime
from pangu_ms.core.console import guarded
from pangu_ms.core.errors import ConfigError
from pangu_ms.core.parser import Parser
from pangu_ms.core.table import print_json
from pangu_ms.parallel.mesh import Mesh
from pangu_ms.train.checks import (
    describe_run,
    require_readable,
    require_shared_records,
    require_startable,
    require_trainable,
)
from pangu_ms.train.smoke import smoke_overrides

DEVICES = {"cpu": "CPU", "ascend": "Ascend"}
SMOKE_RANKS = 2
"""Processes of --smoke unless --num-ranks says otherwise."""


def build_parser() -> Parser:
    """The options before `--`."""
    parser = Parser(prog="python -m pangu_ms.cli.train_describe", description=__doc__)
    text = "number of processes (default: that of the plan; with --smoke 2)"
    parser.add_argument("--num-ranks", type=int, metavar="N", help=text)
    parser.add_argument("--device", choices=DEVICES, help="device of the processes (default: runtime.device)")
    text = "run a thinned model on CPU processes instead of the plan"
    parser.add_argument("--smoke", action="store_true", help=text)
    parser.add_argument("--placement", action="store_true", help="print only ranks and devices; check no paths")
    text = "this is not the first host: write nothing, and leave the output directory to the first host"
    parser.add_argument("--follower", action="store_true", help=text)
    text = "check no path except the configuration's, since the others may exist only on the cluster"
    parser.add_argument("--skip-paths", action="store_true", help=text)
    return parser


def main(argv: list[str]) -> int:
    """Entry of the command."""
    cut = argv.index("--") if "--" in argv else len(argv)
    options, words = build_parser().parse_args(argv[:cut]), argv[cut + 1 :]
    # `train` requires an --output; to place ranks none is needed, and nothing is written.
    args = parse([*words, "--output", "none"] if options.placement else words)
    runtime.quiet(args.verbose)
    added = added_words(args, options.num_ranks, options.device, options.smoke)
    config = load_config(args.config, [*args.overrides, *added])
    require_trainable(config)
    description = ranks_and_devices(config)
    if not options.placement:
        unchecked = check(args, config, options.follower, options.skip_paths)
        description |= {"words": [*words, *added], "output": args.output, "unchecked": unchecked} | describe_run(config)
    print_json(description)
    return 0


def added_words(
    args: Namespace, num_ranks: int | None = None, device: str | None = None, smoke: bool = False
) -> list[str]:
    """The overrides that the launcher's options stand for. They are appended to the arguments of `train`.

    Raises:
        ConfigError: an option contradicts the configuration, another option, or the user's own overrides.
    """
    config = load_config(args.config, args.overrides)
    if num_ranks is not None and num_ranks < 1:
        raise ConfigError(f"--num-ranks {num_ranks}: must be at least 1; leave it out to take the plan's")
    if smoke:
        _require_smoke(args, device)
        return smoke_overrides(config, num_ranks or SMOKE_RANKS, bool(_named_records(args, config)))
    target = DEVICES[device] if device else config.runtime.device
    added = {} if target == config.runtime.device else {"--device": {"runtime.device": target}}
    given = dict(word.partition("=")[::2] for word in args.overrides)
    if target == "CPU":
        if num_ranks and num_ranks != config.parallel.data_parallel:
            other_product = {"parallel.num_devices": "0"} if config.parallel.num_devices else {}
            added["--num-ranks"] = {"parallel.data_parallel": str(num_ranks)} | other_product
        if "--device" in added and config.model.compute_dtype != "float32" and "model.compute_dtype" not in given:
            added["--device"]["model.compute_dtype"] = "float32"
    elif num_ranks not in (None, config.parallel.world):
        raise ConfigError(
            f"--num-ranks {num_ranks}: the plan has {config.parallel.world} ranks; must be equal on {target}; leave it"
            " out or change the plan"
        )
    for option, fields in added.items():
        for name in fields.keys() & given.keys():
            raise ConfigError(f"{option}: {name}={given[name]} is given, too; they must agree; leave one of them out")
    return [f"{name}={value}" for fields in added.values() for name, value in fields.items()]


def _require_smoke(args: Namespace, device: str | None) -> None:
    if device == "ascend":
        raise ConfigError("--smoke: runs on CPU processes; found --device ascend; leave one of them out")
    if args.init_from:
        raise ConfigError(
            f"--smoke: --init-from {args.init_from}: these weights do not fit a thinned model; leave --init-from out"
        )


def ranks_and_devices(config: RunConfig) -> dict[str, Any]:
    """A dict with world, device, chip, devices_per_server, and placement: for each rank its [server, device], counted
    from 0."""
    parallel = config.parallel
    placement = [[place.server, place.device] for place in Mesh.of(parallel).placement()]
    device = {
        "device": config.runtime.device,
        "chip": config.runtime.chip,
        "devices_per_server": parallel.devices_per_server,
    }
    return {"world": parallel.world, **device, "placement": placement}


def check(args: Namespace, config: RunConfig, follower: bool, skip_paths: bool) -> list[str]:
    """Raise a UserError for mistakes that would otherwise end the ranks as soon as they start. If no records are named,
    the first host makes the default records.

    Returns:
        The paths that were not checked, with their options.
    """
    named = _named_records(args, config)
    require_shared_records(config, named)
    unchecked = [f"--output {args.output}", *([f"--init-from {args.init_from}"] if args.init_from else [])]
    if skip_paths:
        fields = {"data.order": config.data.order, "parallel.operator_strategies": config.parallel.operator_strategies}
        return [
            *([f"records {named}"] if named else []),
            *unchecked,
            *(f"{name}={path}" for name, path in fields.items() if path),
        ]
    if follower:
        if named:
            require_readable(config, named)
        return unchecked
    output = Path(args.output)
    require_startable(config, **start_options(args))
    require_readable(config, named or default_records(config, output, args.resume, progress=not args.json))
    return []


def _named_records(args: Namespace, config: RunConfig) -> str:
    return args.data or config.data.records


if __name__ == "__main__":
    sys.exit(guarded("pangu train", lambda: main(sys.argv[1:])))
