"""Data: what elsa_det adds to Detectron2's."""

from .augmentation import OneOf, RandomTranspose
from .coco import registered_coco

__all__ = ["OneOf", "RandomTranspose", "registered_coco"]
