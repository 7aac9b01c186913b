"""Mask R-CNN, Swin-B, 12 epochs on COCO: the baseline.

The paper has no detector of this size; drop_path_rate is our choice.
"""

from ..common.models.backbones import swin
from .swin_t_mrcnn_1x import dataloader, dataset, lr_multiplier, model, optimizer, train

model.backbone.bottom_up = swin("base", drop_path_rate=0.3)

train.init_checkpoint = "pretrained/swin_base_patch4_window7_224.pth"
train.output_dir = "output/swin_b_mrcnn_1x"
