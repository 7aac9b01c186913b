"""Cityscapes, semantic: 19 classes, evaluated as the benchmark does."""

from elsa_det.evaluation import CityscapesSemanticEvaluator

from .semantic_folders import dataloader, dataset

dataset.train.name = "elsa_cityscapes_semantic_train"
dataset.test.name = "elsa_cityscapes_semantic_val"
dataset.num_classes = 19
dataset.image_size.short = 1024
dataset.image_size.crop = [512, 1024]
dataset.inference.stride = [341, 683]

dataloader.evaluator._target_ = CityscapesSemanticEvaluator
