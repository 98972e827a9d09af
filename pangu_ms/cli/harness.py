"""`pangu harness ACTION`: tasks of lm-eval (EleutherAI's lm-evaluation-harness) with models of ours, and tasks of ours
for lm-eval."""

import shlex
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from pangu_ms.cli import options, tasks_options
from pangu_ms.cli.actions import run_action, whole_parser
from pangu_ms.cli.evaluated_model import EXTRA, add_model, is_url, open_model
from pangu_ms.core import runtime
from pangu_ms.core.console import tell
from pangu_ms.core.errors import ConfigError, GenerationError
from pangu_ms.core.parser import TEXT, Parser
from pangu_ms.core.table import print_result, table_lines

if TYPE_CHECKING:
    from pangu_ms.eval.harness import Chat
    from pangu_ms.eval.tasks.model import EvaluatedModel

ACTIONS = {
    "run": ("pangu_ms.cli.harness:run_parser", "score a model on tasks of lm-eval"),
    "export": ("pangu_ms.cli.harness:export_parser", "write tasks of ours as tasks of lm-eval"),
}


def build_parser() -> Parser:
    """The options of all actions."""
    return whole_parser("pangu harness", __doc__, ACTIONS)


def main(argv: list[str]) -> int:
    """Entry of the verb. Options may be spelt as lm-eval spells them, with _ in place of -."""
    return run_action("harness", __doc__, ACTIONS, [_with_hyphens(word) for word in argv])


def _with_hyphens(word: str) -> str:
    name, sign, value = word.partition("=")
    return name.replace("_", "-") + sign + value if name.startswith("--") else word


def run_parser() -> Parser:
    """The options of `pangu harness run`."""
    parser = Parser(prog="pangu harness run", description=ACTIONS["run"][1])
    add_model(parser)
    text = "names of tasks or groups of lm-eval; `lm-eval ls tasks` lists them"
    parser.add_argument("--tasks", required=True, metavar="NAME,...", help=text)
    text = "a directory with task files of your own; if it has all tasks, lm-eval's are not looked at"
    parser.add_argument("--include-path", type=Path, metavar="DIR", help=text)
    text = "demonstrations before each item (default: as each task says)"
    parser.add_argument("--num-fewshot", type=int, metavar="N", help=text)
    text = "first items of each task that are asked: a number, or a share below 1 (default: all)"
    parser.add_argument("--limit", type=float, metavar="N", help=text)
    text = "what stands between prompt and answer, in place of each task's own, which is a space in most; may be empty"
    parser.add_argument("--target-delimiter", metavar=TEXT, help=text)
    text = "settings of continuations that replace those of the tasks, such as temperature=0.8,top_p=0.9"
    parser.add_argument("--gen-kwargs", metavar="NAME=VALUE,...", help=text)
    text = "put the prompts into the model's chat template; perhaps its file, or the name of a bundled one"
    parser.add_argument("--apply-chat-template", nargs="?", const="auto", metavar="TEMPLATE", help=text)
    text = "demonstrations are turns of the chat of their own"
    parser.add_argument("--fewshot-as-multiturn", action="store_true", help=text)
    parser.add_argument("--system-instruction", metavar="TEXT", help="text before each prompt, or the system's turn")
    text = "write results.json there, and with --log-samples samples_TASK.jsonl"
    options.add_new_directory(parser, "--output", text)
    text = "keep each item with what the model said; needs --output"
    parser.add_argument("--log-samples", action="store_true", help=text)
    text = "begin of the name of a file in which answers are kept, so that the same command goes on where it ended"
    parser.add_argument("--use-cache", metavar="PATH", help=text)
    parser.add_argument("--cache-requests", action="store_true", help="keep the prompts that lm-eval makes")
    parser.add_argument("--seed", type=int, default=1234, help="of demonstrations and sampled continuations")
    text = "resamplings for the standard errors of measures that have no formula; 0: none"
    parser.add_argument("--bootstrap-iters", type=int, default=1000, metavar="N", help=text)
    text = "allow tasks that run code which the model wrote, such as HumanEval: on this machine, unprotected"
    parser.add_argument("--confirm-run-unsafe-code", action="store_true", help=text)
    options.add_json(parser)
    options.add_verbose(parser)
    parser.set_defaults(run=_run)
    return parser


def export_parser() -> Parser:
    """The options of `pangu harness export`."""
    parser = Parser(prog="pangu harness export", description=ACTIONS["export"][1])
    text = "names from `pangu tasks list`, such as c3,tnews or cmnli@figure10; all: every one"
    parser.add_argument("--tasks", required=True, metavar="NAME,...", help=text)
    tasks_options.add_prompts(parser)
    text = "leave out tasks whose data file is missing, instead of stopping before the first one"
    parser.add_argument("--skip-missing", action="store_true", help=text)
    text = "leave out demonstrations and items for which the context of this model has no room"
    parser.add_argument("--fit", type=Path, metavar="CHECKPOINT", help=text)
    options.add_new_directory(parser, "--output", "new directory, for --include-path", required=True)
    options.add_json(parser)
    parser.set_defaults(run=_export)
    return parser


def _run(args: Namespace) -> int:
    runtime.quiet(args.verbose)
    if args.log_samples and not args.output:
        raise GenerationError("--log-samples: needs --output DIR, where the samples are written")
    try:
        from pangu_ms.eval.harness_run import Settings, run, task_manager
    except ModuleNotFoundError as error:
        if error.name != "lm_eval":
            raise
        raise GenerationError(f"lm-eval is not there; {EXTRA}") from None
    names = [name.strip() for name in args.tasks.split(",") if name.strip()]
    manager = task_manager(names, args.include_path)
    manager.target_delimiter = args.target_delimiter
    model = open_model(args)
    settings = Settings(
        num_fewshot=args.num_fewshot,
        limit=args.limit,
        gen_kwargs=args.gen_kwargs,
        system_instruction=args.system_instruction,
        fewshot_as_multiturn=args.fewshot_as_multiturn,
        log_samples=args.log_samples,
        use_cache=args.use_cache,
        cache_requests=args.cache_requests,
        seed=args.seed,
        bootstrap_iters=args.bootstrap_iters,
        confirm_run_unsafe_code=args.confirm_run_unsafe_code,
    )
    chat = _chat(args, model) if args.apply_chat_template else None
    found = run(model, names, manager, settings, chat, progress=not args.json)
    if others := found.with_other_shots(args.num_fewshot):
        tell(
            f"pangu harness: --num-fewshot {args.num_fewshot}: {len(others)} tasks keep the number of demonstrations"
            f" that their files say: {', '.join(others[:5])}{', ...' if others[5:] else ''}"
        )
    if found.cut_contexts:
        tell(
            f"pangu harness: {found.cut_contexts} contexts are longer than the window of {model.window} tokens:"
            f" {found.cut_tokens} tokens were cut off at their beginnings"
        )
    if args.output:
        found.write(args.output)
    print_result(found.results, "\n".join(_table(found.rows())), args.json)
    return 0


def _chat(args: Namespace, model: "EvaluatedModel") -> "Chat":
    if is_url(args.model) and not args.tokenizer:
        raise GenerationError(
            "--apply-chat-template: the server's tokenizer is not known here; name the model's with --tokenizer"
        )
    from pangu_ms.data.tokenizer import Tokenizer
    from pangu_ms.serve.chat_template import load_chat_template

    assert isinstance(model.tokenizer, Tokenizer)
    return load_chat_template(args.apply_chat_template, model.tokenizer)


def _table(rows: list[tuple[str, str, str, str, str]]) -> list[str]:
    return table_lines(("task", "shots", "measure", "value", "standard error"), rows, "<><>>")


def _export(args: Namespace) -> int:
    sections, notes = tasks_options.sections(args, args.tasks, args.skip_missing)

    from pangu_ms.eval.harness_export import TAG, export_sections

    fit = None
    if args.fit:
        from pangu_ms.checkpoint.store import open_checkpoint
        from pangu_ms.infer.load import load_tokenizer

        checkpoint = open_checkpoint(args.fit)
        fit = load_tokenizer(checkpoint), checkpoint.config().model.seq_length
    exported, said = export_sections(sections, fit)
    for note in (*notes, *said):
        tell(f"pangu harness: {note}")
    if not exported:
        raise ConfigError("--tasks: none of them can be exported")
    args.output.mkdir(parents=True, exist_ok=True)
    for one in exported:
        one.write(args.output)
    rows = [
        (one.name, f"{len(one.rows):,}", one.score, f"{one.left_out:,}" if one.left_out else "") for one in exported
    ]
    lines = table_lines(("task of lm-eval", "items", "score", "unlabelled, left out"), rows, "<><>")
    directory = shlex.quote(str(args.output))
    lines.append(f"score a model on all: pangu harness run MODEL --include-path {directory} --tasks {TAG}")
    found = {one.name: {"items": len(one.rows), "score": one.score, "left_out": one.left_out} for one in exported}
    print_result({"tasks": found, "notes": [*notes, *said]}, "\n".join(lines), args.json)
    return 0
