"""The convolution of the heads."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable

import torch.nn.functional as F
from fvcore.nn import weight_init
from torch import Tensor, nn

from ...d2 import Conv2d, comm, get_norm
from ...layers import job_batch_norm

logger = logging.getLogger(__name__)

#: what heads take as ``norm``: "auto", a name for Detectron2's ``get_norm``, or a callable that takes the channels
Norm = str | Callable[[int], nn.Module] | None


class ConvNormReLU(Conv2d):
    """A convolution that keeps the size, its norm, and a ReLU.

    Batch normalisation cannot train on a single value per channel: its mean is the value itself, its variance zero. The
    coarsest pooling of a batch of one image is such an input. The layer then normalises with its running statistics, as
    in inference, and leaves them as they are; this is logged once.

    Args:
        in_channels, out_channels: numbers of channels.
        kernel_size: odd; the map is padded with zeros to keep its size.
        norm: "auto" is the batch normalisation that the job needs (:func:`elsa_det.layers.job_batch_norm`); otherwise
            as for Detectron2's ``get_norm``. Without a norm the convolution has a bias.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, norm: Norm = "auto") -> None:
        layer = get_norm(job_batch_norm() if norm == "auto" else norm, out_channels)
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            padding=kernel_size // 2,
            bias=layer is None,
            norm=layer,
            activation=F.relu,
        )
        weight_init.c2_msra_fill(self)

    def forward(self, x: Tensor) -> Tensor:
        if not (self.training and isinstance(self.norm, nn.modules.batchnorm._BatchNorm) and self._single_value(x)):
            return super().forward(x)
        _say_once(tuple(x.shape))
        was_training = self.norm.training
        self.norm.training = False
        try:
            return super().forward(x)
        finally:
            self.norm.training = was_training

    def _single_value(self, x: Tensor) -> bool:
        """Whether the norm sees one value per channel, over all processes if it is a synchronised one."""
        processes = 1 if type(self.norm) is nn.BatchNorm2d else comm.get_world_size()
        return len(x) * x.shape[-2] * x.shape[-1] * processes == 1


@functools.cache
def _say_once(shape: tuple[int, ...]) -> None:
    logger.warning(
        "A batch normalisation gets an input of shape %s, one value per channel, and uses its running statistics "
        "instead: train with more than one image a step to train it too.",
        shape,
    )
