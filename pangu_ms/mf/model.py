"""PanGu-alpha as a registered MindFormers model: our model and our loss, with nothing of their own.

Parameters have our names without any prefix, so MindFormers' checkpoints and ours are the same arrays under the same names.
"""

import dataclasses

import mindspore as ms
from mindformers.models import PretrainedConfig, PreTrainedModel
from mindformers.tools.register import MindFormerModuleType, MindFormerRegister

from pangu_ms.config.alpha import AlphaConfig
from pangu_ms.config.load import config_from_dict
from pangu_ms.models.build import build_model, initialize
from pangu_ms.models.loss import TokenLoss, mean_loss


@MindFormerRegister.register(MindFormerModuleType.CONFIG)
class PanguAlphaConfig(PretrainedConfig):
    """The fields of pangu_ms.config.alpha.AlphaConfig, checked, beside whatever else MindFormers stores in a model's configuration."""

    model_type = "pangu_alpha"
    is_composition = True  # says that the class cannot be made without arguments, which MindFormers otherwise does to print it

    def __init__(self, initial_seed: int = 1, **fields):
        """Args:
        initial_seed: of the initial values.
        fields: AlphaConfig's, and MindFormers' own.

        Raises:
            ConfigError: a field is missing or wrong.
        """
        own = {name: fields.pop(name) for name in _names() if name in fields}
        alpha = config_from_dict({"model": {"family": "alpha"} | own, "runtime": {"device": ms.get_context("device_target")}}, type(self).__name__).model
        super().__init__(**fields)
        self.initial_seed = initial_seed
        for name in _names():
            setattr(self, name, getattr(alpha, name))

    def to_alpha(self) -> AlphaConfig:
        """The same as our own configuration."""
        return AlphaConfig(**{name: getattr(self, name) for name in _names()})


@MindFormerRegister.register(MindFormerModuleType.MODELS)
class PanguAlphaForCausalLM(PreTrainedModel):
    """The mean loss of next tokens. Training alone: evaluate and generate with `pangu eval` and `pangu generate`."""

    config_class = PanguAlphaConfig

    def __init__(self, config: PanguAlphaConfig):
        super().__init__(config, auto_prefix=False)
        alpha = config.to_alpha()
        model = build_model(alpha)
        initialize(model, alpha, config.initial_seed)
        self.loss = TokenLoss(model)

    def construct(self, ids_BS1, positions_BS, segments_BS, mask_BS, key):
        """See TokenLoss; -> mean loss over the tokens that count, float32 scalar."""
        total, count = self.loss(ids_BS1, positions_BS, segments_BS, mask_BS, key)
        return mean_loss(total, count)

    def convert_name(self, weight_name: str) -> str:
        """Called by MindFormers when it loads a checkpoint: the names are ours, none needs another."""
        return weight_name

    convert_concat_name = convert_name


def _names() -> list[str]:
    return [field.name for field in dataclasses.fields(AlphaConfig)]
