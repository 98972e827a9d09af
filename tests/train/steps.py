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


def gradient_reader(config, parameters):
    """Gives result and gradients for parameters and a batch, by a step that is compiled once.

    The gradients are read off the first moment of a step without decay or clipping, at rate 0: m becomes
    0.5 * m + 0.5 * g.
    """
    from pangu_ms.models.build import fill

    optimizer = {"beta1": 0.5, "weight_decay": 0.0, "clip_norm": 0.0, "warmup_steps": 0}
    model, step = make_step(
        dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, **optimizer)), parameters
    )

    def read(parameters, batch, scale=1.0):
        fill(model.trainable_params(), parameters)
        before = arrays(step.optimizer.m)
        result = step(batch, 0, lr=0.0, scale=scale)
        return result, {
            name.removeprefix("adam_m."): 2 * after - before[name] for name, after in arrays(step.optimizer.m).items()
        }

    return read


def gradients_by_step(config, parameters, batch, scale=1.0):
    """Result and gradients of one batch."""
    return gradient_reader(config, parameters)(parameters, batch, scale)
