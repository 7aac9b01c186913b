"""UPerNet on ELSA-Swin-nano for the label maps of the synthetic quickstart set: minutes on a CPU, from scratch."""

from elsa_det.d2 import LazyCall as L
from elsa_det.d2 import transforms as T
from elsa_det.data import RandomTranspose
from elsa_det.data.shapes import CLASSES

from ..common.data.semantic_folders import dataloader, dataset
from ..common.models.backbones import elsa_swin
from ..common.models.upernet import model
from .elsa_nano_mrcnn import lr_multiplier, optimizer, train

root = "datasets/quickstart"
dataset.train.image_root = f"{root}/train"
dataset.train.label_root = f"{root}/labels/train"
dataset.test.image_root = f"{root}/val"
dataset.test.label_root = f"{root}/labels/val"
dataset.classes = ["ground", *CLASSES]
dataset.num_classes = 7
dataset.image_size = dict(short=128, long=512, ratio=[1.0, 1.0], crop=[128, 128], crop_class_share=1.0)
dataset.inference.stride = [64, 64]

model.backbone = elsa_swin("nano", drop_path_rate=0.0)
model.decode_head.num_classes = "${dataset.num_classes}"
model.decode_head.ignore_label = "${dataset.ignore_label}"
model.decode_head.channels = 64
model.decode_head.dropout_ratio = 0.0
model.decode_head.norm = "GN"  # eight images are few for batch statistics of 1×1 maps
model.auxiliary_head.channels = 32

# Neither scale nor colour is changed: a training of minutes has none to spare for what the test images do not have.
dataloader.train.mapper.augmentations = [
    L(T.RandomFlip)(horizontal=True),
    L(T.RandomFlip)(horizontal=False, vertical=True),
    L(RandomTranspose)(),
]
dataloader.train.total_batch_size = 8
dataloader.train.num_workers = 0
dataloader.test.num_workers = 0

optimizer.lr = 3e-3
optimizer.weight_decay = 0.01

train.max_iter = 6000
train.eval_period = 2000
train.checkpointer.period = 2000
train.output_dir = "output/quickstart_upernet"
