"""Mask R-CNN, ELSA-Swin-T, 12 epochs on COCO. Paper: 45.6 box AP, 41.1 mask AP (released weights: 45.7)."""

from ..common.data.coco import dataloader, dataset
from ..common.models.backbones import elsa_swin
from ..common.models.mask_rcnn import model
from ..common.optim import optimizer
from ..common.schedules.coco import lr_multiplier_1x as lr_multiplier
from ..common.schedules.coco import max_iter_1x
from ..common.train import train

model.backbone.bottom_up = elsa_swin("tiny", drop_path_rate=0.1)
# The release decays the position bias of the window attention in ELSA's last stage.
optimizer.params.overrides.pop("relative_position_bias_table")

train.init_checkpoint = "pretrained/elsa_swin_tiny.pth"
train.max_iter = max_iter_1x
train.output_dir = "output/elsa_t_mrcnn_1x"
