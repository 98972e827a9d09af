"""The PanGu models for users of MindFormers: its Trainer, its YAML, its callbacks; our model, loss, records and order
of the data.

Nothing is imported or registered until `register()` is called, one of its submodules is imported, or
`python -m pangu_ms.mindformers` runs: importing mindformers takes 3 seconds and makes a directory ./output.
MindFormers' configuration names these types:

* trainer: PanguTrainer, which reads the `pangu:` section (see settings.py) and makes the data set from it
* model.model_config: PanguConfig; model.arch: PanguForCausalLM
* runner_wrapper: PanguTrainOneStepCell on a CPU, MFTrainOneStepCell elsewhere
"""


def register() -> None:
    """Make our types known to MindFormers; a second call changes nothing."""
    import pangu_ms.mindformers.trainer  # noqa: F401  its decorators, and those of what it imports, register
