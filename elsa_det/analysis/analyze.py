"""Parameters, multiply-adds and activation memory of a model, part by part, without computing anything."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..d2 import instantiate
from ..errors import UserError
from .memory import KeptMemory
from .multiply_adds import MultiplyAddCounter
from .parts import Accounting, count_parameters
from .passes import PUBLISHED, Regions, padded_size, run, training_regions

#: (height, width) that the published figures are for
DETECTOR_SIZE, SEGMENTOR_SIZE = (800, 1280), (512, 2048)


@dataclass(frozen=True)
class Analysis:
    """Figures of a model for one image.

    Args:
        accounting: the figures by part.
        image_size: (height, width) as the layers see it, padded.
        regions: proposals and mask regions that the multiply-adds are for; None where there are no such heads.
        training_regions: those that the kept memory is for; None as well where memory was not counted.
    """

    accounting: Accounting
    image_size: tuple[int, int]
    regions: Regions | None
    training_regions: Regions | None

    @property
    def parameters(self) -> int:
        return self.accounting.total().parameters

    @property
    def multiply_adds(self) -> int:
        return self.accounting.total().multiply_adds.total()

    @property
    def kept_bytes(self) -> int | None:
        return self.accounting.total().kept_bytes


def build_on_meta(config: Any) -> nn.Module:
    """Instantiate a model's config on the ``meta`` device: shapes without numbers, in no time and no memory."""
    with torch.device("meta"):
        model = instantiate(config)
    return model.to("meta")  # what was made by a constructor that asks for no device


def analyze(
    model: nn.Module, image_size: tuple[int, int], *, regions: Regions = PUBLISHED, memory: bool = True
) -> Analysis:
    """Count a model for one image.

    The multiply-adds are those of inference, on ``regions`` in two-stage detectors; see
    :class:`~elsa_det.analysis.multiply_adds.MultiplyAddCounter` for what is counted. The kept memory is that of a
    training step in the precision of the parameters, on the regions that the model samples in training, losses left
    out; see :class:`~elsa_det.analysis.memory.KeptMemory`.

    Args:
        model: a detector, a segmentor or a backbone, see :func:`~elsa_det.analysis.passes.run`. It is best made by
            :func:`build_on_meta`; on another device it is run for real. Training mode and gradients are left as found.
        image_size: (height, width) in pixels, before padding.
        regions: proposals and mask regions for the multiply-adds.
        memory: whether to count the kept memory too.

    Raises:
        UserError: a model of another kind, or a size or number that is not positive.
    """
    if min(image_size) < 1 or min(regions.boxes, regions.masks) < 1:
        raise UserError(
            f"image size {image_size[0]}x{image_size[1]}, {regions.boxes} proposals and {regions.masks} mask regions: "
            "all must be positive"
        )
    names = [name for name, _ in model.named_modules()]
    accounting = Accounting(names)
    count_parameters(model, accounting)
    size = padded_size(model, *image_size)
    parameter = next(model.parameters())
    images = torch.zeros(1, 3, *size, dtype=parameter.dtype, device=parameter.device)
    sampled = training_regions(model)
    was_training = model.training
    try:
        with torch.no_grad(), MultiplyAddCounter(model.eval(), accounting):
            run(model, images, regions)
        if memory:
            with torch.enable_grad(), KeptMemory(model.train(), accounting):
                run(model, images, sampled or regions)
    finally:
        model.train(was_training)
    return Analysis(accounting, size, regions if sampled else None, sampled if memory else None)


def kept_for_training(model: nn.Module, image_size: tuple[int, int], images: int = 1) -> int:
    """Bytes kept for the backward of ``images`` images, as :func:`analyze` counts them for one.

    Args:
        model: see :func:`analyze`.
        image_size: (height, width) in pixels, before padding.
        images: in the batch.

    Raises:
        UserError: a model of another kind.
    """
    accounting = Accounting([name for name, _ in model.named_modules()])
    parameter = next(model.parameters())
    size = padded_size(model, *image_size)
    batch = torch.zeros(images, 3, *size, dtype=parameter.dtype, device=parameter.device)
    was_training = model.training
    try:
        with torch.enable_grad(), KeptMemory(model.train(), accounting):
            run(model, batch, training_regions(model) or PUBLISHED)
    finally:
        model.train(was_training)
    return accounting.total().kept_bytes or 0


def analyze_config(
    cfg: Any, image_size: tuple[int, int] | None = None, *, regions: Regions = PUBLISHED, memory: bool = True
) -> Analysis:
    """:func:`analyze` for the model of a config.

    Args:
        cfg: a config with a ``model``, such as :func:`elsa_det.get_config` returns.
        image_size: (height, width); by default that of the published figures, 800x1280, and 512x2048 for segmentors.
        regions, memory: see :func:`analyze`.

    Raises:
        UserError: the config has no model, or see :func:`analyze`.
    """
    if "model" not in cfg:
        raise UserError(f"the config has no model: its keys are {', '.join(str(key) for key in cfg)}")
    model = build_on_meta(cfg.model)
    if image_size is None:
        image_size = SEGMENTOR_SIZE if hasattr(model, "decode_head") else DETECTOR_SIZE
    return analyze(model, image_size, regions=regions, memory=memory)
