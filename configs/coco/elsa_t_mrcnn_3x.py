"""Mask R-CNN, ELSA-Swin-T, 36 epochs on COCO. Paper: 47.5 box AP, 42.7 mask AP."""

from ..common.schedules.coco import lr_multiplier_3x as lr_multiplier
from ..common.schedules.coco import max_iter_3x
from .elsa_t_mrcnn_1x import dataloader, dataset, model, optimizer, train

model.backbone.bottom_up.drop_path_rate = 0.2

train.max_iter = max_iter_3x
train.output_dir = "output/elsa_t_mrcnn_3x"
