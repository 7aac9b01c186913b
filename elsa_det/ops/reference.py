"""ELSA attention in plain PyTorch: the definition, and the form that runs where no compiled library is.

Both compute, for head g, channel c of that head, pixel i and offset j of the K x K neighbourhood (zero padding)::

    A[g, j, i] = softmax over j of logits[g, j, i]
    out[c, i]  = sum_j value[c, i + d*j] * (ghost_mul[c, j] * A[g, j, i] + ghost_add[c, j])

(Zhou et al., "ELSA: Enhanced Local Self-Attention for Vision Transformer", arXiv 2112.12786, with the contiguous head
layout of the released weights.) Arguments are those of :func:`elsa_det.ops.elsa_attention`, unchecked.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_input


def elsa_attention_unfold(
    value: Tensor,
    logits: Tensor,
    ghost_mul: Tensor | None,
    ghost_add: Tensor | None,
    *,
    kernel_size: int,
    dilation: int = 1,
) -> Tensor:
    """The definition, term by term: every neighbourhood is written out, K*K times the memory of ``value``.

    The oracle of the tests. Differentiable any number of times.
    """
    batch, channels, height, width = value.shape
    taps = kernel_size * kernel_size
    heads = logits.shape[1] // taps
    padding = dilation * (kernel_size // 2)
    neighbours = F.unfold(value, kernel_size, dilation=dilation, padding=padding)
    neighbours = neighbours.view(batch, heads, channels // heads, taps, height * width)
    attention = logits.reshape(batch, heads, 1, taps, height * width).softmax(dim=3)
    weights = attention
    if ghost_mul is not None:
        weights = weights * ghost_mul.reshape(1, heads, channels // heads, taps, 1)
    if ghost_add is not None:
        weights = weights + ghost_add.reshape(1, heads, channels // heads, taps, 1)
    return (neighbours * weights).sum(dim=3).view(batch, channels, height, width)


def elsa_attention_shifted(
    value: Tensor,
    logits: Tensor,
    ghost_mul: Tensor | None,
    ghost_add: Tensor | None,
    *,
    kernel_size: int,
    dilation: int = 1,
) -> Tensor:
    """The same as a sum of K*K shifted products, the additive ghost as a depthwise convolution: faster than unfolding
    and without its memory.

    Reduced-precision inputs are computed in float32 and the result is rounded once. Differentiable once.
    """
    dtype = value.dtype
    if dtype in (torch.float16, torch.bfloat16):
        value, logits = value.float(), logits.float()
        ghost_mul = None if ghost_mul is None else ghost_mul.float()
        ghost_add = None if ghost_add is None else ghost_add.float()
    out = _ShiftedSum.apply(value, logits, ghost_mul, ghost_add, kernel_size, dilation)
    return out.to(dtype)


def _shifts(kernel_size: int, dilation: int, height: int, width: int) -> Iterator[tuple[int, slice, slice]]:
    """For every tap: its number, and the rows and columns of the zero-padded map that it reads."""
    for tap in range(kernel_size * kernel_size):
        row, column = (dilation * step for step in divmod(tap, kernel_size))
        yield tap, slice(row, row + height), slice(column, column + width)


class _ShiftedSum(torch.autograd.Function):
    """Products and their gradients tap by tap; only the inputs are kept for the backward."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        value: Tensor,
        logits: Tensor,
        ghost_mul: Tensor | None,
        ghost_add: Tensor | None,
        kernel_size: int,
        dilation: int,
    ) -> Tensor:
        batch, channels, height, width = value.shape
        taps = kernel_size * kernel_size
        heads = logits.shape[1] // taps
        by_head = (batch, heads, channels // heads, height, width)
        padding = dilation * (kernel_size // 2)
        padded = F.pad(value.contiguous(), [padding] * 4)
        attention = logits.reshape(batch, heads, taps, height, width).softmax(dim=2)
        padded = padded.view(*by_head[:3], *padded.shape[2:])
        mul = None if ghost_mul is None else ghost_mul.reshape(heads, channels // heads, taps, 1, 1)
        if ghost_add is None:
            out = torch.zeros_like(value, memory_format=torch.contiguous_format)
        else:
            weight = ghost_add.reshape(channels, 1, kernel_size, kernel_size)
            out = F.conv2d(value.contiguous(), weight, padding=padding, dilation=dilation, groups=channels)
        dynamic = out.view(by_head)
        for tap, rows, columns in _shifts(kernel_size, dilation, height, width):
            weight = attention[:, :, tap : tap + 1]
            if mul is not None:
                weight = weight * mul[:, :, tap]
            dynamic.addcmul_(padded[..., rows, columns], weight)
        return out

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        value, logits, ghost_mul, ghost_add, ctx.kernel_size, ctx.dilation = inputs
        ctx.save_for_backward(value, logits, ghost_mul, ghost_add)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple:
        value, logits, ghost_mul, ghost_add = ctx.saved_tensors
        kernel_size, dilation = ctx.kernel_size, ctx.dilation
        batch, channels, height, width = value.shape
        taps = kernel_size * kernel_size
        heads = logits.shape[1] // taps
        by_head = (batch, heads, channels // heads, height, width)
        padding = dilation * (kernel_size // 2)
        padded = F.pad(value.contiguous(), [padding] * 4).view(*by_head[:3], height + 2 * padding, width + 2 * padding)
        attention = logits.reshape(batch, heads, taps, height, width).softmax(dim=2)
        grad_out = grad_out.contiguous().view(by_head)
        mul = None if ghost_mul is None else ghost_mul.reshape(heads, channels // heads, taps, 1, 1)

        grad_padded = torch.zeros_like(padded)
        grad_attention = torch.empty_like(attention)
        grad_mul = None if mul is None else torch.empty_like(mul)
        grad_add = None if ghost_add is None else ghost_add.new_empty(heads, channels // heads, taps)
        product = torch.empty_like(grad_out)
        for tap, rows, columns in _shifts(kernel_size, dilation, height, width):
            torch.mul(grad_out, padded[..., rows, columns], out=product)
            weight = attention[:, :, tap : tap + 1]
            if grad_add is not None:
                grad_add[:, :, tap] = product.sum(dim=(0, 3, 4))
            if mul is not None and grad_mul is not None:
                grad_mul[:, :, tap, 0, 0] = (product * weight).sum(dim=(0, 3, 4))
                product.mul_(mul[:, :, tap])
                weight = weight * mul[:, :, tap]
            grad_attention[:, :, tap] = product.sum(dim=2)
            grad_padded[..., rows, columns].addcmul_(grad_out, weight)
        grad_logits = attention * (grad_attention - (attention * grad_attention).sum(dim=2, keepdim=True))
        grad_value = grad_padded[..., padding : padding + height, padding : padding + width].reshape(value.shape)
        if ghost_add is not None:
            weight = ghost_add.reshape(channels, 1, kernel_size, kernel_size)
            grad_value = grad_value + conv2d_input(
                value.shape, weight, grad_out.view(value.shape), padding=padding, dilation=dilation, groups=channels
            )
        return (
            grad_value,
            grad_logits.reshape(logits.shape),
            None if grad_mul is None else grad_mul.reshape_as(ghost_mul),
            None if grad_add is None else grad_add.reshape_as(ghost_add),
            None,
            None,
        )
