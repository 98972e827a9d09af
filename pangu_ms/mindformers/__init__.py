"""The PanGu models for users of MindFormers: MindFormers' Trainer, YAML and callbacks run our model, loss and records,
in our order of the data.

Importing this package neither imports MindFormers nor registers anything, since `import mindformers` takes 3 seconds
and makes a directory ./output. MindFormers is imported when `register()` is called, when a submodule that needs it is
imported, or when `python -m pangu_ms.mindformers` runs. A MindFormers configuration names these types:

* trainer: PanguTrainer, which reads the `pangu:` section (see settings.py) and makes the data set from it
* model.model_config: PanguConfig; model.arch: PanguForCausalLM
* runner_wrapper: PanguTrainOneStepCell on a CPU, MFTrainOneStepCell elsewhere
"""


def register() -> None:
    """Register our types with MindFormers; a second call changes nothing."""
    # The decorators that register the types run when this module, and the modules that it imports, are imported.
    import pangu_ms.mindformers.trainer  # noqa: F401
