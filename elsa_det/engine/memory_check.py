"""Whether a training step fits into the memory that is free, estimated before anything is done."""

from __future__ import annotations

import itertools
import logging
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf
from PIL import Image

from ..analysis import build_on_meta, kept_for_training
from ..d2 import MetadataCatalog, comm, instantiate
from ..d2 import transforms as T
from ..errors import UserError
from .datasets import dataset_names
from .free_memory import free_memory
from .switches import read_switches

logger = logging.getLogger(__name__)

ERROR, WARN, OFF = "error", "warn", "off"
_GB = 1e9
_LOOKED_AT, _DRAWS = 32, 6
_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"}
_COMMON_SIZE = (480, 640)


@dataclass(frozen=True)
class Estimate:
    """Memory of a training step of one process.

    Args:
        state_bytes: weights, gradients, what the optimizer keeps, and the moving average.
        activation_bytes: what is kept for the backward.
        images: in one pass.
        image_size: (height, width) after augmentation.
    """

    state_bytes: int
    activation_bytes: int
    images: int
    image_size: tuple[int, int]

    @property
    def total(self) -> int:
        return self.state_bytes + self.activation_bytes

    def __str__(self) -> str:
        height, width = self.image_size
        return (
            f"a training step takes about {self.total / _GB:.2f} GB: {self.state_bytes / _GB:.2f} GB for weights, "
            f"gradients and optimizer, {self.activation_bytes / _GB:.2f} GB for the activations of {self.images} "
            f"image{'s' * (self.images > 1)} in a pass, of {height} x {width} (height x width)"
        )


def check_memory(cfg: Any) -> list[str]:
    """Compare the memory that a training step takes with what is free, as ``train.check_memory`` says.

    "error" stops where it does not suffice, "warn" says so, "off" does not look; "error" where the config has none.

    Returns:
        Lines for the log.

    Raises:
        UserError: it does not suffice, on this process or another one of the job.
    """
    asked = OmegaConf.select(cfg, "train.check_memory", default=ERROR)
    asked = OFF if asked is False else asked  # as YAML, and with it the command line, reads off
    if asked not in (ERROR, WARN, OFF):
        raise UserError(f"train.check_memory={asked!r} must be one of {ERROR}, {WARN}, {OFF}")
    if asked == OFF:
        return []
    message, line = _compare(cfg)
    message = next((found for found in comm.all_gather(message) if found), None)
    if message is None:
        return [line]
    if asked == WARN:
        return [f"Memory: {message}"]
    raise UserError(f"{message}; train.check_memory=warn goes on all the same")


def _compare(cfg: Any) -> tuple[str | None, str]:
    """What is wrong, and a line for the log."""
    free = free_memory(str(cfg.train.device))
    if free is None:
        return None, "Memory: not compared, this system does not say how much is free"
    try:
        estimate = estimate_memory(cfg)
    except Exception as error:  # a model or augmentation of the user's own may not take part in any way
        return (
            None,
            f"Memory: not estimated ({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''})",
        )
    available, source = free
    if torch.device(str(cfg.train.device)).type != "cuda":
        available //= comm.get_local_size()
    described = f"{estimate}; {available / _GB:.2f} GB are free ({source})"
    if estimate.total <= available:
        return None, f"Memory: {described}"
    return (
        f"too little memory: {described}. Set train.accumulate higher (it divides the images of a pass), "
        "dataloader.train.total_batch_size lower, or dataset.image_size smaller"
    ), ""


def estimate_memory(cfg: Any) -> Estimate:
    """Estimate the memory of a training step from the config, without images: nothing is computed."""
    model = build_on_meta(cfg.model)
    switches = read_switches(cfg)
    images = max(int(cfg.dataloader.train.total_batch_size) // (comm.get_world_size() * switches.accumulate), 1)
    size = augmented_size(cfg)
    activations = kept_for_training(model, size, images)
    if cfg.train.amp.enabled:
        activations //= 2  # half of those in float32, for mixed precision
    parameters = [(p.numel() * p.element_size(), p.requires_grad) for p in model.parameters()]
    weights = sum(count for count, _ in parameters)
    trained = sum(count for count, learns in parameters if learns)
    state = weights * (2 if switches.ema.enabled else 1) + trained * (1 + _kept_by_optimizer(cfg.optimizer))
    return Estimate(state, activations, images, size)


def _kept_by_optimizer(optimizer: Any) -> int:
    """Numbers for each parameter: those of SGD, or of the Adam family."""
    target = optimizer.get("_target_")
    if str(getattr(target, "__name__", target)).endswith("SGD"):
        return 1 if optimizer.get("momentum", 0) else 0
    return 2


def augmented_size(cfg: Any) -> tuple[int, int]:
    """(height, width) that holds what training's augmentations make of the largest of a few of its images."""
    height, width = _largest_of_a_few(cfg)
    node = OmegaConf.select(cfg, "dataloader.train.mapper.augmentations")
    augmentations = T.AugmentationList(instantiate(node) if node is not None else [])
    blank = np.zeros((height, width, 3), dtype=np.uint8)
    sizes = []
    with _seeded():
        for _ in range(_DRAWS if len(augmentations.augs) else 1):
            fed = T.AugInput(blank, sem_seg=blank[..., 0])
            augmentations(fed)
            sizes.append(fed.image.shape[:2])
    return max(size[0] for size in sizes), max(size[1] for size in sizes)


def _largest_of_a_few(cfg: Any) -> tuple[int, int]:
    sizes = []
    for name in dataset_names(cfg, "train"):
        metadata = MetadataCatalog.get(name)
        root = metadata.get("image_root") or metadata.get("image_dir")
        for path in itertools.islice(_image_files(root), _LOOKED_AT) if root else ():
            try:
                with Image.open(path) as opened:
                    sizes.append((opened.height, opened.width))
            except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
                continue  # the check of the data tells
    return max(sizes, key=lambda size: size[0] * size[1], default=_COMMON_SIZE)


def _image_files(root: str) -> Iterator[Path]:
    for folder, folders, files in os.walk(root):
        folders.sort()
        for name in sorted(files):
            if Path(name).suffix.lower() in _SUFFIXES:
                yield Path(folder, name)


@contextmanager
def _seeded() -> Iterator[None]:
    """The same random numbers each time, without a change to those of the training."""
    states = random.getstate(), np.random.get_state()
    random.seed(0)
    np.random.seed(0)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
