"""`pangu tasks ACTION`: benchmark tasks, such as CMRC2018, C3 and TNEWS with the prompts of the PanGu-alpha paper."""

from pangu_ms.cli.actions import run_action, whole_parser
from pangu_ms.core.parser import Parser

ACTIONS = {
    "list": ("pangu_ms.cli.tasks_show:list_parser", "list the tasks that there are"),
    "show": ("pangu_ms.cli.tasks_show:show_parser", "show a task, and its prompts as a model reads them"),
    "run": ("pangu_ms.cli.tasks_run", "give tasks to a checkpoint; goes on where it was interrupted"),
    "table": ("pangu_ms.cli.tasks_results:table_parser", "scores of one or several models as a table or a picture"),
    "compare": ("pangu_ms.cli.tasks_results:compare_parser", "paired differences between two models on the same items"),
}


def build_parser() -> Parser:
    """The options of all actions."""
    return whole_parser("pangu tasks", __doc__, ACTIONS)


def main(argv: list[str]) -> int:
    """Entry of the verb."""
    return run_action("tasks", __doc__, ACTIONS, argv)
