"""The PanGu families as one registered MindFormers model: our model and our loss, with nothing of their own.

Parameters have our names without any prefix, so MindFormers' checkpoints and ours are the same arrays under the same
names.
"""

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
    """`family` and the fields of its class in pangu_ms.config, checked, beside whatever else MindFormers stores in a
    model's configuration."""

    model_type = "pangu"
    is_composition = (
        True  # says that the class cannot be made without arguments, which MindFormers otherwise does to print it
    )

    def __init__(self, family: str = "alpha", initial_seed: int = 1, **fields):
        """Args:
        family: as in our configurations.
        initial_seed: of the initial values.
        fields: the family's, and MindFormers' own.

        Raises:
            ConfigError: an unknown family; a field is missing or wrong.
        """
        own = {name: fields.pop(name) for name in _names(family) if name in fields}
        device = {"device": ms.get_context("device_target")}
        model = config_from_dict({"model": {"family": family} | own, "runtime": device}, type(self).__name__).model
        super().__init__(**fields)
        self.initial_seed = initial_seed
        for name in _names(family):
            setattr(self, name, getattr(model, name))

    def to_model_config(self) -> ModelConfig:
        """The same as our own configuration."""
        return FAMILIES[self.family].config(**{name: getattr(self, name) for name in _names(self.family)})


@MindFormerRegister.register(MindFormerModuleType.MODELS)
class PanguForCausalLM(PreTrainedModel):
    """The mean loss of next tokens. Training alone: evaluate and generate with `pangu eval` and `pangu generate`."""

    config_class = PanguConfig

    def __init__(self, config: PanguConfig):
        super().__init__(config, auto_prefix=False)
        own = config.to_model_config()
        model = build_model(own)
        initialize(model, own, config.initial_seed)
        self.loss = TokenLoss(model)

    def construct(self, ids_BS1, positions_BS, segments_BS, mask_BS, *extra_and_key):
        """See TokenLoss; -> mean loss over the tokens that count, float32 scalar."""
        total, count = self.loss(ids_BS1, positions_BS, segments_BS, mask_BS, *extra_and_key)
        return mean_loss(total, count)

    def no_weight_decay(self) -> set[str]:
        """Called by MindFormers when it makes an optimizer: by shape alone it would decay those of activations (spec
        A3.1)."""
        return {name for name, spec in self.config.to_model_config().parameters().items() if not spec.decay}

    def convert_name(self, weight_name: str) -> str:
        """Called by MindFormers when it loads a checkpoint: the names are ours, none needs another."""
        return weight_name

    convert_concat_name = convert_name


def _names(family: str) -> list[str]:
    return (
        list(FAMILIES[family].config.field_names()) if family in FAMILIES else []
    )  # config_from_dict names the mistake
