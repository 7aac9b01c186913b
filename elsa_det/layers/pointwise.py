"""Linear maps over the channels of (..., C) maps, by the fastest routine of the device."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def pointwise(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``x @ weight.T + bias`` over the last dimension: (..., in) to (..., out), as ``F.linear``.

    float32 on the CPU goes through oneDNN as a 1 x 1 convolution, which runs AVX-512 on every processor; MKL's matrix
    product, behind ``F.linear``, does so on Intel's only and is several times slower elsewhere. PyTorch takes oneDNN
    for such convolutions when there is more than one thread.
    """
    if (
        torch.compiler.is_compiling()  # Inductor makes its own choice
        or x.device.type != "cpu"
        or x.dtype != torch.float32
        or x.dim() < 3
        or torch.get_num_threads() == 1
        or not torch.backends.mkldnn.is_available()
        or torch.is_autocast_enabled("cpu")
    ):
        return F.linear(x, weight, bias)
    # One row of pixels, (batch, in, pixels, 1), in strides that PyTorch takes for channels-last.
    rows = x.flatten(1, -2).unsqueeze(2).permute(0, 3, 1, 2)
    out = F.conv2d(rows, weight[:, :, None, None], bias)
    return out.permute(0, 2, 3, 1).reshape(*x.shape[:-1], weight.shape[0])


class Pointwise(nn.Linear):
    """``nn.Linear`` that computes with :func:`pointwise`."""

    def forward(self, x: Tensor) -> Tensor:
        return pointwise(x, self.weight, self.bias)


class Mlp(nn.Module):
    """(..., dim) to the same: ``fc2(gelu(fc1(x)))`` with dropout behind both."""

    def __init__(self, dim: int, hidden: int, drop: float = 0.0) -> None:
        super().__init__()
        self.fc1 = Pointwise(dim, hidden)
        self.act = nn.GELU()
        self.fc2 = Pointwise(hidden, dim)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.fc2(self.drop(self.act(self.fc1(x)))))
