"""LVIS v1: the images of COCO with 1203 classes, rare ones repeated, evaluated as a federated set."""

from elsa_det.d2 import LazyCall as L
from elsa_det.d2 import LVISEvaluator, RepeatFactorTrainingSampler
from elsa_det.data import registered_lvis

from .coco import dataloader, dataset

dataset.train.name = "lvis_v1_train"
dataset.test.name = "lvis_v1_val"

for loader in (dataloader.train, dataloader.test):
    loader.dataset.names._target_ = registered_lvis

# An image comes as often as its rarest class asks for: more than once an epoch if that is in less than 0.1 % of them.
dataloader.train.sampler = L(RepeatFactorTrainingSampler)(
    repeat_factors=L(RepeatFactorTrainingSampler.repeat_factors_from_category_frequency)(
        dataset_dicts="${dataloader.train.dataset}", repeat_thresh=0.001
    )
)
dataloader.evaluator = L(LVISEvaluator)(
    dataset_name="${..test.dataset.names}", output_dir="${train.output_dir}", max_dets_per_image=300
)
