"""Registers one model class with MindFormers for all PanGu families; the class wraps our model and our loss.

The parameters have our names without any prefix, so that MindFormers' checkpoints and ours hold the same arrays under
the same names.
"""

from typing import Any

import mindspore as ms
from mindformers.models import PretrainedConfig, PreTrainedModel
from mindformers.tools.register import MindFormerModuleType, MindFormerRegister

from pangu_ms.config.load import config_from_dict
from pangu_ms.models.build import build_model, initialize
from pangu_ms.models.common.config import ModelConfig
from pangu_ms.models.common.loss import TokenLoss, mean_loss
from pangu_ms.models.registry import FAMILIES


@MindFormerRegister.register(MindFormerModuleType.CONFIG)
class PanguConfig(PretrainedConfig):
    """The configuration of a model for MindFormers: `family`, the fields of this family, which are checked, and
    whatever else MindFormers stores in a model's configuration."""

    model_type = "pangu"
    # To print a configuration, MindFormers builds a default instance of the class, unless the class is a "composition".
    # This class cannot be built without arguments.
    is_composition = True

    def __init__(self, family: str = "alpha", initial_seed: int = 1, **fields: Any):
        """Check the fields of the family.

        Args:
            family: name of the model family, as in our configurations.
            initial_seed: seed of the initial values.
            fields: the fields of the family, and those of MindFormers.

        Raises:
            ConfigError: the family is unknown, or a field is missing or wrong.
        """
        own = {name: fields.pop(name) for name in _names(family) if name in fields}
        device = {"device": ms.get_context("device_target")}
        model = config_from_dict({"model": {"family": family} | own, "runtime": device}, type(self).__name__).model
        super().__init__(**fields)
        self.initial_seed = initial_seed
        for name in _names(family):
            setattr(self, name, getattr(model, name))

    def to_model_config(self) -> ModelConfig:
        """The same model in our own configuration class."""
        return FAMILIES[self.family].config(**{name: getattr(self, name) for name in _names(self.family)})


@MindFormerRegister.register(MindFormerModuleType.MODELS)
class PanguForCausalLM(PreTrainedModel):
    """Computes the mean loss of next tokens. It is for training only: `pangu eval` and `pangu generate` evaluate and
    generate."""

    config_class = PanguConfig

    def __init__(self, config: PanguConfig):
        super().__init__(config, auto_prefix=False)
        own = config.to_model_config()
        model = build_model(own)
        initialize(model, own, config.initial_seed)
        self.loss = TokenLoss(model)

    def construct(self, ids_BS1, positions_BS, segments_BS, mask_BS, *extra_and_key):
        """The mean loss over the tokens that the loss mask keeps, a float32 scalar; see TokenLoss for the arguments."""
        total, count = self.loss(ids_BS1, positions_BS, segments_BS, mask_BS, *extra_and_key)
        return mean_loss(total, count)

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters without weight decay. MindFormers calls this when it makes an optimizer. Without it
        MindFormers judges by the shape alone, and would also decay the parameters of activation functions (spec
        A3.1)."""
        return {name for name, spec in self.config.to_model_config().parameters().items() if not spec.decay}

    def convert_name(self, weight_name: str) -> str:
        """Map the name of a checkpoint's tensor to the model's name: both are the same. MindFormers calls this when it
        loads a checkpoint."""
        return weight_name

    convert_concat_name = convert_name


def _names(family: str) -> list[str]:
    # An unknown family has no fields here; config_from_dict then raises the error that names it.
    return list(FAMILIES[family].config.field_names()) if family in FAMILIES else []
