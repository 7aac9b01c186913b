"""Semantic segmentation data: datasets, label maps, augmentation."""

from . import builtin  # registers the datasets known by name
from .augmentation import PadToSize, PhotometricDistortion, RandomResizeInto
from .folders import label_encoding, register_semantic, registered_semantic
from .labels import IGNORE_LABEL, LabelEncoding, read_labels
from .mapper import SemanticMapper

__all__ = [
    "IGNORE_LABEL",
    "LabelEncoding",
    "PadToSize",
    "PhotometricDistortion",
    "RandomResizeInto",
    "SemanticMapper",
    "label_encoding",
    "read_labels",
    "register_semantic",
    "registered_semantic",
]
