"""Copy-paste augmentation: objects of one image on another (Ghiasi et al., arXiv 2012.07177)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from ..d2 import BitMasks, Boxes, DatasetFromList, Instances, PolygonMasks, build_detection_train_loader
from ..errors import UserError

#: under which an image's dict holds that of the image to copy from
_PARTNER = "copy_paste_from"
_FIELDS = {"gt_boxes", "gt_classes", "gt_masks"}


@dataclasses.dataclass(frozen=True)
class CopyPasteOptions:
    """How objects are pasted.

    Args:
        prob: chance in [0, 1] that an image gets objects of another.
        min_visible: share in [0, 1) of its pixels that an object must keep; those covered further are dropped.

    Raises:
        UserError: out of range.
    """

    prob: float = 1.0
    min_visible: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.prob <= 1:
            raise UserError(f"copy_paste.prob must be in [0, 1], got {self.prob}")
        if not 0 <= self.min_visible < 1:
            raise UserError(f"copy_paste.min_visible must be in [0, 1), got {self.min_visible}")

    @staticmethod
    def read(options: Mapping[str, Any] | None) -> CopyPasteOptions:
        """From a part of a config.

        Raises:
            UserError: it has an unknown key, or a value is out of range.
        """
        options = dict(options or {})
        known = [field.name for field in dataclasses.fields(CopyPasteOptions)]
        if unknown := sorted(set(options) - set(known)):
            raise UserError(f"copy_paste has no option {', '.join(unknown)}; there are: {', '.join(known)}")
        return CopyPasteOptions(**options)


class ImagePairs(Dataset):
    """The images of a dataset, each with another one, drawn at random whenever it is asked for.

    Args:
        dataset: dicts in Detectron2's format, as a list or a dataset with indices.
    """

    def __init__(self, dataset: Any) -> None:
        if isinstance(dataset, IterableDataset):
            raise UserError("copy-paste draws images by their index, which a stream of images does not have")
        self._images = DatasetFromList(dataset, copy=False) if isinstance(dataset, list) else dataset

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        others = len(self) - 1
        step = 1 + np.random.randint(others) if others > 0 else 0
        return {**self._images[index], _PARTNER: self._images[(index + step) % len(self)]}


class CopyPasteMapper:
    """Maps the two images of a pair, each augmented for itself, and pastes objects of the second on the first.

    Args:
        mapper: makes ``image`` and ``instances`` with ``gt_masks`` of a dict, such as a ``DatasetMapper`` with
            ``use_instance_mask=True``. Annotations as RLE need its ``instance_mask_format="bitmask"``.
        options: how to paste.
    """

    def __init__(self, mapper: Callable[[dict], Any], options: CopyPasteOptions) -> None:
        self.mapper, self.options = mapper, options

    def __call__(self, pair: dict[str, Any]) -> dict[str, Any] | None:
        """The mapped first image; its masks are bitmaps, whether something was pasted or not."""
        pair = dict(pair)
        partner = pair.pop(_PARTNER)
        target = self.mapper(pair)
        if target is None:
            return None
        target["instances"] = with_bitmasks(target)
        if np.random.uniform() >= self.options.prob:
            return target
        source = self.mapper(partner)
        if source is None:
            return target
        source["instances"] = with_bitmasks(source)
        return paste(target, source, self.options.min_visible)


def with_bitmasks(image: Mapping[str, Any]) -> Instances:
    """The objects of a mapped image with their masks as bitmaps; those without a pixel are dropped.

    Raises:
        UserError: objects without masks, or with more than boxes, classes and masks; label maps.
    """
    instances = image["instances"]
    height, width = instances.image_size
    if "sem_seg" in image or set(instances.get_fields()) - _FIELDS:
        more = sorted((set(instances.get_fields()) - _FIELDS) | ({"sem_seg"} & set(image)))
        raise UserError(f"copy-paste moves boxes, classes and masks only, but the data has {', '.join(more)}")
    if not instances.has("gt_masks"):
        if len(instances):
            raise UserError(
                f"copy-paste needs a mask of every object; those of {image.get('file_name', 'an image')} have none: "
                "give the annotations a 'segmentation', and the mapper use_instance_mask=True"
            )
        masks = BitMasks(torch.zeros(0, height, width, dtype=torch.bool))
    else:
        masks = instances.gt_masks
    if isinstance(masks, PolygonMasks):
        masks = BitMasks.from_polygon_masks(masks, height, width)
    return _objects(instances.gt_boxes.tensor, instances.gt_classes, masks.tensor)[masks.nonempty()]


def paste(target: dict[str, Any], source: Mapping[str, Any], min_visible: float) -> dict[str, Any]:
    """Paste a random, non-empty choice of the objects of one mapped image on another.

    Where the images differ in size, the source is put at a random place such that the smaller lies within the larger,
    in each direction. Pasted objects cover what was there: masks lose their covered pixels, boxes of what changed are
    those of the remaining masks, and objects of which too little remains are dropped. Pixels are replaced, without
    blending at the edges, which the paper found to make no difference.

    Args:
        target: ``image`` (C, H, W), ``instances`` with masks as bitmaps.
        source: the same, of any size.
        min_visible: share in [0, 1) of its pixels that an object must keep, be it covered or beyond the border.

    Returns:
        ``target`` with new ``image`` and ``instances``: its own objects first, then the pasted.
    """
    objects: Instances = source["instances"]
    if len(objects) == 0:
        return target
    count = np.random.randint(1, len(objects) + 1)
    chosen = torch.from_numpy(np.sort(np.random.permutation(len(objects))[:count]))
    size, source_size = target["image"].shape[1:], source["image"].shape[1:]
    here, there = zip(*(_random_overlap(*lengths) for lengths in zip(size, source_size)))

    whole = objects.gt_masks.tensor[chosen]
    masks = whole.new_zeros(len(chosen), *size)
    masks[:, here[0], here[1]] = whole[:, there[0], there[1]]
    kept = _enough_remains(masks, whole, min_visible)
    masks, classes = masks[kept], objects.gt_classes[chosen][kept]

    covered = masks.any(dim=0)
    image = target["image"].clone()
    aligned = torch.zeros_like(image)
    aligned[:, here[0], here[1]] = source["image"][:, there[0], there[1]]
    image[:, covered] = aligned[:, covered]

    own: Instances = target["instances"]
    before = own.gt_masks.tensor
    visible = before & ~covered
    changed = (visible != before).flatten(1).any(dim=1)
    boxes = torch.where(changed[:, None], _boxes_of(visible), own.gt_boxes.tensor)
    remaining = _enough_remains(visible, before, min_visible)
    return {
        **target,
        "image": image,
        "instances": _objects(
            torch.cat((boxes[remaining], _boxes_of(masks))),
            torch.cat((own.gt_classes[remaining], classes)),
            torch.cat((visible[remaining], masks)),
        ),
    }


def _random_overlap(length: int, other: int) -> tuple[slice, slice]:
    """Where two stretches overlap when the shorter is put at a random place of the longer: in the one, in the other."""
    offset = np.random.randint(abs(length - other) + 1)
    within = slice(offset, offset + min(length, other))
    whole = slice(0, min(length, other))
    return (within, whole) if length >= other else (whole, within)


def _enough_remains(masks: Tensor, before: Tensor, min_visible: float) -> Tensor:
    """(N,) bool: as many pixels of each mask as it takes, and at least one."""
    area, whole = masks.flatten(1).sum(dim=1), before.flatten(1).sum(dim=1)
    return (area > 0) & (area >= min_visible * whole)


def _boxes_of(masks: Tensor) -> Tensor:
    return BitMasks(masks).get_bounding_boxes().tensor.float()


def _objects(boxes: Tensor, classes: Tensor, masks: Tensor) -> Instances:
    instances = Instances((int(masks.shape[1]), int(masks.shape[2])))
    instances.gt_boxes = Boxes(boxes)
    instances.gt_classes = classes
    instances.gt_masks = BitMasks(masks)
    return instances


def build_copy_paste_train_loader(
    dataset: Any, *, mapper: Callable[[dict], Any], copy_paste: Mapping[str, Any] | None = None, **kwargs: Any
) -> Any:
    """Detectron2's ``build_detection_train_loader`` with copy-paste after the mapper.

    Random numbers are NumPy's, which Detectron2 seeds in the workers of a loader: the same ``train.seed`` gives the
    same pictures.

    Args:
        dataset: dicts in Detectron2's format, as a list or a dataset with indices.
        mapper: see :class:`CopyPasteMapper`.
        copy_paste: ``prob`` and ``min_visible`` of :class:`CopyPasteOptions`.
        kwargs: of ``build_detection_train_loader``.

    Raises:
        UserError: an option is unknown or out of range, or the dataset is a stream.
    """
    options = CopyPasteOptions.read(copy_paste)
    return build_detection_train_loader(ImagePairs(dataset), mapper=CopyPasteMapper(mapper, options), **kwargs)
