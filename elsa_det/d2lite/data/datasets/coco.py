"""COCO's instance annotations and folders of label maps, read into the standard dataset format; and back to COCO."""

from __future__ import annotations

import datetime
import json
import logging
import os
import shutil
import time
from collections import defaultdict
from functools import partial
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
from iopath.common.file_io import file_lock

from ...structures import Boxes, BoxMode, PolygonMasks
from ...utils.file_io import PathManager
from ..catalog import DatasetCatalog, MetadataCatalog

__all__ = [
    "convert_to_coco_dict",
    "convert_to_coco_json",
    "load_coco_json",
    "load_sem_seg",
    "register_coco_instances",
]

logger = logging.getLogger(__name__)

_COPIED_KEYS = ("iscrowd", "bbox", "keypoints", "category_id")


class _CocoFile:
    """The content of a COCO json: images by id, annotations by image, categories. Checked as far as it is read."""

    kind = "COCO"
    builtin_places = "coco/annotations/instances_*.json and coco/{train,val}2017/"

    def __init__(self, json_file: str, dataset_name: str | None) -> None:
        self.path = json_file
        self.what = f"{self.kind} annotations '{json_file}'" + (f" of dataset '{dataset_name}'" if dataset_name else "")
        start = time.perf_counter()
        content = self._read()
        self.images = self._by_id(content, "images")
        self.categories = self._by_id(content, "categories") if dataset_name is not None else {}
        annotations = self._list(content, "annotations") if "annotations" in content else []  # test sets have none
        self.of_image: dict[int, list[dict]] = defaultdict(list)
        for ann in annotations:
            try:
                self.of_image[ann["image_id"]].append(ann)
            except (KeyError, TypeError) as error:
                raise ValueError(f"{self.what}: an annotation has no 'image_id': {str(ann)[:200]}") from error
        self._check_matches(len(annotations))
        if (seconds := time.perf_counter() - start) > 1:
            logger.info("Reading %s took %.2f seconds.", json_file, seconds)

    def _read(self) -> dict:
        try:
            with open(PathManager.get_local_path(self.path), encoding="utf-8") as file:
                content = json.load(file)
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"{self.what} do not exist (looked for at '{os.path.abspath(self.path)}'). "
                "Check the json_file the dataset is registered with. "
                f"The built-in {self.kind} datasets are expected below the folder that the environment variable "
                f"DETECTRON2_DATASETS names (now {os.getenv('DETECTRON2_DATASETS', 'unset: ./datasets')}), as "
                f"{self.builtin_places}."
            ) from error
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise ValueError(f"{self.what} are not a JSON file: {error}. Is the download complete?") from error
        if not isinstance(content, dict):
            raise ValueError(
                f"{self.what} are not in {self.kind} format: expected an object with 'images', 'annotations', "
                f"'categories', got a {type(content).__name__}. "
                "(A list may be detection results, which are not annotations.)"
            )
        return content

    def _list(self, content: dict, key: str) -> list[dict]:
        if not isinstance(content.get(key), list):
            raise ValueError(
                f"{self.what} are not in {self.kind} format: there is no list '{key}', "
                f"only {sorted(map(str, content))}."
            )
        return content[key]

    def _by_id(self, content: dict, key: str) -> dict[int, dict]:
        items = self._list(content, key)
        try:
            by_id = {item["id"]: item for item in items}
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"{self.what} are not in {self.kind} format: '{key}' has an entry without 'id'."
            ) from error
        if len(by_id) < len(items):
            logger.warning(
                "%s: %d of the %d entries of '%s' repeat an id; the last of each counts.",
                self.what,
                len(items) - len(by_id),
                len(items),
                key,
            )
        return by_id

    def _check_matches(self, total: int) -> None:
        ids = [ann.get("id") for image_id in self.images for ann in self.of_image.get(image_id, ())]
        if len(ids) < total:
            logger.warning(
                "%s: %d of %d annotations belong to no image of the file.", self.what, total - len(ids), total
            )
        # The well-known minival splits of COCO 2014 repeat a few ids, which does no harm.
        if (None in ids or len(set(ids)) < len(ids)) and "minival" not in self.path:
            raise ValueError(
                f"{self.what}: annotation ids are not unique ({len(ids) - len(set(ids))} of {len(ids)} repeat one, "
                f"{ids.count(None)} have none). Evaluation would confuse these objects; number them anew."
            )

    def contiguous_ids(self, dataset_name: str) -> dict[int, int]:
        """Category ids to 0, 1, 2, … in their order; class names and this map go into the metadata."""
        ids = sorted(self.categories)
        if not ids:
            raise ValueError(f"{self.what}: the list 'categories' is empty, so there are no classes.")
        meta = MetadataCatalog.get(dataset_name)
        meta.thing_classes = [self.categories[i]["name"] for i in ids]
        if ids != list(range(1, len(ids) + 1)) and "coco" not in dataset_name:
            logger.warning(
                "%s: category ids are not 1 to %d; they are mapped to 0 to %d.", self.what, len(ids), len(ids) - 1
            )
        meta.thing_dataset_id_to_contiguous_id = {category_id: i for i, category_id in enumerate(ids)}
        return meta.thing_dataset_id_to_contiguous_id


def _usable_segmentation(segmentation: Any) -> Any:
    """Polygons with at least three points, or a compressed RLE; None if nothing of it can be used."""
    if isinstance(segmentation, dict):
        if isinstance(segmentation["counts"], list):
            return mask_util.frPyObjects(segmentation, *segmentation["size"])
        return segmentation
    return [polygon for polygon in segmentation if len(polygon) % 2 == 0 and len(polygon) >= 6] or None


def _object(ann: dict, keys: tuple[str, ...], id_map: dict[int, int] | None, file: _CocoFile) -> dict | None:
    """One annotation in the standard dataset format; None if its polygons cannot be used."""

    def where() -> str:
        return f"{file.what}: annotation {ann.get('id')} of image {ann['image_id']}"

    if ann.get("ignore", 0):
        raise ValueError(f"{where()} is marked 'ignore', which is not supported. Remove it, or mark it 'iscrowd'.")
    obj = {key: ann[key] for key in keys if key in ann}
    if "bbox" in obj and len(obj["bbox"]) == 0:
        raise ValueError(f"{where()} has an empty 'bbox'. COCO boxes are [x, y, width, height].")
    if ann.get("segmentation"):
        obj["segmentation"] = _usable_segmentation(ann["segmentation"])
        if obj["segmentation"] is None:
            return None
    if obj.get("keypoints"):  # COCO's are pixel indices; half a pixel more are coordinates
        obj["keypoints"] = [v if i % 3 == 2 else v + 0.5 for i, v in enumerate(obj["keypoints"])]
    obj["bbox_mode"] = BoxMode.XYWH_ABS
    if id_map is not None:
        if obj.get("category_id") not in id_map:
            raise KeyError(f"{where()} has category_id={obj.get('category_id')}, which is not among 'categories'.")
        obj["category_id"] = id_map[obj["category_id"]]
    return obj


def load_coco_json(
    json_file: str | os.PathLike,
    image_root: str | os.PathLike,
    dataset_name: str | None = None,
    extra_annotation_keys: list[str] | None = None,
) -> list[dict[str, Any]]:
    """Read COCO's instance annotations; images are not opened.

    Objects whose polygons all have fewer than three points are left out; the log says how many.

    Args:
        json_file: the annotations.
        image_root: folder of the images.
        dataset_name: if given, category ids are mapped to 0, 1, 2, …, and the class names and this map are written to
            the metadata of this name. Without it, ids stay as they are, which is not what training expects.
        extra_annotation_keys: more keys of annotations to copy as they are.

    Returns:
        one dict an image, by ascending image id: "file_name", "height", "width", "image_id", "annotations".

    Raises:
        FileNotFoundError: if ``json_file`` does not exist.
        KeyError: if an annotation has a category that is not there.
        ValueError: if the file is not in COCO format, or unusable.
    """
    file = _CocoFile(str(json_file), dataset_name)
    id_map = file.contiguous_ids(dataset_name) if dataset_name is not None else None
    logger.info("%d images read from %s.", len(file.images), json_file)
    keys = (*_COPIED_KEYS, *(extra_annotation_keys or ()))
    dataset_dicts, unusable = [], 0
    for image_id, image in sorted(file.images.items()):
        missing = [key for key in ("file_name", "height", "width") if key not in image]
        if missing:
            raise ValueError(f"{file.what}: image {image_id} has no {missing[0]!r}.")
        objects = [_object(ann, keys, id_map, file) for ann in file.of_image.get(image_id, ())]
        unusable += objects.count(None)
        dataset_dicts.append(
            {
                "file_name": os.path.join(image_root, image["file_name"]),
                "height": image["height"],
                "width": image["width"],
                "image_id": image_id,
                "annotations": [obj for obj in objects if obj is not None],
            }
        )
    if unusable:
        logger.warning(
            "%s: %d objects left out, all their polygons have fewer than three points. "
            "Something may be wrong in how the file was made.",
            file.what,
            unusable,
        )
    return dataset_dicts


def load_sem_seg(gt_root: str, image_root: str, gt_ext: str = "png", image_ext: str = "jpg") -> list[dict[str, str]]:
    """Pair the images of a folder with the label maps of another by their names; nothing is opened.

    If the numbers differ, the pairs are used and the log says how many there are.

    Args:
        gt_root: folder of the label maps.
        image_root: folder of the images.
        gt_ext, image_ext: endings of their names.

    Returns:
        one dict an image, by name: "file_name", "sem_seg_file_name".

    Raises:
        FileNotFoundError: if a folder does not exist, or the one of the label maps has none.
    """

    def by_stem(root: str, ext: str) -> dict[str, str]:
        if not PathManager.isdir(root):
            raise FileNotFoundError(
                f"Folder '{root}' does not exist (looked for at '{os.path.abspath(root)}'). The built-in datasets are "
                "expected below the folder that the environment variable DETECTRON2_DATASETS names "
                f"(now {os.getenv('DETECTRON2_DATASETS', 'unset: ./datasets')})."
            )
        return {f.removesuffix(ext): os.path.join(root, f) for f in PathManager.ls(root) if f.endswith(ext)}

    images, labels = by_stem(image_root, image_ext), by_stem(gt_root, gt_ext)
    if not labels:
        raise FileNotFoundError(f"There are no label maps (*.{gt_ext}) in '{gt_root}'.")
    stems = sorted(images.keys() & labels.keys())
    if not len(stems) == len(images) == len(labels):
        logger.warning(
            "%d images in %s and %d label maps in %s; the %d pairs of the same name are used.",
            len(images),
            image_root,
            len(labels),
            gt_root,
            len(stems),
        )
    logger.info("%d images with label maps found in %s.", len(stems), image_root)
    return [{"file_name": images[stem], "sem_seg_file_name": labels[stem]} for stem in stems]


def _coco_annotation(obj: dict[str, Any]) -> dict[str, Any]:
    """One object in COCO format, without the ids."""
    box = np.asarray(obj["bbox"]).tolist()
    if np.shape(box) != (4,):
        raise ValueError(f"A box has four numbers, got {obj['bbox']!r}.")
    box = BoxMode.convert(box, obj["bbox_mode"], BoxMode.XYWH_ABS)
    segmentation = obj.get("segmentation")
    if "segmentation" not in obj:
        area = Boxes([BoxMode.convert(box, BoxMode.XYWH_ABS, BoxMode.XYXY_ABS)]).area()[0].item()
    elif isinstance(segmentation, list):
        area = PolygonMasks([segmentation]).area()[0].item()
        segmentation = [np.asarray(polygon).tolist() for polygon in segmentation]
    elif isinstance(segmentation, dict):
        area = mask_util.area(segmentation).item()
        if isinstance(segmentation["counts"], bytes):  # JSON has no bytes
            segmentation = {**segmentation, "counts": segmentation["counts"].decode("ascii")}
    else:
        raise TypeError(f"A segmentation of type {type(segmentation).__name__} has no place in a COCO file.")
    annotation = {
        "bbox": [round(float(v), 3) for v in box],
        "area": float(area),
        "iscrowd": int(obj.get("iscrowd", 0)),
    }
    return annotation if segmentation is None else {**annotation, "segmentation": segmentation}


def convert_to_coco_dict(dataset_name: str) -> dict[str, Any]:
    """A registered dataset as the content of a COCO json.

    Category ids are those of the original annotations, if the metadata knows them. Areas are those of the
    segmentations, or of the boxes where there are none.

    Args:
        dataset_name: needs "thing_classes" in its metadata.
    """
    metadata = MetadataCatalog.get(dataset_name)
    dataset_dicts = DatasetCatalog.get(dataset_name)
    original_id = {i: category_id for category_id, i in metadata.get("thing_dataset_id_to_contiguous_id", {}).items()}
    images: list[dict] = []
    annotations: list[dict] = []
    for number, image in enumerate(dataset_dicts):
        image_id = image.get("image_id", number)
        images.append(
            {
                "id": image_id,
                "width": int(image["width"]),
                "height": int(image["height"]),
                "file_name": str(image["file_name"]),
            }
        )
        for obj in image.get("annotations", ()):
            category = obj["category_id"]
            annotations.append(
                {
                    "id": len(annotations) + 1,  # COCO's evaluation takes the id 0 for "no match"
                    "image_id": image_id,
                    "category_id": int(original_id[category] if original_id else category),
                    **_coco_annotation(obj),
                }
            )
    logger.info("%d images and %d annotations of '%s' converted.", len(images), len(annotations), dataset_name)
    coco = {
        "info": {"date_created": str(datetime.datetime.now()), "description": "Made from a registered dataset."},
        "images": images,
        "categories": [{"id": original_id.get(i, i), "name": name} for i, name in enumerate(metadata.thing_classes)],
        "licenses": None,
    }
    return {**coco, "annotations": annotations} if annotations else coco


def convert_to_coco_json(dataset_name: str, output_file: str, allow_cached: bool = True) -> None:
    """Write a registered dataset as a COCO json.

    Args:
        dataset_name: see :func:`convert_to_coco_dict`.
        output_file: where to.
        allow_cached: leave the file as it is if it exists; the log warns of it.
    """

    def write() -> None:
        logger.info("Writing dataset '%s' in COCO format to '%s'.", dataset_name, output_file)
        text = json.dumps(convert_to_coco_dict(dataset_name))
        with PathManager.open(f"{output_file}.tmp", "w") as unfinished:
            unfinished.write(text)
        shutil.move(f"{output_file}.tmp", output_file)

    PathManager.mkdirs(os.path.dirname(output_file) or ".")
    with file_lock(output_file):  # the processes of one machine share the file
        if not (allow_cached and PathManager.exists(output_file)):
            write()
        else:
            logger.warning("'%s' exists and is used. Delete it if dataset '%s' has changed.", output_file, dataset_name)


def register_coco_instances(
    name: str, metadata: dict[str, Any], json_file: str | os.PathLike, image_root: str | os.PathLike
) -> None:
    """Register a dataset with annotations in COCO's format. Nothing is read before it is used.

    Args:
        name: of the dataset. Registering it again with the same arguments does nothing.
        metadata: more facts about it, may be empty.
        json_file: the annotations.
        image_root: folder of the images.

    Raises:
        TypeError: if an argument is of the wrong type.
        ValueError: if the name is registered with other files.
    """
    if not isinstance(name, str):
        raise TypeError(f"register_coco_instances(name=…) is a string, got {name!r}.")
    for argument, path in (("json_file", json_file), ("image_root", image_root)):
        if not isinstance(path, (str, os.PathLike)):
            raise TypeError(f"register_coco_instances({name!r}, {argument}=…) is a path, got {path!r}.")
    MetadataCatalog.get(name).set(json_file=json_file, image_root=image_root, evaluator_type="coco", **metadata)
    if name not in DatasetCatalog:
        DatasetCatalog.register(name, partial(load_coco_json, json_file, image_root, name))
