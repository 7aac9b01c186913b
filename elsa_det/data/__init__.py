"""Data: what elsa_det adds to Detectron2's."""

from ..images import limit_provider
from .augmentation import OneOf, RandomTranspose
from .coco import registered_coco
from .copy_paste import build_copy_paste_train_loader
from .lvis import registered_lvis
from .own_coco import count_classes, own_coco
from .semantic import (
    PadToSize,
    PhotometricDistortion,
    RandomResizeInto,
    SemanticMapper,
    registered_semantic,
)

limit_provider()

__all__ = [
    "OneOf",
    "PadToSize",
    "PhotometricDistortion",
    "RandomResizeInto",
    "RandomTranspose",
    "SemanticMapper",
    "build_copy_paste_train_loader",
    "count_classes",
    "own_coco",
    "registered_coco",
    "registered_lvis",
    "registered_semantic",
]
