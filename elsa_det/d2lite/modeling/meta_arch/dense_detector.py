"""Detectors that predict at every cell of the feature maps, without proposals.

Letters for shapes: N images, A anchors at a cell, K classes, R anchors of all feature maps of an image.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...layers import move_device_like
from ...structures import Boxes, ImageList, Instances
from ...utils.events import get_event_storage
from ..backbone import Backbone
from ..box_regression import Box2BoxTransform
from ..postprocessing import detector_postprocess
from ..proposal_generator.rpn import _in_order_of_anchors

__all__ = ["DenseDetector"]

_MAX_DRAWN = 20


def permute_to_N_HWA_K(tensor: Tensor, K: int) -> Tensor:
    """From (N, A * K, H, W) to (N, H * W * A, K): anchors come cell by cell."""
    return _in_order_of_anchors(tensor, K)


class DenseDetector(nn.Module):
    """Backbone and a head on all feature maps; the base of one-stage detectors.

    A subclass says what the predictions mean: :meth:`forward_training` and :meth:`forward_inference`. The inputs are a
    list with a dict for each image: ``image`` (C, H, W) in the range that pixel mean and std are given for;
    ``instances``, the ground truth, in training; ``height`` and ``width``, in pixels, that detections are scaled to
    (by default those of ``image``).
    """

    pixel_mean: Tensor
    pixel_std: Tensor
    box2box_transform: Box2BoxTransform
    input_format: str | None = None
    vis_period: int = 0

    def __init__(
        self,
        backbone: Backbone,
        head: nn.Module,
        head_in_features: Sequence[str] | None = None,
        *,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
    ) -> None:
        """
        Args:
            backbone: images to features.
            head: a list of feature maps to lists of predictions, each with an entry for every map.
            head_in_features: names of the maps for the head; by default all, from high to low resolution.
            pixel_mean, pixel_std: a number for each channel; images are normalized with them.

        Raises:
            ValueError: mean and std differ in length.
        """
        super().__init__()
        if len(pixel_mean) != len(pixel_std):
            raise ValueError(f"pixel_mean={pixel_mean} and pixel_std={pixel_std} differ in the number of channels.")
        self.backbone, self.head = backbone, head
        if head_in_features is None:
            shapes = backbone.output_shape()
            head_in_features = sorted(shapes, key=lambda name: shapes[name].stride or 0)
        self.head_in_features = head_in_features
        self.register_buffer("pixel_mean", torch.tensor(list(pixel_mean)).view(-1, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(list(pixel_std)).view(-1, 1, 1), persistent=False)

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    def _move_to_current_device(self, x: Tensor) -> Tensor:
        return move_device_like(x, self.pixel_mean)

    def forward(self, batched_inputs: list[dict[str, Any]]) -> Any:
        """A dict of losses in training; in inference for each image ``{"instances": Instances}`` with ``pred_boxes``,
        ``scores`` and ``pred_classes``.

        Raises:
            KeyError: training without ``instances``.
        """
        images = self.preprocess_image(batched_inputs)
        pyramid = self.backbone(images.tensor)
        features = [pyramid[name] for name in self.head_in_features]
        predictions = self.head(features)
        if not self.training:
            results = self.forward_inference(images, features, predictions)
            return self._postprocess(results, batched_inputs, images.image_sizes)

        missing = [i for i, x in enumerate(batched_inputs) if "instances" not in x]
        if missing:
            raise KeyError(f"Training needs ground truth, but the inputs {missing} have no 'instances'.")
        targets = [x["instances"].to(self.device) for x in batched_inputs]
        losses = self.forward_training(images, features, predictions, targets)
        if self.vis_period > 0 and get_event_storage().iter % self.vis_period == 0:
            with torch.no_grad():
                self.visualize_training(batched_inputs, self.forward_inference(images, features, predictions))
        return losses

    def forward_training(
        self, images: ImageList, features: list[Tensor], predictions: Any, gt_instances: list[Instances]
    ) -> dict[str, Tensor]:
        """The losses of what the head says about ``features``."""
        raise NotImplementedError(f"{type(self).__name__} does not define forward_training.")

    def forward_inference(self, images: ImageList, features: list[Tensor], predictions: Any) -> list[Instances]:
        """For each image what the head has found, in the resolution of the model."""
        raise NotImplementedError(f"{type(self).__name__} does not define forward_inference.")

    def preprocess_image(self, batched_inputs: list[dict[str, Any]]) -> ImageList:
        """Normalize the images, and pad them into a batch as the backbone needs it."""
        images = [(self._move_to_current_device(x["image"]) - self.pixel_mean) / self.pixel_std for x in batched_inputs]
        return ImageList.from_tensors(
            images, self.backbone.size_divisibility, padding_constraints=self.backbone.padding_constraints
        )

    @staticmethod
    def _postprocess(
        results: list[Instances], batched_inputs: list[dict[str, Any]], image_sizes: list[tuple[int, int]]
    ) -> list[dict[str, Instances]]:
        """Detections in the resolution that the inputs ask for."""
        wanted = [(x.get("height", h), x.get("width", w)) for x, (h, w) in zip(batched_inputs, image_sizes)]
        return [{"instances": detector_postprocess(found, *size)} for found, size in zip(results, wanted)]

    def _transpose_dense_predictions(
        self, predictions: Sequence[Sequence[Tensor]], dims_per_anchor: Sequence[int]
    ) -> list[list[Tensor]]:
        """Each kind of prediction, for each feature map, from (N, A * K, H, W) to (N, H * W * A, K).

        Args:
            predictions: for each kind the predictions on every feature map.
            dims_per_anchor: for each kind its K.
        """
        return [[permute_to_N_HWA_K(x, k) for x in kind] for kind, k in zip(predictions, dims_per_anchor)]

    def _ema_update(self, name: str, value: float, initial_value: float, momentum: float = 0.9) -> float:
        """Move the attribute ``name`` (``initial_value`` at first) towards ``value``, and return it.

        It evens out the normalizer of a loss, such as the number of positive anchors, which jumps in small batches.
        """
        average = momentum * getattr(self, name, initial_value) + (1 - momentum) * value
        setattr(self, name, average)
        return average

    def _decode_per_level_predictions(
        self,
        anchors: Boxes,
        pred_scores: Tensor,
        pred_deltas: Tensor,
        score_thresh: float,
        topk_candidates: int,
        image_size: tuple[int, int],
    ) -> Instances:
        """The best detections of one image on one feature map, best first, before NMS.

        Args:
            anchors: H * W * A of them.
            pred_scores: (H * W * A, K), in [0, 1].
            pred_deltas: box codes (H * W * A, 4).
            score_thresh: detections must score more.
            topk_candidates: the most detections to keep; an anchor can give one for each class.
            image_size: (height, width).
        """
        anchor, category = torch.nonzero(pred_scores > score_thresh, as_tuple=True)
        scores, best = pred_scores[anchor, category].topk(min(len(anchor), topk_candidates))
        anchor, category = anchor[best], category[best]
        boxes = self.box2box_transform.apply_deltas(pred_deltas[anchor], anchors.tensor[anchor])
        return Instances(image_size, pred_boxes=Boxes(boxes), scores=scores, pred_classes=category)

    def _decode_multi_level_predictions(
        self,
        anchors: list[Boxes],
        pred_scores: list[Tensor],
        pred_deltas: list[Tensor],
        score_thresh: float,
        topk_candidates: int,
        image_size: tuple[int, int],
    ) -> Instances:
        """:meth:`_decode_per_level_predictions` of all feature maps, one after another."""
        levels = zip(anchors, pred_scores, pred_deltas)
        return Instances.cat(
            [self._decode_per_level_predictions(*x, score_thresh, topk_candidates, image_size) for x in levels]
        )

    def visualize_training(self, batched_inputs: list[dict[str, Any]], results: list[Instances]) -> None:
        """Put a picture of the first image to the event storage: ground truth above, the best detections below.

        Raises:
            ValueError: the numbers of inputs and results differ, or the model has no ``input_format``.
        """
        from ...data.detection_utils import convert_image_to_rgb
        from ...utils.visualizer import Visualizer

        if len(batched_inputs) != len(results):
            raise ValueError(f"There are {len(results)} results for {len(batched_inputs)} inputs.")
        if self.input_format is None:
            raise ValueError("Pictures of the training need input_format, e.g. 'BGR'.")
        inputs = batched_inputs[0]
        image = convert_image_to_rgb(inputs["image"].permute(1, 2, 0), self.input_format)
        found = detector_postprocess(results[0], *image.shape[:2]).pred_boxes.tensor[:_MAX_DRAWN]
        drawn = [
            Visualizer(image, None).overlay_instances(boxes=boxes).get_image()
            for boxes in (inputs["instances"].gt_boxes, found.detach().cpu().numpy())
        ]
        name = f"Top: GT bounding boxes; Bottom: {_MAX_DRAWN} Highest Scoring Results"
        get_event_storage().put_image(name, np.concatenate(drawn).transpose(2, 0, 1))
