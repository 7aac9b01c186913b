"""The number of classes of a model and of its data."""

from __future__ import annotations

from typing import Any

from omegaconf import OmegaConf

from ..d2 import MetadataCatalog, instantiate
from ..errors import UserError
from .datasets import dataset_names

# Where models have their number of classes, and datasets the names of these classes. One-stage detectors have it at
# the top.
_CLASS_COUNTS = {
    "decode_head.num_classes": "stuff_classes",
    "roi_heads.num_classes": "thing_classes",
    "num_classes": "thing_classes",
}


def settle_class_count(cfg: Any) -> None:
    """Replace a number of classes that is a call, such as one that reads the data, by what it gives.

    The saved config then says what was trained, and does not need the training data for it.
    """
    for key in _CLASS_COUNTS:
        count = OmegaConf.select(cfg.model, key)
        if OmegaConf.is_config(count):
            OmegaConf.update(cfg.model, key, instantiate(count), merge=False)


def check_class_count(cfg: Any, loader: str) -> None:
    """Raise if a dataset of ``dataloader.train`` or ``.test`` has another number of classes than the model.

    Raises:
        UserError: naming both numbers.
    """
    keys = [key for key in _CLASS_COUNTS if OmegaConf.select(cfg.model, key) is not None]
    if not keys:
        return
    expected = OmegaConf.select(cfg.model, keys[0])
    for name in dataset_names(cfg, loader):
        classes = MetadataCatalog.get(name).get(_CLASS_COUNTS[keys[0]])
        if classes is not None and len(classes) != expected:
            listed = ", ".join(classes[:5]) + (", …" if len(classes) > 5 else "")
            raise UserError(
                f"dataset {name} has {len(classes)} classes ({listed}), the model {expected}: "
                f"set model.{keys[0]}={len(classes)}"
            )
