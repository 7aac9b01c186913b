"""RetinaNet, ELSA-Swin-T, for own data in COCO format, boxes only: ``elsa_t_mrcnn`` with the model of RetinaNet."""

from ..coco.elsa_t_retinanet_1x import model
from ..common.data.own_coco import classes_of_the_data
from .elsa_t_mrcnn import dataloader, dataset, lr_multiplier, optimizer, train

model.num_classes = classes_of_the_data()
dataloader.train.mapper.update(use_instance_mask=False, recompute_boxes=False)
train.output_dir = "output/own_elsa_t_retinanet"
