"""MindFormers' trainer of causal language models, which also reads the `pangu:` section.

MindFormers can register this file by its path too: REGISTER_PATH=<directory of this file>, `trainer: {type:
PanguTrainer, auto_register: trainer.PanguTrainer}`. MindFormers then runs a copy of the file in OM_MODULES_CACHE
(./modules), so all imports here must be absolute.
"""

from typing import Any, NoReturn

from mindformers.tools.register import MindFormerModuleType, MindFormerRegister
from mindformers.trainer import CausalLanguageModelingTrainer

from pangu_ms.core.errors import ConfigError
from pangu_ms.mindformers.data import step_dataset
from pangu_ms.mindformers.model import PanguForCausalLM
from pangu_ms.mindformers.settings import publish, resolve
from pangu_ms.mindformers.wrapper import PanguTrainOneStepCell  # noqa: F401  registered by its import


@MindFormerRegister.register(MindFormerModuleType.TRAINER)
class PanguTrainer(CausalLanguageModelingTrainer):
    """Trains PanguForCausalLM on our records; everything else is the code of MindFormers."""

    def train(self, config: Any = None, network: Any = None, **kwargs: Any) -> None:
        """Run the training; mindformers.Trainer calls this with its whole configuration.

        Raises:
            ConfigError, DataError: see settings.resolve and data.step_dataset.
        """
        self.run = resolve(config)
        if isinstance(network, PanguForCausalLM) and network.config.to_model_config() != self.run.model:
            raise ConfigError("Trainer(model=...): differs from pangu.model; give one of them the other's fields")
        publish(config, self.run)
        super().train(config=config, network=network, **kwargs)

    def create_train_dataset(self, default_args: dict | None = None) -> Any:
        """Make the data set of the `pangu:` section. If Trainer was given a data set, that one is used; it must have
        the columns of data.columns."""
        return super().create_train_dataset(default_args) if self.train_dataset is not None else step_dataset(self.run)

    def evaluate(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Raise ConfigError: MindFormers' evaluation averages over batches, ours over tokens."""
        raise ConfigError("Trainer.evaluate: not offered by PanguTrainer; import the checkpoint and use `pangu eval`")

    def predict(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Raise ConfigError: MindFormers' generation needs operators that MindSpore does not have on a CPU."""
        raise ConfigError(
            "Trainer.predict: not offered by PanguTrainer; import the checkpoint and use `pangu generate`"
        )
