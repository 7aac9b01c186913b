"""Mask R-CNN, ELSA-Swin-B, 12 epochs on COCO.

The paper has no detector of this size; drop_path_rate is our choice.
"""

from ..common.models.backbones import elsa_swin
from .elsa_t_mrcnn_1x import dataloader, dataset, lr_multiplier, model, optimizer, train

model.backbone.bottom_up = elsa_swin("base", drop_path_rate=0.3)

train.init_checkpoint = "pretrained/elsa_swin_base.pth"
train.output_dir = "output/elsa_b_mrcnn_1x"
