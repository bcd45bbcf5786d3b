"""Inference on a CPU: the same functions by other routes, where those measured quicker (`bench profile model`).

A torch user would write none of this. It is here because the image encoder is most of the time of a prediction, and
because a CPU spends much of that time on fresh memory: an operating system hands it out page by page, and zeroes it.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from itertools import product

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

ROWS = 512  # of an attention at a time: their weights stay in the cache
STRIP = 2**20  # numbers, likewise
LONG = 1024  # keys from which on attention in bf16 is taken apart


def convolution_is_quicker(x: Tensor) -> bool:
    """Whether a large product with `x` is better done as a 1 x 1 convolution.

    torch multiplies fp32 matrices with MKL and convolves with oneDNN, which measured up to three times as fast on an
    AMD server with two threads. With one thread torch does not use oneDNN for 1 x 1 kernels, and in bf16 oneDNN does
    both.
    """
    exact = x.dtype == torch.float32 and not torch.is_autocast_enabled(x.device.type)
    return exact and not x.is_cuda and torch.get_num_threads() > 1


def quick(x: Tensor) -> AbstractContextManager:
    """A context in which modules on the images `x` run on a CPU without gradients; elsewhere it changes nothing."""
    return nullcontext() if x.is_cuda or torch.is_grad_enabled() else _Quick(convolution_is_quicker(x))


class _Quick(TorchFunctionMode):
    """Takes the place of three functions of torch. What a linear layer made is thought to be read once, by what comes
    next: a GELU overwrites it.
    """

    def __init__(self, convolve: bool):
        super().__init__()
        self.convolve = convolve
        self._made: Callable[[], Tensor | None] = lambda: None

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is F.linear:
            out = _linear_as_convolution(*args, **kwargs) if self.convolve else func(*args, **kwargs)
            self._made = weakref.ref(out)
            return out
        if func is F.gelu and args and args[0] is self._made():
            return torch.ops.aten.gelu_(*args, **kwargs)
        unmasked = len(args) == 3 and not any(value is not None for value in kwargs.values())
        if func is F.scaled_dot_product_attention and unmasked and _fused_is_slow(*args):
            return _attention_by_rows(*args)
        return func(*args, **kwargs)


def _linear_as_convolution(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    pixels = input.reshape(1, -1, 1, input.shape[-1]).permute(0, 3, 1, 2)
    out = F.conv2d(pixels, weight[..., None, None], bias)
    return out.permute(0, 2, 3, 1).reshape(*input.shape[:-1], len(weight))


def _fused_is_slow(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """torch's fused kernel multiplies bf16 matrices no faster than fp32 ones, unless the CPU has AMX."""
    return query.dtype == torch.bfloat16 and key.shape[-2] >= LONG and not torch.cpu._is_amx_tile_supported()


def _attention_by_rows(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """(..., L, c), (..., N, c), (..., N, c) -> (..., L, c)."""
    out = torch.empty_like(query)
    # heads one after the other: their values lie far apart in memory, and a row of them is enough work for all threads
    for at in product(*(range(n) for n in query.shape[:-2])):
        keys, values = (key[at] * query.shape[-1] ** -0.5).T, value[at].contiguous()
        for start in range(0, query.shape[-2], ROWS):
            rows = slice(start, start + ROWS)
            torch.mm((query[at][rows] @ keys).softmax(-1), values, out=out[at][rows])
    return out


def group_norm(x: Tensor, norm: nn.GroupNorm) -> Tensor:
    """`norm` of (B, C, H, W); without gradients on a CPU, `x` itself is overwritten where it lies channels last."""
    if x.is_cuda or not x.is_contiguous(memory_format=torch.channels_last):
        return norm(x)
    if torch.is_grad_enabled():
        if x.dtype != torch.bfloat16:
            return norm(x)
        # torch's backward pass in bf16 takes ten times as long where channels lie last
        return norm(x.contiguous()).contiguous(memory_format=torch.channels_last)
    pixels = x.permute(0, 2, 3, 1).flatten(1, 2)
    strips = pixels.split(max(1, STRIP // (x.shape[0] * x.shape[1])), dim=1)
    count, groups = pixels.shape[1], (norm.num_groups, x.shape[1] // norm.num_groups)
    sums = x.new_zeros((2, x.shape[0], x.shape[1]), dtype=torch.float64)
    for strip in strips:
        strip = strip.float()
        sums[0] += strip.sum(1)
        sums[1] += strip.square().sum(1)
    mean, square = (sums / count).unflatten(-1, groups).mean(-1, keepdim=True)
    scale = norm.weight.unflatten(0, groups) * (square - mean.square() + norm.eps).rsqrt()
    shift = norm.bias.unflatten(0, groups) - mean * scale
    scale, shift = scale.flatten(1)[:, None].float(), shift.flatten(1)[:, None].float()
    for strip in strips:
        strip.copy_(torch.addcmul(shift, strip.float(), scale))
    return x
