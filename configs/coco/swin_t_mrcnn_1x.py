"""Mask R-CNN, Swin-T, 12 epochs on COCO: the baseline. Paper: 43.7 box AP, 39.8 mask AP."""

from ..common.data.coco import dataloader, dataset
from ..common.models.backbones import swin
from ..common.models.mask_rcnn import model
from ..common.optim import optimizer
from ..common.schedules.coco import lr_multiplier_1x as lr_multiplier
from ..common.schedules.coco import max_iter_1x
from ..common.train import train

model.backbone.bottom_up = swin("tiny", drop_path_rate=0.1)

train.init_checkpoint = "pretrained/swin_tiny_patch4_window7_224.pth"
train.max_iter = max_iter_1x
train.output_dir = "output/swin_t_mrcnn_1x"
