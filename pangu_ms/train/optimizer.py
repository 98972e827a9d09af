"""AdamW with float32 moments. Source: specification A3.1, A1.8."""

from mindspore import Parameter, ParameterTuple, nn, ops

import ascend_ops
from pangu_ms.config.schema import OptimizerConfig
from pangu_ms.parallel.plan import MOMENTS

# HyperMap instead of a loop: in a graph each iteration of a loop is a call nested in the previous one, and MindSpore
# stops at a depth of 1000.
_update = ops.MultitypeFuncGraph("update")


@_update.register("Number", "Number", "Number", "Tensor", "Tensor", "Number", "Tensor", "Tensor", "Tensor", "Tensor")
def _update_parameter(beta1, beta2, eps, lr, factor, decay, parameter, m, v, gradient):
    return ascend_ops.adamw(parameter, m, v, gradient, lr, factor, beta1, beta2, eps, decay)


def _moment(parameter: Parameter, prefix: str) -> Parameter:
    """A float32 state of a parameter: a clone, which MindSpore shards over devices as it shards the parameter."""
    moment = parameter.clone("zeros")
    moment.name, moment.requires_grad = prefix + parameter.name, False
    return moment


class AdamW(nn.Cell):
    """p -= lr * (m / (sqrt(v) + eps) + decay * p), without bias correction, as the official AdamWeightDecay."""

    def __init__(self, parameters: list[Parameter], config: OptimizerConfig, decayed: set[str]):
        """`decayed` are the names of the parameters to which weight decay applies."""
        super().__init__(auto_prefix=False)
        self.parameters = ParameterTuple(parameters)
        self.m, self.v = (ParameterTuple([_moment(p, prefix) for p in parameters]) for prefix in MOMENTS)
        self.decay = tuple(config.weight_decay if p.name in decayed else 0.0 for p in parameters)
        self.beta1, self.beta2, self.eps = config.beta1, config.beta2, config.eps
        self.hyper_map = ops.HyperMap()

    def construct(self, gradients, factor, lr):
        """Apply gradients (float32, in the parameters' order) times `factor`, at learning rate `lr` (float32
        scalars)."""
        update = ops.partial(_update, self.beta1, self.beta2, self.eps, lr, factor)
        return self.hyper_map(update, self.decay, self.parameters, self.m, self.v, gradients)
