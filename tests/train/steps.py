"""One training step: its configuration, its batch and the gradients read off it."""

import dataclasses

import numpy as np

from pangu_ms.config.load import config_from_dict
from pangu_ms.data.loader import batch_from_ids
from tests.models.alpha import EOD, random_ids, small


def make_config(model=None, **sections):
    fields = dataclasses.asdict(model or small(num_layers=2, hidden_size=16, seq_length=24))
    return config_from_dict(
        {"model": fields, "train": {"batch_size": 2} | sections.pop("train", {}), **sections}, "test"
    )


def make_step(config, parameters):
    from pangu_ms.models.build import build_model, fill
    from pangu_ms.train.steps.train_step import TrainStep

    model = build_model(config.model)
    fill(model.trainable_params(), parameters)
    return model, TrainStep(model, config)


def make_batch(config, rows=2, seed=1):
    ids = np.concatenate([random_ids(config.model, rows, seed)] * 2, axis=1)[:, : config.model.seq_length + 1]
    return batch_from_ids(ids, EOD, 0, True)


def arrays(parameters):
    return {p.name: p.asnumpy().copy() for p in parameters}


def summed_gradients(step, result, scale=1.0):
    """The gradients of the mean loss that a step in micro-batches added up before it unscaled and clipped them."""
    config = step.config
    micro_batch_tokens = config.train.batch_size // config.train.accumulation_steps * config.model.seq_length
    factor = micro_batch_tokens / (scale * (result.num_tokens + 1e-5))
    return {name.removeprefix("accumulated."): factor * g for name, g in arrays(step.accumulate.sums).items()}


def gradients_by_step(config, parameters, batch, scale=1.0):
    """Result and gradients of one batch.

    Of micro-batches they are what the step adds up, and the graph of its update is not compiled. Otherwise they are
    read off the first moment of a step without decay or clipping, at rate 0: m becomes 0.5 * g.
    """
    from mindspore import Tensor

    optimizer = {"beta1": 0.5, "weight_decay": 0.0, "clip_norm": 0.0, "warmup_steps": 0}
    _, step = make_step(
        dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, **optimizer)), parameters
    )
    if step.in_one_graph:
        result = step(batch, 0, lr=0.0, scale=scale)
        return result, {name.removeprefix("adam_m."): 2 * m for name, m in arrays(step.optimizer.m).items()}
    sums = step.accumulate
    step.apply = lambda lr, scale, loss_limit: (sums.total, sums.count, Tensor(0.0), Tensor(True))
    result = step(batch, 0, lr=0.0, scale=scale)
    return result, summed_gradients(step, result, scale)
