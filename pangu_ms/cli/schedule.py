"""`pangu schedule ACTION`: compare policies of batching without a model, and predict the length of answers."""

from pangu_ms.cli.actions import run_action, whole_parser
from pangu_ms.core.parser import Parser

ACTIONS = {
    "simulate": ("pangu_ms.cli.schedule_simulate", "compare policies on given lengths, at an equal budget of cache"),
    "calibrate": ("pangu_ms.cli.schedule_calibrate", "measure what the steps of an engine cost on this machine"),
    "label": ("pangu_ms.cli.schedule_label", "make the lengths to predict, from answers at several temperatures"),
    "train-predictor": ("pangu_ms.cli.schedule_train_predictor", "train a predictor of lengths on labelled prompts"),
}


def build_parser() -> Parser:
    """The options of all actions."""
    return whole_parser("pangu schedule", __doc__, ACTIONS)


def main(argv: list[str]) -> int:
    """Entry of the verb."""
    return run_action("schedule", __doc__, ACTIONS, argv)
