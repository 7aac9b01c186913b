"""Cascade Mask R-CNN, ELSA-Swin-T, for own data in COCO format: ``elsa_t_mrcnn`` with the model of the cascade."""

from ..coco.elsa_t_cascade_1x import model, optimizer
from ..common.data.own_coco import classes_of_the_data
from .elsa_t_mrcnn import dataloader, dataset, lr_multiplier, train

model.roi_heads.num_classes = classes_of_the_data()
optimizer.lr = 5e-5
train.output_dir = "output/own_elsa_t_cascade"
