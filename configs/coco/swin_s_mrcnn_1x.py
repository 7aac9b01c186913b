"""Mask R-CNN, Swin-S, 12 epochs on COCO: the baseline. Paper: 46.5 box AP, 42.1 mask AP."""

from ..common.models.backbones import swin
from .swin_t_mrcnn_1x import dataloader, dataset, lr_multiplier, model, optimizer, train

model.backbone.bottom_up = swin("small", drop_path_rate=0.2)

train.init_checkpoint = "pretrained/swin_small_patch4_window7_224.pth"
train.output_dir = "output/swin_s_mrcnn_1x"
