"""Writes the quickstart set to a folder in COCO's format, and registers it.

Layout::

    <root>/train/000000.png …              images, 8-bit RGB
    <root>/val/…
    <root>/labels/train/000000.png …       label maps, 8-bit grey: 0 is ground, 1…N the category ids
    <root>/annotations/instances_train.json, instances_val.json
    <root>/quickstart.json                 the stamp: version and parameters, written last
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ...d2 import DatasetCatalog, MetadataCatalog, load_coco_json
from .drawing import CLASSES, Scene, SceneSpec, draw_scene
from .outlines import mask_to_polygons

VERSION = 1
"""Raised whenever the same parameters no longer give the same files."""

DATASET_NAMES = {"train": "quickstart_train", "val": "quickstart_val"}
"""Catalogue name of each split."""

_STAMP = "quickstart.json"
_PREPARE = "python datasets/prepare_quickstart.py"


@dataclass(frozen=True)
class SetSpec:
    """How many pictures each split has, and what they look like."""

    train: int = 1000
    val: int = 80
    scene: SceneSpec = field(default_factory=SceneSpec)

    def __post_init__(self) -> None:
        for name in ("train", "val"):
            count = getattr(self, name)
            if isinstance(count, bool) or not isinstance(count, int) or count < 1:
                raise ValueError(f"{name} is a number of images and must be at least 1, got {count!r}.")

    def counts(self) -> dict[str, int]:
        return {"train": self.train, "val": self.val}

    def stamp(self) -> dict[str, Any]:
        return {"version": VERSION, "classes": list(CLASSES), **asdict(self)}


def is_complete(root: str | os.PathLike[str], spec: SetSpec) -> bool:
    """Whether ``root`` holds the set of ``spec``, whole and of this version."""
    root = Path(root)
    try:
        if json.loads((root / _STAMP).read_text(encoding="utf-8")) != spec.stamp():
            return False
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return False
    return all(
        _annotation_file(root, split).is_file()
        and all(_image_file(folder, index).is_file() for folder in _folders(root, split) for index in range(count))
        for split, count in spec.counts().items()
    )


def overrides_for(root: str | os.PathLike[str]) -> list[str]:
    """``key=value`` that let a config train and test on the set that :func:`write_shapes` has drawn into ``root``."""
    return [
        f"dataset.{key}.{what}={os.path.join(root, place)}"
        for split, key in (("train", "train"), ("val", "test"))
        for what, place in (("json_file", f"annotations/instances_{split}.json"), ("image_root", split))
    ]


def write_shapes(
    root: str | os.PathLike[str],
    spec: SetSpec | None = None,
    *,
    force: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> bool:
    """Draw the set into ``root``, unless it is there already.

    Args:
        root: The folder; made if need be.
        spec: What to draw; the default is 1000 training and 80 validation images of 128×128 pixels.
        force: Draw even if the folder is complete.
        progress: Called with (images done, images in all) after each image.

    Returns:
        Whether anything was drawn.

    Raises:
        ValueError: ``root`` has content that is no quickstart set.
    """
    root = Path(root)
    spec = spec or SetSpec()
    if not force and is_complete(root, spec):
        return False
    _make_room(root)
    # While the set is being drawn the stamp matches no parameters: an interrupted run is seen for what it is.
    (root / _STAMP).write_text(json.dumps({"version": None}) + "\n", encoding="utf-8")
    total, done = sum(spec.counts().values()), 0
    for split, count in spec.counts().items():
        for folder in (*_folders(root, split), root / "annotations"):
            folder.mkdir(parents=True, exist_ok=True)
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for index in range(count):
            scene = draw_scene(spec.scene, split, index)
            image_folder, label_folder = _folders(root, split)
            Image.fromarray(scene.image).save(_image_file(image_folder, index))
            Image.fromarray(scene.label_map()).save(_image_file(label_folder, index))
            height, width = scene.image.shape[:2]
            name = _image_file(image_folder, index).name
            images.append({"id": index + 1, "file_name": name, "height": height, "width": width})
            annotations += _annotations(scene, image_id=index + 1, first_id=len(annotations) + 1)
            done += 1
            if progress is not None:
                progress(done, total)
        _annotation_file(root, split).write_text(_coco_json(split, spec, images, annotations), encoding="utf-8")
    (root / _STAMP).write_text(json.dumps(spec.stamp(), indent=2) + "\n", encoding="utf-8")
    return True


def register_shapes(root: str | os.PathLike[str] | None = None) -> tuple[str, str]:
    """Enter the two splits into Detectron2's catalogues; calling it again is fine, also with another root.

    Nothing is read until a split is asked for, so the folder may be made later.

    Args:
        root: The set's folder; by default ``quickstart`` in the folder that the environment variable
            ``DETECTRON2_DATASETS`` names, or else in ``datasets``.

    Returns:
        The names of the training and the validation split.
    """
    if root is None:
        root = Path(os.environ.get("DETECTRON2_DATASETS", "datasets")).expanduser() / "quickstart"
    root = Path(root)
    for split, name in DATASET_NAMES.items():
        json_file, image_root = str(_annotation_file(root, split)), str(root / split)
        if name in DatasetCatalog.list():
            if MetadataCatalog.get(name).get("json_file") == json_file:
                continue
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)
        # As register_coco_instances does it, but a set that is not there yet is told how to come about, and the
        # names of the classes are known before the annotations are read.
        DatasetCatalog.register(name, partial(_load, json_file, image_root, name))
        MetadataCatalog.get(name).set(
            json_file=json_file,
            image_root=image_root,
            evaluator_type="coco",
            thing_classes=list(CLASSES),
        )
    return DATASET_NAMES["train"], DATASET_NAMES["val"]


def _load(json_file: str, image_root: str, name: str) -> list[dict[str, Any]]:
    if not os.path.isfile(json_file):
        root = os.path.dirname(os.path.dirname(json_file))
        raise FileNotFoundError(f"{name}: there is no {json_file}. Draw the set with '{_PREPARE} --output {root}'.")
    return load_coco_json(json_file, image_root, name)


def _annotation_file(root: Path, split: str) -> Path:
    return root / "annotations" / f"instances_{split}.json"


def _folders(root: Path, split: str) -> tuple[Path, Path]:
    return root / split, root / "labels" / split


def _image_file(folder: Path, index: int) -> Path:
    return folder / f"{index:06d}.png"


def _make_room(root: Path) -> None:
    """Remove an earlier set from ``root``; refuse a folder that holds anything else."""
    if root.exists() and not root.is_dir():
        raise ValueError(f"{root} is a file; the quickstart set needs a folder.")
    root.mkdir(parents=True, exist_ok=True)
    if not any(root.iterdir()):
        return
    if not (root / _STAMP).is_file():
        raise ValueError(f"{root} is not empty and holds no {_STAMP}: give an empty folder, nothing was touched.")
    for split in DATASET_NAMES:
        for folder in _folders(root, split):
            for old in folder.glob("[0-9]*.png"):
                old.unlink()
        _annotation_file(root, split).unlink(missing_ok=True)


def _annotations(scene: Scene, image_id: int, first_id: int) -> list[dict[str, Any]]:
    entries = []
    for offset, (index, mask) in enumerate(zip(scene.classes, scene.masks)):
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        left, top = int(columns[0]), int(rows[0])
        entries.append(
            {
                "id": first_id + offset,
                "image_id": image_id,
                "category_id": index + 1,
                "bbox": [left, top, int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top],
                "area": int(mask.sum()),
                "iscrowd": 0,
                "segmentation": mask_to_polygons(mask),
            }
        )
    return entries


def _coco_json(split: str, spec: SetSpec, images: list[dict[str, Any]], annotations: list[dict[str, Any]]) -> str:
    licence = {"id": 1, "name": "CC0 1.0", "url": "https://creativecommons.org/publicdomain/zero/1.0/"}
    content = {
        "info": {
            "description": f"elsa_det quickstart shapes, {split} split, seed {spec.scene.seed}",
            "version": str(VERSION),
            "year": 2026,
            "contributor": "elsa_det",
        },
        "licenses": [licence],
        "categories": [{"id": i + 1, "name": name, "supercategory": "shape"} for i, name in enumerate(CLASSES)],
        "images": [{**image, "license": 1} for image in images],
        "annotations": annotations,
    }
    return json.dumps(content, separators=(",", ":")) + "\n"
