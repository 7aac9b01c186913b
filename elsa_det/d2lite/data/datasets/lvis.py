"""LVIS's instance annotations (Gupta et al., CVPR 2019), read into the standard dataset format.

LVIS is federated: of an image it is known which classes are there (those with annotations), which of these are not
annotated in full ("not_exhaustive_category_ids"), and which are not there ("neg_category_ids"). Nothing is known of the
other classes.
"""

from __future__ import annotations

import logging
import os
from functools import partial
from typing import Any

from ..catalog import DatasetCatalog, MetadataCatalog
from .coco import _CocoFile, _object

__all__ = ["load_lvis_json", "register_lvis_instances"]

logger = logging.getLogger(__name__)


class _LvisFile(_CocoFile):
    kind = "LVIS"
    builtin_places = "lvis/lvis_v1_{train,val}.json and coco/{train,val}2017/"

    def contiguous_ids(self, dataset_name: str) -> dict[int, int]:
        """Category ids to 0, 1, 2, … in their order; class names go into the metadata.

        The map does so too, unless the ids are 1 to N: then the class is the id - 1, as everywhere with LVIS.
        """
        ids = sorted(self.categories)
        if not ids:
            raise ValueError(f"{self.what}: the list 'categories' is empty, so there are no classes.")
        meta = MetadataCatalog.get(dataset_name)
        meta.thing_classes = [self._class_name(self.categories[i]) for i in ids]
        id_map = {category_id: i for i, category_id in enumerate(ids)}
        if ids != list(range(1, len(ids) + 1)):
            meta.thing_dataset_id_to_contiguous_id = id_map
        return id_map

    def _class_name(self, category: dict[str, Any]) -> str:
        """The first synonym, which is how LVIS's classes are called; the name where there are no synonyms."""
        name = (category.get("synonyms") or [category.get("name")])[0]
        if name is None:
            raise ValueError(f"{self.what}: category {category['id']} has neither 'synonyms' nor 'name'.")
        return name

    def file_name(self, image: dict[str, Any], image_root: str) -> str:
        """The place of an image: the last two parts of its ``coco_url``, such as train2017/000000000009.jpg.

        LVIS splits COCO's images anew, so those of one split lie in several folders of COCO's.
        """
        if "coco_url" in image:
            return os.path.join(image_root, *image["coco_url"].split("/")[-2:])
        if "file_name" in image:
            return os.path.join(image_root, image["file_name"])
        raise ValueError(f"{self.what}: image {image['id']} has neither 'coco_url' nor 'file_name'.")


def load_lvis_json(
    json_file: str | os.PathLike,
    image_root: str | os.PathLike,
    dataset_name: str | None = None,
    extra_annotation_keys: list[str] | None = None,
) -> list[dict[str, Any]]:
    """Read LVIS's instance annotations; images are not opened.

    Args:
        json_file: the annotations.
        image_root: the folder that holds those of COCO's images, ``train2017`` and ``val2017``. For images without
            "coco_url" the folder that "file_name" starts from.
        dataset_name: if given, the class names are read from the file's categories and written to the metadata of
            this name. Ids that are not 1 to N are mapped to 0, 1, 2, …, and this map goes to the metadata as well.
            Without it, the class is the id - 1.
        extra_annotation_keys: more keys of annotations to copy as they are.

    Returns:
        one dict an image, by ascending image id: "file_name", "height", "width", "image_id",
        "not_exhaustive_category_ids", "neg_category_ids" (both as in the file), "annotations".

    Raises:
        FileNotFoundError: if ``json_file`` does not exist.
        KeyError: if an annotation has a category that is not there, or lacks one of ``extra_annotation_keys``.
        ValueError: if the file is not in LVIS format, or has an object without usable polygons.
    """
    file, extra = _LvisFile(str(json_file), dataset_name), extra_annotation_keys or []
    id_map = file.contiguous_ids(dataset_name) if dataset_name is not None else None
    logger.info("%d images read from %s.", len(file.images), json_file)
    dataset_dicts = []
    for image_id, image in sorted(file.images.items()):
        if missing := [key for key in ("height", "width") if key not in image]:
            raise ValueError(f"{file.what}: image {image_id} has no {missing[0]!r}.")
        dataset_dicts.append(
            {
                "file_name": file.file_name(image, str(image_root)),
                "height": image["height"],
                "width": image["width"],
                "not_exhaustive_category_ids": image.get("not_exhaustive_category_ids", []),
                "neg_category_ids": image.get("neg_category_ids", []),
                "image_id": image_id,
                "annotations": [_lvis_object(ann, extra, id_map, file) for ann in file.of_image.get(image_id, ())],
            }
        )
    return dataset_dicts


def _lvis_object(ann: dict, extra: list[str], id_map: dict[int, int] | None, file: _LvisFile) -> dict[str, Any]:
    """One annotation in the standard dataset format. LVIS's rules are stricter than COCO's: everything has a mask."""
    where = f"{file.what}: annotation {ann.get('id')} of image {ann['image_id']}"
    if absent := [key for key in extra if key not in ann]:
        raise KeyError(f"{where} has no {absent[0]!r}, which was asked for by extra_annotation_keys.")
    obj = _object(ann, ("bbox", "category_id", *extra), id_map, file)
    segmentation = ann.get("segmentation")
    if not segmentation or obj is None or len(obj["segmentation"]) < len(segmentation):
        raise ValueError(f"{where} has no segmentation, or a polygon of fewer than three points.")
    if id_map is None:
        obj["category_id"] -= 1
    return obj


def register_lvis_instances(
    name: str, metadata: dict[str, Any], json_file: str | os.PathLike, image_root: str | os.PathLike
) -> None:
    """Register a dataset with annotations in LVIS's format. Nothing is read before it is used.

    Args:
        name: of the dataset.
        metadata: more facts about it, may be empty.
        json_file: the annotations.
        image_root: see :func:`load_lvis_json`.

    Raises:
        ValueError: if the name is registered already.
    """
    DatasetCatalog.register(name, partial(load_lvis_json, json_file, image_root, name))
    MetadataCatalog.get(name).set(json_file=json_file, image_root=image_root, evaluator_type="lvis", **metadata)
