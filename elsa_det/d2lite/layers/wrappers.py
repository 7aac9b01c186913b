"""Operators that behave slightly better than PyTorch's own: optional norm and activation, empty batches, no copies."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ConvTranspose2d = nn.ConvTranspose2d
BatchNorm2d = nn.BatchNorm2d
Linear = nn.Linear
interpolate = F.interpolate


class Conv2d(nn.Conv2d):
    """``torch.nn.Conv2d`` followed by an optional normalization layer and an optional activation.

    Args:
        *args, **kwargs: for ``torch.nn.Conv2d``.
        norm: applied to the result of the convolution; a submodule called ``norm``.
        activation: applied last.
    """

    def __init__(
        self,
        *args,
        norm: nn.Module | None = None,
        activation: Callable[[Tensor], Tensor] | None = None,
        **kwargs,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.norm = norm
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        if self.training and x.numel() == 0 and isinstance(self.norm, nn.SyncBatchNorm):
            raise ValueError(
                f"SyncBatchNorm cannot train on an empty input, and this Conv2d got one of shape {tuple(x.shape)}. "
                'Use norm="naiveSyncBN_N", "GN" or "LN" where a batch can be empty.'
            )
        x = super().forward(x)
        for follow_up in (self.norm, self.activation):
            x = x if follow_up is None else follow_up(x)
        return x


def cat(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    """``torch.cat`` that hands back the only tensor of a list of one instead of a copy."""
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors), dim)


def cross_entropy(input: Tensor, target: Tensor, *, reduction: str = "mean", **kwargs) -> Tensor:
    """``torch.nn.functional.cross_entropy`` whose mean over no targets is 0 (with a graph to ``input``), not NaN."""
    if reduction == "mean" and target.numel() == 0:
        return input.sum() * 0.0
    return F.cross_entropy(input, target, reduction=reduction, **kwargs)


def nonzero_tuple(x: Tensor) -> tuple[Tensor, ...]:
    """The indices of the nonzero elements, one vector a dimension."""
    return x.nonzero(as_tuple=True)


def move_device_like(src: Tensor, dst: Tensor) -> Tensor:
    """``src`` on the device of ``dst``; its dtype stays."""
    return src.to(dst.device)
