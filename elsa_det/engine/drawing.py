"""Draws predictions and ground truth on images: masks, boxes, names and scores, one colour a class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from ..d2 import BoxMode, Instances, PolygonMasks, Visualizer
from .predictor import as_bgr, class_names

# Okabe and Ito's palette: told apart with any kind of colour vision.
PALETTE = (
    (0, 114, 178), (230, 159, 0), (0, 158, 115), (204, 121, 167), (86, 180, 233), (213, 94, 0), (240, 228, 66),
)  # fmt: skip
_LEGIBLE = 480  # pixels of the shorter side at which the writing can be read
_MASK_OPACITY = 0.4
_LINE_HEIGHT = 1.75  # pixels per point of the font


def draw_predictions(
    image: np.ndarray, outputs: dict[str, Any], metadata: Any, *, threshold: float = 0.5, scale: int | None = None
) -> np.ndarray:
    """Draw what a model found.

    Args:
        image: (H, W, 3) uint8, BGR.
        outputs: The model's answer for the image, with ``"instances"`` in pixels of it.
        metadata: Of the dataset, for names (``thing_classes``) and colours (``thing_colors``) of the classes.
        threshold: Instances that score less are not drawn.
        scale: Enlargement; by default small images are enlarged until the writing can be read.

    Returns:
        (scale·H, scale·W, 3) uint8, BGR.

    Raises:
        ValueError: The outputs have no instances.
    """
    instances = confident(outputs, threshold)
    classes = instances.pred_classes.tolist()
    names = _names(classes, metadata)
    return _draw(
        image,
        metadata,
        classes,
        labels=[f"{name} {100 * score:.0f}%" for name, score in zip(names, instances.scores.tolist())],
        boxes=instances.pred_boxes.tensor.numpy(),
        masks=instances.pred_masks.numpy() if instances.has("pred_masks") else None,
        scale=scale,
    )


def draw_ground_truth(
    image: np.ndarray, dataset_dict: dict[str, Any], metadata: Any, *, scale: int | None = None
) -> np.ndarray:
    """Draw the annotations of an image's entry in a Detectron2 dataset; otherwise as :func:`draw_predictions`."""
    annotations = dataset_dict.get("annotations", [])
    classes = [annotation["category_id"] for annotation in annotations]
    boxes = [BoxMode.convert(list(a["bbox"]), a["bbox_mode"], BoxMode.XYXY_ABS) for a in annotations]
    with_masks = bool(annotations) and all(annotation.get("segmentation") for annotation in annotations)
    return _draw(
        image,
        metadata,
        classes,
        labels=_names(classes, metadata),
        boxes=np.array(boxes, dtype=np.float32).reshape(-1, 4),
        masks=[_decode(a["segmentation"], *image.shape[:2]) for a in annotations] if with_masks else None,
        scale=scale,
    )


def draw_training_sample(
    sample: dict[str, Any], metadata: Any, *, image_format: str = "RGB", scale: int | None = None
) -> np.ndarray:
    """Draw what a training mapper made of an image, augmentation included; otherwise as :func:`draw_predictions`.

    Args:
        sample: of a ``DatasetMapper``: ``"image"`` (3, H, W) uint8 in the order ``image_format``, ``"instances"``.
    """
    image = sample["image"].permute(1, 2, 0).numpy()
    image = np.ascontiguousarray(image[:, :, ::-1] if image_format == "RGB" else image)
    instances = sample["instances"]
    classes = instances.gt_classes.tolist()
    masks = None
    if instances.has("gt_masks"):
        found = instances.gt_masks
        if isinstance(found, PolygonMasks):
            masks = [_decode([p.tolist() for p in polygons], *image.shape[:2]) for polygons in found.polygons]
        else:
            masks = list(found.tensor.numpy())
    return _draw(
        image,
        metadata,
        classes,
        labels=_names(classes, metadata),
        boxes=instances.gt_boxes.tensor.numpy(),
        masks=masks,
        scale=scale,
    )


def confident(outputs: dict[str, Any], threshold: float) -> Instances:
    """The instances that score at least ``threshold``, on the CPU."""
    if "instances" not in outputs:
        raise ValueError(f"The model found no 'instances' but {sorted(outputs)}: only detections can be drawn.")
    instances = outputs["instances"].to("cpu")
    return instances[instances.scores >= threshold]


def _names(classes: Sequence[int], metadata: Any) -> list[str]:
    names = class_names(metadata) or []
    return [names[index] if index < len(names) else f"class {index}" for index in classes]


def _decode(segmentation: Any, height: int, width: int) -> np.ndarray:
    """A COCO segmentation (polygons, or RLE of either kind) as (H, W) uint8."""
    if isinstance(segmentation, dict) and isinstance(segmentation["counts"], (str, bytes)):
        return coco_mask.decode(segmentation)
    rle = coco_mask.frPyObjects(segmentation, height, width)
    return coco_mask.decode(coco_mask.merge(rle) if isinstance(rle, list) else rle)


def _draw(
    image: np.ndarray,
    metadata: Any,
    classes: Sequence[int],
    *,
    labels: list[str],
    boxes: np.ndarray,
    masks: Sequence[np.ndarray] | np.ndarray | None,
    scale: int | None,
) -> np.ndarray:
    height, width = as_bgr(image).shape[:2]
    if scale is None:
        scale = max(1, round(_LEGIBLE / min(height, width)))
    size = (width * scale, height * scale)
    canvas = cv2.resize(image, size, interpolation=cv2.INTER_CUBIC) if scale > 1 else image.copy()
    if not classes:
        return canvas
    palette = metadata.get("thing_colors") or PALETTE
    colors = [tuple(palette[index % len(palette)]) for index in classes]
    if masks is not None:
        # Not left to the Visualizer: it fills the holes of a mask as well.
        for index in np.argsort([-int(mask.sum()) for mask in masks]):
            _blend(canvas, masks[index], colors[index][::-1], scale)
    visualizer = Visualizer(canvas[:, :, ::-1], metadata)
    shades = [np.array(color) / 255 for color in colors]
    visualizer.overlay_instances(boxes=boxes * scale, assigned_colors=shades)
    _write_labels(visualizer, labels, boxes * scale, shades, canvas.shape[:2])
    return np.ascontiguousarray(visualizer.get_output().get_image()[:, :, ::-1])


def _write_labels(
    visualizer: Visualizer, labels: list[str], boxes: np.ndarray, colors: list[np.ndarray], size: tuple[int, int]
) -> None:
    """Write labels above their boxes where there is room: inside they would hide small objects."""
    height, width = size
    points = max(12.0, (height * width) ** 0.5 / 90)
    line = points * _LINE_HEIGHT
    for label, (x0, y0, _, y1), color in zip(labels, boxes.tolist(), colors):
        if y0 >= line:
            y = y0 - line
        elif y1 - y0 >= 5 * line:
            y = max(y0, 3.0)
        else:
            y = min(y1 + 2, height - line)
        x = max(0.0, min(x0, width - 0.4 * line * len(label)))
        lighter = 0.55 + 0.45 * color  # on a dark ground
        visualizer.draw_text(label, (x, y), font_size=points, color=lighter, horizontal_alignment="left")


def _blend(canvas: np.ndarray, mask: np.ndarray, color: Sequence[int], scale: int) -> None:
    """Tint the mask's pixels of ``canvas`` and draw its outline, in place."""
    size = (canvas.shape[1], canvas.shape[0])
    smooth = cv2.resize(mask.astype(np.float32), size, interpolation=cv2.INTER_LINEAR) if scale > 1 else mask
    inside = np.asarray(smooth >= 0.5)
    tint = np.array(color, dtype=np.float32) * _MASK_OPACITY
    canvas[inside] = (canvas[inside] * (1 - _MASK_OPACITY) + tint).astype(np.uint8)
    outline, _ = cv2.findContours(inside.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(canvas, outline, -1, [int(value) for value in color], 1 if min(size) < 400 else 2, cv2.LINE_AA)
