"""What the segmentation heads share: which maps they take, the classifier, and the loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from ...d2 import ShapeSpec
from .losses import segmentation_loss

#: maps of a backbone by name, or a sequence of them from fine to coarse
Features = Mapping[str, Tensor] | Sequence[Tensor]


def stage_shapes(embed_dim: int, stages: int = 4, patch_size: int = 4) -> dict[str, ShapeSpec]:
    """The output shapes of an ELSA-Swin or Swin of this width, for configs: heads are sized without the backbone.

    Args:
        embed_dim: channels of the first stage; they double from stage to stage.
        stages: how many there are.
        patch_size: stride of the first stage, in pixels of the image.

    Returns:
        ``{"p0": ShapeSpec(channels, stride), "p1": …}``.
    """
    return {f"p{i}": ShapeSpec(channels=embed_dim * 2**i, stride=patch_size * 2**i) for i in range(stages)}


@dataclass(frozen=True)
class FeatureMaps:
    """The maps that a head takes, from fine to coarse: their names, their places in a sequence, their channels."""

    names: tuple[str, ...]
    indices: tuple[int, ...]
    channels: tuple[int, ...]

    @classmethod
    def choose(
        cls,
        in_channels: Sequence[int] | None,
        in_index: Sequence[int] | None,
        in_features: Sequence[str] | None,
        input_shape: Mapping[str, ShapeSpec] | None,
    ) -> FeatureMaps:
        """From what a head is given; see :class:`UPerHead` for the meaning of the arguments.

        Raises:
            ValueError: the arguments contradict each other, or too little is given.
        """
        if (in_channels is None) == (input_shape is None):
            raise ValueError(
                f"a head needs either in_channels or input_shape, got in_channels={in_channels} and "
                f"input_shape={input_shape}"
            )
        if input_shape is not None:
            by_stride = sorted(input_shape, key=lambda name: input_shape[name].stride or 0)
            if in_features is None:
                in_features = by_stride if in_index is None else [by_stride[i] for i in in_index]
            unknown = [name for name in in_features if name not in input_shape]
            if unknown or not in_features:
                raise ValueError(f"in_features={list(in_features)} must name maps of input_shape: {by_stride}")
            widths = tuple(int(input_shape[name].channels or 0) for name in in_features)
            return cls(tuple(in_features), tuple(by_stride.index(name) for name in in_features), widths)
        assert in_channels is not None
        indices = tuple(range(len(in_channels)) if in_index is None else in_index)
        names = tuple(f"p{i}" for i in indices) if in_features is None else tuple(in_features)
        if not in_channels or not len(in_channels) == len(indices) == len(names):
            raise ValueError(
                f"in_channels={list(in_channels)}, in_index={list(indices)} and in_features={list(names)} must be of "
                "the same length, one entry for each map"
            )
        return cls(names, indices, tuple(in_channels))

    def select(self, features: Features) -> list[Tensor]:
        """The maps, out of all that a backbone gives.

        Raises:
            ValueError: one is missing, or has another number of channels.
        """
        if isinstance(features, Mapping):
            missing = [name for name in self.names if name not in features]
            if missing:
                raise ValueError(f"the head takes the maps {list(self.names)}, and there are {list(features)}")
            maps = [features[name] for name in self.names]
        else:
            if not all(-len(features) <= i < len(features) for i in self.indices):
                raise ValueError(f"the head takes the maps number {list(self.indices)} of {len(features)}")
            maps = [features[i] for i in self.indices]
        found = tuple(x.shape[1] for x in maps)
        if found != self.channels:
            raise ValueError(f"the head was made for {list(self.channels)} channels of {self.names}, got {list(found)}")
        return maps


class DecodeHead(nn.Module):
    """Base of the heads: a subclass computes features of ``channels`` channels and hands them to :meth:`classify`.

    Args:
        inputs: the maps it takes.
        channels: channels that the classifier sees.
        num_classes: classes, without the ignored one.
        dropout_ratio: rate at which whole channels are dropped before the classifier, in training.
        align_corners: how maps are resized, as in ``F.interpolate``.
        loss_weight: factor of the loss.
        ignore_label: pixels of this value do not count.
        average_over_valid: see :func:`elsa_det.modeling.semantic.losses.segmentation_loss`.

    Raises:
        ValueError: a number is out of its range.
    """

    def __init__(
        self,
        inputs: FeatureMaps,
        channels: int,
        num_classes: int,
        *,
        dropout_ratio: float = 0.1,
        align_corners: bool = False,
        loss_weight: float = 1.0,
        ignore_label: int = 255,
        average_over_valid: bool = True,
    ) -> None:
        super().__init__()
        if num_classes < 1 or channels < 1:
            raise ValueError(f"num_classes={num_classes} and channels={channels} must be positive")
        if 0 <= ignore_label < num_classes:
            raise ValueError(f"ignore_label={ignore_label} is one of the {num_classes} classes")
        self.inputs = inputs
        self.num_classes, self.channels = num_classes, channels
        self.align_corners = align_corners
        self.loss_weight, self.ignore_label = loss_weight, ignore_label
        self.average_over_valid = average_over_valid
        self.dropout = nn.Dropout2d(dropout_ratio)
        self.predictor = nn.Conv2d(channels, num_classes, kernel_size=1)
        nn.init.normal_(self.predictor.weight, std=0.01)
        nn.init.zeros_(self.predictor.bias)  # type: ignore[arg-type]

    def classify(self, x: Tensor) -> Tensor:
        """(B, channels, h, w) features to (B, num_classes, h, w) logits."""
        return self.predictor(self.dropout(x))

    def resize(self, x: Tensor, like: Tensor) -> Tensor:
        """``x`` in the height and width of ``like``."""
        return F.interpolate(x, size=like.shape[-2:], mode="bilinear", align_corners=self.align_corners)

    def losses(self, logits: Tensor, target: Tensor) -> Tensor:
        """The weighted loss of (B, num_classes, h, w) logits for (B, H, W) labels; a scalar."""
        return self.loss_weight * segmentation_loss(
            logits,
            target,
            ignore_label=self.ignore_label,
            average_over_valid=self.average_over_valid,
            align_corners=self.align_corners,
        )
