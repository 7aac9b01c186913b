"""A made-up federated set in LVIS's format, small enough to be worked out by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from elsa_det.data import registered_lvis
from elsa_det.errors import UserError

try:
    registered_lvis("lvis_v1_val")
    problem = ""
except UserError as error:
    problem = str(error)
needs_lvis = pytest.mark.skipif(problem != "", reason=problem)

SIZE = 200  # of the images, square
CATEGORIES = [(1, "apple", "f"), (2, "bow_(weapon)", "r"), (3, "cup", "c"), (4, "duck", "r")]
#: image: categories known to be absent, categories not annotated in full
IMAGES: dict[int, tuple[list[int], list[int]]] = {11: ([2], [1]), 12: ([], []), 13: ([1, 3], [2]), 14: ([1], [])}
#: image, category, box as x0, y0, x1, y1; the masks fill the boxes
OBJECTS = [
    (11, 1, (0, 0, 100, 100)),
    (11, 3, (120, 120, 140, 140)),
    (12, 1, (50, 50, 150, 150)),
    (12, 2, (10, 150, 60, 200)),
    (13, 2, (20, 20, 70, 70)),
]


def annotation(number: int, image: int, category: int, box: tuple[int, ...]) -> dict[str, Any]:
    x0, y0, x1, y1 = box
    width, height = x1 - x0, y1 - y0
    return {
        "id": number,
        "image_id": image,
        "category_id": category,
        "bbox": [x0, y0, width, height],
        "area": width * height,
        "segmentation": [[x0, y0, x1, y0, x1, y1, x0, y1]],
    }


def lvis_content(objects=OBJECTS, **extra) -> dict[str, Any]:
    """What is in an LVIS json: the first image lies in COCO's training folder, the others in its validation folder."""
    return {
        "images": [
            {
                "id": number,
                "height": SIZE,
                "width": SIZE,
                "coco_url": f"http://images.cocodataset.org/{'train' if number == 11 else 'val'}2017/{number:012d}.jpg",
                "neg_category_ids": absent,
                "not_exhaustive_category_ids": incomplete,
            }
            for number, (absent, incomplete) in reversed(IMAGES.items())
        ],
        "annotations": [annotation(number, *found) for number, found in enumerate(objects, start=1)],
        "categories": [
            {"id": number, "name": f"{name}.n.01", "synonyms": [name, "other"], "frequency": frequency}
            for number, name, frequency in reversed(CATEGORIES)
        ],
        **extra,
    }


def write_lvis(folder: Path, content: dict[str, Any] | None = None, name: str = "lvis.json") -> str:
    """Write the json, and give its path."""
    path = folder / name
    path.write_text(json.dumps(lvis_content() if content is None else content))
    return str(path)
