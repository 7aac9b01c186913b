"""ADE20K with 150 classes (ADEChallengeData2016, as published)."""

from .semantic_folders import dataloader, dataset

dataset.train.name = "elsa_ade20k_train"
dataset.test.name = "elsa_ade20k_val"
dataset.num_classes = 150
