"""Cascade Mask R-CNN, Swin-S, 12 epochs on COCO: the baseline. Paper: 50.3 box AP, 43.4 mask AP."""

from ..common.models.backbones import swin
from .swin_t_cascade_1x import dataloader, dataset, lr_multiplier, model, optimizer, train

model.backbone.bottom_up = swin("small", drop_path_rate=0.2)

train.init_checkpoint = "pretrained/swin_small_patch4_window7_224.pth"
train.output_dir = "output/swin_s_cascade_1x"
