"""Mask R-CNN on ELSA-Swin-nano for the synthetic quickstart set: minutes on a CPU, from scratch."""

from fvcore.common.param_scheduler import CosineParamScheduler

from elsa_det.d2 import LazyCall as L
from elsa_det.d2 import WarmupParamScheduler
from elsa_det.d2 import transforms as T
from elsa_det.data import RandomTranspose

from ..common.data.coco import dataloader, dataset
from ..common.models.backbones import elsa_swin
from ..common.models.mask_rcnn import model
from ..common.optim import optimizer
from ..common.train import train

root = "datasets/quickstart"
dataset.train.json_file = f"{root}/annotations/instances_train.json"
dataset.train.image_root = f"{root}/train"
dataset.test.json_file = f"{root}/annotations/instances_val.json"
dataset.test.image_root = f"{root}/val"

model.backbone.bottom_up = elsa_swin("nano", drop_path_rate=0.0)
model.backbone.out_channels = 64
model.backbone.top_block = None
model.proposal_generator.in_features = ("p2", "p3", "p4", "p5")
model.proposal_generator.anchor_generator.sizes = [[18], [32], [56], [80]]
model.proposal_generator.anchor_generator.strides = [4, 8, 16, 32]
model.proposal_generator.batch_size_per_image = 64
model.proposal_generator.pre_nms_topk = (400, 300)
model.proposal_generator.post_nms_topk = (150, 100)
model.roi_heads.num_classes = 6
model.roi_heads.batch_size_per_image = 32
model.roi_heads.positive_fraction = 0.5
for pooler in (model.roi_heads.box_pooler, model.roi_heads.mask_pooler):
    pooler.canonical_box_size = 112  # objects of more than 56 pixels are pooled from stride 8
del pooler
model.roi_heads.box_head.fc_dims = [256, 256]
model.roi_heads.mask_head.conv_dims = [64, 64, 64]
model.roi_heads.mask_head.num_classes = 1  # one mask for all classes

dataloader.train.mapper.augmentations = [
    L(T.RandomFlip)(horizontal=True),
    L(T.RandomFlip)(horizontal=False, vertical=True),
    L(RandomTranspose)(),
]
dataloader.train.total_batch_size = 4
dataloader.train.num_workers = 0
dataloader.test.mapper.augmentations = []
dataloader.test.num_workers = 0

optimizer.lr = 1e-3
optimizer.fused = True
lr_multiplier = L(WarmupParamScheduler)(
    scheduler=L(CosineParamScheduler)(start_value=1.0, end_value=0.01),
    warmup_length=0.03,
    warmup_method="linear",
    warmup_factor=0.01,
)

train.init_checkpoint = "none"
train.max_iter = 3600
train.eval_period = 1200
train.checkpointer.period = 1200
train.log_period = 20
train.clip_grad_norm = 3.0
train.seed = 7
train.output_dir = "output/quickstart"
