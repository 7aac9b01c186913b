"""Cityscapes, instances: 8 classes, masks from the instanceIds files, evaluated as the benchmark does."""

from elsa_det.d2 import LazyCall as L
from elsa_det.d2 import transforms as T
from elsa_det.evaluation import CityscapesInstanceEvaluator

from .coco import dataloader, dataset, resize

dataset.train.name = "elsa_cityscapes_instance_train"
dataset.test.name = "elsa_cityscapes_instance_val"
dataset.image_size = dict(train=[800, 832, 864, 896, 928, 960, 992, 1024], test=1024, longest=2048)

dataloader.train.mapper.augmentations = [L(T.RandomFlip)(horizontal=True), resize("train")]
dataloader.train.mapper.instance_mask_format = "bitmask"
dataloader.train.total_batch_size = 8
dataloader.evaluator = L(CityscapesInstanceEvaluator)(
    dataset_name="${..test.dataset.names}", output_dir="${train.output_dir}"
)
