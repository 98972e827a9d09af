"""The PanGu models for users of MindFormers: its Trainer, YAML and callbacks with our model, loss, records and order of
the data.

Importing this package imports nothing of MindFormers and registers nothing, since `import mindformers` takes 3 seconds
and makes a directory ./output. That happens when `register()` is called, a submodule that needs it is imported, or
`python -m pangu_ms.mindformers` runs. MindFormers' configuration names these types:

* trainer: PanguTrainer, which reads the `pangu:` section (see settings.py) and makes the data set from it
* model.model_config: PanguConfig; model.arch: PanguForCausalLM
* runner_wrapper: PanguTrainOneStepCell on a CPU, MFTrainOneStepCell elsewhere
"""


def register() -> None:
    """Make our types known to MindFormers; a second call changes nothing."""
    # Importing the module runs its decorators, and those of the modules that it imports: these register the types.
    import pangu_ms.mindformers.trainer  # noqa: F401
