"""The datasets that are known by name, in the places where they are expected.

The folder that holds them is ``./datasets``, or what the environment variable ``DETECTRON2_DATASETS`` says. Nothing is
read before a dataset is used.
"""

from __future__ import annotations

import os

from .builtin_meta import _get_builtin_metadata
from .coco import register_coco_instances
from .lvis import register_lvis_instances

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


# name: annotations, below <root>/lvis; the images are COCO's, of all its splits
_LVIS_SPLITS = {
    "lvis_v1_train": "lvis_v1_train",
    "lvis_v1_val": "lvis_v1_val",
    "lvis_v1_test_dev": "lvis_v1_image_info_test_dev",
    "lvis_v1_test_challenge": "lvis_v1_image_info_test_challenge",
    "lvis_v0.5_train": "lvis_v0.5_train",
    "lvis_v0.5_val": "lvis_v0.5_val",
    "lvis_v0.5_val_rand_100": "lvis_v0.5_val_rand_100",
    "lvis_v0.5_test": "lvis_v0.5_image_info_test",
    "lvis_v0.5_train_cocofied": "lvis_v0.5_train_cocofied",
    "lvis_v0.5_val_cocofied": "lvis_v0.5_val_cocofied",
}


def register_all_coco(root: str) -> None:
    """Register the detection splits of COCO below ``root``."""
    for name, (images, stem) in _COCO_SPLITS.items():
        json_file = os.path.join(root, f"coco/annotations/{stem}.json")
        register_coco_instances(name, _get_builtin_metadata("coco"), json_file, os.path.join(root, f"coco/{images}"))


def register_all_lvis(root: str) -> None:
    """Register the splits of LVIS below ``root``. The names of the classes are read with the annotations."""
    for name, stem in _LVIS_SPLITS.items():
        register_lvis_instances(name, {}, os.path.join(root, f"lvis/{stem}.json"), os.path.join(root, "coco/"))


_ROOT = os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets"))
register_all_coco(_ROOT)
register_all_lvis(_ROOT)
