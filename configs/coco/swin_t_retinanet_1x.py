"""RetinaNet, Swin-T, 12 epochs on COCO, boxes only: the baseline of elsa_t_retinanet_1x."""

from ..common.models.backbones import swin
from ..common.models.retinanet import model
from .swin_t_mrcnn_1x import dataloader, dataset, lr_multiplier, optimizer, train

# The pyramid starts at stride 8.
model.backbone.bottom_up = swin("tiny", drop_path_rate=0.1, out_indices=(1, 2, 3))

dataloader.train.mapper.update(use_instance_mask=False, recompute_boxes=False)
train.output_dir = "output/swin_t_retinanet_1x"
