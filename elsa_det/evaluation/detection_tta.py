"""Test-time augmentation of detectors: an image is looked at in several sizes and mirrored, and the finds are merged.

The procedure is that of Detectron (Girshick et al., 2018) and Detectron2: boxes of all views go through one non-maximum
suppression by class, and the masks of what is left are predicted in every view and averaged before they are pasted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.ops import batched_nms

from ..d2 import Boxes, GeneralizedRCNN, Instances, detector_postprocess
from ..d2 import transforms as T
from ..errors import UserError


@dataclass(frozen=True)
class View:
    """One look at an image; sizes are (height, width) in pixels.

    Args:
        size: of the image as the model gets it.
        output_size: of the image that detections are wanted in.
        mirrored: whether left and right are swapped.
    """

    size: tuple[int, int]
    output_size: tuple[int, int]
    mirrored: bool

    def of(self, pixels: np.ndarray) -> Tensor:
        """The view (C, *size) of an image (H, W, C)."""
        resized = T.ResizeTransform(*pixels.shape[:2], *self.size).apply_image(pixels)
        seen = resized[:, ::-1] if self.mirrored else resized
        return torch.from_numpy(np.ascontiguousarray(seen.transpose(2, 0, 1)))

    def boxes_to_output(self, boxes: Tensor) -> Tensor:
        """Boxes (N, 4) of this view, XYXY in its pixels, in pixels of the output."""
        return self._scaled(self._turned(boxes), self.size, self.output_size)

    def boxes_from_output(self, boxes: Tensor) -> Tensor:
        """The inverse of :meth:`boxes_to_output`."""
        return self._turned(self._scaled(boxes, self.output_size, self.size))

    def _turned(self, boxes: Tensor) -> Tensor:
        if not self.mirrored:
            return boxes
        left, top, right, bottom = boxes.unbind(1)
        width = self.size[1]
        return torch.stack([width - right, top, width - left, bottom], dim=1)

    @staticmethod
    def _scaled(boxes: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
        scaled = boxes.clone()
        scaled[:, 0::2] *= new[1] / old[1]
        scaled[:, 1::2] *= new[0] / old[0]
        return scaled


class DetectionTTA(nn.Module):
    """A detector with test-time augmentation, to be called as the detector itself.

    It takes a ``GeneralizedRCNN`` with boxes and masks, or a dense one-stage detector such as ``RetinaNet``. Views go
    through the model one after another, and no features are kept, so that the memory is that of the largest view;
    with masks every view is computed twice, for its boxes and for the masks of the merged ones. Detectron2's
    ``GeneralizedRCNNWithTTA`` gives the same with ``batch_size=1``; by default it pads three views to one size.
    """

    def __init__(self, model: nn.Module, *, min_sizes: Sequence[int], max_size: int = 4000, flip: bool = True) -> None:
        """
        Args:
            model: the detector; one in a ``DistributedDataParallel`` is taken out of it. The threshold of the
                suppression and the number of detections are the model's.
            min_sizes: the short sides that images are resized to, in pixels.
            max_size: the longest side, in pixels, whatever the short one is then.
            flip: look at the mirror image of every size, too.

        Raises:
            UserError: a size is not a positive whole number, or the model is not such a detector.
        """
        super().__init__()
        self.min_sizes, self.max_size, self.flip = _checked_sizes(min_sizes), _checked_sizes([max_size])[0], bool(flip)
        if isinstance(model, nn.parallel.DistributedDataParallel):
            model = model.module
        self.model: Any = model
        self.nms_thresh, self.max_detections = _merging_limits(model)
        self.training = model.training

    def __str__(self) -> str:
        sizes = ", ".join(map(str, self.min_sizes))
        count = len(self.min_sizes) * (1 + self.flip)
        mirrored = ", each mirrored too" if self.flip else ""
        return f"{count} view{'s' * (count > 1)} (short side {sizes}; long side up to {self.max_size}{mirrored})"

    def forward(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Instances]]:
        """Detect.

        Args:
            batched_inputs: for each image ``image`` (C, H, W), uint8 or float, best in its original resolution as it
                is resized here; ``height`` and ``width`` that detections are scaled to (by default those of ``image``).

        Returns:
            As the model: for each image ``{"instances": Instances}``.

        Raises:
            RuntimeError: in training mode.
        """
        if self.training:
            raise RuntimeError("DetectionTTA is for inference; call eval() on it first.")
        with torch.no_grad():
            return [{"instances": self._detect(entry)} for entry in batched_inputs]

    def views(self, image_size: tuple[int, int], output_size: tuple[int, int]) -> list[View]:
        """The views of an image of ``image_size``: by size, the plain one before the mirrored one."""
        sizes = [T.ResizeShortestEdge.get_output_shape(*image_size, size, self.max_size) for size in self.min_sizes]
        return [View(size, output_size, mirrored) for size in sizes for mirrored in ([False, True][: 1 + self.flip])]

    def _detect(self, entry: dict[str, Any]) -> Instances:
        pixels = entry["image"].permute(1, 2, 0).cpu().numpy()
        height, width = pixels.shape[:2]
        output_size = (entry.get("height", height), entry.get("width", width))
        views = self.views((height, width), output_size)

        found = [self._boxes_in(view, pixels) for view in views]
        merged, seen_as, source = self._merge(found, views, output_size)
        if self._has_masks and len(merged):
            merged.pred_masks = self._mean_masks(views, pixels, merged, seen_as, source)
        merged = detector_postprocess(merged, *output_size)
        if self._has_masks and not merged.has("pred_masks"):
            merged.pred_masks = torch.zeros(0, *output_size, dtype=torch.bool, device=merged.scores.device)
        return merged

    @property
    def _has_masks(self) -> bool:
        return bool(getattr(getattr(self.model, "roi_heads", None), "mask_on", False))

    def _boxes_in(self, view: View, pixels: np.ndarray) -> Instances:
        """What the model finds in a view, in its pixels, before post-processing; masks are left out."""
        inputs, model = [{"image": view.of(pixels)}], self.model
        if isinstance(model, GeneralizedRCNN):
            with _without_masks(model.roi_heads):
                return model.inference(inputs, do_postprocess=False)[0]
        # Not by calling the model, which would cut boxes at the border: it suppresses overlaps before that.
        images = model.preprocess_image(inputs)
        features = model.backbone(images.tensor)
        used = [features[name] for name in model.head_in_features]
        return model.forward_inference(images, used, model.head(used))[0]

    def _merge(
        self, found: list[Instances], views: list[View], output_size: tuple[int, int]
    ) -> tuple[Instances, Tensor, Tensor]:
        """The detections of all views together.

        Returns:
            Those that remain, best first, in pixels of the output; their boxes in the pixels of the view that each
            was found in; and the index of that view.
        """
        in_views = [instances.pred_boxes.tensor for instances in found]
        boxes = torch.cat([view.boxes_to_output(b) for view, b in zip(views, in_views)])
        scores = torch.cat([instances.scores for instances in found])
        classes = torch.cat([instances.pred_classes for instances in found])
        source = torch.cat([torch.full((len(b),), i, device=b.device) for i, b in enumerate(in_views)])
        keep = batched_nms(boxes.float(), scores.float(), classes, self.nms_thresh)
        if self.max_detections >= 0:
            keep = keep[: self.max_detections]
        kept = Boxes(boxes[keep])
        kept.clip(output_size)
        merged = Instances(output_size, pred_boxes=kept, scores=scores[keep], pred_classes=classes[keep])
        return merged, torch.cat(in_views)[keep], source[keep]

    def _mean_masks(
        self, views: list[View], pixels: np.ndarray, merged: Instances, seen_as: Tensor, source: Tensor
    ) -> Tensor:
        """Mask probabilities (N, 1, M, M) of the merged boxes, the mean over the views."""
        total: Tensor | None = None
        for i, view in enumerate(views):
            # Where a box was found, it is the one that was found there: the way to the output and back would round it.
            boxes = view.boxes_from_output(merged.pred_boxes.tensor)
            boxes = torch.where((source == i)[:, None], seen_as, boxes)
            given = Instances(view.size, pred_boxes=Boxes(boxes), pred_classes=merged.pred_classes)
            answer = self.model.inference([{"image": view.of(pixels)}], [given], do_postprocess=False)[0]
            masks = answer.pred_masks.flip(3) if view.mirrored else answer.pred_masks
            total = masks if total is None else total + masks
        assert total is not None, "there is a view"
        return total / len(views)


@contextmanager
def _without_masks(roi_heads: Any) -> Iterator[None]:
    """Heads that predict no masks inside the block."""
    before = getattr(roi_heads, "mask_on", None)
    if before is None:
        yield
        return
    roi_heads.mask_on = False
    try:
        yield
    finally:
        roi_heads.mask_on = before


def _merging_limits(model: nn.Module) -> tuple[float, int]:
    """The model's IoU threshold of non-maximum suppression, and its largest number of detections.

    Raises:
        UserError: it is no detector that can be augmented.
    """
    if isinstance(model, GeneralizedRCNN):
        heads: Any = model.roi_heads
        missing = [what for what, absent in _lacking(model, heads).items() if absent]
        if missing:
            raise UserError(f"test-time augmentation is not for this {type(model).__name__}: {'; '.join(missing)}")
        predictor = heads.box_predictor
        last: Any = predictor[-1] if isinstance(predictor, (nn.ModuleList, list, tuple)) else predictor
        return last.test_nms_thresh, last.test_topk_per_image
    dense: Any = model
    if all(hasattr(dense, name) for name in ("forward_inference", "test_nms_thresh", "max_detections_per_image")):
        return dense.test_nms_thresh, dense.max_detections_per_image
    raise UserError(
        f"test-time augmentation (train.tta) is for GeneralizedRCNN and one-stage detectors, the model is a "
        f"{type(model).__name__}: set train.tta.enabled=False"
    )


def _lacking(model: GeneralizedRCNN, heads: Any) -> dict[str, bool]:
    return {
        "it has no proposal generator, and given proposals are not augmented": model.proposal_generator is None,
        "its roi_heads have no box_predictor": not hasattr(heads, "box_predictor"),
        "its keypoints would not be averaged": bool(getattr(heads, "keypoint_on", False)),
    }


def _checked_sizes(sizes: Sequence[int]) -> list[int]:
    sizes = list(sizes)
    wrong = [size for size in sizes if isinstance(size, bool) or not isinstance(size, int) or size < 1]
    if wrong or not sizes or len(set(sizes)) < len(sizes):
        what = f"has {wrong[0]!r}" if wrong else "repeats a size" if sizes else "is empty"
        raise UserError(
            f"test-time augmentation: train.tta sizes {sizes} {what}; give different positive whole numbers of pixels, "
            "such as train.tta.min_sizes=[600,800,1000]"
        )
    return sizes
