"""UPerNet, Swin-T, 160k iterations on ADE20K: the baseline. Paper: 45.8 mIoU (several sizes and mirrored)."""

from ..common.data.ade20k import dataloader, dataset
from ..common.models.backbones import swin
from ..common.models.upernet import model
from ..common.optim import optimizer
from ..common.schedules.ade20k import lr_multiplier_160k as lr_multiplier
from ..common.schedules.ade20k import max_iter_160k
from ..common.train import train

model.backbone = swin("tiny", drop_path_rate=0.3)
model.decode_head.num_classes = "${dataset.num_classes}"
model.decode_head.ignore_label = "${dataset.ignore_label}"

optimizer.lr = 6e-5
optimizer.weight_decay = 0.01

train.init_checkpoint = "pretrained/swin_tiny_patch4_window7_224.pth"
train.max_iter = max_iter_160k
train.eval_period = 16_000
train.checkpointer.period = 16_000
train.log_period = 50
train.output_dir = "output/swin_t_upernet_160k"
