"""Drawing boxes, masks and labels on photographs, with matplotlib."""

from __future__ import annotations

import colorsys
import logging
from collections.abc import Mapping, Sequence
from enum import Enum, unique
from typing import Any

import cv2
import numpy as np
import torch
from matplotlib import colors as mpl_colors
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Polygon, Rectangle
from PIL import Image
from pycocotools import mask as mask_util

from ..data.catalog import Metadata, MetadataCatalog
from ..structures import BitMasks, Boxes, BoxMode, Instances, PolygonMasks
from .colormap import random_color
from .file_io import PathManager
from .generic_mask import GenericMask

__all__ = ["ColorMode", "GenericMask", "VisImage", "Visualizer"]

logger = logging.getLogger(__name__)

_OFF_WHITE = (1.0, 1.0, 240.0 / 255)
_TEXT_PLATE = {"facecolor": "black", "alpha": 0.8, "pad": 0.7, "edgecolor": "none"}
_SMALL_OBJECT_AREA = 1000  # square pixels; the label of a smaller object goes beside it
_SMALL_OBJECT_HEIGHT = 40
_LARGE_PART_AREA = 120000  # square pixels; every part of a mask that is larger gets a label of its own


@unique
class ColorMode(Enum):
    """How instances are drawn."""

    IMAGE = 0
    """A random color for each instance, laid thinly over the picture."""
    SEGMENTATION = 1
    """Shades of the class color (``thing_colors`` of the metadata), laid on thickly."""
    IMAGE_BW = 2
    """As ``IMAGE``, with everything outside the masks turned grey. For predictions with masks."""


def _create_text_labels(
    classes: Sequence[int] | None,
    scores: Sequence[float] | torch.Tensor | None,
    class_names: Sequence[str] | None,
    is_crowd: Sequence[Any] | None = None,
) -> list[str] | None:
    """Labels such as ``"person 97%"`` or ``"person|crowd"``, from whatever of it is known."""
    labels = None
    if classes is not None:
        labels = [class_names[index] if class_names else str(index) for index in classes]
    if scores is not None:
        percent = [f"{score * 100:.0f}%" for score in scores]
        labels = percent if labels is None else [f"{label} {score}" for label, score in zip(labels, percent)]
    if labels is not None and is_crowd is not None:
        labels = [f"{label}|crowd" if crowd else label for label, crowd in zip(labels, is_crowd)]
    return labels


class VisImage:
    """The picture being drawn on: a matplotlib figure without margins.

    Attributes:
        img: The original.
        scale: Enlargement of the output.
        width, height: Of the original; all drawing is in its pixels.
        fig, ax, canvas: matplotlib's.
    """

    def __init__(self, img: np.ndarray, scale: float = 1.0):
        """
        Args:
            img: H × W × 3, RGB, 0…255.
            scale: Enlarge the output by this.
        """
        self.img = img
        self.scale = scale
        self.height, self.width = img.shape[:2]
        self.fig = Figure(frameon=False)
        self.dpi = self.fig.get_dpi()
        # matplotlib rounds the size in pixels down: stay a little above the whole number
        self.fig.set_size_inches(
            (self.width * scale + 1e-2) / self.dpi,
            (self.height * scale + 1e-2) / self.dpi,
        )
        self.canvas = FigureCanvasAgg(self.fig)
        self.ax = self.fig.add_axes((0.0, 0.0, 1.0, 1.0))
        self.ax.axis("off")
        self.reset_image(img)

    def reset_image(self, img: np.ndarray) -> None:
        """Put another picture of the same size under the drawing."""
        self.ax.imshow(img.astype(np.uint8), extent=(0, self.width, self.height, 0), interpolation="nearest")

    def save(self, filepath: str) -> None:
        """Write to a file, whose name tells the format."""
        self.fig.savefig(filepath)

    def get_image(self) -> np.ndarray:
        """The drawing, (H·scale) × (W·scale) × 3, RGB, uint8."""
        buffer, (width, height) = self.canvas.print_to_buffer()
        return np.frombuffer(buffer, dtype=np.uint8).reshape(height, width, 4)[:, :, :3].copy()


class Visualizer:
    """Draws predictions and annotations on one picture.

    The ``draw_…`` methods for whole predictions or annotations choose a style of their own; those for single boxes,
    polygons, masks or texts can be combined freely. All of them return the :class:`VisImage` they draw on. Random
    colors come from NumPy's global generator. Keypoints, rotated boxes and panoptic segments need Detectron2 itself.
    """

    def __init__(
        self,
        img_rgb: Any,
        metadata: Metadata | None = None,
        scale: float = 1.0,
        instance_mode: ColorMode = ColorMode.IMAGE,
        font_size_scale: float = 1.0,
    ):
        """
        Args:
            img_rgb: H × W × 3, RGB, 0…255.
            metadata: Class names and colors of the dataset (``thing_classes``, ``thing_colors``, ``stuff_…``).
            scale: Enlarge the output by this.
            instance_mode: Style of instances.
            font_size_scale: Enlarge texts by this.
        """
        self.img = np.asarray(img_rgb).clip(0, 255).astype(np.uint8)
        self.metadata = MetadataCatalog.get("__nonexist__") if metadata is None else metadata
        self.output = VisImage(self.img, scale=scale)
        self._instance_mode = instance_mode
        readable = 10 // scale
        self._default_font_size = max(self._mean_side() // 90, readable) * font_size_scale

    def _mean_side(self) -> float:
        return np.sqrt(self.output.height * self.output.width)

    def get_output(self) -> VisImage:
        """The picture with everything drawn so far."""
        return self.output

    # --- whole predictions and annotations

    def draw_instance_predictions(self, predictions: Instances, jittering: bool = True) -> VisImage:
        """Draw the output of a detector for this picture.

        Args:
            predictions: With any of ``pred_boxes``, ``pred_classes``, ``scores``, ``pred_masks`` (N × H × W).
            jittering: In mode ``SEGMENTATION``, vary the class color from instance to instance.
        """
        if predictions.has("pred_keypoints"):
            logger.warning("Keypoints are not drawn: that needs Detectron2 itself.")
        fields = predictions.get_fields()
        classes = fields["pred_classes"].tolist() if "pred_classes" in fields else None
        masks = None
        if "pred_masks" in fields:
            masks = self._convert_masks(np.asarray(torch.as_tensor(fields["pred_masks"]).cpu()))

        colors, alpha = None, 0.5
        if self._instance_mode == ColorMode.SEGMENTATION and classes is not None and self._has_class_colors():
            colors, alpha = self._class_colors(classes, jittering), 0.8
        if self._instance_mode == ColorMode.IMAGE_BW:
            self.output.reset_image(self._grey_outside(masks or []))
            alpha = 0.3
        return self.overlay_instances(
            boxes=fields.get("pred_boxes"),
            labels=_create_text_labels(classes, fields.get("scores"), self.metadata.get("thing_classes")),
            masks=masks,
            assigned_colors=colors,
            alpha=alpha,
        )

    def draw_dataset_dict(self, dic: Mapping[str, Any]) -> VisImage:
        """Draw the annotations of one dataset dict: instances, and a semantic segmentation if there is one."""
        annotations = dic.get("annotations")
        if annotations:
            if any("keypoints" in annotation for annotation in annotations):
                logger.warning("Keypoints of %s are not drawn: that needs Detectron2 itself.", dic.get("file_name"))
            classes = [annotation["category_id"] for annotation in annotations]
            masks = None
            if "segmentation" in annotations[0]:
                masks = [annotation["segmentation"] for annotation in annotations]
            colors = None
            if self._instance_mode == ColorMode.SEGMENTATION and self._has_class_colors():
                colors = self._class_colors(classes, jittering=True)
            crowd = [annotation.get("iscrowd", 0) for annotation in annotations]
            self.overlay_instances(
                boxes=np.array(
                    [BoxMode.convert(found["bbox"], found["bbox_mode"], BoxMode.XYXY_ABS) for found in annotations]
                ),
                labels=_create_text_labels(classes, None, self.metadata.get("thing_classes"), crowd),
                masks=masks,
                assigned_colors=colors,
            )

        sem_seg = dic.get("sem_seg")
        if sem_seg is None and "sem_seg_file_name" in dic:
            with PathManager.open(dic["sem_seg_file_name"], "rb") as file:
                sem_seg = np.asarray(Image.open(file), dtype=np.uint8)
        if sem_seg is not None:
            self.draw_sem_seg(sem_seg, area_threshold=0, alpha=0.5)
        return self.output

    def draw_sem_seg(
        self,
        sem_seg: torch.Tensor | np.ndarray,
        area_threshold: int | None = None,
        alpha: float = 0.8,
        draw_text: bool = True,
        edge_color: Any = _OFF_WHITE,
    ) -> VisImage:
        """Draw a semantic segmentation, the largest class first.

        Args:
            sem_seg: H × W, class numbers; those beyond ``stuff_classes`` (such as 255, ignore) are left out.
            area_threshold: Parts of fewer square pixels are left out.
            alpha: Opacity, 0…1.
            draw_text: Write the class on each segment.
            edge_color: Of the outlines.
        """
        if isinstance(sem_seg, torch.Tensor):
            sem_seg = sem_seg.cpu().numpy()
        names = self.metadata.stuff_classes
        colors = self.metadata.get("stuff_colors") or ()
        labels, areas = np.unique(sem_seg, return_counts=True)
        for label in labels[np.argsort(-areas)].tolist():
            if 0 <= label < len(names):
                self.draw_binary_mask(
                    (sem_seg == label).astype(np.uint8),
                    color=_unit_rgb(colors[label]) if label < len(colors) else None,
                    edge_color=edge_color,
                    text=names[label] if draw_text else None,
                    alpha=alpha,
                    area_threshold=area_threshold,
                )
        return self.output

    def overlay_instances(
        self,
        *,
        boxes: Boxes | np.ndarray | None = None,
        labels: Sequence[str] | None = None,
        masks: Any = None,
        keypoints: Any = None,
        assigned_colors: Sequence | None = None,
        alpha: float = 0.5,
    ) -> VisImage:
        """Draw instances, large ones first, so that small ones stay visible.

        Args:
            boxes: N × 4, x0, y0, x1, y1 in pixels.
            labels: N texts.
            masks: N of anything :class:`GenericMask` takes, or ``BitMasks`` or ``PolygonMasks``.
            keypoints: Not supported here.
            assigned_colors: N colors in any form matplotlib knows; random ones if not given.
            alpha: Opacity of masks, 0…1.

        Raises:
            ValueError: Boxes, labels and masks differ in number.
            NotImplementedError: Keypoints or rotated boxes.
        """
        if keypoints is not None:
            raise NotImplementedError("Visualizer: drawing keypoints needs Detectron2 itself.")
        if boxes is not None:
            boxes = self._convert_boxes(boxes)
        if masks is not None:
            masks = self._convert_masks(masks)
        counts = {len(items) for items in (boxes, masks) if items is not None}
        count = max(counts, default=0)
        if len(counts) > 1 or (labels is not None and len(labels) != count):
            sizes = [None if items is None else len(items) for items in (boxes, masks, labels)]
            raise ValueError("Visualizer: numbers of boxes, masks and labels differ: {}, {}, {}.".format(*sizes))
        if assigned_colors is None:
            assigned_colors = [random_color(rgb=True, maximum=1) for _ in range(count)]
        if count == 0:
            return self.output

        if boxes is not None:
            areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
        else:
            areas = np.asarray([mask.area() for mask in masks])
        for index in np.argsort(-areas).tolist():
            box = None if boxes is None else boxes[index]
            mask = None if masks is None else masks[index]
            color = assigned_colors[index]
            if box is not None:
                self.draw_box(box, edge_color=color)
            if mask is not None:
                for polygon in mask.polygons:
                    self.draw_polygon(polygon.reshape(-1, 2), color, alpha=alpha)
            if labels is not None:
                self._draw_label(labels[index], color, box, mask)
        return self.output

    def _draw_label(self, text: str, color: Any, box: np.ndarray | None, mask: GenericMask | None) -> None:
        """At the corner of the box, in the middle of a mask without box, beside an object too small for it."""
        position: Sequence[float]
        if box is not None:
            x0, y0, x1, y1 = box
            position, alignment = (x0, y0), "left"
        else:
            assert mask is not None
            if not mask.polygons:
                return
            x0, y0, x1, y1 = mask.bbox()
            position, alignment = np.median(mask.mask.nonzero(), axis=1)[::-1], "center"

        width, height = x1 - x0, y1 - y0
        scale = self.output.scale
        if width * height < _SMALL_OBJECT_AREA * scale or height < _SMALL_OBJECT_HEIGHT * scale:
            touches_bottom = y1 >= self.output.height - 5
            position = (x1, y0) if touches_bottom else (x0, y1)
        # from 0.6 to full size, with the height of the object
        growth = np.clip((height / self._mean_side() - 0.02) / 0.08 + 1, 1.2, 2) / 2
        self.draw_text(
            text,
            position,
            color=self._change_color_brightness(color, 0.7),
            horizontal_alignment=alignment,
            font_size=growth * self._default_font_size,
        )

    # --- single things

    def draw_text(
        self,
        text: str,
        position: Sequence[float],
        *,
        font_size: float | None = None,
        color: Any = "g",
        horizontal_alignment: str = "center",
        rotation: float = 0,
    ) -> VisImage:
        """Write on a dark plate; a dark ``color`` is lightened.

        Args:
            position: x, y of the top in pixels.
            font_size: In points; goes by the size of the picture if not given.
            horizontal_alignment: What of the text is at x: ``"left"``, ``"center"`` or ``"right"``.
            rotation: In degrees, counterclockwise.
        """
        light = np.maximum(mpl_colors.to_rgb(color), 0.2)
        light[light.argmax()] = max(0.8, light.max())
        points = (font_size or self._default_font_size) * self.output.scale
        style: dict[str, Any] = {
            "fontsize": points,
            "color": tuple(light),
            "bbox": _TEXT_PLATE,
            "family": "sans-serif",
            "zorder": 10,
        }
        x, y = position
        self.output.ax.text(x, y, text, ha=horizontal_alignment, va="top", rotation=rotation, **style)
        return self.output

    def draw_box(
        self, box_coord: Sequence[float], alpha: float = 0.5, edge_color: Any = "g", line_style: str = "-"
    ) -> VisImage:
        """Draw the outline of a box given as x0, y0, x1, y1 in pixels."""
        x0, y0, x1, y1 = box_coord
        outline = Rectangle(
            (x0, y0),
            x1 - x0,
            y1 - y0,
            fill=False,
            edgecolor=edge_color,
            linewidth=max(self._default_font_size / 4, 1) * self.output.scale,
            alpha=alpha,
            linestyle=line_style,
        )
        self.output.ax.add_patch(outline)
        return self.output

    def draw_polygon(self, segment: np.ndarray, color: Any, edge_color: Any = None, alpha: float = 0.5) -> VisImage:
        """Draw a filled polygon.

        Args:
            segment: N × 2, points in pixels.
            color: Of the filling.
            edge_color: Of the outline; the same if not given, darker on an opaque filling.
            alpha: Opacity of the filling, 0…1.
        """
        outline = color if edge_color is None else edge_color
        if edge_color is None and alpha > 0.8:
            outline = self._change_color_brightness(color, -0.7)
        colors: dict[str, Any] = {
            "facecolor": mpl_colors.to_rgba(color, alpha),
            "edgecolor": mpl_colors.to_rgba(outline, 1),
        }
        width = max(self._default_font_size // 15 * self.output.scale, 1)
        self.output.ax.add_patch(Polygon(segment, linewidth=width, **colors))
        return self.output

    def draw_binary_mask(
        self,
        binary_mask: np.ndarray,
        color: Any = None,
        *,
        edge_color: Any = None,
        text: str | None = None,
        alpha: float = 0.5,
        area_threshold: int | None = 10,
    ) -> VisImage:
        """Draw a mask as polygons, or as pixels without outline if it has holes.

        Args:
            binary_mask: H × W, 0 and 1.
            color: A random one if not given.
            edge_color: As in :meth:`draw_polygon`.
            text: Written on the largest part, and on every other very large one.
            alpha: Opacity, 0…1.
            area_threshold: Polygons of fewer square pixels are left out.
        """
        if color is None:
            color = random_color(rgb=True, maximum=1)
        color = mpl_colors.to_rgb(color)
        binary_mask = binary_mask.astype(np.uint8)
        height, width = binary_mask.shape
        mask = GenericMask(binary_mask, self.output.height, self.output.width)
        if mask.has_holes:
            self._paint(binary_mask == 1, color, alpha)
            drawn = True
        else:
            areas = [mask_util.area(mask_util.frPyObjects([polygon], height, width)) for polygon in mask.polygons]
            large = [polygon for polygon, area in zip(mask.polygons, areas) if area >= (area_threshold or 0)]
            for polygon in large:
                self.draw_polygon(polygon.reshape(-1, 2), color=color, edge_color=edge_color, alpha=alpha)
            drawn = bool(large)
        if text is not None and drawn:
            self._draw_text_in_mask(binary_mask, text, self._change_color_brightness(color, 0.7))
        return self.output

    # --- helpers

    def _paint(self, mask: np.ndarray, color: tuple[float, float, float], alpha: float) -> None:
        rgba = np.empty((*mask.shape, 4), dtype=np.float32)
        rgba[:, :, :3] = color
        rgba[:, :, 3] = mask.astype(np.float32) * alpha
        self.output.ax.imshow(rgba, extent=(0, self.output.width, self.output.height, 0))

    def _draw_text_in_mask(self, binary_mask: np.ndarray, text: str, color: Any) -> None:
        _, parts, stats, _ = cv2.connectedComponentsWithStats(binary_mask, connectivity=8)
        areas = stats[:, cv2.CC_STAT_AREA]
        areas[0] = -1  # the background
        wanted = areas > _LARGE_PART_AREA
        wanted[areas.argmax()] = True
        for part in np.flatnonzero(wanted[1:]) + 1:
            y, x = np.median(np.nonzero(parts == part), axis=1)  # inside more often than the mean
            self.draw_text(text, (x, y), color=color)

    def _has_class_colors(self) -> bool:
        return bool(self.metadata.get("thing_colors"))

    def _class_colors(self, classes: Sequence[int], jittering: bool) -> list[tuple[float, ...]]:
        colors = [_unit_rgb(self.metadata.thing_colors[index]) for index in classes]
        return [self._jitter(color) for color in colors] if jittering else colors

    def _jitter(self, color: Any) -> tuple[float, ...]:
        """The color, brightened by a random amount in each channel."""
        shift = np.random.rand(3)
        return tuple(np.clip(mpl_colors.to_rgb(color) + shift / np.linalg.norm(shift) * 0.5, 0, 1))

    def _grey_outside(self, masks: Sequence[GenericMask]) -> np.ndarray:
        """The picture in grey, but for the pixels of the masks."""
        picture = self.img.astype(np.float32).mean(axis=2, keepdims=True).repeat(3, axis=2)
        for mask in masks:
            inside = mask.mask > 0
            picture[inside] = self.img[inside]
        return picture

    def _change_color_brightness(self, color: Any, brightness_factor: float) -> tuple[float, ...]:
        """Lightness of the color times (1 + factor), factor in -1…1."""
        assert -1.0 <= brightness_factor <= 1.0
        hue, lightness, saturation = colorsys.rgb_to_hls(*mpl_colors.to_rgb(color))
        lightness = min(max(lightness + brightness_factor * lightness, 0.0), 1.0)
        return tuple(np.clip(colorsys.hls_to_rgb(hue, lightness, saturation), 0.0, 1.0))

    def _convert_boxes(self, boxes: Any) -> np.ndarray:
        if isinstance(boxes, Boxes):
            boxes = boxes.tensor
        array = boxes.detach().cpu().numpy() if isinstance(boxes, torch.Tensor) else np.asarray(boxes)
        array = array.reshape(-1, 4) if array.size == 0 else array
        if array.shape[1] != 4:
            raise NotImplementedError(
                f"Visualizer: boxes of {array.shape[1]} numbers are not supported here, only x0, y0, x1, y1. "
                "Rotated boxes need Detectron2 itself."
            )
        return array

    def _convert_masks(self, masks: Any) -> list[GenericMask]:
        if isinstance(masks, PolygonMasks):
            masks = masks.polygons
        elif isinstance(masks, BitMasks):
            masks = masks.tensor
        if isinstance(masks, torch.Tensor):
            masks = masks.cpu().numpy()
        size = self.output.height, self.output.width
        return [mask if isinstance(mask, GenericMask) else GenericMask(mask, *size) for mask in masks]


def _unit_rgb(color: Sequence[float]) -> tuple[float, ...]:
    """0…255 to 0…1."""
    return tuple(channel / 255 for channel in color)
