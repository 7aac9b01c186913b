"""RetinaNet, ELSA-Swin-T, 12 epochs on COCO, boxes only. The paper has no RetinaNet: the recipe is its Mask R-CNN's."""

from ..common.models.backbones import elsa_swin
from ..common.models.retinanet import model
from .elsa_t_mrcnn_1x import dataloader, dataset, lr_multiplier, optimizer, train

# The pyramid starts at stride 8.
model.backbone.bottom_up = elsa_swin("tiny", drop_path_rate=0.1, out_indices=(1, 2, 3))

dataloader.train.mapper.update(use_instance_mask=False, recompute_boxes=False)
train.output_dir = "output/elsa_t_retinanet_1x"
