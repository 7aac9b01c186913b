"""Cascade Mask R-CNN for the synthetic quickstart set: ``elsa_nano_mrcnn`` with a small cascade for its heads.

All else is the same, so that the two can be compared at equal iterations.
"""

from ..common.models.cascade_mask_rcnn import model as cascade
from .elsa_nano_mrcnn import dataloader, dataset, lr_multiplier, model, optimizer, train

for key in ("num_classes", "batch_size_per_image", "positive_fraction", "box_pooler", "mask_pooler"):
    cascade.roi_heads[key] = model.roi_heads[key]
cascade.roi_heads.box_head[0].update(conv_dims=[64, 64], fc_dims=[256])
cascade.roi_heads.mask_head[0].update(conv_dims=[64, 64, 64], num_classes=1)
model.roi_heads = cascade.roi_heads
del cascade, key

train.output_dir = "output/quickstart_cascade"
