"""PASCAL VOC 2012 segmentation: 20 classes and the background; object borders (255) are ignored."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any

from ...errors import UserError
from ..paths import check_inside
from .folders import pair, register_semantic
from .labels import plain_encoding

VOC_CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip

SPLITS = ("train", "val", "trainval")


def register_voc(datasets: str | os.PathLike[str]) -> None:
    """Register ``elsa_voc_2012_{train,val,trainval}`` below ``<datasets>/VOCdevkit/VOC2012``; nothing is read yet."""
    root = Path(datasets) / "VOCdevkit" / "VOC2012"
    for split in SPLITS:
        register_semantic(
            f"elsa_voc_2012_{split}",
            partial(_load, str(root), split),
            VOC_CLASSES,
            plain_encoding(len(VOC_CLASSES)),
            colors=[voc_color(index) for index in range(len(VOC_CLASSES))],
            image_root=str(root / "JPEGImages"),
            label_root=str(root / "SegmentationClass"),
        )


def voc_color(index: int) -> tuple[int, int, int]:
    """The colour of a class in the palette of the VOC development kit, RGB.

    Bits 0, 3, 6, … of the index become the highest bits of red, bits 1, 4, 7, … those of green, 2, 5, 8, … of blue.
    """
    channels = [0, 0, 0]
    for bit in range(24):
        if index >> bit & 1:
            channels[bit % 3] |= 128 >> bit // 3
    red, green, blue = channels
    return red, green, blue


def _load(root: str, split: str) -> list[dict[str, Any]]:
    listing = Path(root) / "ImageSets" / "Segmentation" / f"{split}.txt"
    if not listing.is_file():
        raise FileNotFoundError(
            f"elsa_voc_2012_{split}: there is no {listing}: unpack VOCtrainval_11-May-2012.tar so that VOCdevkit is in "
            "the datasets folder (datasets/README.md), or set DETECTRON2_DATASETS"
        )
    names = listing.read_text().split()
    if not names:
        raise UserError(f"{listing} names no image")
    check_inside(names, Path(root) / "JPEGImages", str(listing))
    images = {name: path for name in names if (path := Path(root) / "JPEGImages" / f"{name}.jpg").is_file()}
    labels = {name: path for name in names if (path := Path(root) / "SegmentationClass" / f"{name}.png").is_file()}
    absent = [name for name in names if name not in images and name not in labels]
    if absent:
        raise UserError(
            f"{listing} names {len(names)} images, {len(absent)} of which ({', '.join(absent[:3])}) have neither image "
            f"nor label map below {root}: unpack the archive again"
        )
    return pair(images, labels, f"{root}/JPEGImages", f"{root}/SegmentationClass")
