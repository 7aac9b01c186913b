"""Cascade Mask R-CNN (Cai and Vasconcelos, arXiv 1906.09756) as the ELSA and Swin papers train it.

Letters for shapes: R regions of all images, K foreground classes; class K is the background.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...d2 import Boxes, ImageList, Instances, Matcher, ROIHeads, get_event_storage, select_foreground_proposals
from ...errors import UserError


class CascadeMaskRCNNHeads(ROIHeads):
    """Stages that each classify regions and move their boxes for the next one, which is stricter; a mask head in each.

    What sets it apart from Detectron2's ``CascadeROIHeads``: boxes are regressed for each class or for all alike, as
    the predictors do it; every stage has its own mask head; every stage samples anew, with the ground truth among the
    candidates; the losses of a stage have a weight; class logits (not probabilities) and mask probabilities are
    averaged over the stages in inference; and the gradient to the feature maps is not scaled.

    Submodules: ``box_pooler``, ``box_head.{stage}``, ``box_predictor.{stage}`` and, with masks, ``mask_pooler``,
    ``mask_head.{stage}``.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        batch_size_per_image: int,
        positive_fraction: float,
        proposal_matchers: Iterable[Matcher],
        stage_loss_weights: Iterable[float],
        box_in_features: Sequence[str],
        box_pooler: nn.Module,
        box_head: Iterable[nn.Module],
        box_predictor: Iterable[nn.Module],
        mask_in_features: Sequence[str] | None = None,
        mask_pooler: nn.Module | None = None,
        mask_head: Iterable[nn.Module] | None = None,
        proposal_append_gt: bool = True,
    ) -> None:
        """
        Args:
            num_classes: K.
            batch_size_per_image: regions of each image that a stage is trained on.
            positive_fraction: the most of these that may be foreground, in [0, 1].
            proposal_matchers: for each stage, what labels regions by their IoU with the ground truth.
            stage_loss_weights: for each stage the factor of its losses, 0 or above.
            box_in_features: names of the feature maps for the boxes.
            box_pooler: pools regions from these.
            box_head: for each stage, pooled features to what its predictor takes.
            box_predictor: for each stage, with the interface of Detectron2's ``FastRCNNOutputLayers``. The last one's
                test thresholds are those of the detections.
            mask_in_features: names of the feature maps for the masks; None for boxes only.
            mask_pooler: pools regions from these, for all stages.
            mask_head: for each stage, with the interface of Detectron2's ``BaseMaskRCNNHead``; None for boxes only.
            proposal_append_gt: whether the ground-truth boxes are among the candidates of every stage.

        Raises:
            UserError: parts that are not there once for each stage, a weight below 0, or masks without a pooler.
        """
        parts: dict[str, list[Any]] = {
            "box_head": list(box_head),
            "box_predictor": list(box_predictor),
            "proposal_matchers": list(proposal_matchers),
            "stage_loss_weights": [float(weight) for weight in stage_loss_weights],
        }
        with_masks = mask_in_features is not None and mask_head is not None
        if with_masks:
            parts["mask_head"] = list(mask_head)  # type: ignore[arg-type]
        counts = {name: len(part) for name, part in parts.items()}
        if len(set(counts.values())) != 1 or 0 in counts.values():
            raise UserError(
                f"CascadeMaskRCNNHeads needs the same number of each part, one for each stage, got {counts}"
            )
        if any(weight < 0 for weight in parts["stage_loss_weights"]):
            raise UserError(f"stage_loss_weights={parts['stage_loss_weights']}: a weight must be 0 or above")
        if with_masks and mask_pooler is None:
            raise UserError("CascadeMaskRCNNHeads: mask_head without a mask_pooler; set mask_head=None for boxes only")

        matchers = parts["proposal_matchers"]
        sampling = dict(
            num_classes=num_classes, batch_size_per_image=batch_size_per_image, positive_fraction=positive_fraction
        )
        super().__init__(**sampling, proposal_matcher=matchers[0], proposal_append_gt=proposal_append_gt)
        # Detectron2's class matches and samples for one stage; it has no parameters. The ground truth is added here,
        # because its boxes must be told apart afterwards.
        self._samplers = [ROIHeads(**sampling, proposal_matcher=m, proposal_append_gt=False) for m in matchers]
        self.num_stages = len(matchers)
        self.stage_loss_weights: list[float] = parts["stage_loss_weights"]
        self.box_in_features = list(box_in_features)
        self.box_pooler = box_pooler
        self.box_head = nn.ModuleList(parts["box_head"])
        self.box_predictor = nn.ModuleList(parts["box_predictor"])
        self.mask_on = with_masks
        if mask_in_features is not None and with_masks:
            self.mask_in_features = list(mask_in_features)
            self.mask_pooler = mask_pooler
            self.mask_head = nn.ModuleList(parts["mask_head"])
        self.keypoint_on = False

    def forward(
        self,
        images: ImageList,
        features: dict[str, Tensor],
        proposals: list[Instances],
        targets: list[Instances] | None = None,
    ) -> tuple[list[Instances], dict[str, Tensor]]:
        """
        Args:
            images: not used.
            features: feature maps (N, C, H, W) by name.
            proposals: for each of N images ``proposal_boxes``, in pixels.
            targets: for each image ``gt_boxes``, ``gt_classes`` and, with mask heads, ``gt_masks``; in training only.

        Returns:
            In training the regions that the first stage was trained on, and the losses ``loss_cls_stage{s}``,
            ``loss_box_reg_stage{s}`` and ``loss_mask_stage{s}``. In inference for each image ``pred_boxes``,
            ``scores``, ``pred_classes`` and ``pred_masks`` (n, 1, M, M), and no losses.

        Raises:
            ValueError: no ground truth in training.
        """
        if not self.training:
            return self.forward_with_given_boxes(features, self._detect(features, proposals)), {}
        if targets is None:
            raise ValueError("CascadeMaskRCNNHeads: training needs ground truth; the inputs have no 'instances'.")
        losses: dict[str, Tensor] = {}
        sampled_by_stage = []
        for stage in range(self.num_stages):
            sampled = self.label_and_sample_proposals(proposals, targets, stage)
            stage_losses, proposals = self.train_stage(features, sampled, stage)
            losses.update(stage_losses)
            sampled_by_stage.append(sampled)
        return sampled_by_stage[0], losses

    @torch.no_grad()
    def label_and_sample_proposals(
        self, proposals: list[Instances], targets: list[Instances], stage: int = 0
    ) -> list[Instances]:
        """Match the candidates of a stage with the ground truth, and sample those to train it on.

        Args:
            proposals: for each image ``proposal_boxes``.
            targets: for each image ``gt_boxes``, ``gt_classes`` and whatever else there is to learn.
            stage: in [0, number of stages).

        Returns:
            For each image the sampled regions with ``proposal_boxes``, ``is_ground_truth`` (the box is that of an
            object, not a proposal), ``gt_classes`` (the background being K) and, where the image has objects, the
            other ``gt_*`` fields of the matched one, which mean nothing for background.
        """
        candidates = [self._candidates(*image) for image in zip(proposals, targets)]
        with get_event_storage().name_scope(f"stage{stage}"):
            return self._samplers[stage].label_and_sample_proposals(candidates, targets)

    def _candidates(self, proposed: Instances, target: Instances) -> Instances:
        added = target.gt_boxes if self.proposal_append_gt else target.gt_boxes[:0]
        boxes = Boxes.cat([proposed.proposal_boxes, added])
        is_ground_truth = torch.arange(len(boxes), device=boxes.device) >= len(proposed)
        return Instances(proposed.image_size, proposal_boxes=boxes, is_ground_truth=is_ground_truth)

    def train_stage(
        self, features: dict[str, Tensor], sampled: list[Instances], stage: int
    ) -> tuple[dict[str, Tensor], list[Instances]]:
        """The losses of one stage, and the boxes that it hands to the next.

        Args:
            features: as in :meth:`forward`.
            sampled: from :meth:`label_and_sample_proposals`.
            stage: in [0, number of stages).

        Returns:
            The losses, named and weighted as in :meth:`forward`, and for each image ``proposal_boxes``: the sampled
            regions but for the ground truth, each moved as its ground-truth class wants it, or, in the background, as
            the best of the foreground classes.
        """
        predictions = self.predict(features, sampled, stage)
        with get_event_storage().name_scope(f"stage{stage}"):
            losses = dict(self.box_predictor[stage].losses(predictions, sampled))  # type: ignore[operator]
            if self.mask_on:
                foreground, _ = select_foreground_proposals(sampled, self.num_classes)
                pooled = self._pool_for_masks(features, [region.proposal_boxes for region in foreground])
                losses.update(self.mask_head[stage](pooled, foreground))
        weight = self.stage_loss_weights[stage]
        weighted = {f"{name}_stage{stage}": loss * weight for name, loss in losses.items()}
        moved = self.refine(predictions, sampled, stage)
        return weighted, [region[~before.is_ground_truth] for region, before in zip(moved, sampled)]

    def predict(self, features: dict[str, Tensor], regions: list[Instances], stage: int) -> tuple[Tensor, Tensor]:
        """Class logits (R, K + 1) and box codes (R, K * 4), or (R, 4) for all classes alike, of a stage.

        Args:
            features: as in :meth:`forward`.
            regions: for each image ``proposal_boxes``.
            stage: in [0, number of stages).
        """
        boxes = [region.proposal_boxes for region in regions]
        count = sum(map(len, boxes))
        if self.training and count == 0:
            # Batch statistics of nothing do not exist, and the other processes wait for them: a stand-in goes through
            # the head, and its predictions are dropped.
            height, width = regions[0].image_size
            boxes = [Boxes(boxes[0].tensor.new_tensor([[0.0, 0.0, width, height]])), *boxes[1:]]
        pooled = self.box_pooler([features[name] for name in self.box_in_features], boxes)
        logits, codes = self.box_predictor[stage](self.box_head[stage](pooled))
        return logits[:count], codes[:count]

    @torch.no_grad()
    def refine(self, predictions: tuple[Tensor, Tensor], regions: list[Instances], stage: int) -> list[Instances]:
        """The regions with their boxes moved as a stage predicts, and cut to the image.

        A box moves as its ground-truth class (``gt_classes``, in training) wants it; one of the background, or in
        inference any, as the foreground class with the highest logit. Boxes without area are kept.

        Args:
            predictions: from :meth:`predict`.
            regions: for each image ``proposal_boxes`` and, in training, ``gt_classes``.
            stage: in [0, number of stages).

        Returns:
            For each image ``proposal_boxes``, in the same order.
        """
        logits, codes = predictions
        classes = logits[:, :-1].argmax(dim=1)
        if self.training:
            known = torch.cat([region.gt_classes for region in regions])
            classes = torch.where(known < self.num_classes, known, classes)
        by_class = codes.unflatten(1, (-1, 4))  # (R, K or 1, 4)
        column = classes if by_class.shape[1] > 1 else torch.zeros_like(classes)
        chosen = by_class[torch.arange(len(column), device=column.device), column]
        before = torch.cat([region.proposal_boxes.tensor for region in regions])
        moved = self.box_predictor[stage].box2box_transform.apply_deltas(chosen, before)  # type: ignore[union-attr,operator]
        refined = []
        for region, tensor in zip(regions, moved.split([len(region) for region in regions])):
            boxes = Boxes(tensor)
            boxes.clip(region.image_size)
            refined.append(Instances(region.image_size, proposal_boxes=boxes))
        return refined

    def _detect(self, features: dict[str, Tensor], proposals: list[Instances]) -> list[Instances]:
        """Boxes, scores and classes: those of the last stage's boxes, scored by all stages together."""
        predictions = self.predict(features, proposals, 0)
        logits = [predictions[0]]
        for stage in range(1, self.num_stages):
            proposals = self.refine(predictions, proposals, stage - 1)
            predictions = self.predict(features, proposals, stage)
            logits.append(predictions[0])
        averaged = torch.stack(logits).mean(dim=0)
        detections, _ = self.box_predictor[-1].inference((averaged, predictions[1]), proposals)  # type: ignore[operator]
        return detections

    def forward_with_given_boxes(self, features: dict[str, Tensor], instances: list[Instances]) -> list[Instances]:
        """Add to ``instances``, which have ``pred_boxes`` and ``pred_classes``, the masks: ``pred_masks`` (n, 1, M, M),
        the mean over the stages of the probabilities of that class. Without mask heads nothing is added.

        Raises:
            RuntimeError: in training.
            ValueError: no such fields.
        """
        if self.training:
            raise RuntimeError("forward_with_given_boxes is for inference; call model.eval() first.")
        if not all(found.has("pred_boxes") and found.has("pred_classes") for found in instances):
            raise ValueError("forward_with_given_boxes: the given instances need pred_boxes and pred_classes.")
        if not self.mask_on:
            return instances
        pooled = self._pool_for_masks(features, [found.pred_boxes for found in instances])
        by_stage: list[list[Tensor]] = []
        for head in self.mask_head:
            head(pooled, instances)  # puts its own pred_masks
            by_stage.append([found.pred_masks for found in instances])
        for found, masks in zip(instances, zip(*by_stage)):
            found.pred_masks = torch.stack(masks).mean(dim=0)
        return instances

    def _pool_for_masks(self, features: dict[str, Tensor], boxes: list[Boxes]) -> Tensor:
        return self.mask_pooler([features[name] for name in self.mask_in_features], boxes)  # type: ignore[misc]
