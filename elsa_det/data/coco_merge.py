"""COCO-format files made one, and divided."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import UserError
from .paths import check_inside

logger = logging.getLogger(__name__)


def merge(
    parts: Sequence[tuple[dict[str, Any], str, str]], categories: list[dict[str, Any]]
) -> tuple[dict[str, Any], str]:
    """One COCO-format content of several.

    Ids of images and annotations stay where no two are the same; otherwise all are numbered anew, from 1 on, and
    images remember theirs as "source_id". Annotations of images that a file does not have are left out.

    Args:
        parts: content, its file (for messages) and the folder of its images.
        categories: those of the result, with "id" and "name"; objects get the id that their class has here.

    Returns:
        The content, and the folder that its ``file_name`` entries start from.

    Raises:
        UserError: an object has a category that its file does not list, an image or object is none, or two files
            have the same image.
    """
    roots = [root for _, _, root in parts]
    together = roots[0] if len(set(roots)) == 1 else os.path.commonpath([os.path.abspath(root) for root in roots])
    ids = {category["name"]: category["id"] for category in categories}
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    groups = []
    for content, json_file, root in parts:
        try:
            of_class = {category["id"]: ids[category["name"]] for category in content["categories"]}
            within = "" if root == together else os.path.relpath(os.path.abspath(root), together)
            own = [image | {"file_name": os.path.join(within, image["file_name"])} for image in content["images"]]
            check_inside((image["file_name"] for image in content["images"]), root, json_file)
            known = {image["id"] for image in own}
            objects = [
                annotation | {"category_id": of_class[annotation["category_id"]]}
                for annotation in content.get("annotations", [])
                if annotation["image_id"] in known
            ]
        except (KeyError, TypeError) as error:
            raise UserError(
                f"{json_file}: an image, object or category lacks something ({type(error).__name__}: {error}). See all "
                f"with: tools/check_data.py --json {json_file} --images {root}"
            ) from error
        groups.append((own, objects))
        images += own
        annotations += objects
    _check_files(images, together)
    if not (_distinct(images) and _distinct(annotations)):
        if len(parts) == 1:
            raise UserError(f"{parts[0][1]}: two images or two annotations share an id: number them anew")
        images, annotations = _numbered(groups)
        logger.info("Images and annotations of %d files are numbered anew: their ids were not distinct", len(parts))
    return {"images": images, "annotations": annotations, "categories": categories}, together


def split(content: dict[str, Any], fraction: float, seed: int, *, test: bool) -> dict[str, Any]:
    """The training or the test part of a content.

    Which images are in the test part depends on their file names and the seed only: it stays what it is where the
    file is sorted otherwise, and nearly so where images are added.

    Args:
        content: with "images" and "annotations"; other keys are kept.
        fraction: share of the images in the test part, in (0, 1), rounded to whole images.
        seed: another one takes others.
        test: which part to give.

    Raises:
        UserError: a part would have no image.
    """
    images = content["images"]
    count = round(len(images) * fraction)
    if not 0 < count < len(images):
        raise UserError(
            f"dataset.val_fraction={fraction:g} of {len(images)} images leaves {count} for testing and "
            f"{len(images) - count} for training: both need at least one"
        )
    drawn = {image["id"] for image in sorted(images, key=lambda image: _draw(seed, image["file_name"]))[:count]}
    kept = [image for image in images if (image["id"] in drawn) == test]
    ids = {image["id"] for image in kept}
    objects = [annotation for annotation in content["annotations"] if annotation["image_id"] in ids]
    seen = {annotation["category_id"] for annotation in objects}
    without = [category["name"] for category in content["categories"] if category["id"] not in seen]
    if without:
        logger.warning(
            "The %s part, %d of %d images, has no object of: %s. Another dataset.split_seed divides otherwise.",
            "test" if test else "training", len(kept), len(images), ", ".join(without),
        )  # fmt: skip
    return content | {"images": kept, "annotations": objects}


def write_json(content: Any, path: Path) -> None:
    """Write a file as a whole, so that processes that write the same one at the same time do no harm.

    Raises:
        UserError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = path.with_name(f"{path.name}.{os.getpid()}")
        whole.write_text(json.dumps(content), encoding="utf-8")
        whole.replace(path)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error}. Choose another train.output_dir") from error


def _draw(seed: int, file_name: str) -> str:
    return hashlib.sha256(f"{seed}:{file_name}".encode()).hexdigest()


def _distinct(entries: list[dict[str, Any]]) -> bool:
    return len({entry.get("id") for entry in entries}) == len(entries)


def _check_files(images: list[dict[str, Any]], root: str) -> None:
    seen: set[str] = set()
    for image in images:
        name = os.path.normpath(image["file_name"])
        if name in seen:
            raise UserError(
                f"{os.path.join(root, name)} is listed twice: an image would be in training twice, or in training and "
                "testing. Take it out of one of the files"
            )
        seen.add(name)


def _numbered(
    groups: list[tuple[list[dict[str, Any]], list[dict[str, Any]]]],
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for own, objects in groups:
        new = {image["id"]: len(images) + i for i, image in enumerate(own, 1)}
        images += [image | {"id": new[image["id"]], "source_id": image["id"]} for image in own]
        first = len(annotations) + 1
        annotations += [o | {"id": first + i, "image_id": new[o["image_id"]]} for i, o in enumerate(objects)]
    return images, annotations
