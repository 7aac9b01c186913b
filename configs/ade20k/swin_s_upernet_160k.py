"""UPerNet, Swin-S, 160k iterations on ADE20K: the baseline. Paper: 49.5 mIoU (several sizes and mirrored)."""

from ..common.models.backbones import swin
from .swin_t_upernet_160k import dataloader, dataset, lr_multiplier, model, optimizer, train

model.backbone = swin("small", drop_path_rate=0.3)

train.init_checkpoint = "pretrained/swin_small_patch4_window7_224.pth"
train.output_dir = "output/swin_s_upernet_160k"
