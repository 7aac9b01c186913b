"""From the quickstart's weights to own photographs in COCO format, in minutes on a CPU.

Set ``dataset.{train,test}.{json_file,image_root}`` and ``model.roi_heads.num_classes``.
"""

from elsa_det.d2 import LazyCall as L
from elsa_det.d2 import transforms as T

from ..common.data.coco import resize
from .elsa_nano_mrcnn import dataloader, dataset, lr_multiplier, model, optimizer, train

for split in (dataset.train, dataset.test):
    split.name = split.json_file = split.image_root = None
del split

dataloader.train.mapper.augmentations = [
    L(T.RandomFlip)(horizontal=True),
    L(T.RandomBrightness)(intensity_min=0.8, intensity_max=1.2),
    L(T.RandomContrast)(intensity_min=0.8, intensity_max=1.2),
    resize("train"),
]
dataloader.test.mapper.augmentations = [resize("test")]
dataset.image_size = dict(train=[208, 240, 272, 304], test=256, longest=480)

model.proposal_generator.pre_nms_topk = (1000, 500)
model.proposal_generator.post_nms_topk = (300, 200)

optimizer.lr = 5e-4
train.init_checkpoint = "output/quickstart/model_final.pth"
train.init_allow_mismatch = True
train.max_iter = 600
train.eval_period = 200
train.checkpointer.period = 200
train.output_dir = "output/finetune"
