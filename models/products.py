"""Matrix products in fp32 on several cores of a CPU, as the convolutions they are: the same sums, by another library.

torch multiplies fp32 matrices with MKL and convolves with oneDNN, which measured up to three times as fast on an AMD
server with two threads (`bench profile model`). With one thread torch does not use oneDNN for 1 x 1 kernels, and in
bf16 oneDNN does both.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


def convolution_is_quicker(x: Tensor) -> bool:
    """Whether a large product with `x` is better done as a 1 x 1 convolution."""
    exact = x.dtype == torch.float32 and not torch.is_autocast_enabled(x.device.type)
    return exact and not x.is_cuda and torch.get_num_threads() > 1


def quick_linear(x: Tensor) -> AbstractContextManager:
    """A context in which linear layers of a module on the images `x` are convolutions, where that is quicker.

    For prediction only: the backward pass of a convolution is not.
    """
    return _LinearAsConvolution() if convolution_is_quicker(x) and not torch.is_grad_enabled() else nullcontext()


class _LinearAsConvolution(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is not F.linear or kwargs:
            return func(*args, **(kwargs or {}))
        x, weight, bias = (*args, None)[:3]
        pixels = x.reshape(1, -1, 1, x.shape[-1]).permute(0, 3, 1, 2)
        out = F.conv2d(pixels, weight[..., None, None], bias)
        return out.permute(0, 2, 3, 1).reshape(*x.shape[:-1], len(weight))
