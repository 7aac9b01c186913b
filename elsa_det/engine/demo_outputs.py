"""What a demo writes beside pictures: JSON, COCO's results, cut-out instances, label maps.

The JSON of :class:`JsonOutput`::

    {
      "format": "elsa_det.demo/1",
      "confidence_threshold": 0.5,            # instances that score less are left out
      "class_names": ["cat", "dog"],          # by class_index; null where nothing tells them
      "images": [
        {
          "file": "street.jpg",               # as it was given
          "name": "street",                   # what names of crops and label maps begin with, unique
          "width": 640, "height": 480,        # pixels
          "frame": 12, "time": 0.48,          # frames of videos only: from 0; seconds from the start
          "instances": [                      # of detectors: the best first
            {
              "class": "dog", "class_index": 1, "score": 0.93,
              "box": [x0, y0, x1, y1],        # pixels, from the left and the top edge of the image
              "mask": {"size": [480, 640], "counts": "…"}      # COCO's RLE; only where the model has masks
            }
          ],
          "labels": [{"class": "road", "class_index": 0, "pixels": 1234}],    # of segmentors: the largest first
          "label_file": "street.png"          # of segmentors whose label maps are written: in that folder
        }
      ]
    }
"""

from __future__ import annotations

import difflib
import json
import os
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from ..d2 import Instances, PathManager
from ..errors import UserError, list_some
from ..json_files import read_json
from .drawing import confident, draw_predictions
from .semantic_figures import draw_segmentation, is_segmentation

JSON_FORMAT = "elsa_det.demo/1"
_SHOWN = 5


@dataclass(frozen=True, eq=False)
class Answer:
    """What a model says about an image or a frame, as far as it was asked for."""

    file: str
    """As it was given."""
    name: str
    """Without an ending, unique among the answers of a run."""
    image: np.ndarray
    """(H, W, 3) uint8, BGR."""
    instances: Instances | None
    """Of a detector, on the CPU."""
    labels: np.ndarray | None
    """Of a segmentor: (H, W) class indices."""
    frame: int | None = None
    time: float | None = None


@dataclass(frozen=True)
class Selection:
    """Which of a model's findings are looked at: those that score enough, of some classes or (None) of all."""

    threshold: float = 0.5
    classes: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if not 0.0 <= self.threshold <= 1.0:
            raise UserError(f"The confidence threshold is a score in [0, 1], got {self.threshold}.")

    def answer(self, outputs: dict[str, Any], image: np.ndarray, file: str, name: str, **frame: Any) -> Answer:
        """Pick from a model's outputs for an image.

        Raises:
            ValueError: They are neither instances nor labels.
        """
        if is_segmentation(outputs):
            found = outputs["sem_seg_labels"] if "sem_seg_labels" in outputs else outputs["sem_seg"].argmax(dim=0)
            return Answer(file, name, image, None, found.cpu().numpy(), **frame)
        instances = confident(outputs, self.threshold)
        if self.classes is not None:
            wanted = [int(index) in self.classes for index in instances.pred_classes]
            instances = instances[np.flatnonzero(wanted)]
        return Answer(file, name, image, instances, None, **frame)

    def draw(self, answer: Answer, metadata: Any, *, scale: int | None = None, legend: bool = True) -> np.ndarray:
        """Draw an answer on its image; (H', W', 3) uint8, BGR, of the image's size with scale=1 and no legend."""
        if answer.labels is None:
            drawn = {"instances": answer.instances}
            return draw_predictions(answer.image, drawn, metadata, threshold=self.threshold, scale=scale)
        labels = answer.labels.astype(np.int64)
        if self.classes is not None:
            labels[~np.isin(labels, self.classes)] = -1
        return draw_segmentation(answer.image, labels, metadata, ignore_label=-1, legend=legend, scale=scale)


def class_indices(wanted: Sequence[str], names: Sequence[str] | None) -> tuple[int, ...] | None:
    """The indices of classes by their names; None, for all, if none are named.

    Raises:
        UserError: A class is unknown, with the nearest that there are; or nothing tells the names of the classes.
    """
    wanted = [name.strip() for name in wanted if name.strip()]
    if not wanted:
        return None
    if not names:
        raise UserError("Classes cannot be chosen by name: nothing tells the names of the model's classes.")
    found = []
    for name in wanted:
        if name not in names:
            known = {name.lower(): name for name in names}
            near = [known[match] for match in difflib.get_close_matches(name.lower(), known, n=3)]
            hint = f"Did you mean {' or '.join(map(repr, near))}?" if near else f"There are: {list_some(names, 20)}."
            raise UserError(f"There is no class {name!r}. {hint}")
        found.append(list(names).index(name))
    return tuple(found)


class Output:
    """Something that answers are put into, one after the other."""

    def add(self, answer: Answer) -> None:
        """
        Raises:
            UserError: The answer is of a kind that this output cannot have.
            OSError: It cannot be written.
        """
        raise NotImplementedError

    def close(self) -> list[str]:
        """End, and tell the user what there is now, in lines."""
        raise NotImplementedError

    def abort(self) -> None:
        """End without a result."""


class JsonOutput(Output):
    """Everything that was found, in a file of the format above, one image in a line."""

    def __init__(
        self, path: str | os.PathLike[str], threshold: float, names: Sequence[str] | None, *, label_files: bool = False
    ) -> None:
        head = {"format": JSON_FORMAT, "confidence_threshold": threshold, "class_names": names and list(names)}
        self._file = _LongJson(path, json.dumps(head)[:-1] + ', "images": [', "]}")
        self._names, self._label_files, self._images = names, label_files, 0

    def add(self, answer: Answer) -> None:
        height, width = answer.image.shape[:2]
        entry: dict[str, Any] = {"file": answer.file, "name": answer.name, "width": width, "height": height}
        if answer.frame is not None:
            entry.update(frame=answer.frame, time=answer.time)
        if answer.instances is not None:
            entry["instances"] = [
                {
                    "class": class_name(index, self._names),
                    "class_index": index,
                    "score": score,
                    "box": box,
                    **({} if mask is None else {"mask": mask}),
                }
                for index, score, box, mask in _rows(answer.instances)
            ]
        if answer.labels is not None:
            entry["labels"] = [
                {"class": class_name(index, self._names), "class_index": index, "pixels": pixels}
                for index, pixels in label_pixels(answer.labels)
            ]
            if self._label_files:
                entry["label_file"] = f"{answer.name}.png"
        self._file.add(entry)
        self._images += 1

    def close(self) -> list[str]:
        self._file.close()
        return [f"{self._file.path}: {self._images} images"]

    def abort(self) -> None:
        self._file.abort()


class CocoOutput(Output):
    """Detections in COCO's format of results, as ``COCO.loadRes`` of pycocotools takes them.

    With annotations the ids of images (by file name) and of categories (by name) are theirs; what they do not list is
    left out and reported. Without, images are numbered from 1 and listed in a second file, ``<name>_images.json``
    (``id``, ``file_name``, ``width``, ``height``), and categories have the ids that the dataset's metadata tells, else
    class index + 1.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        names: Sequence[str] | None,
        metadata: Any,
        annotations: str | os.PathLike[str] | None = None,
    ) -> None:
        """
        Raises:
            FileNotFoundError: There are no such annotations.
            UserError: They are not in COCO's format, or lack one of the classes.
        """
        self._ids: list[int] | None
        self._known: _CocoIds | None = None if annotations is None else _CocoIds(annotations)
        self._listed: list[dict[str, Any]] = []
        self._unlisted: list[str] = []
        self._detections = self._images = 0
        if self._known is not None:
            self._ids, self._told = self._known.category_ids(names), f"of {annotations}"
        else:
            self._ids, self._told = category_ids(metadata)
        self._file = _LongJson(path, "[", "]")

    def add(self, answer: Answer) -> None:
        if answer.instances is None:
            raise UserError("COCO's format of results is for instances; this model labels pixels. Use --labels.")
        if self._known is None:
            image_id: Any = len(self._listed) + 1
            height, width = answer.image.shape[:2]
            name = answer.file if answer.frame is None else f"{answer.file}#{answer.frame}"
            self._listed.append({"id": image_id, "file_name": name, "width": width, "height": height})
        else:
            image_id = self._known.image_id(answer)
            if image_id is None:
                self._unlisted.append(answer.file if answer.frame is None else f"{answer.file}#{answer.frame}")
                return
        self._images += 1
        for index, score, (x0, y0, x1, y1), mask in _rows(answer.instances):
            if self._ids is not None and index >= len(self._ids):
                raise UserError(
                    f"The model found class {index}, but there are {len(self._ids)} categories {self._told}."
                )
            found = {
                "image_id": image_id,
                "category_id": index + 1 if self._ids is None else self._ids[index],
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "score": score,
            }
            self._file.add(found if mask is None else {**found, "segmentation": mask})
            self._detections += 1

    def close(self) -> list[str]:
        self._file.close()
        lines = [f"{self._file.path}: {self._detections} detections in {self._images} images"]
        lines.append(f"  category ids {self._told}")
        if self._known is None:
            beside = self._file.path.with_name(f"{self._file.path.stem}_images.json")
            beside.write_text(json.dumps(self._listed, indent=1) + "\n", encoding="utf-8")
            lines.append(f"  image ids are running numbers from 1, see {beside}")
        if self._unlisted:
            left_out = f"{len(self._unlisted)} images left out, for the annotations do not list them"
            lines.append(f"  {left_out}: {list_some(self._unlisted, _SHOWN)}")
        return lines

    def abort(self) -> None:
        self._file.abort()


class CropOutput(Output):
    """Each instance cut out by its box as ``<image>_<index>_<class>_<score>.png``; transparent outside of its mask."""

    def __init__(self, folder: str | os.PathLike[str], names: Sequence[str] | None) -> None:
        self._folder, self._names = Path(folder), names
        self._folder.mkdir(parents=True, exist_ok=True)
        self._written = self._empty = 0

    def add(self, answer: Answer) -> None:
        if answer.instances is None:
            raise UserError("There are no instances to cut out: this model labels pixels. Use --labels.")
        height, width = answer.image.shape[:2]
        boxes = answer.instances.pred_boxes.tensor.numpy().astype(np.float64)
        masks = answer.instances.pred_masks.numpy() if answer.instances.has("pred_masks") else None
        for index, (box, score, label) in enumerate(
            zip(boxes, answer.instances.scores.tolist(), answer.instances.pred_classes.tolist())
        ):
            x0, y0 = np.clip(np.floor(box[:2]), 0, [width, height]).astype(int)
            x1, y1 = np.clip(np.ceil(box[2:]), 0, [width, height]).astype(int)
            if x1 <= x0 or y1 <= y0:
                self._empty += 1
                continue
            crop = answer.image[y0:y1, x0:x1]
            if masks is not None:
                crop = np.dstack([crop, masks[index, y0:y1, x0:x1].astype(np.uint8) * 255])
            kind = re.sub(r"[^\w.-]+", "-", class_name(label, self._names))
            write_image(self._folder / f"{answer.name}_{index:03d}_{kind}_{score:.2f}.png", crop)
            self._written += 1

    def close(self) -> list[str]:
        empty = f", {self._empty} had a box without pixels" if self._empty else ""
        return [f"{self._folder}: {self._written} instances cut out{empty}"]


class LabelOutput(Output):
    """The label map of each image as ``<image>.png``: class indices, 8 bits, or 16 where there are more than 255."""

    def __init__(self, folder: str | os.PathLike[str], names: Sequence[str] | None) -> None:
        self._folder, self._written = Path(folder), 0
        self._folder.mkdir(parents=True, exist_ok=True)
        self._wide = names is not None and len(names) > 255

    def add(self, answer: Answer) -> None:
        if answer.labels is None:
            raise UserError("There are no label maps to write: this model finds instances. Use --json or --crops.")
        wide = self._wide or int(answer.labels.max(initial=0)) > 255
        write_image(self._folder / f"{answer.name}.png", answer.labels.astype(np.uint16 if wide else np.uint8))
        self._written += 1

    def close(self) -> list[str]:
        return [f"{self._folder}: {self._written} label maps"]


def class_name(index: int, names: Sequence[str] | None) -> str:
    """The name of a class, "class 7" where nothing tells it."""
    return names[index] if names and index < len(names) else f"class {index}"


def label_pixels(labels: np.ndarray) -> list[tuple[int, int]]:
    """The class indices of a label map with their numbers of pixels, the largest first."""
    present, pixels = np.unique(labels, return_counts=True)
    return sorted(zip(present.tolist(), pixels.tolist()), key=lambda pair: -pair[1])


def category_ids(metadata: Any) -> tuple[list[int] | None, str]:
    """The ids that the dataset has for a model's classes, by index, or None; and who tells them, in words."""
    contiguous = metadata.get("thing_dataset_id_to_contiguous_id")
    if contiguous:
        by_index = {index: category for category, index in contiguous.items()}
        return [by_index[index] for index in range(len(by_index))], "of the test dataset"
    json_file = metadata.get("json_file")
    if json_file is not None and PathManager.isfile(json_file):
        return sorted(c["id"] for c in _read_coco(json_file)["categories"]), f"of {json_file}"
    return None, "are class indices + 1, for no dataset tells them"


def write_image(path: Path, image: np.ndarray) -> None:
    """Write an image in the format that its ending says.

    Raises:
        OSError: It cannot be encoded or written.
    """
    encoded, data = cv2.imencode(path.suffix.lower(), image)
    if not encoded:
        raise OSError(f"{path} cannot be encoded.")
    path.write_bytes(data.tobytes())


class _CocoIds:
    """The ids that a COCO-format file gives to images and categories."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        content = _read_coco(self.path)
        self._categories: dict[str, int] = {entry["name"]: entry["id"] for entry in content["categories"]}
        self._by_name: dict[str, list[tuple[str, Any]]] = defaultdict(list)
        for entry in content["images"]:
            file = Path(entry["file_name"]).as_posix()
            self._by_name[Path(file).name].append((file, entry["id"]))

    def category_ids(self, names: Sequence[str] | None) -> list[int]:
        if names is None:
            return sorted(self._categories.values())
        missing = [name for name in names if name not in self._categories]
        if missing:
            raise UserError(
                f"{self.path} has no category {list_some(map(repr, missing), _SHOWN)}, which the model knows; "
                f"it has {list_some(self._categories, 20)}."
            )
        return [self._categories[name] for name in names]

    def image_id(self, answer: Answer) -> Any | None:
        """By the whole ``file_name`` at the end of the path, else by the name alone if there is one of it."""
        if answer.frame is not None:
            return None
        path = Path(answer.file).absolute().as_posix()
        candidates = self._by_name.get(Path(path).name, [])
        whole = [(len(file), image_id) for file, image_id in candidates if f"/{path}".endswith(f"/{file}")]
        if whole:
            return max(whole, key=lambda pair: pair[0])[1]
        return candidates[0][1] if len(candidates) == 1 else None


def _read_coco(path: str) -> dict[str, Any]:
    if not PathManager.isfile(path):
        raise FileNotFoundError(f"There are no annotations '{path}' (looked for {os.path.abspath(path)}).")
    try:
        content = read_json(PathManager.get_local_path(path))
        return {
            "images": [{"file_name": str(e["file_name"]), "id": e["id"]} for e in content.get("images", [])],
            "categories": [{"name": str(e["name"]), "id": e["id"]} for e in content["categories"]],
        }
    except UserError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"'{path}' is not in COCO's format: {type(error).__name__}: {error}") from error


class _LongJson:
    """A JSON file written item by item; it gets its name when it is whole."""

    def __init__(self, path: str | os.PathLike[str], head: str, tail: str) -> None:
        self.path, self._tail, self._between = Path(path), tail, "\n"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.is_dir():
            raise IsADirectoryError(f"{self.path} is a folder, not a file to write.")
        self._part = self.path.with_name(self.path.name + ".part")
        self._file = self._part.open("w", encoding="utf-8")
        self._file.write(head)

    def add(self, item: dict[str, Any]) -> None:
        self._file.write(self._between + json.dumps(item, ensure_ascii=False))
        self._between = ",\n"

    def close(self) -> None:
        self._file.write("\n" + self._tail + "\n")
        self._file.close()
        os.replace(self._part, self.path)

    def abort(self) -> None:
        self._file.close()
        self._part.unlink(missing_ok=True)


def _rows(instances: Instances) -> list[tuple[int, float, list[float], dict[str, Any] | None]]:
    """Class index, score, box (x0, y0, x1, y1) and run-length encoded mask of each instance."""
    masks: list[dict[str, Any] | None] = [None] * len(instances)
    if instances.has("pred_masks"):
        masks = [_encode(mask) for mask in instances.pred_masks.numpy()]
    boxes = instances.pred_boxes.tensor.tolist()
    return list(zip(instances.pred_classes.tolist(), instances.scores.tolist(), boxes, masks))


def _encode(mask: np.ndarray) -> dict[str, Any]:
    rle = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode("ascii")}
