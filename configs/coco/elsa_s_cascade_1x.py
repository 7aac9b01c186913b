"""Cascade Mask R-CNN, ELSA-Swin-S, 12 epochs on COCO. Paper: 51.6 box AP, 44.4 mask AP."""

from ..common.models.backbones import elsa_swin
from .elsa_t_cascade_1x import dataloader, dataset, lr_multiplier, model, optimizer, train

model.backbone.bottom_up = elsa_swin("small", drop_path_rate=0.2)

train.init_checkpoint = "pretrained/elsa_swin_small.pth"
train.output_dir = "output/elsa_s_cascade_1x"
