"""What the training loader feeds the model, drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2

from ..d2 import DatasetCatalog, MetadataCatalog, instantiate, seed_all_rng
from ..errors import UserError
from .contact_sheet import contact_sheet, evenly
from .datasets import dataset_names
from .drawing import draw_training_sample


def preview_training_data(cfg: Any, path: str | Path, *, count: int = 12, repeats: int = 2, seed: int = 0) -> int:
    """Draw training samples after augmentation.

    Args:
        cfg: a config whose ``dataloader.train`` has a ``mapper``.
        path: picture to write, .png or .jpg.
        count: images, spread evenly over the training data.
        repeats: how often each is augmented anew.
        seed: of the augmentation.

    Returns:
        The number of samples drawn.

    Raises:
        UserError: the config has no training mapper, its samples have no instances, or the picture cannot be written.
        FileNotFoundError: the data is not there.
    """
    loader = cfg.dataloader.get("train")
    if loader is None or "mapper" not in loader:
        raise UserError("the config has no dataloader.train.mapper, so there is nothing to draw")
    names = dataset_names(cfg, "train")
    mapper = instantiate(loader.mapper)
    entries = [(name, entry) for name in names for entry in DatasetCatalog.get(name) if entry.get("annotations")]
    if not entries:
        raise UserError(f"dataset {', '.join(names)} has no images with objects")
    seed_all_rng(seed)
    pictures = []
    for index in evenly(count, len(entries)):
        name, entry = entries[index]
        for _ in range(repeats):
            sample = mapper(entry)
            if sample is None:
                continue
            if "instances" not in sample:
                raise UserError(f"the mapper gives {sorted(sample)}, no instances to draw")
            height, width = sample["image"].shape[1:]
            caption = f"{Path(entry['file_name']).name}: {width} x {height}, {len(sample['instances'])} objects"
            picture = draw_training_sample(
                sample, MetadataCatalog.get(name), image_format=loader.mapper.get("image_format", "BGR")
            )
            pictures.append((picture, caption))
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(str(path), contact_sheet(pictures)):
        raise UserError(f"the picture cannot be written to {path}: use a name that ends with .png or .jpg")
    return len(pictures)
