"""The default step from a dataset dict to what a model takes."""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from . import detection_utils as utils
from . import transforms as T

__all__ = ["DatasetMapper"]

logger = logging.getLogger(__name__)


class DatasetMapper:
    """Reads an image, augments it with its annotations, and makes tensors and :class:`Instances` of them.

    Args:
        is_train: for training; otherwise annotations are dropped.
        augmentations: augmentations or transforms, in order.
        image_format: see :func:`detection_utils.read_image`.
        use_instance_mask: keep the segmentations of objects.
        use_keypoint: must be False, there are no keypoints here.
        instance_mask_format: "polygon" or "bitmask".
        keypoint_hflip_indices: not used.
        precomputed_proposal_topk: must be None, there are no precomputed proposals here.
        recompute_boxes: take the boxes from the augmented masks: after a crop they are tighter than the cropped boxes.

    Raises:
        ValueError: if the arguments contradict each other or ask for what is not here.
    """

    def __init__(
        self,
        is_train: bool,
        *,
        augmentations: Sequence[T.Augmentation | T.Transform],
        image_format: str,
        use_instance_mask: bool = False,
        use_keypoint: bool = False,
        instance_mask_format: str = "polygon",
        keypoint_hflip_indices: Any = None,
        precomputed_proposal_topk: int | None = None,
        recompute_boxes: bool = False,
    ) -> None:
        if use_keypoint or precomputed_proposal_topk is not None:
            raise ValueError(
                "DatasetMapper: the embedded d2lite has neither keypoints (use_keypoint) nor precomputed proposals "
                "(precomputed_proposal_topk). Install Detectron2 for them."
            )
        if recompute_boxes and not use_instance_mask:
            raise ValueError("DatasetMapper(recompute_boxes=True) takes boxes from masks: set use_instance_mask=True.")
        if instance_mask_format not in ("polygon", "bitmask"):
            raise ValueError(
                f"DatasetMapper(instance_mask_format={instance_mask_format!r}) is not known: "
                "use 'polygon' or 'bitmask'."
            )
        self.is_train, self.image_format = is_train, image_format
        self.augmentations = T.AugmentationList(augmentations)
        self.use_instance_mask, self.instance_mask_format = use_instance_mask, instance_mask_format
        self.recompute_boxes = recompute_boxes
        # The attributes of what is not here, for mappers that are derived from this one.
        self.use_keypoint, self.keypoint_hflip_indices = use_keypoint, keypoint_hflip_indices
        self.proposal_topk = precomputed_proposal_topk
        logger.info("Augmentations in %s: %s", "training" if is_train else "inference", self.augmentations)

    def _read(self, dataset_dict: dict) -> T.AugInput:
        """The image, and the label map whose "sem_seg_file_name" is taken out of the dict."""
        image = utils.read_image(dataset_dict["file_name"], self.image_format)
        utils.check_image_size(dataset_dict, image)
        label_file = dataset_dict.pop("sem_seg_file_name", None)
        labels = None if label_file is None else utils.read_image(label_file, "L")[:, :, 0]
        return T.AugInput(image, sem_seg=labels)

    def _transform_annotations(self, dataset_dict: dict, transforms: T.TransformList, image_shape: tuple) -> None:
        """Replace "annotations" by the "instances" a model is trained on. Crowds are left out."""
        dropped = {"keypoints"} if self.use_instance_mask else {"keypoints", "segmentation"}
        objects = [
            {key: value for key, value in obj.items() if key not in dropped}
            for obj in dataset_dict.pop("annotations")
            if obj.get("iscrowd", 0) == 0
        ]
        annos = [utils.transform_instance_annotations(obj, transforms, image_shape) for obj in objects]
        instances = utils.annotations_to_instances(annos, image_shape, mask_format=self.instance_mask_format)
        if self.recompute_boxes and instances.has("gt_masks"):
            instances.gt_boxes = instances.gt_masks.get_bounding_boxes()
        dataset_dict["instances"] = utils.filter_empty_instances(instances)

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """Map one image.

        Args:
            dataset_dict: in the standard dataset format; not changed.

        Returns:
            the dict with "image", a uint8 tensor (C, H, W); for training "instances" and, if the dataset has label
            maps, "sem_seg", an int64 tensor (H, W).
        """
        dataset_dict = copy.deepcopy(dataset_dict)
        aug_input = self._read(dataset_dict)
        transforms = self.augmentations(aug_input)
        image = aug_input.image
        # Tensors pass from worker processes through shared memory; arrays would be pickled.
        dataset_dict["image"] = torch.as_tensor(np.ascontiguousarray(image.transpose(2, 0, 1)))
        if aug_input.sem_seg is not None:
            dataset_dict["sem_seg"] = torch.as_tensor(aug_input.sem_seg.astype("long"))

        if not self.is_train:
            dataset_dict.pop("annotations", None)
        elif "annotations" in dataset_dict:
            self._transform_annotations(dataset_dict, transforms, image.shape[:2])
        return dataset_dict
