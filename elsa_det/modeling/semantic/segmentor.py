"""Semantic segmentation as a whole: backbone, head and auxiliary head behind Detectron2's inputs and outputs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...d2 import Backbone, ImageList
from ...errors import UserError
from .decode_head import DecodeHead
from .resizing import predicted_labels, resized_rows


class Segmentor(nn.Module):
    """Labels every pixel of an image.

    The inputs are a list with a dict for each image: ``image`` (3, H, W) in the range that pixel mean and std are given
    for; ``sem_seg`` (H, W) integer labels in training; ``height`` and ``width``, in pixels, of the wanted result (by
    default those of ``image``); ``file_name``, for messages.

    Images are padded to a batch in training only, with zeros after normalisation, their labels with the ignored one. In
    inference images of different sizes are run apart, so a result does not depend on what else is in the batch.

    Args:
        backbone: images to maps.
        decode_head: maps to logits.
        auxiliary_head: a further head for training only.
        pixel_mean, pixel_std: a number for each channel; images are normalised with them.
        input_format: order of the channels, "RGB" or "BGR".
        return_logits: whether results hold the logits of all classes at full size besides the labels; they take
            4 * classes bytes a pixel, 1.2 GB for 150 classes and 2048 x 1024 pixels.

    Raises:
        ValueError: the parts do not fit each other.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(
        self,
        *,
        backbone: Backbone,
        decode_head: DecodeHead,
        auxiliary_head: DecodeHead | None = None,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        input_format: str = "RGB",
        return_logits: bool = False,
    ) -> None:
        super().__init__()
        if len(pixel_mean) != len(pixel_std):
            raise ValueError(f"pixel_mean={list(pixel_mean)} and pixel_std={list(pixel_std)} differ in length")
        _check_fit(backbone, {"decode_head": decode_head, "auxiliary_head": auxiliary_head})
        self.backbone = backbone
        self.decode_head, self.auxiliary_head = decode_head, auxiliary_head
        self.input_format, self.return_logits = input_format, return_logits
        self.register_buffer("pixel_mean", torch.tensor(list(pixel_mean)).view(-1, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(list(pixel_std)).view(-1, 1, 1), persistent=False)

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    @property
    def num_classes(self) -> int:
        return self.decode_head.num_classes

    @property
    def ignore_label(self) -> int:
        return self.decode_head.ignore_label

    def forward(self, batched_inputs: list[dict[str, Any]]) -> Any:
        """In training a dict of losses, ``loss_sem_seg`` and, with an auxiliary head, ``loss_aux``.

        In inference a list of dicts, for each image ``sem_seg_labels``, (height, width) int64, and with
        ``return_logits`` also ``sem_seg``, (classes, height, width) float32 logits.

        Raises:
            UserError: an image or its labels cannot be used.
        """
        return self.losses(batched_inputs) if self.training else self.inference(batched_inputs)

    def losses(self, batched_inputs: list[dict[str, Any]]) -> dict[str, Tensor]:
        """The losses of a batch, whichever mode the model is in."""
        images = self.preprocess_image(batched_inputs)
        targets = self._targets(batched_inputs, images)
        features = self.backbone(images.tensor)
        losses = {"loss_sem_seg": self.decode_head.losses(self.decode_head(features), targets)}
        if self.auxiliary_head is not None:
            losses["loss_aux"] = self.auxiliary_head.losses(self.auxiliary_head(features), targets)
        return losses

    def inference(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Tensor]]:
        """The results of :meth:`forward` in inference: each image as a whole."""
        images = [self.normalise(inputs) for inputs in batched_inputs]
        results: list[dict[str, Tensor]] = [{} for _ in images]
        sizes = [(image.shape[-2], image.shape[-1]) for image in images]
        for size in dict.fromkeys(sizes):
            members = [i for i, other in enumerate(sizes) if other == size]
            logits = self.predict_logits(torch.stack([images[i] for i in members]))
            for i, scores in zip(members, logits.split(1)):
                wanted = (batched_inputs[i].get("height", size[0]), batched_inputs[i].get("width", size[1]))
                results[i] = self.postprocess(scores, [size, wanted])
        return results

    def normalise(self, inputs: dict[str, Any]) -> Tensor:
        """The image of an input dict on the model's device, (3, H, W) float32, mean subtracted, divided by the std.

        Raises:
            UserError: it has not the channels that the model was made for.
        """
        image = inputs["image"]
        if image.ndim != 3 or len(image) != len(self.pixel_mean):
            raise UserError(
                f"{_name(inputs)}: the image must be ({len(self.pixel_mean)}, height, width), got {tuple(image.shape)}"
            )
        return (image.to(self.device) - self.pixel_mean) / self.pixel_std

    def preprocess_image(self, batched_inputs: list[dict[str, Any]]) -> ImageList:
        """Normalise the images, and pad them into a batch as the backbone needs it."""
        return self._pad([self.normalise(inputs) for inputs in batched_inputs])

    def _pad(self, images: list[Tensor]) -> ImageList:
        return ImageList.from_tensors(
            images, self.backbone.size_divisibility, padding_constraints=self.backbone.padding_constraints
        )

    def predict_logits(self, images: Tensor) -> Tensor:
        """Normalised images to logits at the resolution of the finest map.

        Args:
            images: (B, 3, H, W), normalised as by :meth:`normalise`.

        Returns:
            (B, num_classes, ceil(H / s), ceil(W / s)), where s is the stride of the finest map, 4 for ELSA-Swin.
        """
        padded = self._pad(list(images)).tensor
        logits = self.decode_head(self.backbone(padded))
        height, width = (
            math.ceil(length * grid / whole)
            for length, grid, whole in zip(images.shape[-2:], logits.shape[-2:], padded.shape[-2:])
        )
        return logits[..., :height, :width]

    def postprocess(self, logits: Tensor, sizes: Sequence[tuple[int, int]]) -> dict[str, Tensor]:
        """The result of one image from its logits (1, num_classes, h, w), resized to each of ``sizes`` in turn.

        The published models resize to the size of the network's input first and then to that of the result. Labels are
        found in blocks of rows: the scores of all classes at full size exist only with ``return_logits``.
        """
        align_corners = self.decode_head.align_corners
        result = {"sem_seg_labels": predicted_labels(logits, sizes, align_corners=align_corners)[0]}
        if self.return_logits:
            result["sem_seg"] = resized_rows(logits, sizes, 0, sizes[-1][0], align_corners=align_corners)[0]
        return result

    def _targets(self, batched_inputs: list[dict[str, Any]], images: ImageList) -> Tensor:
        """The labels as a batch, (B, H, W) int64, padded with the ignored one."""
        targets = torch.full(
            (len(images), *images.tensor.shape[-2:]), self.ignore_label, dtype=torch.int64, device=self.device
        )
        for target, inputs in zip(targets, batched_inputs):
            labels = self._checked_labels(inputs)
            height, width = labels.shape
            target[:height, :width] = labels.to(self.device)
        return targets

    def _checked_labels(self, inputs: dict[str, Any]) -> Tensor:
        if "sem_seg" not in inputs:
            raise UserError(f"{_name(inputs)}: training needs labels, 'sem_seg', and there are only {sorted(inputs)}")
        labels = inputs["sem_seg"]
        if labels.shape != inputs["image"].shape[-2:]:
            raise UserError(
                f"{_name(inputs)}: the labels are {tuple(labels.shape)}, the image is "
                f"{tuple(inputs['image'].shape[-2:])} (height, width)"
            )
        if labels.is_floating_point() or labels.dtype == torch.bool:
            raise UserError(f"{_name(inputs)}: labels must be integers, got {labels.dtype}")
        if labels.device.type == "cpu":  # on a GPU a look at the values would make it wait
            labels = labels.long()
            beyond = ((labels < 0) | (labels >= self.num_classes)) & (labels != self.ignore_label)
            if beyond.any():
                raise UserError(
                    f"{_name(inputs)}: label {int(labels[beyond][0])} is neither one of the {self.num_classes} "
                    f"classes, 0..{self.num_classes - 1}, nor the ignored one, {self.ignore_label}: set "
                    "model.decode_head.num_classes to the number of classes, or mend the labels"
                )
        return labels


def _name(inputs: dict[str, Any]) -> str:
    return str(inputs.get("file_name", "an image without file_name"))


def _check_fit(backbone: Backbone, heads: dict[str, DecodeHead | None]) -> None:
    shapes = backbone.output_shape()
    decode_head = heads["decode_head"]
    for name, head in heads.items():
        if head is None:
            continue
        for map_name, channels in zip(head.inputs.names, head.inputs.channels):
            if map_name not in shapes:
                raise ValueError(f"{name} takes the map {map_name!r}, the backbone gives {list(shapes)}")
            if shapes[map_name].channels != channels:
                raise ValueError(
                    f"{name} was made for {channels} channels of {map_name}, the backbone gives "
                    f"{shapes[map_name].channels}: set input_shape (or in_channels) of the head to the backbone's"
                )
        assert decode_head is not None
        for what in ("num_classes", "ignore_label"):
            if getattr(head, what) != getattr(decode_head, what):
                raise ValueError(
                    f"{name} has {what}={getattr(head, what)}, decode_head has {getattr(decode_head, what)}: they must "
                    "agree"
                )
