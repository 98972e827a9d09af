"""Products of PyTorch by oneDNN, in float32 too, where it takes MKL (which is slow on processors that are not
Intel's)."""

import torch
from torch.nn import functional

_linear = functional.linear


@torch.library.custom_op("pangu_bench::product", mutates_args=())
def _product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """x [M, K], weight [N, K], bias [N] -> [M, N]. An operator of its own: PyTorch compiles the one below for weights
    that never change only."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


@_product.register_fake
def _(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    return x.new_empty(x.shape[0], weight.shape[0])


class Linear(torch.autograd.Function):
    """functional.linear on rows, all three products by oneDNN."""

    @staticmethod
    def forward(ctx, x, weight, bias):
        ctx.save_for_backward(x, weight)
        ctx.has_bias = bias is not None
        return _product(x, weight, bias)

    @staticmethod
    def backward(ctx, gradient):
        x, weight = ctx.saved_tensors
        gradient = gradient.contiguous()
        return _product(gradient, weight.t()), _product(gradient.t(), x.t()), gradient.sum(0) if ctx.has_bias else None


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """functional.linear; under autocast to bfloat16 PyTorch itself takes oneDNN."""
    if torch.is_autocast_enabled("cpu") or x.dtype != torch.float32:
        return _linear(x, weight, bias)
    return Linear.apply(x.reshape(-1, x.shape[-1]), weight, bias).view(*x.shape[:-1], weight.shape[0])


def install() -> None:
    """Every linear layer of this process from here on."""
    functional.linear = linear
