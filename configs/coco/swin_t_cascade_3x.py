"""Cascade Mask R-CNN, Swin-T, 36 epochs on COCO: the baseline. Paper: 50.5 box AP, 43.7 mask AP."""

from ..common.schedules.coco import lr_multiplier_3x as lr_multiplier
from ..common.schedules.coco import max_iter_3x
from .swin_t_cascade_1x import dataloader, dataset, model, optimizer, train

model.backbone.bottom_up.drop_path_rate = 0.2

train.max_iter = max_iter_3x
train.output_dir = "output/swin_t_cascade_3x"
