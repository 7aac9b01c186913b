"""Normalization layers, and :func:`get_norm`, which finds one by its name in a config."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from fvcore.nn.distributed import differentiable_all_reduce
from torch import Tensor, nn
from torch.nn import functional as F

from ..utils import comm
from .wrappers import BatchNorm2d


class FrozenBatchNorm2d(nn.Module):
    """Batch normalization with fixed statistics and a fixed affine part, all four of them buffers.

    A new one is the identity. Checkpoints that fold the statistics into ``weight`` and ``bias`` (no ``running_*`` in
    them, as in the Caffe2 models) load as well, unless they are of version 2 or newer.
    """

    _version = 3

    def __init__(self, num_features: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.num_features, self.eps = num_features, eps
        ones, zeros = torch.ones(num_features), torch.zeros(num_features)
        identity = {"weight": ones, "bias": zeros, "running_mean": zeros.clone(), "running_var": ones - eps}
        for name, start in identity.items():
            self.register_buffer(name, start)
        self.register_buffer("num_batches_tracked", None)

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor | None

    def forward(self, x: Tensor) -> Tensor:
        if not x.requires_grad:
            return F.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, training=False, eps=self.eps
            )
        # F.batch_norm would keep memory for gradients of weight and bias that nobody asks for
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        shift = self.bias - self.running_mean * scale
        return x * _per_channel(scale).to(x.dtype) + _per_channel(shift).to(x.dtype)

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, *args) -> None:
        if (local_metadata.get("version") or 0) < 2:
            state_dict.setdefault(prefix + "running_mean", torch.zeros_like(self.running_mean))
            state_dict.setdefault(prefix + "running_var", torch.ones_like(self.running_var))
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)

    def extra_repr(self) -> str:
        return f"num_features={self.num_features}, eps={self.eps}"

    @classmethod
    def convert_frozen_batchnorm(cls, module: nn.Module) -> nn.Module:
        """Replace every ``BatchNorm2d`` and ``SyncBatchNorm`` below ``module``, in place, by a frozen one.

        Returns:
            ``module``, or its frozen replacement if it is such a layer itself.

        Raises:
            ValueError: a layer has no running statistics.
        """
        if not isinstance(module, (nn.BatchNorm2d, nn.SyncBatchNorm)):
            for name, child in list(module.named_children()):
                frozen = cls.convert_frozen_batchnorm(child)
                if frozen is not child:
                    module.add_module(name, frozen)
            return module
        frozen = cls(module.num_features, module.eps)
        if module.affine:
            frozen.weight = module.weight.detach().clone()
            frozen.bias = module.bias.detach().clone()
        if module.running_mean is None or module.running_var is None:
            raise ValueError(f"{module} keeps no running statistics that could be frozen.")
        frozen.running_mean = module.running_mean
        frozen.running_var = module.running_var
        frozen.num_batches_tracked = module.num_batches_tracked
        return frozen


class NaiveSyncBatchNorm(BatchNorm2d):
    """Batch normalization over all processes that needs nothing but a differentiable all-reduce: CPU and gloo will do.

    Every process contributes the mean and the mean square of its own batch. Counting each process alike is exact
    when all have the same batch and image size, and stays sensible when they do not.

    Args:
        *args, **kwargs: for ``BatchNorm2d``.
        stats_mode: ``""`` weighs each process alike and allows no empty batch; ``"N"`` weighs it by its batch size,
            which may be zero.

    Raises:
        ValueError: any other ``stats_mode``; no affine part, running statistics or momentum; in ``forward``, an empty
            batch with ``stats_mode=""``.
    """

    def __init__(self, *args, stats_mode: str = "", **kwargs) -> None:
        super().__init__(*args, **kwargs)
        if stats_mode not in ("", "N"):
            raise ValueError(f"NaiveSyncBatchNorm: stats_mode={stats_mode!r} is not understood: use '' or 'N'.")
        if not self.affine or not self.track_running_stats or self.momentum is None:
            raise ValueError("NaiveSyncBatchNorm: affine=False, track_running_stats=False, momentum=None do not work.")
        self._stats_mode = stats_mode

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or comm.get_world_size() == 1:
            return super().forward(input)
        x = input.float() if input.dtype in (torch.float16, torch.bfloat16) else input  # sums want the digits
        assert self.momentum is not None
        assert self.running_mean is not None
        assert self.running_var is not None
        if self._stats_mode == "":
            mean, mean_square = self._average_over_processes(x)
            momentum: Tensor | float = self.momentum
        else:
            mean, mean_square, any_sample = self._average_over_samples(x)
            momentum = any_sample * self.momentum
        var = mean_square - mean * mean
        scale = self.weight * torch.rsqrt(var + self.eps)
        shift = self.bias - mean * scale
        with torch.no_grad():
            self.running_mean += momentum * (mean - self.running_mean)
            self.running_var += momentum * (var - self.running_var)
        return (x * _per_channel(scale) + _per_channel(shift)).to(input.dtype)

    @staticmethod
    def _moments(x: Tensor) -> list[Tensor]:
        return [x.mean(dim=(0, 2, 3)), (x * x).mean(dim=(0, 2, 3))]

    def _average_over_processes(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if len(x) == 0:
            raise ValueError(
                f"NaiveSyncBatchNorm(stats_mode='') got an empty batch of shape {tuple(x.shape)}. "
                "Use stats_mode='N' (norm=\"naiveSyncBN_N\") where a batch can be empty."
            )
        total = differentiable_all_reduce(torch.cat(self._moments(x)))
        mean, mean_square = (total * (1.0 / comm.get_world_size())).chunk(2)
        return mean, mean_square

    def _average_over_samples(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The two moments, and 1 if there was any sample, else 0: nothing is learned from none."""
        channels = x.shape[1]
        if len(x):
            weighted = torch.cat([*self._moments(x), x.new_ones(1)]) * len(x)
        else:
            # part of the graph all the same: every process must take part in the all-reduce of the backward pass
            weighted = x.new_zeros(2 * channels + 1) + x.sum()
        total = differentiable_all_reduce(weighted)
        samples = total[-1].detach()
        mean, mean_square, _ = (total / samples.clamp(min=1)).split(channels)
        return mean, mean_square, samples.clamp(max=1)


class CycleBatchNormList(nn.ModuleList):
    """Batch norms that take turns: statistics of their own for each of several inputs, one scale and shift for all.

    The k-th call of ``forward`` uses layer k modulo ``length``, so it must always be called a multiple of ``length``
    times (Wu and Johnson, "Rethinking 'Batch' in BatchNorm", arXiv 2105.07576, section 5.2).

    Args:
        length: number of layers.
        bn_class: their class.
        **kwargs: their arguments, such as ``num_features``; ``affine=False`` leaves out the scale and shift.
    """

    def __init__(self, length: int, bn_class: Callable[..., nn.Module] = nn.BatchNorm2d, **kwargs) -> None:
        self._affine = kwargs.pop("affine", True)
        layers: list[Any] = [bn_class(**kwargs, affine=False) for _ in range(length)]
        super().__init__(layers)
        self._position = 0
        if self._affine:
            channels = layers[0].num_features
            self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        x = self[self._position](x)
        self._position = (self._position + 1) % len(self)
        return x * _per_channel(self.weight) + _per_channel(self.bias) if self._affine else x

    def extra_repr(self) -> str:
        return f"affine={self._affine}"


class LayerNorm(nn.Module):
    """Layer normalization over the channels of (N, C, H, W), one pixel at a time.

    Args:
        normalized_shape: the number of channels.
        eps: added to the variance.
    """

    def __init__(self, normalized_shape: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.normalized_shape, self.eps = (normalized_shape,), eps
        self.weight, self.bias = (nn.Parameter(torch.full((normalized_shape,), start)) for start in (1.0, 0.0))

    def forward(self, x: Tensor) -> Tensor:
        centred = x - x.mean(1, keepdim=True)
        deviation = torch.sqrt(centred.pow(2).mean(1, keepdim=True) + self.eps)
        return self.weight[:, None, None] * (centred / deviation) + self.bias[:, None, None]


def _per_channel(vector: Tensor) -> Tensor:
    return vector.reshape(1, -1, 1, 1)


def _group_norm(channels: int) -> nn.Module:
    return nn.GroupNorm(32, channels)


def _naive_sync_bn_by_samples(channels: int) -> nn.Module:
    return NaiveSyncBatchNorm(channels, stats_mode="N")


_NORMS: dict[str, Callable[[int], nn.Module]] = {
    "BN": BatchNorm2d,
    "SyncBN": nn.SyncBatchNorm,
    "FrozenBN": FrozenBatchNorm2d,
    "GN": _group_norm,
    "nnSyncBN": nn.SyncBatchNorm,
    "naiveSyncBN": NaiveSyncBatchNorm,
    "naiveSyncBN_N": _naive_sync_bn_by_samples,
    "LN": LayerNorm,
}


def get_norm(norm: str | Callable[[int], nn.Module] | None, out_channels: int) -> nn.Module | None:
    """The normalization layer for that many channels.

    Args:
        norm: BN, SyncBN (or nnSyncBN), FrozenBN, GN (32 groups), LN, naiveSyncBN, naiveSyncBN_N; or a callable that
            takes the number of channels; ``None`` or ``""`` for no layer at all.

    Raises:
        KeyError: no norm has that name.
    """
    if norm is None or norm == "":
        return None
    if isinstance(norm, str):
        if norm not in _NORMS:
            raise KeyError(f"norm={norm!r} is unknown: use one of {', '.join(_NORMS)}, or '' for none.")
        norm = _NORMS[norm]
    return norm(out_channels)
