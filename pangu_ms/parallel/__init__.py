"""Parallel plans: meshes, layouts, strategy files, ranks, and how a plan is applied to a model. Only apply, replicas
and device_ranks import mindspore."""
