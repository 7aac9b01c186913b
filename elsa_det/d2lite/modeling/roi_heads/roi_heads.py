"""What a two-stage detector does with its proposals: match, sample, pool, predict."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...structures import Boxes, ImageList, Instances, pairwise_iou
from ...utils.events import get_event_storage
from ...utils.registry import Registry
from ..matcher import Matcher
from ..poolers import ROIPooler
from ..proposal_generator.proposal_utils import add_ground_truth_to_proposals
from ..sampling import subsample_labels

ROI_HEADS_REGISTRY = Registry("ROI_HEADS")
"""Modules for everything after the proposals, as :class:`ROIHeads`."""


def select_foreground_proposals(proposals: list[Instances], bg_label: int) -> tuple[list[Instances], list[Tensor]]:
    """For each image the proposals whose ``gt_classes`` are neither ``bg_label`` nor -1, and the mask of these."""
    masks = [(p.gt_classes != -1) & (p.gt_classes != bg_label) for p in proposals]
    return [p[torch.nonzero(mask).flatten()] for p, mask in zip(proposals, masks)], masks


class ROIHeads(nn.Module):
    """Base class with the matching and sampling of proposals. A subclass adds :meth:`forward`."""

    def __init__(
        self,
        *,
        num_classes: int,
        batch_size_per_image: int,
        positive_fraction: float,
        proposal_matcher: Matcher,
        proposal_append_gt: bool = True,
    ) -> None:
        """
        Args:
            num_classes: of the foreground; the background is class ``num_classes``.
            batch_size_per_image: proposals of each image to train on.
            positive_fraction: the most of these that may be foreground, in [0, 1].
            proposal_matcher: labels proposals by their IoU with the ground truth.
            proposal_append_gt: whether the ground-truth boxes become proposals, too. It gives the heads good examples
                from the first iteration on.
        """
        super().__init__()
        self.num_classes = num_classes
        self.proposal_matcher, self.proposal_append_gt = proposal_matcher, proposal_append_gt
        self.batch_size_per_image, self.positive_fraction = batch_size_per_image, positive_fraction

    def _sample_proposals(
        self, matched_idxs: Tensor, matched_labels: Tensor, gt_classes: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Choose among N proposals at random.

        Args:
            matched_idxs: (N,) ground truth of each, in [0, M).
            matched_labels: (N,) label of that match: 1, 0 or -1.
            gt_classes: (M,).

        Returns:
            Indices of the chosen proposals, foreground first, and their classes (the background being
            ``num_classes``).
        """
        classes = torch.full_like(matched_idxs, self.num_classes)
        if len(gt_classes):
            classes = classes.where(matched_labels == 0, gt_classes[matched_idxs]).masked_fill(matched_labels == -1, -1)
        sampled = subsample_labels(classes, self.batch_size_per_image, self.positive_fraction, self.num_classes)
        chosen = torch.cat(sampled)
        return chosen, classes[chosen]

    @torch.no_grad()
    def label_and_sample_proposals(self, proposals: list[Instances], targets: list[Instances]) -> list[Instances]:
        """Match the proposals of each image with its ground truth, and sample those to train on.

        Args:
            proposals: for each image ``proposal_boxes`` and ``objectness_logits``.
            targets: for each image ``gt_boxes``, ``gt_classes`` and whatever else there is to learn.

        Returns:
            For each image the sampled proposals with ``gt_classes`` (the background being ``num_classes``) and every
            other ``gt_*`` field of the matched ground truth, which means nothing for background. An image without
            ground truth gets only ``gt_classes``.
        """
        if self.proposal_append_gt:
            proposals = add_ground_truth_to_proposals(targets, proposals)
        sampled = [self._label_and_sample_image(*image) for image in zip(proposals, targets)]
        classes = torch.cat([picked.gt_classes for picked in sampled])
        num_background = int((classes == self.num_classes).sum().item())
        counts = {"fg": len(classes) - num_background, "bg": num_background}
        for kind, count in counts.items():
            get_event_storage().put_scalar(f"roi_head/num_{kind}_samples", count / len(sampled))
        return sampled

    def _label_and_sample_image(self, proposed: Instances, target: Instances) -> Instances:
        matched, labels = self.proposal_matcher(pairwise_iou(target.gt_boxes, proposed.proposal_boxes))
        chosen, classes = self._sample_proposals(matched, labels, target.gt_classes)
        picked = proposed[chosen]
        picked.gt_classes = classes
        known = target.get_fields() if len(target) else {}
        for name in known:
            if name.startswith("gt_") and not picked.has(name):
                picked.set(name, known[name][matched[chosen]])
        return picked

    def forward(
        self,
        images: ImageList,
        features: dict[str, Tensor],
        proposals: list[Instances],
        targets: list[Instances] | None = None,
    ) -> tuple[list[Instances], dict[str, Tensor]]:
        """
        Args:
            images: the batch.
            features: feature maps (N, C, H, W) by name.
            proposals: for each image ``proposal_boxes`` and ``objectness_logits``.
            targets: for each image ``gt_boxes``, ``gt_classes`` ..., in training only.

        Returns:
            Detections of each image and no losses in inference; whatever it likes and losses in training.
        """
        raise NotImplementedError


@ROI_HEADS_REGISTRY.register()
class StandardROIHeads(ROIHeads):
    """A box branch and a mask branch, each with its own pooler and head."""

    def __init__(
        self,
        *,
        box_in_features: Sequence[str],
        box_pooler: ROIPooler,
        box_head: nn.Module,
        box_predictor: Any,
        mask_in_features: Sequence[str] | None = None,
        mask_pooler: Any = None,
        mask_head: Any = None,
        keypoint_in_features: Sequence[str] | None = None,
        keypoint_pooler: ROIPooler | None = None,
        keypoint_head: nn.Module | None = None,
        train_on_pred_boxes: bool = False,
        **kwargs: Any,
    ) -> None:
        """
        Args:
            box_in_features: names of the feature maps for the box branch.
            box_pooler: pools regions from these.
            box_head: pooled features to what the predictor takes.
            box_predictor: with the interface of :class:`~.fast_rcnn.FastRCNNOutputLayers`.
            mask_in_features: names of the feature maps for the mask branch; None for no such branch.
            mask_pooler: pools regions from these; if None, the mask head gets the dict of feature maps.
            mask_head: with the interface of :class:`~.mask_head.BaseMaskRCNNHead`.
            keypoint_in_features, keypoint_pooler, keypoint_head: None; keypoints are not part of d2lite.
            train_on_pred_boxes: whether the mask branch is trained on the boxes that the box branch predicts.
            kwargs: of :class:`ROIHeads`.

        Raises:
            NotImplementedError: a keypoint branch.
            ValueError: a mask branch without a head.
        """
        super().__init__(**kwargs)
        if keypoint_in_features is not None or keypoint_pooler is not None or keypoint_head is not None:
            raise NotImplementedError("StandardROIHeads: keypoints are not part of d2lite; install Detectron2.")
        self.in_features = self.box_in_features = box_in_features
        self.box_pooler = box_pooler
        self.box_head = box_head
        self.box_predictor: Any = box_predictor
        self.mask_on = mask_in_features is not None
        if mask_in_features is not None:
            if mask_head is None:
                raise ValueError("StandardROIHeads: mask_in_features without a mask_head.")
            self.mask_in_features = mask_in_features
            self.mask_pooler = mask_pooler
            self.mask_head = mask_head
        self.keypoint_on = False
        self.train_on_pred_boxes = train_on_pred_boxes

    def forward(
        self,
        images: ImageList,
        features: dict[str, Tensor],
        proposals: list[Instances],
        targets: list[Instances] | None = None,
    ) -> tuple[list[Instances], dict[str, Tensor]]:
        """In training the sampled proposals and the losses; in inference the detections and no losses.

        Arguments as in :meth:`ROIHeads.forward`.

        Raises:
            ValueError: no ground truth in training.
        """
        if not self.training:
            return self.forward_with_given_boxes(features, self._forward_box(features, proposals)), {}
        if not targets:
            raise ValueError("StandardROIHeads: training needs ground truth; the inputs have no 'instances'.")
        sampled = self.label_and_sample_proposals(proposals, targets)
        # The box branch may replace the boxes of the proposals, so it comes first.
        branches = (self._forward_box, self._forward_mask, self._forward_keypoint)
        return sampled, {name: loss for branch in branches for name, loss in branch(features, sampled).items()}

    def forward_with_given_boxes(self, features: dict[str, Tensor], instances: list[Instances]) -> list[Instances]:
        """Add to ``instances``, which have ``pred_boxes`` and ``pred_classes``, what the other branches predict.

        Raises:
            RuntimeError: in training.
            ValueError: no such fields.
        """
        if self.training:
            raise RuntimeError("forward_with_given_boxes is for inference; call model.eval() first.")
        if not all(i.has("pred_boxes") and i.has("pred_classes") for i in instances):
            raise ValueError("forward_with_given_boxes: the given instances need pred_boxes and pred_classes.")
        return self._forward_keypoint(features, self._forward_mask(features, instances))

    def _forward_box(self, features: dict[str, Tensor], proposals: list[Instances]) -> Any:
        """In training the losses of the box branch, in inference its detections.

        With ``train_on_pred_boxes`` the boxes of the proposals are replaced by the predicted ones, in place.
        """
        regions = [p.proposal_boxes for p in proposals]
        pooled = self.box_pooler([features[name] for name in self.box_in_features], regions)
        predictions = self.box_predictor(self.box_head(pooled))
        if not self.training:
            return self.box_predictor.inference(predictions, proposals)[0]
        losses = self.box_predictor.losses(predictions, proposals)
        if self.train_on_pred_boxes:
            with torch.no_grad():
                predicted = self.box_predictor.predict_boxes_for_gt_classes(predictions, proposals)
            for proposed, boxes in zip(proposals, predicted):
                proposed.proposal_boxes = Boxes(boxes)
        return losses

    def _forward_mask(self, features: dict[str, Tensor], instances: list[Instances]) -> Any:
        """In training the losses of the mask branch on foreground proposals; in inference detections with masks."""
        if not self.mask_on:
            return {} if self.training else instances
        field = "pred_boxes"
        if self.training:
            field, instances = "proposal_boxes", select_foreground_proposals(instances, self.num_classes)[0]
        used: Any = {name: features[name] for name in self.mask_in_features}
        if self.mask_pooler is not None:
            used = self.mask_pooler(list(used.values()), [i.get(field) for i in instances])
        return self.mask_head(used, instances)

    def _forward_keypoint(self, features: dict[str, Tensor], instances: list[Instances]) -> Any:
        """There is no such branch; a subclass may add one."""
        return {} if self.training else instances
