"""From the resolution that a model works in back to that of the image it was given."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ..layers import paste_masks_in_image
from ..structures import Instances
from ..utils.memory import retry_if_cuda_oom

__all__ = ["detector_postprocess", "sem_seg_postprocess"]


def detector_postprocess(
    results: Instances, output_height: int, output_width: int, mask_threshold: float = 0.5
) -> Instances:
    """Scale detections from ``results.image_size`` to (output_height, output_width), in pixels.

    Boxes are clipped to the image, and those that end up empty are dropped. Mask probabilities (N, 1, M, M) in
    ``pred_masks`` become bool masks (N, output_height, output_width), true from ``mask_threshold`` on.
    The boxes of ``results`` are changed in place.

    Raises:
        ValueError: ``results`` has neither ``pred_boxes`` nor ``proposal_boxes``.
    """
    scale_y, scale_x = output_height / results.image_size[0], output_width / results.image_size[1]
    results = Instances((output_height, output_width), **results.get_fields())
    name = next((name for name in ("pred_boxes", "proposal_boxes") if results.has(name)), None)
    if name is None:
        raise ValueError(f"detector_postprocess: no pred_boxes or proposal_boxes among {list(results.get_fields())}.")
    boxes = results.get(name)
    boxes.scale(scale_x, scale_y)
    boxes.clip(results.image_size)
    results = results[boxes.nonempty()]
    if results.has("pred_masks"):
        paste = retry_if_cuda_oom(paste_masks_in_image)
        masks, size = results.pred_masks[:, 0], results.image_size
        results.pred_masks = paste(masks, results.pred_boxes.tensor, size, threshold=mask_threshold)
    return results


def sem_seg_postprocess(result: Tensor, img_size: tuple[int, int], output_height: int, output_width: int) -> Tensor:
    """Cut the padding off semantic scores (C, H, W) and resize them, bilinear, to (C, output_height, output_width).

    ``img_size``: (height, width) of the image before it was padded.
    """
    unpadded = result[None, :, : img_size[0], : img_size[1]]
    return F.interpolate(unpadded, size=(output_height, output_width), mode="bilinear", align_corners=False)[0]
