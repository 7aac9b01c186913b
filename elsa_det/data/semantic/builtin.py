"""The segmentation datasets that are known by name: below ``./datasets``, or where ``DETECTRON2_DATASETS`` says."""

from __future__ import annotations

import os

from .ade20k import register_ade20k
from .cityscapes import register_cityscapes
from .voc import register_voc


def register_all(datasets: str | None = None) -> None:
    """Register ADE20K, Cityscapes and PASCAL VOC below a folder; nothing is read before a dataset is used."""
    root = os.path.expanduser(datasets or os.environ.get("DETECTRON2_DATASETS", "datasets"))
    register_ade20k(root)
    register_cityscapes(root)
    register_voc(root)


register_all()
