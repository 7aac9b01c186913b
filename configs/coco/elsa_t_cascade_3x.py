"""Cascade Mask R-CNN, ELSA-Swin-T, 36 epochs on COCO. Paper: 51.1 box AP, 44.2 mask AP (released weights: 51.0)."""

from ..common.schedules.coco import lr_multiplier_3x as lr_multiplier
from ..common.schedules.coco import max_iter_3x
from .elsa_t_cascade_1x import dataloader, dataset, model, optimizer, train

model.backbone.bottom_up.drop_path_rate = 0.2

train.max_iter = max_iter_3x
train.output_dir = "output/elsa_t_cascade_3x"
