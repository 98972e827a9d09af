"""`pangu tasks list` and `pangu tasks show`: which tasks there are, and what a model reads of them."""

from argparse import Namespace
from typing import TYPE_CHECKING, Any

from pangu_ms.cli import options, tasks_options
from pangu_ms.core.console import show, tell
from pangu_ms.core.errors import ConfigError
from pangu_ms.core.parser import Parser
from pangu_ms.core.table import print_json, print_result, table_lines

if TYPE_CHECKING:
    from pangu_ms.eval.tasks.prompts import Prompt
    from pangu_ms.eval.tasks.run import Section
    from pangu_ms.eval.tasks.task import Task


def list_parser() -> Parser:
    """The options of `list`."""
    description = (
        "List the tasks: their type, score, demonstrations of `few`, where the prompt comes from, and data file."
    )
    parser = Parser(prog="pangu tasks list", description=description)
    tasks_options.add_task_files(parser)
    options.add_json(parser, "all fields of the tasks")
    parser.set_defaults(run=_list)
    return parser


def show_parser() -> Parser:
    """The options of `show`."""
    description = "Show prompts of a task as a model reads them. The mark --> is where the scored part begins."
    parser = Parser(prog="pangu tasks show", description=description)
    parser.add_argument("task", metavar="TASK", help="a name from `pangu tasks list`, such as c3 or cmnli@figure10")
    tasks_options.add_prompts(parser)
    parser.add_argument("--items", type=int, default=3, metavar="N", help="how many items to show")
    options.add_json(parser, "the task's fields, and the prompts")
    parser.set_defaults(run=_show)
    return parser


def _list(args: Namespace) -> int:
    from pangu_ms.eval.tasks.catalog import task_files
    from pangu_ms.eval.tasks.task import read_task, task_to_dict

    found = [read_task(path) for path in task_files(args.task_file).values()]
    rows: list[tuple[str, ...]] = []
    for task in found:
        files = task.data.splits[task.data.evaluate].files
        shots = str(task.shots.few or "-")
        rows.append((task.name, task.type, task.metrics[0], shots, files[0] if files else "-", task.source))
        rows += [(f"  @{name}",) for name in task.variants]
    lines = table_lines(("task", "type", "score", "few", "data file", "prompt from"), rows, "<<<><<")
    print_result([task_to_dict(task) for task in found], "\n".join(lines), args.json)
    return 0


def _show(args: Namespace) -> int:
    if args.items < 1:
        raise ConfigError(f"--items {args.items}: must be at least 1")
    args.limit = min(args.limit or args.items, args.items)
    sections, notes = tasks_options.sections(args, args.task)
    for note in notes:
        tell(f"pangu tasks: {note}")
    if args.json:
        print_json(_as_json(sections), ensure_ascii=False)
        return 0
    texts = [_text(section, prompt) for section in sections for prompt in section.prompts]
    show("\n".join([_about(sections[0].task), *texts]))
    return 0


def _as_json(sections: "list[Section]") -> dict[str, Any]:
    from pangu_ms.eval.tasks.task import task_to_dict

    prompts = []
    for section in sections:
        for prompt in section.prompts:
            gold = prompt.gold.to_json() if prompt.gold else None
            demonstrations, candidates = prompt.texts()
            found = {"shots": section.shots, "seed": section.seed, "index": prompt.index, "id": prompt.id, "gold": gold}
            prompts.append(found | {"demonstrations": demonstrations, "candidates": candidates})
    return {"task": task_to_dict(sections[0].task), "prompts": prompts}


def _about(task: "Task") -> str:
    lines = [f"{task.name} (version {task.version}): {task.title}", f"prompt from: {task.source}"]
    if task.notes:
        lines.append(task.notes.strip())
    return "\n".join(lines)


def _text(section: "Section", prompt: "Prompt") -> str:
    """A prompt for people; each candidate has a mark where the scored part begins."""
    lines = ["", f"--- {prompt.place}, {section.shots}-shot" + ("" if prompt.gold else ", no right answer is known")]
    lines += [text.removesuffix("\n") for text in prompt.demonstrations]
    for candidate in prompt.candidates:
        right = prompt.gold and prompt.gold.label and candidate.label == prompt.gold.label
        label = f"[{candidate.label}{' *' if right else ''}] " if candidate.label else ""
        lines.append(f"{label}{candidate.context}-->{candidate.continuation}")
    if prompt.gold and not prompt.gold.label and (gold := prompt.gold.to_json()):
        lines.append(f"right: {' | '.join(map(str, gold))}")
    return "\n".join(lines)
