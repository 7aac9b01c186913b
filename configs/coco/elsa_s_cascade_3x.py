"""Cascade Mask R-CNN, ELSA-Swin-S, 36 epochs on COCO. Paper: 52.3 box AP, 45.2 mask AP."""

from ..common.schedules.coco import lr_multiplier_3x as lr_multiplier
from ..common.schedules.coco import max_iter_3x
from .elsa_s_cascade_1x import dataloader, dataset, model, optimizer, train

model.backbone.bottom_up.drop_path_rate = 0.75

train.max_iter = max_iter_3x
train.output_dir = "output/elsa_s_cascade_3x"
