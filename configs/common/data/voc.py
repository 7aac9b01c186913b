"""PASCAL VOC 2012 segmentation: 20 classes and the background."""

from .semantic_folders import dataloader, dataset

dataset.train.name = "elsa_voc_2012_train"
dataset.test.name = "elsa_voc_2012_val"
dataset.num_classes = 21
