"""AdamW with float32 moments. Source: specification A3.1, A1.8."""

from mindspore import Parameter, ParameterTuple, nn, ops

import ascend_ops
from pangu_ms.config.schema import OptimizerConfig
from pangu_ms.models.common.config import ParameterSpec
from pangu_ms.parallel.plan import MOMENTS

# HyperMap instead of a loop: in a graph each iteration of a loop is a call nested in the previous one, and MindSpore
# stops at a depth of 1000.
_update = ops.MultitypeFuncGraph("update")


@_update.register(
    "Number",
    "Number",
    "Tensor",
    "Tensor",
    "Number",
    "Number",
    "Number",
    "Tensor",
    "Tensor",
    "Tensor",
    "Tensor",
    "Tensor",
)
def _update_parameter(beta1, beta2, lr, factor, eps, decay, lazy, norms, parameter, m, v, gradient):
    if lazy:
        return ascend_ops.adamw(parameter, m, v, gradient, lr, factor, beta1, beta2, eps, decay, norms)
    return ascend_ops.adamw(parameter, m, v, gradient, lr, factor, beta1, beta2, eps, decay)


def _moment(parameter: Parameter, prefix: str) -> Parameter:
    """A float32 state of a parameter: a clone, which MindSpore shards over devices as it shards the parameter."""
    moment = parameter.clone("zeros")
    moment.name, moment.requires_grad = prefix + parameter.name, False
    return moment


class AdamW(nn.Cell):
    """p -= lr * (m / (sqrt(v) + eps) + decay * p), without bias correction, as the official AdamWeightDecay.

    Stacks whose spec is lazy have an eps of their own. With optimizer.lazy_experts, a member whose gradient is zero,
    since no token came to it, gets no update: parameter and moments stay as they are, without decay of either.
    """

    def __init__(self, parameters: list[Parameter], config: OptimizerConfig, specs: dict[str, ParameterSpec]):
        """`specs` describe the parameters by name."""
        super().__init__(auto_prefix=False)
        self.parameters = ParameterTuple(parameters)
        self.m, self.v = (ParameterTuple([_moment(p, prefix) for p in parameters]) for prefix in MOMENTS)
        of_parameters = [specs[p.name] for p in parameters]
        self.decay = tuple(config.weight_decay if spec.decay else 0.0 for spec in of_parameters)
        self.eps = tuple(config.expert_eps if spec.lazy else config.eps for spec in of_parameters)
        self.lazy = tuple(int(spec.lazy and config.lazy_experts) for spec in of_parameters)
        self.beta1, self.beta2 = config.beta1, config.beta2
        self.hyper_map = ops.HyperMap()

    def construct(self, gradients, norms, factor, lr):
        """Apply gradients times `factor` at learning rate `lr` (float32 scalars).

        Args:
            gradients: float32, in the parameters' order.
            norms: the squared norm of each gradient [1], of a lazy stack's that of each member [K].
        """
        update = ops.partial(_update, self.beta1, self.beta2, lr, factor)
        return self.hyper_map(
            update, self.eps, self.decay, self.lazy, norms, self.parameters, self.m, self.v, gradients
        )
