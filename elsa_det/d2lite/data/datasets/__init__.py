from .coco import convert_to_coco_json, load_coco_json, load_sem_seg, register_coco_instances
from .lvis import load_lvis_json, register_lvis_instances

from . import builtin as _builtin  # isort: skip  # registers the built-in datasets

__all__ = [name for name in globals() if not name.startswith("_")]
