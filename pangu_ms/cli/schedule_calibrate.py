"""`pangu schedule calibrate`: measure what the steps of an engine cost on this machine."""

from argparse import Namespace
from typing import TYPE_CHECKING, Any

from pangu_ms.cli import options
from pangu_ms.core import files, runtime
from pangu_ms.core.errors import ConfigError
from pangu_ms.core.parser import Parser
from pangu_ms.core.table import print_result, table_lines

if TYPE_CHECKING:
    from pangu_ms.infer.calibration import Served
    from pangu_ms.infer.scheduling.step_costs import StepCosts

DESCRIPTION = """Measure the steps of a checkpoint's engine on this machine, and write what they cost, for `pangu
schedule simulate --cost`: the graph of each number of slots with a chunk of a prompt and without, each row, each cached
token. Then some requests are served, and their measured time is shown beside the one that the simulator predicts."""


def build_parser() -> Parser:
    """The action's options."""
    parser = Parser(prog="pangu schedule calibrate", description=DESCRIPTION)
    options.add_checkpoint(parser)
    options.add_overrides(parser)
    text = "numbers of slots; a graph is compiled for each"
    parser.add_argument("--slots", type=int, nargs="+", default=[8], metavar="N", help=text)
    parser.add_argument("--chunk", type=int, default=64, metavar="TOKENS", help="most prompt tokens of a step")
    text = "tokens that a slot has room for (default: the model's context)"
    parser.add_argument("--max-length", type=int, metavar="TOKENS", help=text)
    for name, kind, default in (("temperature", float, 1.0), ("top_k", int, 0), ("top_p", float, 1.0)):
        option, text = f"--{name.replace('_', '-')}", options.SAMPLING_HELP[name]
        parser.add_argument(option, type=kind, default=default, help=text)
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="how often everything is measured")
    options.add_own_tokenizer(parser)
    options.add_new_file(parser, "--output", "new file for the costs", required=True)
    options.add_json(parser)
    options.add_verbose(parser)
    parser.set_defaults(run=_run)
    return parser


def _run(args: Namespace) -> int:
    for name, least in (("chunk", 1), ("rounds", 1), ("max_length", 2)):
        value = getattr(args, name)
        if value is not None and value < least:
            raise ConfigError(f"--{name.replace('_', '-')} {value}: must be at least {least}; correct it")
    if min(args.slots) < 1 or len(set(args.slots)) < len(args.slots):
        raise ConfigError(f"--slots {' '.join(map(str, args.slots))}: must be different numbers from 1 up; correct it")
    runtime.quiet(args.verbose)

    from pangu_ms.infer.scheduling import step_costs

    costs, served = _measured(args)
    step_costs.save(args.output, costs)
    cost = costs.cost
    graphs = {str(n): {"decode": cost.decode[n], "with_chunk": cost.with_chunk[n]} for n in cost.decode}
    result: dict[str, Any] = {"output": str(args.output), "graphs": graphs, "row": cost.row}
    result |= {"cached_token": cost.cached_token, "chunk": costs.chunk, "served": {}}
    for n, one in served.items():
        predicted = one.simulated.seconds
        result["served"][str(n)] = {"steps": one.steps, "simulated_steps": one.simulated.steps}
        result["served"][str(n)] |= {"seconds": one.seconds, "predicted": predicted, "ratio": one.seconds / predicted}
    print_result(result, _text(result), args.json)
    return 0


def _measured(args: Namespace) -> "tuple[StepCosts, dict[int, Served]]":
    """The costs, and what served requests took with each number of slots."""
    from pangu_ms.checkpoint.model import checkpoint_config
    from pangu_ms.checkpoint.store import open_checkpoint
    from pangu_ms.infer.calibration import measure_steps, serve
    from pangu_ms.infer.decoder import GraphShape
    from pangu_ms.infer.load import load_decoder, load_tokenizer
    from pangu_ms.infer.sampling import SamplingConfig
    from pangu_ms.infer.scheduling.step_costs import StepCosts, fit

    checkpoint = open_checkpoint(args.checkpoint)
    config = checkpoint_config(checkpoint, args.overrides)
    tokenizer = load_tokenizer(checkpoint, args.tokenizer)
    if args.max_length and args.max_length > config.model.seq_length:
        raise ConfigError(
            f"--max-length {args.max_length}: must be between 2 and the model's context of {config.model.seq_length}"
        )
    sampling = SamplingConfig(temperature=args.temperature, top_k=args.top_k, top_p=args.top_p)
    length = args.max_length or config.model.seq_length
    decoders = {}
    for slots in sorted(args.slots):
        shape = GraphShape.fitting(config.model.seq_length, slots, length, args.chunk)
        decoders[slots] = load_decoder(checkpoint, shape, config)
    steps = [step for one in decoders.values() for step in measure_steps(one, tokenizer, sampling, args.rounds)]
    cost = fit(steps)
    served = {slots: serve(decoder, tokenizer, sampling, cost) for slots, decoder in decoders.items()}
    return StepCosts(cost, decoders[min(decoders)].shape.chunk, files.sha256_json(checkpoint.manifest)), served


def _text(result: dict[str, Any]) -> str:
    rows = []
    for slots, graph in result["graphs"].items():
        one = result["served"][slots]
        times = [f"{1e3 * graph[key]:.2f}" for key in ("decode", "with_chunk")]
        seconds = [f"{one[key]:.2f}" for key in ("seconds", "predicted", "ratio")]
        rows.append((slots, *times, f"{one['steps']:,}", *seconds))
    more = f"{1e3 * result['row']:.3f} ms a row, {1e6 * result['cached_token']:.3f} us a cached token"
    head = ("slots", "step, ms", "with a chunk", "served: steps", "seconds", "predicted", "ratio")
    return "\n".join([f"{result['output']}: {more}", *table_lines(head, rows, ">>>>>>>")])
