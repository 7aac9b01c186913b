"""ADE20K with its 150 classes, in the layout of the scene parsing challenge (ADEChallengeData2016).

The label maps as published count the classes from 1, and 0 is what none of them covers. They are used as they are
(``elsa_ade20k_train``, ``elsa_ade20k_val``), or after ``datasets/prepare_ade20k.py`` has written maps that count from 0
and hold 255 for "ignored" (``elsa_ade20k_prepared_train``, ``elsa_ade20k_prepared_val``); both give the same training.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ...errors import UserError
from .folders import pair_folders, register_semantic
from .labels import UnknownLabels, plain_encoding, read_index_image, zero_ignored_encoding

# The first name of each row of the challenge's objectInfo150.txt, which orders classes by the pixels they cover.
ADE20K_CLASSES = (
    "wall", "building", "sky", "floor", "tree", "ceiling", "road", "bed", "windowpane", "grass", "cabinet",
    "sidewalk", "person", "earth", "door", "table", "mountain", "plant", "curtain", "chair", "car", "water",
    "painting", "sofa", "shelf", "house", "sea", "mirror", "rug", "field", "armchair", "seat", "fence", "desk",
    "rock", "wardrobe", "lamp", "bathtub", "railing", "cushion", "base", "box", "column", "signboard",
    "chest of drawers", "counter", "sand", "sink", "skyscraper", "fireplace", "refrigerator", "grandstand",
    "path", "stairs", "runway", "case", "pool table", "pillow", "screen door", "stairway", "river", "bridge",
    "bookcase", "blind", "coffee table", "toilet", "flower", "book", "hill", "bench", "countertop", "stove",
    "palm", "kitchen island", "computer", "swivel chair", "boat", "bar", "arcade machine", "hovel", "bus",
    "towel", "light", "truck", "tower", "chandelier", "awning", "streetlight", "booth", "television",
    "airplane", "dirt track", "apparel", "pole", "land", "bannister", "escalator", "ottoman", "bottle",
    "buffet", "poster", "stage", "van", "ship", "fountain", "conveyer belt", "canopy", "washer", "plaything",
    "swimming pool", "stool", "barrel", "basket", "waterfall", "tent", "bag", "minibike", "cradle", "oven",
    "ball", "food", "step", "tank", "trade name", "microwave", "pot", "animal", "bicycle", "lake", "dishwasher",
    "screen", "blanket", "sculpture", "hood", "sconce", "vase", "traffic light", "tray", "ashcan", "fan",
    "pier", "crt screen", "plate", "monitor", "bulletin board", "shower", "radiator", "glass", "clock", "flag",
)  # fmt: skip

_SPLITS = {"train": "training", "val": "validation"}
_LAYOUT = "ADEChallengeData2016"
PUBLISHED, PREPARED = "annotations", "annotations_detectron2"
"""Folders of the label maps, as published and as prepared. The latter is also where Detectron2 expects them."""


def register_ade20k(datasets: str | os.PathLike[str]) -> None:
    """Register the published and the prepared splits below ``<datasets>/ADEChallengeData2016``; nothing is read yet."""
    root = Path(datasets) / _LAYOUT
    count = len(ADE20K_CLASSES)
    for split, folder in _SPLITS.items():
        for prefix, labels, encoding in (
            ("elsa_ade20k", PUBLISHED, zero_ignored_encoding(count)),
            ("elsa_ade20k_prepared", PREPARED, plain_encoding(count)),
        ):
            places: dict[str, Any] = {
                "image_root": str(root / "images" / folder),
                "label_root": str(root / labels / folder),
            }
            register_semantic(f"{prefix}_{split}", partial(_load, prefix, **places), ADE20K_CLASSES, encoding, **places)


def _load(prefix: str, image_root: str, label_root: str) -> list[dict]:
    for place in (image_root, label_root):
        if not os.path.isdir(place):
            remedy = (
                "run datasets/prepare_ade20k.py, or use elsa_ade20k_{train,val}, which need no preparation"
                if PREPARED in Path(place).parts
                else "unpack ADEChallengeData2016.zip there (datasets/README.md), or set DETECTRON2_DATASETS"
            )
            raise FileNotFoundError(f"{prefix}: there is no folder {place}: {remedy}")
    return pair_folders(image_root, label_root)


def write_prepared_labels(root: str | os.PathLike[str], *, progress: Callable[[int, int], None] | None = None) -> int:
    """Write label maps that count classes from 0, with 255 for what none covers, beside the published ones.

    Args:
        root: The folder ``ADEChallengeData2016``.
        progress: Called with (files done, files in all).

    Returns:
        How many files were written.

    Raises:
        FileNotFoundError: The published label maps are not there.
        UserError: A file cannot be read, or has values above 150.
    """
    root = Path(root)
    encoding = zero_ignored_encoding(len(ADE20K_CLASSES))
    files = [path for folder in _SPLITS.values() for path in sorted((root / PUBLISHED / folder).glob("*.png"))]
    if not files:
        raise FileNotFoundError(
            f"there are no label maps in {root / PUBLISHED}/{{{','.join(_SPLITS.values())}}} (looked for "
            f"{root.absolute()}): give the folder {_LAYOUT} that the challenge's archive unpacks to"
        )
    for done, path in enumerate(files, start=1):
        try:
            labels = encoding.decode(read_index_image(path))
        except UnknownLabels as unknown:
            raise UserError(
                f"label file {path} has {unknown}; those of the challenge hold 0..{encoding.num_classes}. Is it a file "
                "of the full ADE20K dataset?"
            ) from None
        target = root / PREPARED / path.relative_to(root / PUBLISHED)
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(labels.astype(np.uint8)).save(target)
        if progress is not None:
            progress(done, len(files))
    return len(files)
