"""The quickstart set: a small synthetic COCO-format set of textured shapes, drawn on the spot."""

from .dataset import DATASET_NAMES, SetSpec, is_complete, overrides_for, register_shapes, write_shapes
from .drawing import CLASSES, Scene, SceneSpec, draw_scene
from .outlines import mask_to_polygons

__all__ = [
    "CLASSES",
    "DATASET_NAMES",
    "Scene",
    "SceneSpec",
    "SetSpec",
    "draw_scene",
    "is_complete",
    "mask_to_polygons",
    "overrides_for",
    "register_shapes",
    "write_shapes",
]
