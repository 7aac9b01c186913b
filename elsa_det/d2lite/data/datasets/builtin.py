"""The datasets that are known by name, in the places where they are expected.

The folder that holds them is ``./datasets``, or what the environment variable ``DETECTRON2_DATASETS`` says. Nothing is
read before a dataset is used.
"""

from __future__ import annotations

import os

from .builtin_meta import _get_builtin_metadata
from .coco import register_coco_instances

# name: (folder of the images, annotations), both below <root>/coco
_COCO_SPLITS = {
    "coco_2014_train": ("train2014", "instances_train2014"),
    "coco_2014_val": ("val2014", "instances_val2014"),
    "coco_2014_minival": ("val2014", "instances_minival2014"),
    "coco_2014_valminusminival": ("val2014", "instances_valminusminival2014"),
    "coco_2017_train": ("train2017", "instances_train2017"),
    "coco_2017_val": ("val2017", "instances_val2017"),
    "coco_2017_test": ("test2017", "image_info_test2017"),
    "coco_2017_test-dev": ("test2017", "image_info_test-dev2017"),
    "coco_2017_val_100": ("val2017", "instances_val2017_100"),
}


def register_all_coco(root: str) -> None:
    """Register the detection splits of COCO below ``root``."""
    for name, (images, stem) in _COCO_SPLITS.items():
        json_file = os.path.join(root, f"coco/annotations/{stem}.json")
        register_coco_instances(name, _get_builtin_metadata("coco"), json_file, os.path.join(root, f"coco/{images}"))


register_all_coco(os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets")))
