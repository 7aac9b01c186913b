"""Faults of COCO-format data, found before a training meets them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from ..errors import UserError
from ..images import check_size
from ..json_files import read_json
from ..nearby import looked_for
from .image_files import UnreadableImage, image_size
from .paths import ALLOW, leads_out

ERROR, DROPPED, NOTE = "error", "dropped", "note"
SEVERITIES = (ERROR, DROPPED, NOTE)

#: how closely the image files are looked at
NAMES, HEADERS, PIXELS = "names", "headers", "pixels"
AUTO = "auto"  #: headers of at most FEW images, the names of more
FEW = 2000

#: COCO's bounds between small, medium and large objects, in square pixels
_SMALL, _MEDIUM = 32**2, 96**2
_FARTHEST = 1e12  #: coordinates beyond it, and NaN, are no numbers of pixels
_TOLERANCE = 1.0  #: pixels that annotations may reach beyond their image, by rounding


@dataclass(frozen=True)
class Finding:
    """A fault: its kind, where it is, and what to do.

    ``severity`` is "error" (training would stop or learn wrong things), "dropped" (training goes on without it) or
    "note" (used as it is).
    """

    severity: str
    kind: str
    where: str
    remedy: str = ""


@dataclass
class CocoReport:
    """What a COCO-format dataset holds, and what is wrong with it."""

    json_file: str
    image_root: str
    images: int = 0
    without_objects: int = 0
    crowds: int = 0
    instances: Counter[str] = field(default_factory=Counter)  #: by class, crowds aside
    sizes: Counter[str] = field(default_factory=Counter)  #: small, medium, large
    image_sizes: Counter[tuple[int, int]] = field(default_factory=Counter)  #: by (width, height)
    findings: list[Finding] = field(default_factory=list)

    def of(self, severity: str) -> list[Finding]:
        return [finding for finding in self.findings if finding.severity == severity]

    def by_kind(self) -> dict[tuple[str, str], list[Finding]]:
        """Findings by severity (errors first) and kind."""
        order = sorted(self.findings, key=lambda finding: (SEVERITIES.index(finding.severity), finding.kind))
        kinds: dict[tuple[str, str], list[Finding]] = {}
        for finding in order:
            kinds.setdefault((finding.severity, finding.kind), []).append(finding)
        return kinds

    def raise_for_errors(self, *, shown: int = 5) -> None:
        """Raise a :class:`UserError` that lists the first errors, if there are any."""
        errors = self.of(ERROR)
        if not errors:
            return
        lines = [f"{e.where}: {e.kind}{f'. {e.remedy}' if e.remedy else ''}" for e in errors[:shown]]
        more = f"\n… and {len(errors) - shown} more" if len(errors) > shown else ""
        raise UserError(
            f"{len(errors)} error(s) in {self.json_file}:\n" + "\n".join(lines) + more + "\n"
            f"See all with: tools/check_data.py --json {self.json_file} --images {self.image_root}"
        )


def check_coco(
    json_file: str | Path,
    image_root: str | Path,
    *,
    look: str = PIXELS,
    progress: Callable[[int, int], None] | None = None,
) -> CocoReport:
    """Read COCO-format data as training would, and report its faults.

    Args:
        json_file: the annotations.
        image_root: folder that ``file_name`` entries start from.
        look: "names" looks whether the images exist, "headers" compares their sizes too and decodes those that are cut
            off, "pixels" decodes all; "auto" is "headers" for up to 2,000 images, "names" for more.
        progress: called with images done and in all.

    Raises:
        FileNotFoundError: the json or the folder does not exist.
        UserError: the file is not COCO-format json at all.
    """
    if look not in (AUTO, NAMES, HEADERS, PIXELS):
        raise ValueError(f"look={look!r}: use {AUTO!r}, {NAMES!r}, {HEADERS!r} or {PIXELS!r}")
    json_file, root = Path(json_file), Path(image_root)
    if not root.is_dir():
        raise FileNotFoundError(f"image_root={root} is not a folder (looked for {root.absolute()})")
    content = read_coco(json_file)
    report = CocoReport(str(json_file), str(root))
    categories = _categories(content["categories"], report)
    images = _images(content["images"], report)
    objects: Counter[Any] = Counter()
    seen: set[Any] = set()
    for annotation in content.get("annotations", []):
        for finding in _annotation(annotation, images, categories, seen, report):
            report.findings.append(finding)
        if isinstance(annotation, dict):
            objects[_hashable(annotation.get("image_id"))] += 1
    report.images = len(images)
    report.without_objects = sum(not objects[image_id] for image_id in images)
    unused = [name for name in categories.values() if not report.instances[name]]
    if unused:
        report.findings.append(Finding(NOTE, "class without instances", ", ".join(unused)))
    if look == AUTO:
        look = HEADERS if len(images) <= FEW else NAMES
    for done, image in enumerate(images.values(), 1):
        report.findings.extend(_image_file(image, root, look))
        if progress is not None:
            progress(done, len(images))
    return report


def read_coco(path: Path) -> dict[str, Any]:
    """The content of a COCO-format json: an object with the lists images, categories and, mostly, annotations.

    Raises:
        FileNotFoundError, UserError: see :func:`check_coco`.
    """
    if not path.is_file():
        raise FileNotFoundError(f"annotations {path} do not exist {looked_for(path)}")
    content = read_json(path)
    if not isinstance(content, dict):
        raise UserError(
            f"{path} is not in COCO format: expected an object with the lists images, annotations and categories, got "
            f"a {type(content).__name__} (a list may be detection results, which are not annotations)"
        )
    for key in ("images", "categories", "annotations"):
        if not isinstance(content.get(key, [] if key == "annotations" else None), list):
            raise UserError(f"{path} is not in COCO format: it has no list {key!r}, only {sorted(map(str, content))}")
    if not content["categories"]:
        raise UserError(f"{path}: the list 'categories' is empty, so there are no classes")
    return content


def _hashable(value: Any) -> Any:
    return value if isinstance(value, (int, str, float)) else repr(value)


def _categories(entries: list[Any], report: CocoReport) -> dict[Any, str]:
    found: dict[Any, str] = {}
    for index, entry in enumerate(entries):
        where = f"category {entry.get('id') if isinstance(entry, dict) else index}"
        if (
            not isinstance(entry, dict)
            or not isinstance(entry.get("id"), int)
            or not isinstance(entry.get("name"), str)
        ):
            report.findings.append(Finding(ERROR, "a category needs an integer 'id' and a 'name'", where))
            continue
        if entry["id"] in found:
            report.findings.append(Finding(ERROR, "category id is used twice", where, "number the categories anew"))
        if entry["name"] in found.values():
            report.findings.append(Finding(ERROR, f"class name {entry['name']!r} is used twice", where))
        found[entry["id"]] = entry["name"]
    return found


def _positive(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < 2**53 and value == int(value)


def _images(entries: list[Any], report: CocoReport) -> dict[Any, dict[str, Any]]:
    found: dict[Any, dict[str, Any]] = {}
    names: dict[str, Any] = {}
    for index, entry in enumerate(entries):
        if not isinstance(entry, dict) or "id" not in entry:
            report.findings.append(Finding(ERROR, "an image needs an 'id'", f"entry {index} of images"))
            continue
        where = f"image {entry['id']}"
        missing = [key for key in ("file_name", "height", "width") if key not in entry]
        if missing:
            report.findings.append(Finding(ERROR, f"image has no {', '.join(missing)}", where))
            continue
        if not isinstance(entry["file_name"], str):
            report.findings.append(Finding(ERROR, f"file_name is {entry['file_name']!r}, not text", where))
            continue
        where += f" ({entry['file_name']})"
        if not (_positive(entry["height"]) and _positive(entry["width"])):
            size = f"{entry['width']!r} x {entry['height']!r}"
            report.findings.append(Finding(ERROR, f"size {size} is not two positive whole numbers", where))
            continue
        try:
            check_size(entry["width"], entry["height"], "the image")
        except UserError as error:
            report.findings.append(Finding(ERROR, str(error), where))
            continue
        image_id = _hashable(entry["id"])
        if image_id in found:
            report.findings.append(
                Finding(ERROR, "image id is used twice", where, "number the images anew: only the last would count")
            )
        if entry["file_name"] in names:
            report.findings.append(Finding(NOTE, f"the same file as image {names[entry['file_name']]}", where))
        names[entry["file_name"]] = entry["id"]
        found[image_id] = entry
        report.image_sizes[int(entry["width"]), int(entry["height"])] += 1
    return found


def _annotation(
    annotation: Any, images: dict[Any, dict[str, Any]], categories: dict[Any, str], seen: set[Any], report: CocoReport
) -> Iterator[Finding]:
    """The faults of one annotation; it is counted on the way."""
    if not isinstance(annotation, dict):
        yield Finding(ERROR, f"an annotation is {type(annotation).__name__}, not an object", "annotations")
        return
    where = f"annotation {annotation.get('id')} of image {annotation.get('image_id')}"
    number = _hashable(annotation.get("id"))
    if number is None or number == "None":
        yield Finding(ERROR, "annotation has no id", where, "number the annotations: evaluation tells them apart by it")
    elif number in seen:
        yield Finding(ERROR, "annotation id is used twice", where, "number the annotations anew")
    seen.add(number)
    image = images.get(_hashable(annotation.get("image_id")))
    if image is None:
        yield Finding(DROPPED, "annotation of an image that is not in the file", where)
        return
    where += f" ({image['file_name']})"
    category = annotation.get("category_id")
    if not isinstance(category, int) or category not in categories:
        known = f"{min(categories)} to {max(categories)}" if categories else "none"
        yield Finding(
            ERROR,
            f"category_id {category!r} is not among the categories",
            where,
            f"ids there are: {known}; add the category, or correct the id",
        )
        return
    if annotation.get("ignore"):
        yield Finding(ERROR, "'ignore' is not supported", where, "remove the object or mark it iscrowd")
    crowd = bool(annotation.get("iscrowd"))
    box_faults = list(_box(annotation.get("bbox"), image, where, crowd))
    mask_faults = list(_segmentation(annotation.get("segmentation"), image, where, crowd))
    yield from box_faults + mask_faults
    if any(finding.severity != NOTE for finding in box_faults + mask_faults):
        return
    if crowd:
        report.crowds += 1
        return
    report.instances[categories[category]] += 1
    area = annotation["bbox"][2] * annotation["bbox"][3]
    report.sizes["small" if area < _SMALL else "medium" if area < _MEDIUM else "large"] += 1


def _numbers(values: Any) -> bool:
    return isinstance(values, list) and all(
        isinstance(value, (int, float)) and not isinstance(value, bool) and -_FARTHEST < value < _FARTHEST
        for value in values
    )


def _box(box: Any, image: dict[str, Any], where: str, crowd: bool) -> Iterator[Finding]:
    if not _numbers(box) or len(box) != 4:
        yield Finding(ERROR, f"bbox is {str(box)[:60]}", where, "a bbox is [x, y, width, height] in pixels")
        return
    x, y, width, height = box
    if width <= 0 or height <= 0:
        yield Finding(DROPPED, f"zero-area box [{x:g}, {y:g}, {width:g}, {height:g}]", where)
        return
    right, bottom = image["width"], image["height"]
    if x >= right or y >= bottom or x + width <= 0 or y + height <= 0:
        yield Finding(
            ERROR, f"box [{x:g}, {y:g}, {width:g}, {height:g}] lies outside its image of {right} x {bottom}", where,
            "is it [x, y, width, height]?",
        )  # fmt: skip
    elif x < -_TOLERANCE or y < -_TOLERANCE or x + width > right + _TOLERANCE or y + height > bottom + _TOLERANCE:
        yield Finding(NOTE, "box reaches beyond its image, and is clipped", where)


def _segmentation(segmentation: Any, image: dict[str, Any], where: str, crowd: bool) -> Iterator[Finding]:
    if not segmentation:
        if not crowd:
            yield Finding(NOTE, "object without segmentation", where, "training masks needs one; boxes do not")
        return
    height, width = int(image["height"]), int(image["width"])
    if isinstance(segmentation, dict):
        yield from _rle(segmentation, height, width, where)
        return
    if not isinstance(segmentation, list) or not all(_numbers(polygon) for polygon in segmentation):
        yield Finding(ERROR, "segmentation is neither polygons nor an RLE", where)
        return
    usable = [polygon for polygon in segmentation if len(polygon) >= 6 and len(polygon) % 2 == 0]
    for polygon in segmentation:
        if len(polygon) % 2:
            yield Finding(
                DROPPED if not usable else NOTE, f"polygon with {len(polygon)} coordinates, an odd number", where
            )
        elif len(polygon) < 6:
            kind = f"polygon with {len(polygon) // 2} points, fewer than 3"
            yield Finding(DROPPED if not usable else NOTE, kind, where, "" if usable else "the object is left out")
    for polygon in usable:
        points = np.asarray(polygon, dtype=float).reshape(-1, 2)
        low, high = points.min(axis=0), points.max(axis=0)
        if (low >= (width, height)).any() or (high <= 0).any():
            yield Finding(
                ERROR,
                f"polygon lies outside its image of {width} x {height}",
                where,
                "a polygon is [x, y, x, y, …] in pixels",
            )
        elif (low < -_TOLERANCE).any() or (high > (width + _TOLERANCE, height + _TOLERANCE)).any():
            yield Finding(NOTE, "polygon reaches beyond its image, and is clipped", where)
        elif _area(points) == 0:
            yield Finding(NOTE, "polygon of no area", where)


def _area(points: np.ndarray) -> float:
    x, y = points.T
    return 0.5 * abs(float(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))))


def _rle(segmentation: dict[str, Any], height: int, width: int, where: str) -> Iterator[Finding]:
    size, counts = segmentation.get("size"), segmentation.get("counts")
    if not _numbers(size) or len(size) != 2 or not isinstance(counts, (list, str)):  # type: ignore[arg-type]
        yield Finding(ERROR, "an RLE needs 'size' and 'counts'", where)
        return
    if list(size) != [height, width]:  # type: ignore[arg-type]
        kind = f"RLE of {size[1]:g} x {size[0]:g} in an image of {width} x {height}"  # type: ignore[index]
        yield Finding(ERROR, kind, where, "its 'size' is [height, width] of the image")
        return
    if isinstance(counts, list):
        if not _numbers(counts) or any(c < 0 for c in counts) or sum(counts) != height * width:
            yield Finding(ERROR, f"RLE counts do not sum to {height} x {width} pixels", where)
        return
    try:
        area = int(coco_mask.area({"size": [height, width], "counts": counts.encode()}))
    except (ValueError, TypeError, UnicodeEncodeError):
        area = -1
    if not 0 <= area <= height * width:
        yield Finding(ERROR, "RLE cannot be decoded", where)


def _image_file(image: dict[str, Any], root: Path, look: str) -> Iterator[Finding]:
    where = f"image {image['id']} ({image['file_name']})"
    path = root / image["file_name"]
    if leads_out(path, root):
        yield Finding(
            ERROR, "file_name leads out of the image folder", where, f"name a file below that folder; {ALLOW}"
        )
        return
    if not os.path.isfile(path):  # Path's raises for names that are too long
        yield Finding(
            ERROR, "image file is missing", where, f"looked for {path}; put it there, or take it out of the json"
        )
        return
    if look == NAMES:
        return
    try:
        size = image_size(path, decode=look == PIXELS)
    except UnreadableImage as error:
        yield Finding(ERROR, str(error), where, "replace the file, or take the image out of the json")
        return
    expected = (int(image["width"]), int(image["height"]))
    if size != expected:
        swapped = " (width and height are swapped)" if size == expected[::-1] else ""
        kind = f"image is {size[0]} x {size[1]}, the json says {expected[0]} x {expected[1]}{swapped}"
        yield Finding(ERROR, kind, where, "correct width and height in the json, or put the right file there")
