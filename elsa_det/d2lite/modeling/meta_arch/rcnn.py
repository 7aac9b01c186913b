"""The two-stage detector as a whole."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...structures import ImageList, Instances
from ...utils.events import get_event_storage
from ..backbone import Backbone
from ..postprocessing import detector_postprocess
from .build import META_ARCH_REGISTRY

__all__ = ["GeneralizedRCNN"]


@META_ARCH_REGISTRY.register()
class GeneralizedRCNN(nn.Module):
    """Backbone, proposal generator and heads on the proposals: Fast, Faster, Mask and Cascade R-CNN.

    The inputs are a list with a dict for each image: ``image`` (C, H, W) in the range that pixel mean and std are given
    for; ``instances``, the ground truth, in training; ``proposals`` for a model without a proposal generator;
    ``height`` and ``width``, in pixels, that detections are scaled to (by default those of ``image``).
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(
        self,
        *,
        backbone: Backbone,
        proposal_generator: nn.Module | None,
        roi_heads: nn.Module,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        input_format: str | None = None,
        vis_period: int = 0,
    ) -> None:
        """
        Args:
            backbone: images to features.
            proposal_generator: features to proposals; None if proposals come with the inputs.
            roi_heads: features and proposals to detections.
            pixel_mean, pixel_std: a number for each channel; images are normalized with them.
            input_format: order of the channels, e.g. "BGR", for pictures of the training.
            vis_period: if above 0, a picture of ground truth and proposals goes to the event storage every so many
                iterations.

        Raises:
            ValueError: mean and std differ in length, or ``vis_period`` without ``input_format``.
        """
        super().__init__()
        if len(pixel_mean) != len(pixel_std):
            raise ValueError(f"pixel_mean={pixel_mean} and pixel_std={pixel_std} differ in the number of channels.")
        if vis_period > 0 and input_format is None:
            raise ValueError(f"GeneralizedRCNN: vis_period={vis_period} needs input_format, e.g. 'BGR'.")
        self.backbone, self.proposal_generator, self.roi_heads = backbone, proposal_generator, roi_heads
        self.input_format, self.vis_period = input_format, vis_period
        self.register_buffer("pixel_mean", torch.tensor(list(pixel_mean)).view(-1, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(list(pixel_std)).view(-1, 1, 1), persistent=False)

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    def forward(self, batched_inputs: list[dict[str, Any]]) -> Any:
        """A dict of losses in training; in inference for each image ``{"instances": Instances}`` with ``pred_boxes``,
        ``scores``, ``pred_classes`` and, from a mask branch, ``pred_masks``.
        """
        if not self.training:
            return self.inference(batched_inputs)
        targets = [x["instances"].to(self.device) for x in batched_inputs] if "instances" in batched_inputs[0] else None
        images = self.preprocess_image(batched_inputs)
        _, proposals, losses = self._two_stages(batched_inputs, images, targets)
        if self.vis_period > 0 and get_event_storage().iter % self.vis_period == 0:
            self.visualize_training(batched_inputs, proposals)
        return losses

    def _two_stages(
        self, batched_inputs: list[dict[str, Any]], images: ImageList, targets: list[Instances] | None
    ) -> tuple[list[Instances], list[Instances], dict[str, Tensor]]:
        """Results and proposals of each image, and the losses of both stages."""
        features = self.backbone(images.tensor)
        proposals, proposal_losses = self._propose(batched_inputs, images, features, targets)
        results, losses = self.roi_heads(images, features, proposals, targets)
        return results, proposals, {**losses, **proposal_losses}

    def inference(
        self,
        batched_inputs: list[dict[str, Any]],
        detected_instances: list[Instances] | None = None,
        do_postprocess: bool = True,
    ) -> Any:
        """Detect.

        Args:
            batched_inputs: see the class.
            detected_instances: for each image ``pred_boxes`` and ``pred_classes`` that are known already; only what
                the other branches predict is added to them.
            do_postprocess: whether to scale the detections to ``height`` and ``width`` and to paste masks.

        Returns:
            As :meth:`forward`; without post-processing a list of Instances in the resolution of the model.

        Raises:
            RuntimeError: the model is in training mode.
        """
        if self.training:
            raise RuntimeError("GeneralizedRCNN.inference was called in training mode; call model.eval() first.")
        images = self.preprocess_image(batched_inputs)
        if detected_instances is None:
            results, _, _ = self._two_stages(batched_inputs, images, None)
        else:
            given = [x.to(self.device) for x in detected_instances]
            features = self.backbone(images.tensor)
            results = self.roi_heads.forward_with_given_boxes(features, given)  # type: ignore[operator]
        return self._postprocess(results, batched_inputs, images.image_sizes) if do_postprocess else results

    def _propose(
        self,
        batched_inputs: list[dict[str, Any]],
        images: ImageList,
        features: dict[str, Tensor],
        targets: list[Instances] | None,
    ) -> tuple[list[Instances], dict[str, Tensor]]:
        """Proposals of each image, made or given, and the losses of making them."""
        if self.proposal_generator is not None:
            return self.proposal_generator(images, features, targets)
        missing = [i for i, x in enumerate(batched_inputs) if "proposals" not in x]
        if missing:
            raise KeyError(f"The model has no proposal generator, but the inputs {missing} have no 'proposals'.")
        return [x["proposals"].to(self.device) for x in batched_inputs], {}

    def preprocess_image(self, batched_inputs: list[dict[str, Any]]) -> ImageList:
        """Normalize the images, and pad them into a batch as the backbone needs it."""
        images = [(x["image"].to(self.device) - self.pixel_mean) / self.pixel_std for x in batched_inputs]
        return ImageList.from_tensors(
            images, self.backbone.size_divisibility, padding_constraints=self.backbone.padding_constraints
        )

    @staticmethod
    def _postprocess(
        instances: list[Instances], batched_inputs: list[dict[str, Any]], image_sizes: list[tuple[int, int]]
    ) -> list[dict[str, Instances]]:
        """Detections in the resolution that the inputs ask for."""
        wanted = [(x.get("height", h), x.get("width", w)) for x, (h, w) in zip(batched_inputs, image_sizes)]
        return [{"instances": detector_postprocess(found, *size)} for found, size in zip(instances, wanted)]

    def visualize_training(self, batched_inputs: list[dict[str, Any]], proposals: list[Instances]) -> None:
        """Put a picture of the first image to the event storage: ground truth left, the 20 best proposals right."""
        from ...data.detection_utils import convert_image_to_rgb
        from ...utils.visualizer import Visualizer

        inputs, proposed = batched_inputs[0], proposals[0]
        assert self.input_format is not None, "checked along with vis_period"
        image = convert_image_to_rgb(inputs["image"].permute(1, 2, 0), self.input_format)
        drawn = [
            Visualizer(image, None).overlay_instances(boxes=boxes).get_image()
            for boxes in (inputs["instances"].gt_boxes, proposed.proposal_boxes[:20].tensor.cpu().numpy())
        ]
        picture = np.concatenate(drawn, axis=1).transpose(2, 0, 1)
        get_event_storage().put_image("Left: GT bounding boxes;  Right: Predicted proposals", picture)
