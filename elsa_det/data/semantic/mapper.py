"""From the dict of an image with a label map to what a segmentor is trained and tested on."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ...d2 import detection_utils
from ...d2 import transforms as T
from ...errors import UserError
from .folders import label_encoding
from .labels import read_labels

logger = logging.getLogger(__name__)


class SemanticMapper:
    """Reads an image and, for training, its label map, and augments the two together.

    Detectron2's ``DatasetMapper`` reads label maps as grey values, which spoils palette and 16-bit files; this one
    reads what they store, and says what is wrong with a file.
    """

    def __init__(
        self,
        dataset: str | Sequence[str],
        *,
        is_train: bool,
        augmentations: Sequence[Any],
        image_format: str = "RGB",
    ) -> None:
        """
        Args:
            dataset: The registered dataset, or several with the same label encoding.
            is_train: Read labels as well; in testing the evaluator reads them, at their own size.
            augmentations: Detectron2 augmentations, in order.
            image_format: Order of the channels, "RGB" or "BGR".

        Raises:
            UserError: A dataset is not registered, or their label maps mean different things.
        """
        names = [dataset] if isinstance(dataset, str) else list(dataset)
        encodings = {name: label_encoding(name) for name in names}
        if len(set(encodings.values())) != 1:
            raise UserError(f"the datasets {', '.join(names)} encode their labels differently: they cannot be mixed")
        self.encoding = encodings[names[0]]
        self.is_train, self.image_format = is_train, image_format
        self.augmentations = T.AugmentationList(list(augmentations))
        logger.info("Augmentations in %s: %s", "training" if is_train else "inference", self.augmentations)

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """Map one image.

        Args:
            dataset_dict: With "file_name" and "sem_seg_file_name"; not changed.

        Returns:
            The dict with "image", (3, H, W) uint8; "height" and "width" of the image file; and for training
            "sem_seg", (H, W) int64: class indices and the ignored label.

        Raises:
            FileNotFoundError: A file is not there.
            UserError: A file cannot be read, or the label map does not fit; see :func:`read_labels`.
        """
        mapped = dict(dataset_dict)
        image = read_image(mapped["file_name"], self.image_format)
        height, width = image.shape[:2]
        if (mapped.get("height", height), mapped.get("width", width)) != (height, width):
            raise UserError(
                f"image {mapped['file_name']} is {width}×{height} pixels (width×height), its dataset says "
                f"{mapped['width']}×{mapped['height']}: correct one of them"
            )
        mapped["height"], mapped["width"] = height, width
        labels = None
        if self.is_train:
            label_file = mapped.pop("sem_seg_file_name", None)
            if label_file is None:
                raise UserError(
                    f"image {mapped['file_name']} has no label map (sem_seg_file_name): it cannot be trained on"
                )
            labels = read_labels(label_file, self.encoding, size=(height, width), image=mapped["file_name"])
        augmented = T.AugInput(image, sem_seg=labels)
        self.augmentations(augmented)
        mapped["image"] = torch.from_numpy(np.ascontiguousarray(augmented.image.transpose(2, 0, 1)))
        if augmented.sem_seg is not None:
            mapped["sem_seg"] = torch.from_numpy(augmented.sem_seg.astype(np.int64))
        return mapped


def read_image(path: str, image_format: str) -> np.ndarray:
    """Read an image, turned upright, as (H, W, 3) uint8 in the order "RGB" or "BGR".

    Raises:
        FileNotFoundError: There is no such file.
        UserError: It cannot be read.
    """
    try:
        image = detection_utils.read_image(path, format=image_format)
    except (FileNotFoundError, UserError):
        raise
    except Exception as error:  # Pillow raises anything for damaged files
        raise UserError(
            f"image {path} cannot be read: {error}. It is truncated or no image: restore it, or take it and its label "
            "map out of the dataset"
        ) from error
    return image if image.flags.writeable else image.copy()  # some augmentations want to own their pixels
