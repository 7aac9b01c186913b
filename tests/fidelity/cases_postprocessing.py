"""Detections in the resolution of the original image."""

from __future__ import annotations

import torch
from d2_access import d2_module
from fidelity.harness import case, digest, generator, of_instances, random_boxes

from elsa_det import d2


@case(
    "detector_postprocess",
    what="scaled and clipped boxes, pasted masks of every pixel, dropped empty boxes",
    rtol=1e-6,
    atol=1e-5,
)
def postprocessing():
    out = {}
    boxes = random_boxes(6, 60, 80, 1)
    boxes[2, 2] = boxes[2, 0]  # no area
    boxes[3] += 30
    for name, size, threshold in (("larger", (123, 161), 0.5), ("smaller", (31, 44), 0.3), ("same", (60, 80), 0.5)):
        found = d2.Instances(
            (60, 80),
            pred_boxes=d2.Boxes(boxes.clone()),
            scores=torch.rand(6, generator=generator(2)),
            pred_classes=torch.arange(6),
        )
        found.pred_masks = torch.rand(6, 1, 7, 7, generator=generator(3))
        result = d2.detector_postprocess(found, *size, mask_threshold=threshold)
        masks = result.pred_masks
        result.remove("pred_masks")
        out[name] = {"fields": of_instances(result), "masks": digest(masks), "areas": masks.sum((1, 2))}
    proposals = d2.Instances((60, 80), proposal_boxes=d2.Boxes(boxes.clone()))
    out["proposals"] = of_instances(d2.detector_postprocess(proposals, 90, 100))
    paste = d2_module("layers.mask_ops").paste_masks_in_image
    out["soft"] = [digest(paste(torch.rand(2, 7, 7, generator=generator(4)), boxes[:2], (60, 80), threshold=-1))]
    segmentation = d2_module("modeling.postprocessing").sem_seg_postprocess
    out["segmentation"] = segmentation(torch.randn(3, 8, 8, generator=generator(5)), (6, 7), 9, 11)
    return out
