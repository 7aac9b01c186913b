"""Mask R-CNN, ELSA-Swin-T, 24k iterations of 8 images on Cityscapes. The paper has no such model.

COCO's recipe; length and image sizes are those that Detectron2 trains its baseline with.
"""

from ..coco.elsa_t_mrcnn_1x import model, optimizer, train
from ..common.data.cityscapes_instance import dataloader, dataset
from ..common.schedules.coco import multistep

model.roi_heads.num_classes = 8

train.max_iter = 24_000
train.eval_period = 8_000
train.checkpointer.period = 8_000
train.output_dir = "output/cityscapes_elsa_t_mrcnn"

lr_multiplier = multistep(24_000, (18_000, 22_000))
