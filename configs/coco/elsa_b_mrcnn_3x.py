"""Mask R-CNN, ELSA-Swin-B, 36 epochs on COCO.

The paper has no detector of this size; drop_path_rate is that of S.
"""

from ..common.schedules.coco import lr_multiplier_3x as lr_multiplier
from ..common.schedules.coco import max_iter_3x
from .elsa_b_mrcnn_1x import dataloader, dataset, model, optimizer, train

model.backbone.bottom_up.drop_path_rate = 0.75

train.max_iter = max_iter_3x
train.output_dir = "output/elsa_b_mrcnn_3x"
