"""Cityscapes, for semantic and for instance segmentation; classes and their ids come from cityscapesscripts.

The ``labelIds`` and ``instanceIds`` files of gtFine are used as published: the 19 classes that count become 0..18 when
a file is read, everything else is ignored.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from cityscapesscripts.helpers.labels import id2label, labels
from pycocotools import mask as coco_mask

from ...d2 import BoxMode, DatasetCatalog, MetadataCatalog
from ...errors import UserError
from .folders import pair, register_semantic
from .labels import IGNORE_LABEL, LabelEncoding, read_index_image

_COUNTED = sorted((label for label in labels if not label.ignoreInEval), key=lambda label: label.trainId)
_IGNORED = tuple(sorted(label.id for label in labels if label.ignoreInEval and label.id >= 0))
_THINGS = [label for label in _COUNTED if label.hasInstances]

CITYSCAPES_CLASSES = tuple(label.name for label in _COUNTED)
CITYSCAPES_THING_CLASSES = tuple(label.name for label in _THINGS)
CITYSCAPES_ENCODING = LabelEncoding(tuple(label.id for label in _COUNTED), (*_IGNORED, IGNORE_LABEL))
CITYSCAPES_THING_IDS = tuple(label.id for label in _THINGS)
"""The ``labelIds`` of the eight classes with instances, by class index."""

SPLITS = ("train", "val")
_IMAGE, _LABELS, _INSTANCES = "_leftImg8bit.png", "_gtFine_labelIds.png", "_gtFine_instanceIds.png"


def register_cityscapes(datasets: str | os.PathLike[str]) -> None:
    """Register ``elsa_cityscapes_{semantic,instance}_{train,val}`` below ``<datasets>/cityscapes``."""
    root = Path(datasets) / "cityscapes"
    for split in SPLITS:
        places = {
            "image_root": str(root / "leftImg8bit" / split),
            "label_root": str(root / "gtFine" / split),
        }
        register_semantic(
            f"elsa_cityscapes_semantic_{split}",
            partial(load_cityscapes_semantic, **places),
            CITYSCAPES_CLASSES,
            CITYSCAPES_ENCODING,
            colors=[label.color for label in _COUNTED],
            **places,
        )
        name = f"elsa_cityscapes_instance_{split}"
        if name not in DatasetCatalog.list():
            DatasetCatalog.register(name, partial(load_cityscapes_instances, **places))
            MetadataCatalog.get(name).set(
                thing_classes=list(CITYSCAPES_THING_CLASSES),
                thing_colors=[label.color for label in _THINGS],
                thing_dataset_id_to_contiguous_id={id_: index for index, id_ in enumerate(CITYSCAPES_THING_IDS)},
                evaluator_type="cityscapes_instance",
                **places,
            )


def load_cityscapes_semantic(image_root: str, label_root: str) -> list[dict[str, Any]]:
    """Dataset dicts with "sem_seg_file_name", of one split.

    Raises:
        FileNotFoundError: A folder is not there.
        UserError: An image lacks its labels or the other way round.
    """
    return _pairs(image_root, label_root, _LABELS)


def load_cityscapes_instances(image_root: str, label_root: str) -> list[dict[str, Any]]:
    """Dataset dicts with the instances of each image as RLE, of one split.

    Groups of objects that could not be told apart become crowds, which are not trained on.

    Raises:
        FileNotFoundError: A folder is not there.
        UserError: An image lacks its labels or the other way round, or a file cannot be read.
    """
    pairs = _pairs(image_root, label_root, _INSTANCES)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # decoding and sorting release the GIL
        return list(pool.map(_with_instances, pairs))


def _pairs(image_root: str, label_root: str, label_suffix: str) -> list[dict[str, Any]]:
    for place in (image_root, label_root):
        if not os.path.isdir(place):
            raise FileNotFoundError(
                f"there is no folder {place}: unpack leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip into one "
                "folder 'cityscapes' (datasets/README.md), or set DETECTRON2_DATASETS"
            )
    images = dict(_by_frame(Path(image_root), _IMAGE))
    found = dict(_by_frame(Path(label_root), label_suffix))
    return pair(images, found, f"{image_root}/*/*{_IMAGE}", f"{label_root}/*/*{label_suffix}")


def _by_frame(root: Path, suffix: str) -> Iterator[tuple[str, Path]]:
    for path in sorted(root.glob(f"*/*{suffix}")):
        yield f"{path.parent.name}/{path.name.removesuffix(suffix)}", path


def _with_instances(record: dict[str, Any]) -> dict[str, Any]:
    file_name = record.pop("sem_seg_file_name")
    ids = read_index_image(file_name)
    frame = Path(record["file_name"])
    annotations = [
        annotation for instance in np.unique(ids).tolist() if (annotation := _annotation(ids, instance, file_name))
    ]
    height, width = ids.shape
    return {
        **record,
        "image_id": frame.name.removesuffix(_IMAGE),
        "height": height,
        "width": width,
        "instance_file_name": file_name,
        "annotations": annotations,
    }


def _annotation(ids: np.ndarray, instance: int, file_name: str) -> dict[str, Any] | None:
    """What an id of an ``instanceIds`` file stands for: 1000·class + number for an object, the class for a group."""
    label = id2label.get(instance // 1000 if instance >= 1000 else instance)
    if label is None:
        raise UserError(f"label file {file_name} has the instance id {instance}, whose class cityscapesscripts lacks")
    if not label.hasInstances or label.ignoreInEval:
        return None
    mask = (ids == instance).astype(np.uint8)
    x, y, width, height = cv2.boundingRect(mask)
    rle = coco_mask.encode(np.asfortranarray(mask))
    return {
        "bbox": [x, y, x + width, y + height],
        "bbox_mode": BoxMode.XYXY_ABS,
        "segmentation": rle,
        "category_id": CITYSCAPES_THING_IDS.index(label.id),
        "iscrowd": int(instance < 1000),
    }
