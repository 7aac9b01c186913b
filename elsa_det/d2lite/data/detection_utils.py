"""From files and annotations to what a detector is trained on."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import torch
from PIL import Image

from ..structures import BitMasks, Boxes, BoxMode, Instances, PolygonMasks, polygons_to_bitmask
from ..utils.file_io import PathManager
from . import transforms as T
from .catalog import MetadataCatalog

__all__ = [
    "SizeMismatchError",
    "annotations_to_instances",
    "check_image_size",
    "check_metadata_consistency",
    "convert_PIL_to_numpy",
    "convert_image_to_rgb",
    "filter_empty_instances",
    "get_bbox",
    "read_image",
    "transform_instance_annotations",
]

logger = logging.getLogger(__name__)


class SizeMismatchError(ValueError):
    """An image is not as large as its annotation says."""


# https://en.wikipedia.org/wiki/YUV#SDTV_with_BT.601
_YUV = "YUV-BT.601"
_RGB_TO_YUV = np.array([[0.299, 0.587, 0.114], [-0.14713, -0.28886, 0.436], [0.615, -0.51499, -0.10001]])
_YUV_TO_RGB = np.array([[1.0, 0.0, 1.13983], [1.0, -0.39465, -0.58060], [1.0, 2.03211, 0.0]])

_EXIF_ORIENTATION = 0x0112
_UNDO_ORIENTATION = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def convert_PIL_to_numpy(image: Image.Image, format: str | None) -> np.ndarray:
    """An array of a PIL image.

    Args:
        image: the image.
        format: a mode of PIL, "BGR", "YUV-BT.601", or None for the mode the image has.

    Returns:
        (H, W, C) in [0, 255], for most modes uint8; floating point for YUV, with Y in [0, 1]. Without a format, images
        of one channel are (H, W).
    """
    if format is None:
        return np.array(image)
    if format == "BGR":
        return np.array(image.convert("RGB"))[:, :, ::-1]
    if format == _YUV:
        return np.dot(np.array(image.convert("RGB")) / 255.0, _RGB_TO_YUV.T)
    array = np.array(image.convert(format))
    return array[:, :, None] if format == "L" else array


def convert_image_to_rgb(image: np.ndarray | torch.Tensor, format: str) -> np.ndarray:
    """The (H, W, 3) RGB image in [0, 255] of an (H, W, C) image in a format of :func:`convert_PIL_to_numpy`."""
    if isinstance(image, torch.Tensor):
        image = image.cpu().numpy()
    if format == "BGR":
        return image[:, :, [2, 1, 0]]
    if format == _YUV:
        return np.dot(image, _YUV_TO_RGB.T) * 255.0
    image = image.astype(np.uint8)
    if format == "RGB":
        return image
    return np.asarray(Image.fromarray(image[:, :, 0] if format == "L" else image, mode=format).convert("RGB"))


def _upright(image: Image.Image) -> Image.Image:
    """The image as it is to be looked at: cameras store how they were held instead of turning the picture."""
    try:
        orientation = image.getexif().get(_EXIF_ORIENTATION)
    except Exception:  # EXIF data can be broken in many ways; the picture is good all the same
        logger.debug("The EXIF data of an image cannot be read; it is taken as upright.", exc_info=True)
        return image
    return image.transpose(_UNDO_ORIENTATION[orientation]) if orientation in _UNDO_ORIENTATION else image


def _datasets_at(file_name: str) -> list[str]:
    """The registered datasets whose images are kept in a folder above this file."""
    path = os.path.abspath(file_name)
    roots = {name: MetadataCatalog.get(name).get("image_root") for name in MetadataCatalog.list()}
    return [name for name, root in roots.items() if root and path.startswith(os.path.abspath(root) + os.sep)]


def _image_not_found(file_name: str) -> FileNotFoundError:
    datasets = _datasets_at(file_name)
    folder = os.path.dirname(os.path.abspath(file_name))
    return FileNotFoundError(
        f"Image '{file_name}' does not exist"
        + (f" (dataset {' / '.join(datasets)})" if datasets else "")
        + ("; its folder is there. " if os.path.isdir(folder) else f"; nor does the folder '{folder}'. ")
        + "Check the image_root the dataset is registered with and 'file_name' in its annotations. For the built-in "
        "datasets, DETECTRON2_DATASETS names the folder that holds them "
        f"(now {os.getenv('DETECTRON2_DATASETS', 'unset: ./datasets')})."
    )


def read_image(file_name: str, format: str | None = None) -> np.ndarray:
    """Read an image, turned upright as its EXIF orientation says.

    Args:
        file_name: path of the image.
        format: see :func:`convert_PIL_to_numpy`.

    Returns:
        see :func:`convert_PIL_to_numpy`.

    Raises:
        FileNotFoundError: if there is no such file; the message says which dataset asked for it.
        OSError: if the file is no image, or a damaged one.
    """
    try:
        file = PathManager.open(file_name, "rb")
    except FileNotFoundError as error:
        raise _image_not_found(str(file_name)) from error
    with file:
        try:
            return convert_PIL_to_numpy(_upright(Image.open(file)), format)
        except OSError as error:
            raise OSError(f"'{file_name}' cannot be read as an image: {error}") from error


def check_image_size(dataset_dict: dict[str, Any], image: np.ndarray) -> None:
    """Compare an image with the size in its dataset dict, and fill the size in where the dict has none.

    Raises:
        SizeMismatchError: if they differ.
    """
    height, width = image.shape[:2]
    # With only one of the two given, the other is not known to be wrong.
    expected = (dataset_dict.get("width", width), dataset_dict.get("height", height))
    if expected != (width, height):
        raise SizeMismatchError(
            f"Image '{dataset_dict.get('file_name', '(no file name)')}' is {width}×{height} (width×height), but its "
            f"annotation says {expected[0]}×{expected[1]}. Correct width/height in the annotation; note that images "
            "are turned as their EXIF orientation says."
        )
    dataset_dict["width"], dataset_dict["height"] = expected


def get_bbox(annotation: dict[str, Any]) -> Any:
    """The box of an annotation as x0, y0, x1, y1 in pixels."""
    if "bbox" not in annotation or "bbox_mode" not in annotation:
        raise KeyError(
            f"An annotation needs 'bbox' and 'bbox_mode', got one with the keys {sorted(annotation)} only. "
            "Detectors cannot be trained on objects without a box."
        )
    return BoxMode.convert(annotation["bbox"], annotation["bbox_mode"], BoxMode.XYXY_ABS)


_SEGMENTATIONS = "polygons as list[list[float]] or list[ndarray], or a COCO RLE as a dict"


def transform_instance_annotations(
    annotation: dict[str, Any],
    transforms: Any,
    image_size: tuple[int, int],
    *,
    keypoint_hflip_indices: Any = None,
) -> dict[str, Any]:
    """Apply transforms to the box and the segmentation of an object; the box is clipped to the image.

    Args:
        annotation: of one object, in the standard dataset format; changed in place. A segmentation as RLE becomes an
            array.
        transforms: a transform, or several in a list.
        image_size: (h, w) after the transforms.
        keypoint_hflip_indices: not used, there are no keypoints here.

    Returns:
        the annotation, with the box as XYXY in pixels.

    Raises:
        ValueError: if the segmentation is of an unknown kind or does not match the image, or if there are keypoints.
    """
    if "keypoints" in annotation:
        raise ValueError(
            "d2lite does not transform keypoints: remove them from the annotations, or install Detectron2."
        )
    tfm = T.TransformList(transforms) if isinstance(transforms, (tuple, list)) else transforms
    h, w = image_size
    box = tfm.apply_box(np.array([get_bbox(annotation)]))[0].clip(min=0)
    annotation["bbox"] = np.minimum(box, [w, h, w, h])
    annotation["bbox_mode"] = BoxMode.XYXY_ABS

    segmentation = annotation.get("segmentation")
    if isinstance(segmentation, list):
        polygons = tfm.apply_polygons([np.asarray(p).reshape(-1, 2) for p in segmentation])
        annotation["segmentation"] = [p.reshape(-1) for p in polygons]
    elif isinstance(segmentation, dict):
        mask = tfm.apply_segmentation(mask_util.decode(segmentation))
        if mask.shape[:2] != (h, w):
            raise ValueError(
                f"The segmentation (RLE of size {segmentation['size']}) gives a mask of {mask.shape[:2]} "
                f"for an image of {(h, w)} after the augmentation; it belongs to another image size."
            )
        annotation["segmentation"] = mask
    elif "segmentation" in annotation:
        raise ValueError(
            f"A segmentation of type {type(segmentation).__name__} cannot be transformed; use {_SEGMENTATIONS}."
        )
    return annotation


def _bitmask(segmentation: Any, image_size: tuple[int, int]) -> np.ndarray:
    """Any kind of segmentation as an (H, W) mask."""
    if isinstance(segmentation, list):
        return polygons_to_bitmask(segmentation, *image_size)
    if isinstance(segmentation, dict):
        return mask_util.decode(segmentation)
    if isinstance(segmentation, np.ndarray) and segmentation.ndim == 2:
        return segmentation
    raise ValueError(
        f"A segmentation of type {type(segmentation).__name__} cannot become a mask; "
        f"use {_SEGMENTATIONS}, or an array of shape (H, W)."
    )


def annotations_to_instances(
    annos: list[dict[str, Any]], image_size: tuple[int, int], mask_format: str = "polygon"
) -> Instances:
    """The targets of one image.

    Args:
        annos: its annotations.
        image_size: (h, w).
        mask_format: "polygon" or "bitmask", what ``gt_masks`` is to be.

    Returns:
        ``gt_boxes``, ``gt_classes`` and, if the annotations have segmentations, ``gt_masks``.

    Raises:
        ValueError: if a segmentation does not fit ``mask_format``, or only some annotations have one.
    """
    if mask_format not in ("polygon", "bitmask"):
        raise ValueError(f"mask_format={mask_format!r} is not known: use 'polygon' or 'bitmask'.")
    target = Instances(image_size)
    target.gt_boxes = Boxes(np.stack([get_bbox(obj) for obj in annos]) if annos else np.zeros((0, 4)))
    target.gt_classes = torch.tensor([int(obj["category_id"]) for obj in annos], dtype=torch.int64)
    if not annos or "segmentation" not in annos[0]:
        return target

    without = [i for i, obj in enumerate(annos) if "segmentation" not in obj]
    if without:
        raise ValueError(
            f"{len(without)} of the {len(annos)} objects of an image have no 'segmentation' "
            f"(first: number {without[0]}, box {annos[without[0]]['bbox']}), the others have. "
            "Complete them, or train without masks."
        )
    segmentations = [obj["segmentation"] for obj in annos]
    if mask_format == "polygon":
        try:
            target.gt_masks = PolygonMasks(segmentations)
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"These segmentations are no polygons: {error}. Masks given as RLE need instance_mask_format='bitmask'."
            ) from error
    else:
        masks = [torch.from_numpy(np.ascontiguousarray(_bitmask(s, image_size))) for s in segmentations]
        target.gt_masks = BitMasks(torch.stack(masks))
    return target


def filter_empty_instances(
    instances: Instances,
    by_box: bool = True,
    by_mask: bool = True,
    box_threshold: float = 1e-5,
    return_mask: bool = False,
) -> Any:
    """Drop the objects of which nothing is left, for example after a crop.

    Args:
        instances: with ``gt_boxes``, perhaps ``gt_masks``.
        by_box: look at the boxes.
        by_mask: look at the masks, if there are any.
        box_threshold: boxes not wider or higher than this are empty.
        return_mask: also give which ones were kept.

    Returns:
        the remaining instances; with ``return_mask`` also a bool tensor over all of them.
    """
    if not (by_box or by_mask):
        raise ValueError("filter_empty_instances needs by_box or by_mask, or there is nothing to filter by.")
    keep = torch.ones(len(instances), dtype=torch.bool)
    if by_box:
        keep = keep & instances.gt_boxes.nonempty(threshold=box_threshold)
    if by_mask and instances.has("gt_masks"):
        keep = keep & instances.gt_masks.nonempty()
    return (instances[keep], keep) if return_mask else instances[keep]


def check_metadata_consistency(key: str, dataset_names: Sequence[str]) -> None:
    """Check that datasets that are used together agree about an attribute.

    Raises:
        AttributeError: if one of them does not have it.
        ValueError: if they differ.
    """
    values = [getattr(MetadataCatalog.get(name), key) for name in dataset_names]
    for name, value in zip(dataset_names, values):
        if value != values[0]:
            raise ValueError(
                f"Datasets '{dataset_names[0]}' and '{name}' cannot be used together, their '{key}' differ: "
                f"{values[0]} and {value}."
            )
