"""What of a model is run to count it: everything whose size does not depend on what is seen in the image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ..errors import UserError


@dataclass(frozen=True)
class Regions:
    """How many regions of an image pass through the heads of a two-stage detector.

    Args:
        boxes: proposals through the box head, of each stage in a cascade.
        masks: through each mask head.
    """

    boxes: int
    masks: int


#: What the papers' figures are for: mmdetection's ``forward_dummy``, which its ``get_flops.py`` runs.
PUBLISHED = Regions(boxes=1000, masks=100)


def training_regions(model: nn.Module) -> Regions | None:
    """The most regions of an image that ``model`` trains its heads on; None for other than two-stage detectors."""
    heads: Any = getattr(model, "roi_heads", None)
    if heads is None:
        return None
    return Regions(heads.batch_size_per_image, int(heads.batch_size_per_image * heads.positive_fraction))


def padded_size(model: nn.Module, height: int, width: int) -> tuple[int, int]:
    """The size that the model pads an image of ``height`` x ``width`` to."""
    multiple = max(getattr(getattr(model, "backbone", None), "size_divisibility", 0), 1)
    return -(-height // multiple) * multiple, -(-width // multiple) * multiple


def run(model: nn.Module, images: Tensor, regions: Regions) -> None:
    """The forward pass of every layer with weights, on normalised and padded images.

    * two-stage detectors: backbone, proposal head, and every head on ``regions`` of each image, whatever is found;
    * one-stage detectors: backbone and head;
    * segmentors: backbone and decode head, in training the auxiliary head as well;
    * backbones: themselves.

    Anchors, NMS, ROIAlign and other steps without weights are left out.

    Args:
        model: on any device, ``meta`` included.
        images: (B, 3, H, W) on the same device.
        regions: of each image, for two-stage detectors.

    Raises:
        UserError: a model of another kind.
    """
    if hasattr(model, "roi_heads") and hasattr(model, "backbone"):
        _two_stage(model, images, regions)
    elif hasattr(model, "head") and hasattr(model, "head_in_features"):
        features = model.backbone(images)  # type: ignore[operator]
        model.head([features[name] for name in model.head_in_features])  # type: ignore[operator,union-attr]
    elif hasattr(model, "decode_head"):
        _segmentor(model, images)
    elif hasattr(model, "output_shape"):
        model(images)
    else:
        raise UserError(
            f"{type(model).__name__} cannot be analysed: it is no two-stage detector (backbone, roi_heads), no "
            "one-stage detector (backbone, head, head_in_features), no segmentor (backbone, decode_head), no backbone"
        )


def _two_stage(model: Any, images: Tensor, regions: Regions) -> None:
    features = model.backbone(images)
    if model.proposal_generator is not None:
        generator = model.proposal_generator
        generator.rpn_head([features[name] for name in generator.in_features])
    heads = model.roi_heads
    stages = zip(_each(heads.box_head), _each(heads.box_predictor), strict=True)
    poolers = _each(heads.box_pooler)
    for i, (head, predictor) in enumerate(stages):
        pooled = _pooled(features, heads.box_in_features, poolers[i % len(poolers)], regions.boxes)
        predictor(head(pooled))
    if getattr(heads, "mask_on", getattr(heads, "mask_head", None) is not None):
        poolers = _each(heads.mask_pooler)
        for i, head in enumerate(_each(heads.mask_head)):
            pooled = _pooled(features, heads.mask_in_features, poolers[i % len(poolers)], regions.masks)
            head.layers(pooled)


def _each(module: Any) -> Sequence[Any]:
    """The heads of all stages."""
    return list(module) if isinstance(module, (nn.ModuleList, list, tuple)) else [module]


def _pooled(features: dict[str, Tensor], names: Sequence[str], pooler: Any, regions: int) -> Tensor:
    """Something of the shape and the history of pooled features: (B * regions, C, height, width)."""
    first = features[names[0]]
    height, width = pooler.output_size
    return first.new_zeros(len(first) * regions, first.shape[1], height, width).requires_grad_(first.requires_grad)


def _segmentor(model: Any, images: Tensor) -> None:
    features = model.backbone(images)
    model.decode_head(features)
    if model.training and getattr(model, "auxiliary_head", None) is not None:
        model.auxiliary_head(features)
